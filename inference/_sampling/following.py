"""Rounds of importance sampling by a mixture of Student t's that follows its own weighted draws.

Cornuet, Marin, Mira & Robert 2012 (AMIS): each round draws from the mixture, weighs the draws of the last rounds by the mixture
of their proposals, and moves the components to them. Where few draws have any weight it follows weights to a power below 1,
which have more. The rounds end where Pareto k-hat allows it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from inference._numerics.psis import psis
from inference._sampling.khat import LIMIT
from inference._sampling.student import Mixture

ROUND = 1000  # draws of one
DEFENSIVE = 0.05  # the share of draws that are wide, so that a far mode is seen
ENOUGH = 0.2  # effective draws, as a share of all, at which no round more is needed

Draw = Callable[
    [Mixture, int], tuple[Tensor, Tensor, Tensor]
]  # points [S, d] of it, their log-densities, the proposal's
_Kept = tuple[Mixture, Tensor, Tensor]


def followed(
    draw: Draw, mixture: Mixture, wide: Mixture, rounds: int, step: Callable[..., object]
) -> tuple[Mixture, int]:
    """The mixture after as many rounds as are needed, and their number; `wide` has a share of every mixture but the first."""
    kept: list[_Kept] = []
    best, most = mixture, -1.0
    count = max(ROUND, 20 * mixture.centers.shape[1])
    for k in range(rounds):
        flat, log_p, log_q = draw(mixture, count)
        (khat,), (ess,) = psis((log_p - log_q).unsqueeze(1).numpy())
        step(note=f"k-hat {khat:.2f}, {ess:.0f} of {count} draws")
        score = ess / count - (1.0 if not khat <= LIMIT else 0.0)
        if score > most:
            best, most = mixture, score
        if khat <= LIMIT and ess >= ENOUGH * count:
            return mixture, k + 1
        kept = [*kept, (mixture, flat, log_p)][-3:]
        mixture = _moved(mixture, wide, kept)
    return best, rounds


def _moved(mixture: Mixture, wide: Mixture, kept: list[_Kept]) -> Mixture:
    """The mixture moved to the draws of some rounds, weighed by the mean of their proposals."""
    flat, log_p = torch.cat([k[1] for k in kept]), torch.cat([k[2] for k in kept])
    densities = torch.stack([before.log_prob(flat) for before, _, _ in kept]).logsumexp(0)
    log_weights = log_p - densities
    if not bool(log_weights.isfinite().any()):
        return mixture
    return mixture.follow(flat, _tempered(log_weights, 10.0 * flat.shape[1])).beside(wide, DEFENSIVE)


def _tempered(log_weights: Tensor, least: float) -> Tensor:
    """Weights to the largest power, at most 1, at which `least` of them count (a tenth of all at most); they sum to 1."""
    least = min(least, 0.1 * len(log_weights))
    power = 1.0
    for _ in range(60):
        share = (power * log_weights.clamp(min=-1e30)).softmax(0)
        if float(1 / share.square().sum()) >= least:
            break
        power *= 0.8
    return share
