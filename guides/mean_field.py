"""Mean-field guide: a separate q for every row and every local latent, without an encoder.

Jordan et al. 1999; Hoffman et al. 2013. It has no amortisation gap, and has no q for rows that it was not fitted
to. Each global latent gets a Gaussian.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from guides._heads import Covariance, Derived, GlobalKind, Rows, begin_at, key, outputs, refusal
from zoo._errors import UsageError
from zoo._program.structure import Site, Structure

__all__ = ["Guide", "refusal"]


class Guide(Derived):
    """`Guide(structure, x, globals, bijections, covariance="diagonal")`; call it with the rows whose latents it draws.

    `x` [N, …]: the data, with a q for each row; `guide(x[rows], rows=rows)` draws the latents of some.
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
        globals_covariance: GlobalKind = "diagonal",
    ) -> None:
        super().__init__(structure, globals, bijections, covariance, globals_covariance)
        self.N = len(x)
        generator = torch.Generator().manual_seed(0)
        tables = {}
        for site in self.sites:
            table = torch.randn(self.N, outputs(site, covariance), generator=generator) * 0.01
            tables[key(site)] = nn.Parameter(table)
        self.tables = nn.ParameterDict(tables)
        self.ready(x)

    def look(self, x: Tensor, rows: Rows) -> Tensor | slice:
        """The row numbers."""
        if rows is None:
            if len(x) != self.N:
                raise UsageError(
                    f"the mean-field guide expects its own {self.N} rows, got {len(x)}; guide=amortized takes others."
                )
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
        """[n, 1, …, outputs]: each row's own numbers."""
        return self.in_plates(self.tables[key(site)][seen])
