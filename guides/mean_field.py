"""Mean-field guide: a q of its own for every datum and every local latent, and no encoder.

Jordan et al. 1999; Hoffman et al. 2013. It has no amortisation gap, and says nothing about data that it was not fitted to.
Global latents get a Gaussian each.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from guides._heads import Covariance, Derived, Rows, begin_at, key, outputs, refusal
from zoo._errors import UsageError
from zoo._program.structure import Site, Structure

__all__ = ["Guide", "refusal"]


class Guide(Derived):
    """`Guide(structure, x, globals, bijections, covariance="diagonal")`; call it with the rows it is to speak of.

    `x` [N, …] are the data that it holds a q for each of; `guide(x[rows], rows=rows)` draws the latents of some.
    """

    by_row = True

    def __init__(
        self,
        structure: Structure,
        x: Tensor,
        globals: Mapping[str, Tensor] | None = None,
        bijections: Mapping[str, Transform] | None = None,
        *,
        covariance: Covariance = "diagonal",
    ) -> None:
        super().__init__(structure, globals, bijections, covariance)
        self.N = len(x)
        generator = torch.Generator().manual_seed(0)
        tables = {}
        for site in self.sites:
            table = torch.randn(self.N, outputs(site, covariance), generator=generator) * 0.01
            tables[key(site)] = nn.Parameter(table)
        self.tables = nn.ParameterDict(tables)
        self.ready(x)

    def look(self, x: Tensor, rows: Rows) -> Tensor | slice:
        """Which rows they are."""
        if rows is None:
            if len(x) != self.N:
                raise UsageError(f"a mean-field guide holds a q for each of its {self.N} data; {len(x)} others came.")
            return slice(None)
        return rows

    @torch.no_grad()
    def last_layer(self, site: Site, center: Tensor, spread: Tensor) -> dict[Tensor, Tensor]:
        """See `Derived`."""
        offset, unit = begin_at(site, self.covariance, center, spread)
        table = self.tables[key(site)]
        table.mul_(unit).add_(offset)
        return {table: unit.expand_as(table)}

    def head(self, site: Site, seen: Tensor | slice, drawn: list[Tensor]) -> Tensor:
        """[n, 1, …, outputs]: each datum's own numbers."""
        return self.in_plates(self.tables[key(site)][seen])
