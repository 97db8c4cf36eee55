"""Draws of the global latents weighed by their density: what a Gaussian at the mode misses, where the weights can be trusted.

The proposal begins at the mode, with a Student t for a Gaussian, and follows its own weighted draws (`following`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inference._mcmc.posterior import Posterior
from inference._method.estimates import Estimates
from inference._numerics.peak import Density
from inference._sampling.following import followed
from inference._sampling.nested import Nested, settled
from inference._sampling.student import Mixture

MOST = 100  # numbers of the globals
ROUNDS, CANDIDATES = 8, 10_000  # draws of the last mixture
SLOWLY = 4, 2000  # both, where a density takes milliseconds
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
    densities: Density, mode: Tensor, covariance: Tensor, seed: int, step: Callable[..., object], slowly: bool
) -> Weighed:
    """Draws about a mode [d], weighed by log-densities of points side by side."""
    generator = torch.Generator().manual_seed(seed)

    def draw(mixture: Mixture, count: int) -> tuple[Tensor, Tensor, Tensor]:
        flat = mixture.draw(count, generator)
        return flat, settled(densities(flat.to(mode)).double()), mixture.log_prob(flat)

    last, wide = _about(mode, covariance)
    rounds, count = SLOWLY if slowly else (ROUNDS, CANDIDATES)
    last, rounds = followed(draw, last, wide, rounds, step)
    return _found(*draw(last, count), rounds, mode)


@torch.no_grad()
def nested(
    posterior: Posterior, mode: Tensor, covariance: Tensor, seed: int, step: Callable[..., object]
) -> Weighed | None:
    """The same in a posterior's own coordinates: those with normal priors at their mode given the others; None without such."""
    group = posterior.normal_group()
    if group is None:
        return None
    outer, inner = group
    generator = torch.Generator().manual_seed(seed)
    rows = Nested(posterior.whole, outer, inner, posterior.width, generator)

    def draw(mixture: Mixture, count: int) -> tuple[Tensor, Tensor, Tensor]:
        own = mixture.draw(count, generator)
        log_p, flat = rows.weigh(own)
        return flat, log_p, mixture.log_prob(own)

    def outside(mixture: Mixture, count: int) -> tuple[Tensor, Tensor, Tensor]:
        flat, log_p, log_q = draw(mixture, count)
        return flat[:, outer], log_p, log_q

    last, wide = (m.marginal(outer) for m in _about(mode, covariance))
    last, rounds = followed(outside, last, wide, ROUNDS, step)
    return _found(*draw(last, SLOWLY[1]), rounds, mode)


def _about(mode: Tensor, covariance: Tensor) -> tuple[Mixture, Mixture]:
    """The first proposal, and a wide one."""
    mean, spread = mode.double().unsqueeze(0), covariance.double().unsqueeze(0)
    return Mixture.of(mean, spread), Mixture.of(mean, WIDE * spread)


def _found(flat: Tensor, log_p: Tensor, log_q: Tensor, rounds: int, like: Tensor) -> Weighed:
    log_weights = log_p - log_q
    return Weighed(flat.to(like), log_weights.softmax(0).to(like), Estimates.of(log_weights.unsqueeze(1)), rounds)
