"""A few points in place of all the data of a linear-Gaussian program, with the same sums over them.

Where every local site is normal and linear, nothing is discrete and nothing missing, log p(x_i) and the E-step's moments are
quadratic in x_i. Σ_i of a quadratic depends on the data only through their mean and scatter, and so is the same over points
±√D r_j about the mean, each counted N / 2D times, where the rows r_j of R, RᵀR = the scatter / N, come from a QR
decomposition of the centred data: one pass over them, and then no step costs more with more rows.

With D = 1: N = 100 rows of mean 5 and variance 4 give R = [2] and the two points 5 ± 2, each counted 50 times. Their mean,
5, and their variance, 4, are those of the 100 rows. Where rows have weights, mean and scatter are weighted, and N is Σ w.

Where, besides, all coefficients of the one observed site are free, the best of them are known in closed form for any noise
(`BestMap`): EM begins there, and there is no saddle to look for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from inference._exact.copies import Copy
from inference._exact.engine import Rows, Values
from inference._exact.gaussian import Gaussian
from inference._exact.linear import LinearGaussian
from inference._exact.linear_model import SiteData
from inference._exact.linear_mstep import LinearPlan
from inference._exact.moments import Moments
from inference._families._family import Floor
from inference._numerics import ranks
from inference._numerics.best_map import BestMap, Height
from inference._numerics.slices import slices
from inference._numerics.threads import one_thread
from inference._numerics.weighted import count

CHUNK = 8192  # rows that are decomposed at once
LEAST = 1e-9  # a share of a column's variance: where its noise may begin, if no floor was asked for
GONE = 1e-6  # of such a noise it is no matter how far it goes on to 0
RIGHT = 1e-9  # relative: the difference of two ways to the same log-likelihood
WORTH = 64  # columns for each latent: of more, the decomposition costs more than some dozens of passes


class Compressed(LinearGaussian):
    """`LinearGaussian` whose sums over the data are over points: what an E-step collects, and the evidence."""

    @property
    def size(self) -> float:
        return self._few.N

    @cached_property
    def _few(self) -> LinearGaussian:
        few = LinearGaussian(self.program, self.structure, self.x, _points(self))
        few._kinds, few._replayed = self._kinds, self._replayed  # the sites are those of the same program
        return few

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

    @one_thread()
    @torch.no_grad()
    def highest(self, plan: LinearPlan, floor: Floor) -> dict[str, Tensor] | None:
        if (map := self._free_map(plan)) is None:
            return None
        found = map.best.lowest(max(LEAST, floor.least(self.x.dtype)))
        if found is None:
            return None
        theta = map.theta(*found)
        value = float(self.log_evidence({**self.program.values(), **theta})[0])
        return theta if abs(value - self._value(found[1])) <= RIGHT * (1 + abs(value)) else None

    @one_thread()
    @torch.no_grad()
    def is_highest(self, plan: LinearPlan, stats: Moments, enough: float) -> bool:
        if (map := self._free_map(plan)) is None:
            return False
        t = map.best.pooled(map.site.scale[0].square())
        height = map.best.at(t)
        if not self._value(height) - float(stats.per_datum.sum()) <= enough:  # another map is better
            return False
        return map.best.is_lowest(t, height, GONE, 2 * enough / count(self.weights, self.N))

    def _value(self, height: Height) -> float:
        """log p(x) at a height, nats."""
        return -0.5 * count(self.weights, self.N) * (height.value + len(height.map) * math.log(2 * math.pi))

    def _free_map(self, plan: LinearPlan) -> _FreeMap | None:
        """The linear map from latents to data where all of it is free: none of its entries is tied, held or has a prior."""
        if self.structure.global_latents:
            return None
        gaussians = self.sites().gaussians
        latents, seen = [g for g in gaussians if g.place is not None], [g for g in gaussians if g.place is None]
        if plan.numeric or len(seen) != 1 or any(c.site != seen[0].name for c in plan.copies.values()):
            return None
        (g,) = seen
        D, parts = len(g.offset[0]), plan.regressed(g.name)
        matrix, offset = ({n: c for n, c in parts.items() if c.parameter == p} for p in ("coefficients", "offset"))
        scale = {n: c for n, c in plan.copies.items() if n not in parts}
        nested = any(bool((latent.coefficients != 0).any()) for latent in latents)
        if nested or not g.diagonal or len(scale) > 1 or self.L >= D or not _all_free(matrix.values()):
            return None
        prior = _Prior.of(latents, self.L)
        if (offset and not _all_free(offset.values())) or (not offset and bool((prior.mean != 0).any())):
            return None
        group = torch.full((D,), -1)
        for copy in scale.values():
            group = copy.index.reshape(-1).clone()
        used = group >= 0
        group[used] = group[used].unique(return_inverse=True)[1]
        points = self._few.data.values[g.name]
        root = points[: len(points) // 2] / D**0.5
        if not offset:  # the scatter is that about the constant
            root = torch.cat([root, self.data.centers[g.name] - g.offset])
        best = BestMap(root, group, g.scale[0].square(), self.L)
        values = {n: v.detach() for n, v in self.program.values().items()}
        return _FreeMap(best, g, matrix, offset, scale, prior, self.data.centers[g.name], values)


def _all_free(copies: Iterable[Copy]) -> bool:
    """Whether each entry of a parameter is an entry of some θ, and no two are the same one."""
    index = [c.index for c in copies]
    if not index or not bool((torch.stack([i >= 0 for i in index]).sum(0) == 1).all()):
        return False
    used = [i[i >= 0] for i in index]
    return all(len(i.unique()) == len(i) for i in used)


@dataclass(frozen=True)
class _Prior:
    """Of latents that do not depend on each other: their `mean` [L], and `root` [L, L] with root rootᵀ = the covariance."""

    mean: Tensor
    root: Tensor

    @classmethod
    def of(cls, latents: list[Gaussian], L: int) -> _Prior:
        mean = latents[0].offset.new_zeros(L)
        root = mean.new_zeros(L, L)
        for g in latents:
            assert g.place is not None
            mean[g.place] = g.offset[0]
            root[g.place, g.place] = g.scale[0].diag() if g.diagonal else g.scale[0]
        return cls(mean, root)


@dataclass(frozen=True)
class _FreeMap:
    """The map of the observed `site`, and the θ that make up its `matrix`, its `offset` and its `scale`, if not constant."""

    best: BestMap
    site: Gaussian
    matrix: Mapping[str, Copy]
    offset: Mapping[str, Copy]
    scale: Mapping[str, Copy]
    prior: _Prior
    center: Tensor  # the data's means [D]
    values: Mapping[str, Tensor]

    def theta(self, t: Tensor, height: Height) -> dict[str, Tensor]:
        """θ at log variances [G] and the best map for them, of its signs the one whose largest entries are positive."""
        largest = height.map.gather(0, height.map.abs().argmax(0, keepdim=True))
        turned = torch.where(largest < 0, -height.map, height.map)
        matrix: Tensor = torch.linalg.solve_triangular(self.prior.root, turned, upper=False, left=False)
        parts = [(self.matrix, matrix), (self.offset, self.center - matrix @ self.prior.mean)]
        parts.append((self.scale, self.best.variances(t).sqrt()))
        return {n: self._with(n, copy, new) for copies, new in parts for n, copy in copies.items()}

    def _with(self, name: str, copy: Copy, new: Tensor) -> Tensor:
        """θ with the entries that a parameter copies at its `new` value."""
        theta, used = self.values[name], copy.index[0] >= 0
        return theta.reshape(-1).index_put((copy.index[0][used],), new[used]).reshape(theta.shape)


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
