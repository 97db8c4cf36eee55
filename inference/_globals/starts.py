"""Where climbs, chains and tests of exchangeability begin: likely points, and their mirror images."""

from __future__ import annotations

import torch
from torch import Tensor

from inference._globals.target import Target
from zoo._errors import Refusal

CANDIDATES = 16  # of each start
AROUND = 2.0  # zero, in unconstrained coordinates
STARTS = 4
TRIES = 10


def starts(target: Target) -> Tensor:
    """Points of finite density [4, d], each the best of several; every second one among mirror images."""
    drawn = target.prior(CANDIDATES * STARTS // 2)
    prior = torch.zeros(0, target.d, dtype=torch.float64) if drawn is None else drawn
    found = _given(target)
    for k in range(TRIES * STARTS):
        near = AROUND * (2 * torch.rand(CANDIDATES, target.d, generator=target.generator, dtype=torch.float64) - 1)
        mine = torch.cat([prior[k % STARTS :: STARTS], near])
        if k % 2:
            mine = torch.cat([2 * prior.mean(0) - mine[: len(mine) - CANDIDATES], -near]) if len(prior) else -near
        log_p = target.log_density(mine)
        if bool(log_p.isfinite().any()):
            found.append(mine[log_p.argmax()])
        if len(found) == STARTS:
            return torch.stack(found)
    raise Refusal(
        f"the density of '{target.program.name}' is zero or not finite wherever it was looked at: check its priors against "
        "the data, or the data for entries that it cannot have made"
    )


def _given(target: Target) -> list[Tensor]:
    """The point of an earlier run, where the task holds one."""
    known = {n: v.double() for n, v in target.task.globals.items()}
    if len(known) < len(target.structure.global_latents):
        return []
    values, _ = target.values(torch.zeros(1, target.d, dtype=torch.float64))
    flat = target.flat_of(values | {n: v.unsqueeze(0) for n, v in known.items()})
    return list(flat[target.log_density(flat).isfinite()])
