"""A few points in place of all the data of a linear-Gaussian program, with the same sums over them.

Where every local site is normal and linear, nothing is discrete and nothing missing, log p(x_i) and the E-step's moments are
quadratic in x_i. Σ_i of a quadratic depends on the data only through their mean and scatter, and so is the same over points
±√D r_j about the mean, each counted N / 2D times, where the rows r_j of R, RᵀR = the scatter / N, come from a QR
decomposition of the centred data: one pass over them, and then no step costs more with more rows.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from inference._exact.linear import LinearGaussian, Values
from inference._exact.moments import Moments

CHUNK = 8192  # rows that are decomposed at once
WORTH = 64  # columns for each latent: of more, the decomposition costs more than some dozens of passes


class Compressed:
    """The sums over the data of `engine`: what an E-step collects, and the evidence."""

    def __init__(self, engine: LinearGaussian, scatter: dict[str, Tensor]) -> None:
        """`scatter`: site → R's columns of its entries [D, E]."""
        self._points = _Points(engine, scatter)
        self._times, self.size = engine.N / self._points.N, self._points.N

    def e_step(self, globals: Values | None = None) -> Moments:
        """Like the engine's; `per_datum` has the same sum, and stands for no single datum."""
        small, times = self._points.e_step(globals), self._times
        sites = {site: {k: times * v for k, v in stats.items()} for site, stats in small.sites.items()}
        return replace(
            small, counts=times * small.counts, per_datum=times * small.per_datum, zz=times * small.zz, sites=sites
        )

    def log_evidence(self, parameters: Values | None = None, globals: Values | None = None) -> tuple[Tensor, Tensor]:
        """(Σ_i log p(x_i | θ, globals), log p(globals)), both differentiable, nats."""
        total, prior = self._points.log_evidence(parameters, globals)
        return self._times * total, prior


class _Points(LinearGaussian):
    """`engine` on the points."""

    def __init__(self, engine: LinearGaussian, scatter: dict[str, Tensor]) -> None:
        self.__dict__.update(engine.__dict__)
        D = len(next(iter(scatter.values())))
        self.N, self.points = 2 * D, {name: torch.cat([r, -r]) * D**0.5 for name, r in scatter.items()}

    def _centered(self, name: str, rows: slice) -> Tensor:
        return self.points[name][rows]


@torch.no_grad()
def compressed(engine: LinearGaussian) -> Compressed | None:
    """`engine`'s sums by a few points, or None where they are not quadratic in the data, or it would not pay."""
    if not engine.fast or engine.missing or engine.assignments or engine.values.keys() != engine.centers.keys():
        return None
    gaussians, others, _ = engine.sites()
    names = [g.name for g in gaussians if g.place is None]
    widths = [engine.values[name].shape[1] for name in names]
    D = sum(widths)
    if others or 2 * D >= engine.N or WORTH * (engine.L + 1) < D:
        return None
    root = engine.x.new_zeros(0, D)
    for start in range(0, engine.N, CHUNK):
        rows = slice(start, min(start + CHUNK, engine.N))
        x = torch.cat([engine._centered(name, rows) for name in names], 1)
        root = torch.linalg.qr(torch.cat([root, x]), mode="r").R
    return Compressed(engine, dict(zip(names, (root / engine.N**0.5).split(widths, 1), strict=True)))
