"""Normal: each entry by itself, with a mean and a standard deviation."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from inference._families._elementwise import Elementwise
from inference._families._family import LOG_2PI, Density, Floor, Params, Pool, tiny
from inference._families._gaussian import Gaussian
from inference._families._prior import OF_SPREADS, precision_of, spread_mode

SHARP = 5e-3  # of the data's spread: below it a sum of products loses more than nine digits of a squared distance


class Normal(Gaussian, Elementwise):
    """Data are centred and scaled first, or x² would cancel against x·μ far from the origin."""

    order = 2
    distribution = dist.Normal
    parameters = {"loc": constraints.real, "scale": constraints.positive}
    location = "loc"
    forms = {"scale": ("variance", "precision")}
    priors = {"loc": (dist.Normal,), **OF_SPREADS}

    def features(self, x: Tensor) -> list[Tensor]:
        standard = (x - self.center) / self.spread
        return [standard, standard.square()]

    def natural(self, params: Params) -> tuple[list[Tensor], Tensor]:
        loc, scale = (params["loc"] - self.center) / self.spread, params["scale"] / self.spread
        precision = scale**-2
        normaliser = 0.5 * (loc.square() * precision + LOG_2PI) + params["scale"].log()
        return [loc * precision, -0.5 * precision], normaliser

    def density(self, params: Params) -> Density:
        """By one product, unless a scale is so small that x² and x·μ would cancel against each other: then by differences."""
        scale = params["scale"] / self.spread
        if float(scale.detach().amin()) > SHARP:
            return super().density(params)
        loc = (params["loc"] - self.center) / self.spread
        constant = params["scale"].log() + 0.5 * LOG_2PI

        def by_differences(terms: Tensor) -> Tensor:
            *seen, standard, _ = terms.split(loc.shape[1], 1)
            each = []
            for a in range(len(loc)):
                parts = -0.5 * ((standard - loc[a]) / scale[a]).square() - constant[a]
                each.append((torch.where(seen[0] > 0, parts, torch.zeros_like(parts)) if seen else parts).sum(1))
            return torch.stack(each, 1)

        return by_differences

    def maximise(self, name: str, pool: Pool, stats: dict[str, Tensor], params: Params, floor: Floor) -> Tensor:
        s0, s1 = stats["S0"], stats["S1"]
        if name == self.location:  # precision-weighted, for copies with different scales
            weight = params["scale"] ** -2 if pool.prior else (params["scale"] / self.spread) ** -2
            weight = weight if pool.prior else weight / weight.max()
            raw = self.center * s0 + self.spread * s1
            more = precision_of(pool)
            n0, n1 = pool.total(weight * s0) + more[0], pool.total(weight * raw) + more[1]
            return pool.fill(n1 / n0.clamp(min=tiny(n0)), n0 > 0)
        loc = (params["loc"] - self.center) / self.spread
        squares = (stats["S2"] - 2 * loc * s1 + loc.square() * s0) * self.spread**2
        n0 = pool.total(s0)
        if pool.prior is not None:
            return spread_mode(pool, pool.total(squares), n0).reshape(pool.value.shape)
        variance = pool.total(squares) / n0.clamp(min=tiny(n0))
        unit = pool.mean((self.spread**2).expand_as(s0))
        lowest = unit * floor.lowest(pool.theta, variance / unit.clamp(min=tiny(unit)), n0 > 0)
        low = ~(variance >= lowest) & (n0 > 0)
        if low.any():
            hit = (pool.index >= 0) & low[pool.index.clamp(min=0)]
            floor.reached.update(hit.any(1).nonzero()[:, 0].tolist())
            floor.resting[pool.theta] = low
        return pool.fill(torch.where(low, lowest, variance).sqrt(), n0 > 0)

    def smallest(self, params: Params) -> Tensor:
        return (params["scale"] / self.spread).square().amin(1)

    @classmethod
    def root(cls, params: Params) -> Tensor:
        return params["scale"]

    @classmethod
    def covariance(cls, params: Params, entries: list[int]) -> Tensor:
        return torch.diag_embed(params["scale"][:, entries].square())
