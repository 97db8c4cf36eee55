"""Draws of the global latents weighed by their density: what a Gaussian at the mode misses, where the weights can be trusted.

The proposal begins at the mode, with a Student t for a Gaussian, and follows its own weighted draws (`following`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inference._method.estimates import Estimates
from inference._sampling.following import followed
from inference._sampling.student import Mixture

MOST = 100  # numbers of the globals
ROUNDS = 8
CANDIDATES = 2000  # draws of the last mixture
WIDE = 9.0  # times the covariance at the mode, of the share of the draws that looks further away


@dataclass(frozen=True)
class Weighed:
    """Fresh draws u [S, d] of the globals, shares [S] of their weights, and what these say of log p(x)."""

    flat: Tensor
    shares: Tensor
    told: Estimates
    rounds: int

    @property
    def trusted(self) -> bool:
        """Whether k-hat and the effective draws allow the weights to stand for the posterior."""
        return not bool(self.told.doubtful[0])


@torch.no_grad()
def weighed(
    densities: Callable[[Tensor], Tensor], mode: Tensor, covariance: Tensor, seed: int, step: Callable[..., object]
) -> Weighed:
    """Draws about a mode [d], weighed by log-densities of points side by side."""
    generator = torch.Generator().manual_seed(seed)
    mean, spread = mode.double().unsqueeze(0), covariance.double().unsqueeze(0)

    def draw(mixture: Mixture, count: int) -> tuple[Tensor, Tensor, Tensor]:
        flat = mixture.draw(count, generator)
        log_p = densities(flat.to(mode)).double().nan_to_num(-torch.inf, -torch.inf, -torch.inf)
        return flat, log_p, mixture.log_prob(flat)

    last, rounds = followed(draw, Mixture.of(mean, spread), Mixture.of(mean, WIDE * spread), ROUNDS, step)
    flat, log_p, log_q = draw(last, CANDIDATES)
    log_weights = log_p - log_q
    return Weighed(flat.to(mode), log_weights.softmax(0).to(mode), Estimates.of(log_weights.unsqueeze(1)), rounds)
