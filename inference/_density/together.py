"""The density of each row given each of many values of the global latents, all evaluated in one run of the program.

The B × n pairs (b, i) of a value of the globals and a row take the place of rows: whoever climbs to the modes of rows climbs to
those of all pairs. Each value of the globals has a lane of its own under `torch.vmap`, in which the program runs on all n
rows with the shapes that it has for one value. For example pairs (0, 1), (1, 0), (1, 1) of two rows take two lanes of two rows,
of which one place is not read.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pyro
import torch
from torch import Tensor

from inference._density.local import LocalDensity

Lanes = Mapping[str, Tensor]  # name → values [B, …]


class Together(LocalDensity):
    """log p(x_i, a, z; θ) given `globals` [B, …] and `parameters` [B, …] of `density`'s n rows: row b·n + i is i given b."""

    def __init__(self, density: LocalDensity, globals: Lanes, parameters: Lanes | None = None) -> None:
        self.__dict__.update(density.__dict__)
        self.one, self.lanes = density, (dict(globals), dict(parameters or {}))
        self.B = len(next(iter({**globals, **(parameters or {})}.values())))
        self.x = density.x.repeat(self.B, *(1,) * (density.x.dim() - 1))
        self.index = torch.arange(self.B * density.n, device=density.x.device)
        self.rank = torch.zeros_like(self.index)  # how many equal pairs come before

    def rows(self, index: Tensor | slice) -> Together:
        """The density of some pairs, repeats allowed."""
        some = copy.copy(self)
        some.x, some.index = self.x[index], self.index[index]
        order = some.index.argsort(stable=True)
        ranked = some.index[order]
        first = torch.searchsorted(ranked, ranked)
        some.rank = torch.empty_like(order)
        some.rank[order] = torch.arange(len(order), device=order.device) - first
        return some

    def log_joint(
        self, z: Tensor, assignment: Tensor | None = None, parameters: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """See `LocalDensity`."""
        n, m = self.one.n, len(self.index)
        copies = int(self.rank.max()) + 1 if m else 1
        lead = z.shape[:-2]
        times = lead.numel()
        lane, row = self.index // n, self.index % n
        # [times, m] places in B × (times · copies) × n
        layer = torch.arange(times, device=z.device)[:, None] * copies + self.rank
        place = (lane * (times * copies) + layer) * n + row
        size, flat = self.B * times * copies * n, place.reshape(-1)
        spread = z.new_zeros(size, self.L).index_copy(0, flat, z.reshape(-1, self.L))
        chosen = torch.zeros(size, dtype=torch.long, device=z.device)
        if assignment is not None:
            chosen = chosen.index_copy(0, flat, assignment.expand(*lead, m).reshape(-1))
        found = self._evaluate(
            spread.reshape(self.B, times * copies, n, self.L), chosen.reshape(self.B, times * copies, n)
        )
        return found.reshape(-1)[flat].reshape(*lead, m)

    def _evaluate(self, z: Tensor, assignment: Tensor) -> Tensor:
        globals, parameters = self.lanes

        def lane(g: Lanes, p: Lanes, here: Tensor, chosen: Tensor) -> Tensor:
            return self.one.given(g, p or None).log_joint(here, chosen)

        with pyro.validation_enabled(False):
            found: Tensor = torch.vmap(lane, in_dims=(0, 0, 0, 0) if parameters else (0, None, 0, 0))(
                globals, parameters, z, assignment
            )
        return found

    @torch.no_grad()
    def values(self, z: Tensor, assignment: Tensor | None = None) -> dict[str, Tensor]:
        """See `LocalDensity`; of all pairs in their order."""
        if all(p.fixed is not None for p in self.sites):
            return super().values(z, assignment)
        n, parts = self.one.n, []
        for b in range(self.B):
            given = [{k: v[b] for k, v in of.items()} for of in self.lanes]
            here = slice(b * n, (b + 1) * n)
            chosen = None if assignment is None else assignment[:, here]
            parts.append(self.one.given(given[0], given[1] or None).values(z[:, here], chosen))
        return {k: torch.cat([part[k] for part in parts], 1) for k in parts[0]}
