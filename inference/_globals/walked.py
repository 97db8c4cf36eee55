"""Do weighted draws stay where they are? Short Hamiltonian walks from them, which leave the posterior as it is.

Weights can only tell of what the proposal has reached. In the neck of a funnel, or where the posterior has no integral, there
is mass that no draw came near, and k-hat of those that were drawn looks fine. A walk from a draw goes there in a few steps. If
the draws are of the posterior, then so are the ends, and hardly any end has a greater weight than all of the draws.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from inference._globals.modes import DRAWS
from inference._globals.target import Target
from inference._numerics.psis import psis, smoothed
from inference._sampling.khat import LIMIT

WALKERS, WALKS, LEAPFROG = DRAWS, 50, 5
ACCEPTANCE, GAIN, SHORT = (
    0.8,
    0.3,
    0.1,
)  # of walks; of log sizes, in what acceptance is off by; the smallest share of a size
SPARE = 3.0  # ends that may be beyond all draws, and errors of the count that is expected
WORK = 2**32  # numbers in all evaluations


def beyond(target: Target, flat: Tensor, log_weights: Tensor, weigh: Callable[[Tensor], Tensor]) -> float:
    """The share of walks from draws flat [S, d] that end beyond the largest log-weight [S]; 0 where that may be chance.

    `weigh`: the log-weights [B] of points [B, d].
    """
    share = torch.from_numpy(smoothed(log_weights.numpy()))
    if not target.posterior.side_by_side or WALKERS * WALKS * LEAPFROG * target.posterior.width > WORK:
        return 0.0
    generator = torch.Generator().manual_seed(target.task.seed + 1)
    chosen = torch.multinomial(share, WALKERS, replacement=True, generator=generator)
    center = share @ flat
    scale = (share @ (flat - center).square()).sqrt().clamp(min=1e-8)
    ends = _walk(target, flat[chosen], scale, generator)
    count = int((weigh(ends) > log_weights.max() + 1e-6).sum())
    khat = float(np.clip(psis(log_weights.unsqueeze(1).numpy())[0][0], 0.0, LIMIT))
    expected = WALKERS * khat / (1 - khat) * float(log_weights.softmax(0).max())
    return count / WALKERS if count > expected + SPARE * (1 + expected**0.5) else 0.0


def _walk(target: Target, begin: Tensor, scale: Tensor, generator: torch.Generator) -> Tensor:
    """Where walks from [C, d] end, of sizes that suit most of them."""
    gradient = target.gradient(begin)

    def look(u: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = map(torch.as_tensor, gradient(u.numpy()))
        return value.nan_to_num(-torch.inf, -torch.inf, -torch.inf), slope.nan_to_num(0.0, 0.0, 0.0)

    u, size = begin, 0.3
    value, slope = look(u)
    for _ in range(WALKS):
        length = torch.rand(len(u), 1, generator=generator, dtype=torch.float64)
        step = size * scale * SHORT**length  # short ones for where the density is narrow
        momentum = torch.randn(u.shape, generator=generator, dtype=torch.float64)
        before = value - 0.5 * momentum.square().sum(1)
        at, there, momentum = u, value, momentum + 0.5 * step * slope
        now = slope
        for k in range(LEAPFROG):
            at = at + step * momentum
            there, now = look(at)
            momentum = momentum + (0.5 if k == LEAPFROG - 1 else 1.0) * step * now
        accept = (there - 0.5 * momentum.square().sum(1) - before).nan_to_num(-torch.inf).clamp(max=0).exp()
        taken = torch.rand(len(u), generator=generator, dtype=torch.float64) < accept
        u = torch.where(taken.unsqueeze(1), at, u)
        value, slope = torch.where(taken, there, value), torch.where(taken.unsqueeze(1), now, slope)
        size = float(np.clip(size * np.exp(GAIN * (float(accept.mean()) - ACCEPTANCE)), 1e-6, 2.0))
    return u
