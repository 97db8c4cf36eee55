"""Families with sufficient statistics: log p(x | a) of all data under all assignments by one matrix product.

For a mixture over an exponential family, log p(x | a) = T(x)·η_a − A(η_a) + log h(x) (Bishop 2006, §2.4), so the E-step
is one product of T(x) with the natural parameters and the M-step one product of the responsibilities with T(x). A missing
entry drops out of T and of A. The multivariate normal is whitened instead, which is faster and keeps more digits; its
missing entries are filled with their conditional moments (Little & Rubin 2002, §11.2).

A family knows distributions, never models: it sees parameters [A, E] (A assignments, E entries of an event) and data
[n, E]. All log-densities in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from inference._families._family import LOG_2PI, Density, Family, Floor, Params, Pool, product, tiny
from inference._families.multivariate_normal import MultivariateNormal
from zoo import _columns

SHARP = 5e-3  # of the data's spread: below it a sum of products loses more than nine digits of a squared distance


class Elementwise(Family):
    """Entries independent given the assignment: parameters [A, E], statistics S0, S1, … by matrix products."""

    def features(self, x: Tensor) -> list[Tensor]:
        """T(x), each [n, E]; finite also where x was filled."""
        return [x]

    def natural(self, params: Params) -> tuple[list[Tensor], Tensor]:
        """Natural parameters η, one [A, E] for each feature, and the log normaliser A(η) [A, E], constants included."""
        raise NotImplementedError

    def density(self, params: Params) -> Density:
        eta, normaliser = self.natural(params)
        total = normaliser.sum(1, keepdim=True)

        def density(x: Tensor) -> Tensor:
            x, seen = self._fill(x)
            out = -total if seen is None else -(normaliser @ seen.mT)
            for t, e in zip(self._seen_features(x, seen), eta, strict=True):
                out = torch.addmm(out, e, t.mT)
            return out.mT

        return density

    def statistics(self, x: Tensor, weights: Tensor, params: Params) -> dict[str, Tensor]:
        x, seen = self._fill(x)
        n0 = weights.sum(0).unsqueeze(1).expand(-1, x.shape[1]) if seen is None else weights.mT @ seen
        return {"S0": n0, **{f"S{i}": weights.mT @ t for i, t in enumerate(self._seen_features(x, seen), 1)}}

    def _seen_features(self, x: Tensor, seen: Tensor | None) -> list[Tensor]:
        return self.features(x) if seen is None else [t * seen for t in self.features(x)]

    def expected(self, stats: dict[str, Tensor], params: Params) -> Tensor:
        eta, normaliser = self.natural(params)
        total = -(product(stats["S0"], normaliser)).sum()
        for i, e in enumerate(eta, 1):
            total = total + product(stats[f"S{i}"], e).sum()
        return total

    def maximise(self, name: str, pool: Pool, stats: dict[str, Tensor], params: Params, floor: Floor) -> Tensor:
        n0, n1 = pool.total(stats["S0"]), pool.total(stats["S1"])
        return pool.fill(self.mean_to(name, n1 / n0.clamp(min=tiny(n0))), n0 > 0)

    def mean_to(self, name: str, mean: Tensor) -> Tensor:
        """The parameter at which the expectation of x is `mean` (maximum likelihood matches moments)."""
        return mean


class Bernoulli(Elementwise):
    names = ("probs", "logits")

    def blurred(self, stats: dict[str, Tensor], share: float) -> dict[str, Tensor]:
        return _blurred(stats, stats["S0"], share)

    def natural(self, params: Params) -> tuple[list[Tensor], Tensor]:
        logits = params["logits"] if "logits" in params else torch.logit(_clamp(params["probs"]))
        return [logits], torch.nn.functional.softplus(logits)

    def mean_to(self, name: str, mean: Tensor) -> Tensor:
        return torch.logit(_clamp(mean)) if name == "logits" else mean


class Poisson(Elementwise):
    names = ("rate",)

    def blurred(self, stats: dict[str, Tensor], share: float) -> dict[str, Tensor]:
        return _blurred(stats, stats["S0"], share)

    def natural(self, params: Params) -> tuple[list[Tensor], Tensor]:
        return [params["rate"].clamp(min=tiny(params["rate"])).log()], params["rate"]

    def log_base(self, x: Tensor) -> Tensor:
        return -torch.lgamma(x + 1).nansum(1)


class Exponential(Elementwise):
    names = ("rate",)

    def natural(self, params: Params) -> tuple[list[Tensor], Tensor]:
        return [-params["rate"]], -params["rate"].log()

    def mean_to(self, name: str, mean: Tensor) -> Tensor:
        return 1 / mean.clamp(min=tiny(mean))


class Normal(Elementwise):
    """Data are centred and scaled first, or x² would cancel against x·μ far from the origin."""

    names = ("loc", "scale")

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self.center = _columns.center(x)  # [E]
        self.spread = _columns.spread(x, self.center)

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

        def by_differences(x: Tensor) -> Tensor:
            standard, seen = (x - self.center) / self.spread, ~x.isnan()
            each = []
            for a in range(len(loc)):
                terms = -0.5 * ((standard - loc[a]) / scale[a]).square() - constant[a]
                each.append(torch.where(seen, terms, torch.zeros_like(terms)).sum(1))
            return torch.stack(each, 1)

        return by_differences

    def maximise(self, name: str, pool: Pool, stats: dict[str, Tensor], params: Params, floor: Floor) -> Tensor:
        s0, s1 = stats["S0"], stats["S1"]
        if name == "loc":  # precision-weighted, for copies with different scales
            weight = (params["scale"] / self.spread) ** -2
            weight = weight / weight.max()
            raw = self.center * s0 + self.spread * s1
            n0, n1 = pool.total(weight * s0), pool.total(weight * raw)
            return pool.fill(n1 / n0.clamp(min=tiny(n0)), n0 > 0)
        loc = (params["loc"] - self.center) / self.spread
        squares = (stats["S2"] - 2 * loc * s1 + loc.square() * s0) * self.spread**2
        n0 = pool.total(s0)
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


class Categorical(Elementwise):
    """x [n, E] of category numbers; parameters [A, E, K]. A logit vector counts up to its additive constant."""

    names = ("probs", "logits")
    vectors = {"probs": 1, "logits": 1}

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self.categories = int(max(rows.nan_to_num(0.0).max() for rows in _columns.blocks(x))) + 1

    def width(self, entries: int, assignments: int) -> int:
        return max(entries * self.categories, assignments)

    def density(self, params: Params) -> Density:
        logits = self._log_probs(params)
        categories = logits.shape[-1]
        finite = logits.clamp(min=torch.finfo(logits.dtype).min).flatten(1)  # 0 · −inf is not a number
        return lambda x: (finite @ self._one_hot(*self._fill(x), categories).mT).mT

    def statistics(self, x: Tensor, weights: Tensor, params: Params) -> dict[str, Tensor]:
        categories = next(iter(params.values())).shape[-1]
        x, seen = self._fill(x)
        counts = weights.mT @ self._one_hot(x, seen, categories)
        return {"counts": counts.reshape(weights.shape[1], x.shape[1], categories)}

    def expected(self, stats: dict[str, Tensor], params: Params) -> Tensor:
        return product(stats["counts"], self._log_probs(params)).sum()

    def maximise(self, name: str, pool: Pool, stats: dict[str, Tensor], params: Params, floor: Floor) -> Tensor:
        categories = params[name].shape[-1]
        counts = pool.total(stats["counts"]).reshape(-1, categories)
        total = counts.sum(1, keepdim=True)
        probs = counts / total.clamp(min=tiny(counts))
        # a category that nobody is in keeps a weight that is positive, if only just: its logarithm stays finite
        smallest = tiny(counts)
        probs = probs.clamp(min=smallest) / probs.clamp(min=smallest).sum(1, keepdim=True)
        value = probs.log() if name == "logits" else probs
        return pool.fill(value.reshape(-1), (total > 0).expand_as(counts).reshape(-1))

    def blurred(self, stats: dict[str, Tensor], share: float) -> dict[str, Tensor]:
        return _blurred(stats, stats["counts"].sum(-1), share)

    @staticmethod
    def _log_probs(params: Params) -> Tensor:
        return torch.log_softmax(params["logits"], -1) if "logits" in params else params["probs"].log()

    @staticmethod
    def _one_hot(x: Tensor, seen: Tensor | None, categories: int) -> Tensor:
        one_hot = torch.nn.functional.one_hot(x.long(), categories).to(x.dtype)
        return (one_hot if seen is None else one_hot * seen.unsqueeze(-1)).flatten(1)


def _blurred(stats: dict[str, Tensor], n: Tensor, share: float) -> dict[str, Tensor]:
    """Each statistic [A, E, …] with a `share` of the data's mean times the assignment's count `n` [A, E] in it."""
    part = n / n.sum(0).clamp(min=tiny(n))  # of all data, in each assignment
    out = {}
    for name, value in stats.items():
        weight = part.reshape(*part.shape, *(1,) * (value.dim() - part.dim()))
        out[name] = (1 - share) * value + share * weight * value.sum(0)
    return out


def _clamp(probs: Tensor) -> Tensor:
    eps = torch.finfo(probs.dtype).eps
    return probs.clamp(eps, 1 - eps)


FAMILIES: dict[type, Callable[[Tensor], Family]] = {
    dist.Bernoulli: Bernoulli,
    dist.Categorical: Categorical,
    dist.Exponential: Exponential,
    dist.MultivariateNormal: MultivariateNormal,
    dist.Normal: Normal,
    dist.Poisson: Poisson,
}


def family_of(fn: Any) -> type[Family] | None:
    """The family that serves this distribution, or None."""
    return FAMILIES.get(type(base_of(fn)))  # type: ignore[return-value]


def base_of(fn: Any) -> Any:
    """The distribution inside nested Independents."""
    while isinstance(fn, dist.Independent):
        fn = fn.base_dist
    return fn


def parameters_of(fn: Any, assignments: int, dtype: torch.dtype | None = None) -> Params | None:
    """The parameters a distribution was given, [A, E] and so on, or None where they differ from row to row.

    With `dtype` they are brought to it: a constant that a user's file makes when it is imported is float32.

    `fn` has batch shape [A, rows], [1, rows] or [rows]. Pyro expands parameters to the plate, so that a constant one has
    stride 0 along it: the shape says nothing.
    """
    family, base = family_of(fn), base_of(fn)
    if family is None or len(fn.batch_shape) > 2:
        return None
    axis = len(fn.batch_shape) - 1
    out = {}
    for name in family.names:
        value = base.__dict__.get(name)
        if value is None:
            continue
        if value.shape[axis] > 1 and value.stride(axis) != 0:
            return None
        value = value.select(axis, 0)
        value = value if axis == 1 else value.unsqueeze(0)
        value = value.expand(assignments, *value.shape[1:])
        trailing = family.vectors.get(name, 0)
        if not issubclass(family, MultivariateNormal):
            entries = value.shape[1 : value.dim() - trailing]
            value = value.reshape(assignments, math.prod(entries), *value.shape[value.dim() - trailing :])
        out[name] = value if dtype is None else value.to(dtype)
    return out if _whole(family, out) else None


def _whole(family: type[Family], params: Params) -> bool:
    return (
        {"loc", "scale"} <= set(params)
        if family is Normal
        else (len(params) == 2 if family is MultivariateNormal else len(params) >= 1)
    )
