"""A few points in place of all the data of a linear-Gaussian program, with the same sums over them.

Where every local site is normal and linear, nothing is discrete and nothing missing, log p(x_i) and the E-step's moments are
quadratic in x_i. Σ_i of a quadratic depends on the data only through their mean and scatter, and so is the same over points
±√D r_j about the mean, each counted N / 2D times, where the rows r_j of R, RᵀR = the scatter / N, come from a QR
decomposition of the centred data: one pass over them, and then no step costs more with more rows.

With D = 1: N = 100 rows of mean 5 and variance 4 give R = [2] and the two points 5 ± 2, each counted 50 times. Their mean,
5, and their variance, 4, are those of the 100 rows. Where rows have weights, mean and scatter are weighted, and N is Σ w.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from inference._exact.engine import Rows, Values
from inference._exact.linear import LinearGaussian
from inference._exact.linear_model import SiteData
from inference._exact.moments import Moments
from inference._numerics import ranks
from inference._numerics.slices import slices
from inference._numerics.threads import one_thread
from inference._numerics.weighted import count

CHUNK = 8192  # rows that are decomposed at once
WORTH = 64  # columns for each latent: of more, the decomposition costs more than some dozens of passes


class Compressed(LinearGaussian):
    """`LinearGaussian` whose sums over the data are over points: what an E-step collects, and the evidence."""

    @property
    def size(self) -> float:
        return self._few.N

    @cached_property
    def _few(self) -> LinearGaussian:
        return LinearGaussian(self.program, self.structure, self.x, _points(self))

    @property
    def _times(self) -> float:
        """How many rows each point counts for."""
        return count(self.weights, self.N) / self._few.N

    def log_evidence(
        self, parameters: Values | None = None, globals: Values | None = None, every_row: bool = False
    ) -> tuple[Tensor, Tensor]:
        if every_row:
            return super().log_evidence(parameters, globals)
        total, prior = self._few.log_evidence(parameters, globals)
        return self._times * total, prior

    @one_thread()
    @torch.no_grad()
    def e_step(self, globals: Values | None = None, responsibilities: Rows | None = None) -> Moments:
        # `per_datum` has the right sum, and stands for no single row; with A = 1 all responsibilities are 1
        small, times = self._few.e_step(globals), self._times
        sites = {site: {k: times * v for k, v in stats.items()} for site, stats in small.sites.items()}
        return replace(
            small, counts=times * small.counts, per_datum=times * small.per_datum, zz=times * small.zz, sites=sites
        )


class _Points(SiteData):
    """Points about each site's center, which its `values` hold."""

    def centered(self, name: str, rows: slice) -> Tensor:
        return self.values[name][rows]


def worth_it(engine: LinearGaussian) -> bool:
    """Whether the engine's sums are quadratic in the data, and a few points are the quicker way to them."""
    if engine.data.missing or engine.assignments:
        return False
    with torch.no_grad():
        sites = engine.sites()
    D = sum(engine.data.values[g.name].shape[1] for g in sites.gaussians if g.place is None)
    return not sites.others and 2 * D < engine.N and WORTH * (engine.L + 1) >= D


@torch.no_grad()
def _points(engine: LinearGaussian) -> _Points:
    data = engine.data
    names = [g.name for g in engine.sites().gaussians if g.place is None]
    widths = [data.values[name].shape[1] for name in names]
    D, root = sum(widths), engine.x.new_zeros(0, sum(widths))
    for rows in ranks.mine(slices(data.N, CHUNK), data.N):
        x = torch.cat([data.centered(name, rows) for name in names], 1)
        if engine.weights is not None:
            x = x * engine.weights[rows].sqrt().to(x).unsqueeze(1)
        root = torch.linalg.qr(torch.cat([root, x]), mode="r").R
    if ranks.size() > 1:  # of fewer rows than columns, R has as many rows as those
        root = torch.nn.functional.pad(root, (0, 0, 0, D - len(root)))
        root = torch.linalg.qr(torch.cat(ranks.gathered(root, data.N)), mode="r").R
    scatter = dict(zip(names, (root / count(engine.weights, data.N) ** 0.5).split(widths, 1), strict=True))
    values = {name: torch.cat([r, -r]) * D**0.5 for name, r in scatter.items()}
    return _Points(2 * D, False, values, data.families, data.centers, data.spreads)
