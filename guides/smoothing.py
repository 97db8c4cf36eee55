"""Smoothing guide: q(z | x) = ∏ q(z_t | z_{t−1}, x_t, …, x_T) along a series, by a recurrent network that reads it backwards.

Krishnan, Shalit & Sontag 2017 (DKS): given the state before it, a state's posterior depends on the present and the future
alone. The networks are the same at every step, so that series of other lengths are served too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import Transform

from guides import _heads
from guides._heads import Covariance, Derived, GlobalKind, Rows, free_shape, outputs, width
from zoo._errors import UsageError
from zoo._program.missing import holds_nan
from zoo._program.structure import Site, Structure

_Linear = cast(type[nn.Linear], PyroModule[nn.Linear])
_GRU = cast(type[nn.GRU], PyroModule[nn.GRU])


def refusal(structure: Structure) -> str | None:
    """Why the guide cannot serve the program, or None."""
    if (reason := _heads.refusal(structure)) is not None:
        return reason
    latents, seen = structure.local_latents, [s for s in structure.observed if s.scope == "local"]
    names = [s.name for s in latents]
    before = [set(s.parents) & set(names) for s in (*latents, *seen)]
    chain = [set(names[max(0, t - 1) : t]) for t in range(len(names))] + [{name} for name in names]
    kinds = {(s.family, s.event_shape, free_shape(s)) for s in latents}
    if len(latents) > 1 and len(kinds) == 1 and len(before) == len(chain) and all(map(set.issubset, before, chain)):
        return None
    return (
        "guide=smoothing expects a chain of latents of one kind, each observed by one site and given the one before it alone, "
        f"and '{structure.program}' has none: take guide=amortized"
    )


class Guide(Derived):
    """`Guide(structure, x, globals, bijections, hidden=(64, 64), covariance="diagonal")`, called like a model.

    - `x` [N, T, …]: the data, a step for each latent; NaN where unobserved.
    - `hidden`: the size of the recurrent network's state, and the width of the layer in which it meets the latent before.
    - `covariance`: of each Gaussian q, given the latent before: `diagonal` or `full`.
    - `sees_mask`: whether the network is told which entries were seen; when None, if a step is partly missing.
    """

    def __init__(
        self,
        structure: Structure,
        x: Tensor,
        globals: Mapping[str, Tensor] | None = None,
        bijections: Mapping[str, Transform] | None = None,
        *,
        hidden: tuple[int, ...] = (64, 64),
        covariance: Covariance = "diagonal",
        globals_covariance: GlobalKind = "diagonal",
        sees_mask: bool | None = None,
    ) -> None:
        super().__init__(structure, globals, bijections, covariance, globals_covariance)
        self.sites = structure.local_latents  # in the program's order: each given the one before
        if x.dim() < 2 or x.shape[1] != len(self.sites):
            raise UsageError(
                f"guide=smoothing expects x [n, {len(self.sites)}, …], a step a latent, got {list(x.shape)}."
            )
        steps = x.flatten(2) if x.dim() > 2 else x.unsqueeze(-1)  # [N, T, D]
        center = steps.flatten(0, 1).nanmean(0).nan_to_num(0.0)
        self.register_buffer("center", center)
        self.register_buffer("spread", _heads.spread(steps.flatten(0, 1), center))
        missing = steps.isnan()
        self.sees_mask = bool((missing.any(-1) & ~missing.all(-1)).any()) if sees_mask is None else sees_mask
        D, Z, numbers = len(center), width(self.sites[0]), outputs(self.sites[0], covariance)
        wide, joined = hidden[0], hidden[-1]
        # without biases the state stays 0 until the first step, from the end, of which something was seen
        self.backwards = _GRU(D + (D if self.sees_mask else 1), wide, bias=False, batch_first=True)
        self.before = nn.Parameter(torch.zeros(Z))  # what stands for a latent before the first
        self.ahead, self.behind = _Linear(wide, joined), _Linear(Z, joined, bias=False)
        self.numbers, self.straight = _Linear(joined, numbers), _Linear(Z, numbers, bias=False)
        nn.init.zeros_(self.straight.weight)
        self.ready(x)

    @property
    def extras(self) -> dict[str, bool]:
        """What the network sees."""
        return {"sees_mask": self.sees_mask}

    def look(self, x: Tensor, rows: Rows) -> dict[str, Tensor]:
        """What the present and the future say to each latent: site → [n, 1, …, width]."""
        steps = (x.flatten(2) if x.dim() > 2 else x.unsqueeze(-1)).flip(1)
        flat = (steps - self.center) / self.spread
        seen = (~flat.isnan()).to(flat.dtype)
        if holds_nan(flat):
            flat = flat.nan_to_num(0.0)
        told = seen if self.sees_mask else seen.amax(-1, keepdim=True)
        states = self.ahead(self.backwards(torch.cat([flat, told], -1))[0].flip(1))  # [n, T, width]
        return {s.name: self.in_plates(state) for s, state in zip(self.sites, states.unbind(1), strict=True)}

    def head(self, site: Site, seen: dict[str, Tensor], drawn: list[Tensor]) -> Tensor:
        """[batch…, outputs] from the latent before, and what is seen from here on."""
        z = drawn[-1] if drawn else self.before
        return self.numbers(torch.tanh(self.behind(z) + seen[site.name])) + self.straight(z)
