"""Chains on the density of the global latents, where a Gaussian is too far from it for weights.

No-U-Turn chains begin at draws of Laplace's Gaussian, in whose standard deviations they walk. The local latents are integrated
out inside, so that the chains move the globals alone, however many rows there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from inference._mcmc.chains import Chains, Drawn
from inference._mcmc.diagnose import Diagnosis, diagnose
from inference._mcmc.recorded import Gradient
from inference._numerics.peak import Density

CHAINS, WARMUP, KEPT = 4, 80, 600
ACCEPTANCE, DEPTH = 0.7, 5  # DEPTH: of a trajectory's tree
APART = 1.05  # R-hat, from which draws do not stand for the posterior
LEAST_DRAWS = 200  # effective, of each number


@dataclass(frozen=True)
class Walked:
    """What the chains leave: draws of the globals [C, S, d], and what speaks against them."""

    flat: Tensor
    drawn: Drawn
    told: Diagnosis

    @property
    def trusted(self) -> bool:
        """Whether the draws stand for the posterior better than a Gaussian at its mode."""
        told = self.told
        few = min(*told.ess_bulk.values(), *told.ess_tail.values()) < LEAST_DRAWS
        return max(told.rhat.values()) < APART and not few and not told.diverging and not told.together


def walked(
    densities: Density,
    mode: Tensor,
    tril: Tensor,
    named: Callable[[Tensor], Mapping[str, Tensor]],
    seed: int,
    step: Callable[[], None],
) -> Walked:
    """Chains about a mode [d] with the root of a covariance there; `named`: draws [C, S, d] as values of the latents."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randn(CHAINS, len(mode), generator=generator, dtype=torch.float64)
    gradient = Gradient(lambda away: densities(mode + away @ tril.mT), starts)
    with np.errstate(all="ignore"):
        chains = Chains(gradient, starts.numpy(), seed, ACCEPTANCE, DEPTH, "diagonal")
        chains.warm_up(WARMUP, step)
        drawn = chains.draw(KEPT, step)
    flat = mode + torch.from_numpy(drawn.flat) @ tril.mT
    values = {n: v.numpy() for n, v in named(flat).items()}
    return Walked(flat, drawn, diagnose(drawn, values, DEPTH))
