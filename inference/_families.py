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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

BLOCK_NUMBERS = 2**24  # in the matrices of a group of missingness patterns
SHARED = 8  # rows to a pattern from which one pattern at a time is faster
LOG_2PI = math.log(2 * math.pi)
Params = dict[str, Tensor]
Density = Callable[[Tensor], Tensor]


@dataclass
class Floor:
    """The smallest variance the M-step may set, as a share of the data's own, and who reached it."""

    share: float
    reached: set[int]  # assignments


class Family:
    """What the E- and M-step need of a site's distribution. `names` lists its parameters by torch's names."""

    names: tuple[str, ...]
    vectors: dict[str, int] = {}  # parameter → how many trailing dimensions make one value

    def __init__(self, x: Tensor) -> None:
        """`x` [N, E]: the site's data, NaN where unobserved; the other methods take some of its rows, [n, E]."""
        self.complete = not bool(x.isnan().any())

    def log_prob(self, x: Tensor, params: Params) -> Tensor:
        """log p(x_i | a) [n, A], over the observed entries of x [n, E]."""
        base, out = self.log_base(x), self.density(params)(x)
        return out if base is None else out + base.unsqueeze(1)

    def log_base(self, x: Tensor) -> Tensor | None:
        """The part of log p(x_i | a) that no parameter enters [n], None for zero: it need be worked out only once."""
        return None

    def density(self, params: Params) -> Density:
        """x [n, E] ↦ the rest of log p(x_i | a) [n, A], with all that needs no x worked out once.

        It lies in memory with the data of one assignment next to each other: reductions over assignments run fast.
        """
        raise NotImplementedError

    def width(self, entries: int, assignments: int) -> int:
        """How many numbers the largest temporary of a pass over the data holds for each row."""
        return max(entries, assignments)

    def statistics(self, x: Tensor, weights: Tensor, params: Params) -> dict[str, Tensor]:
        """Sufficient statistics summed over x [n, E] with `weights` [n, A]; they add over chunks."""
        raise NotImplementedError

    def _whole(self, x: Tensor) -> bool:
        """Whether every entry of these rows was observed."""
        return self.complete or not bool(x.isnan().any())

    def _fill(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x with 0 where it is NaN, and 1.0 where it was seen (None when all of it was)."""
        if self._whole(x):
            return x, None
        missing = x.isnan()
        return x.masked_fill(missing, 0.0), (~missing).to(x.dtype)

    def expected(self, stats: dict[str, Tensor], params: Params) -> Tensor:
        """Σ_i Σ_a weight · log p(x_i | a) from the statistics, up to a constant; differentiable in `params`."""
        raise NotImplementedError

    def closed(self, name: str, pool: Pool, params: Params) -> bool:
        """Whether `maximise` has a closed form: vectors and matrices must be copied whole."""
        return name not in self.vectors or pool.blocks(_block_size(self, name, params)) is not None

    def maximise(self, name: str, pool: Pool, stats: dict[str, Tensor], params: Params, floor: Floor) -> Tensor:
        """θ with the entries that parameter `name` copies at their best value, the other parameters held."""
        raise NotImplementedError


@dataclass
class Pool:
    """Which entry of θ each entry of a distribution's parameter [A, …] is a copy of: `index` into θ.flat, −1 for none."""

    theta: str
    value: Tensor  # θ as it stands
    index: Tensor  # like the parameter

    def total(self, statistic: Tensor) -> Tensor:
        """Sum a statistic, shaped like the parameter, over the copies of each θ entry: θ.flat's shape."""
        flat = self.index.reshape(-1)
        used = flat >= 0
        out = statistic.new_zeros(self.value.numel())
        return out.index_add(0, flat[used], statistic.expand(self.index.shape).reshape(-1)[used])

    def fill(self, values: Tensor, known: Tensor) -> Tensor:
        """θ with the entries where `known` replaced by `values` (both flat)."""
        return torch.where(known, values, self.value.reshape(-1)).reshape(self.value.shape)

    def blocks(self, size: int) -> Tensor | None:
        """For parameters that copy θ in whole blocks of `size` entries: which block, for each of theirs; or None."""
        flat = self.index.reshape(-1, size)
        first = flat.max(dim=1).values // size
        wanted = first.unsqueeze(1) * size + torch.arange(size)
        return first if bool(((flat == wanted) | (flat < 0)).all()) and bool((first >= 0).all()) else None


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
        total = -(_product(stats["S0"], normaliser)).sum()
        for i, e in enumerate(eta, 1):
            total = total + _product(stats[f"S{i}"], e).sum()
        return total

    def maximise(self, name: str, pool: Pool, stats: dict[str, Tensor], params: Params, floor: Floor) -> Tensor:
        n0, n1 = pool.total(stats["S0"]), pool.total(stats["S1"])
        return pool.fill(self.mean_to(name, n1 / n0.clamp(min=_tiny(n0))), n0 > 0)

    def mean_to(self, name: str, mean: Tensor) -> Tensor:
        """The parameter at which the expectation of x is `mean` (maximum likelihood matches moments)."""
        return mean


class Bernoulli(Elementwise):
    names = ("probs", "logits")

    def natural(self, params: Params) -> tuple[list[Tensor], Tensor]:
        logits = params["logits"] if "logits" in params else torch.logit(_clamp(params["probs"]))
        return [logits], torch.nn.functional.softplus(logits)

    def mean_to(self, name: str, mean: Tensor) -> Tensor:
        return torch.logit(_clamp(mean)) if name == "logits" else mean


class Poisson(Elementwise):
    names = ("rate",)

    def natural(self, params: Params) -> tuple[list[Tensor], Tensor]:
        return [params["rate"].clamp(min=_tiny(params["rate"])).log()], params["rate"]

    def log_base(self, x: Tensor) -> Tensor:
        return -torch.lgamma(x + 1).nansum(1)


class Exponential(Elementwise):
    names = ("rate",)

    def natural(self, params: Params) -> tuple[list[Tensor], Tensor]:
        return [-params["rate"]], -params["rate"].log()

    def mean_to(self, name: str, mean: Tensor) -> Tensor:
        return 1 / mean.clamp(min=_tiny(mean))


class Normal(Elementwise):
    """Data are centred and scaled first, or x² would cancel against x·μ far from the origin."""

    names = ("loc", "scale")

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self.center = x.nanmean(0).nan_to_num(0.0)  # [E]
        spread = (x - self.center).square().nanmean(0).sqrt()
        self.spread = torch.where(spread > 0, spread, torch.ones_like(spread))  # nan > 0 is false: an unobserved column

    def features(self, x: Tensor) -> list[Tensor]:
        standard = (x - self.center) / self.spread
        return [standard, standard.square()]

    def natural(self, params: Params) -> tuple[list[Tensor], Tensor]:
        loc, scale = (params["loc"] - self.center) / self.spread, params["scale"] / self.spread
        precision = scale**-2
        normaliser = 0.5 * (loc.square() * precision + LOG_2PI) + params["scale"].log()
        return [loc * precision, -0.5 * precision], normaliser

    def maximise(self, name: str, pool: Pool, stats: dict[str, Tensor], params: Params, floor: Floor) -> Tensor:
        s0, s1 = stats["S0"], stats["S1"]
        if name == "loc":  # precision-weighted, for copies with different scales
            weight = (params["scale"] / self.spread) ** -2
            weight = weight / weight.max()
            raw = self.center * s0 + self.spread * s1
            n0, n1 = pool.total(weight * s0), pool.total(weight * raw)
            return pool.fill(n1 / n0.clamp(min=_tiny(n0)), n0 > 0)
        loc = (params["loc"] - self.center) / self.spread
        squares = (stats["S2"] - 2 * loc * s1 + loc.square() * s0) * self.spread**2
        n0 = pool.total(s0)
        variance = pool.total(squares) / n0.clamp(min=_tiny(n0))
        lowest = floor.share * pool.total((self.spread**2).expand_as(s0)) / pool.total(torch.ones_like(s0)).clamp(min=1)
        low = (variance < lowest) & (n0 > 0)
        if low.any():
            hit = (pool.index >= 0) & low[pool.index.clamp(min=0)]
            floor.reached.update(hit.any(1).nonzero()[:, 0].tolist())
        return pool.fill(torch.maximum(variance, lowest).sqrt(), n0 > 0)


class Categorical(Elementwise):
    """x [n, E] of category numbers; parameters [A, E, K]. A logit vector counts up to its additive constant."""

    names = ("probs", "logits")
    vectors = {"probs": 1, "logits": 1}

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self.categories = int(x.nan_to_num(0.0).max()) + 1

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
        return _product(stats["counts"], self._log_probs(params)).sum()

    def maximise(self, name: str, pool: Pool, stats: dict[str, Tensor], params: Params, floor: Floor) -> Tensor:
        categories = params[name].shape[-1]
        counts = pool.total(stats["counts"]).reshape(-1, categories)
        total = counts.sum(1, keepdim=True)
        probs = counts / total.clamp(min=_tiny(counts))
        # a category that nobody is in keeps a weight that is positive, if only just: its logarithm stays finite
        smallest = _tiny(counts)
        probs = probs.clamp(min=smallest) / probs.clamp(min=smallest).sum(1, keepdim=True)
        value = probs.log() if name == "logits" else probs
        return pool.fill(value.reshape(-1), (total > 0).expand_as(counts).reshape(-1))

    @staticmethod
    def _log_probs(params: Params) -> Tensor:
        return torch.log_softmax(params["logits"], -1) if "logits" in params else params["probs"].log()

    @staticmethod
    def _one_hot(x: Tensor, seen: Tensor | None, categories: int) -> Tensor:
        one_hot = torch.nn.functional.one_hot(x.long(), categories).to(x.dtype)
        return (one_hot if seen is None else one_hot * seen.unsqueeze(-1)).flatten(1)


class MultivariateNormal(Family):
    """Whitened: one product gives y = (x − μ_a) L_a⁻ᵀ for all a; second moments of [x, 1] are all the M-step needs."""

    names = ("loc", "scale_tril", "covariance_matrix", "precision_matrix")
    vectors = {"loc": 1, "scale_tril": 2, "covariance_matrix": 2, "precision_matrix": 2}

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self.center = x.nanmean(0).nan_to_num(0.0)
        spread = (x - self.center).square().nanmean(0).sqrt()
        self.spread = torch.where(spread > 0, spread, torch.ones_like(spread))

    def width(self, entries: int, assignments: int) -> int:
        return assignments * (entries + 1)

    def density(self, params: Params) -> Density:
        loc, tril = params["loc"] - self.center, _cholesky(params)
        whole = _whitened(loc, tril)

        def density(x: Tensor) -> Tensor:
            if self._whole(x):
                return whole(x - self.center)
            out = x.new_zeros(len(x), len(loc))
            for unique, which, rows in _patterns(x, len(loc)):
                out = out.index_copy(0, rows, self._marginal(x[rows], loc, tril @ tril.mT, unique, which))
            return out

        return density

    def statistics(self, x: Tensor, weights: Tensor, params: Params) -> dict[str, Tensor]:
        """`moments` [A, D+1, D+1] = Σ_i w_ia E[u uᵀ | observed], u = [x_i − center, 1]; rows wholly missing drop out."""
        if self._whole(x):
            return {"moments": _second_moments(x - self.center, weights)}
        loc, covariance = params["loc"] - self.center, _covariance(params)
        moments = x.new_zeros(len(loc), x.shape[1] + 1, x.shape[1] + 1)
        for unique, which, rows in _patterns(x, len(loc)):
            if unique.any():
                moments += self._completed(x[rows], weights[rows], loc, covariance, unique, which)
        return {"moments": moments}

    def _marginal(self, x: Tensor, loc: Tensor, covariance: Tensor, unique: Tensor, which: Tensor) -> Tensor:
        """log-density of the seen entries of each row [n, A], row i with the pattern unique[which[i]]."""
        mask = unique[which]
        factor = torch.linalg.cholesky(_masked(covariance, unique))  # [U, A, D, D]
        eye = torch.eye(x.shape[1], dtype=x.dtype).expand_as(factor)
        inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
        difference = ((x - self.center).nan_to_num(0.0).unsqueeze(1) - loc) * mask.unsqueeze(1)  # [n, A, D]
        white = _each(inverse, which, difference)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * white.square().sum(-1) - log_det[which] - 0.5 * LOG_2PI * mask.sum(1, keepdim=True)

    def _completed(
        self, x: Tensor, weights: Tensor, loc: Tensor, covariance: Tensor, unique: Tensor, which: Tensor
    ) -> Tensor:
        """Second moments [A, D+1, D+1], unseen entries by their conditional mean and covariance given the seen ones."""
        mask = unique[which]
        seen, D = unique[:, None, :, None], x.shape[1]
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(_masked(covariance, unique)))
        gain = covariance @ (inverse * seen * seen.mT)  # [U, A, D, D]: from seen differences to all expected ones
        conditional = (covariance - gain @ covariance) * (1 - seen) * (1 - seen.mT)
        difference = ((x - self.center).nan_to_num(0.0).unsqueeze(1) - loc) * mask.unsqueeze(1)
        filled = torch.where(mask.unsqueeze(1) > 0, difference, _each(gain, which, difference))
        extended = torch.cat([filled + loc, filled.new_ones(*filled.shape[:2], 1)], -1)  # [n, A, D+1]
        weights = weights * (mask.sum(1, keepdim=True) > 0)
        moments = torch.einsum("na,nad,nae->ade", weights, extended, extended)
        by_pattern = weights.new_zeros(len(unique), weights.shape[1]).index_add(0, which, weights)
        moments[:, :D, :D] += torch.einsum("ua,uade->ade", by_pattern, conditional)
        return moments

    def expected(self, stats: dict[str, Tensor], params: Params) -> Tensor:
        tril = _cholesky(params)
        scatter = self._scatter(stats["moments"], params["loc"])
        solved = torch.cholesky_solve(scatter, tril)
        n = stats["moments"][:, -1, -1]
        log_det = 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (solved.diagonal(dim1=-2, dim2=-1).sum(-1) + n * log_det).sum()

    def _scatter(self, moments: Tensor, loc: Tensor) -> Tensor:
        """Σ_i w_ia (x − μ_a)(x − μ_a)ᵀ [A, D, D] from the moments."""
        mean = (loc - self.center).unsqueeze(-1)  # [A, D, 1]
        first, n = moments[:, :-1, -1:], moments[:, -1:, -1:]
        cross = first @ mean.mT
        return moments[:, :-1, :-1] - cross - cross.mT + n * (mean @ mean.mT)

    def maximise(self, name: str, pool: Pool, stats: dict[str, Tensor], params: Params, floor: Floor) -> Tensor:
        D, size = params["loc"].shape[1], _block_size(self, name, params)
        blocks = pool.blocks(size)
        assert blocks is not None  # `closed` said so
        moments, groups = stats["moments"], pool.value.numel() // size
        n = moments.new_zeros(groups).index_add(0, blocks, moments[:, -1, -1])
        # a group with hardly a datum to its name says nothing: it keeps what it has
        known = n > 10 * torch.finfo(n.dtype).eps
        if name == "loc":
            value = self._locs(blocks, groups, moments, params)
        else:
            total = self._scatter(moments, params["loc"])
            scatter = moments.new_zeros(groups, D, D).index_add(0, blocks, total)
            covariance = scatter / n.clamp(min=_tiny(n))[:, None, None]
            value = self._in_form(name, self._floored(covariance, blocks, known, floor))
        return torch.where(
            known.reshape(-1, *(1,) * (value.dim() - 1)), value, pool.value.reshape(value.shape)
        ).reshape(pool.value.shape)

    def _locs(self, blocks: Tensor, groups: int, moments: Tensor, params: Params) -> Tensor:
        """Means, precision-weighted where assignments with different covariances share one."""
        D = params["loc"].shape[1]
        first, n = moments[:, :-1, -1], moments[:, -1, -1]
        if groups == len(blocks) and len(blocks.unique()) == len(blocks):
            zero = moments.new_zeros(groups, D)
            return self.center + zero.index_add(0, blocks, first / n.clamp(min=_tiny(n)).unsqueeze(1))
        precision = torch.cholesky_inverse(_cholesky(params))  # [A, D, D]
        precision = precision / precision.abs().amax()
        left = moments.new_zeros(groups, D, D).index_add(0, blocks, n[:, None, None] * precision)
        right = moments.new_zeros(groups, D, 1).index_add(0, blocks, precision @ first.unsqueeze(-1))
        unused = left.abs().amax((-2, -1)) == 0
        left[unused] = torch.eye(D, dtype=left.dtype)
        return self.center + torch.linalg.solve(left, right).squeeze(-1)

    def _floored(self, covariance: Tensor, blocks: Tensor, known: Tensor, floor: Floor) -> Tensor:
        """Eigenvalues, in units of the data's standard deviations, no smaller than the floor.

        That is the constrained maximum, so the likelihood still cannot fall.
        """
        unit = torch.outer(self.spread, self.spread)
        values, vectors = torch.linalg.eigh(covariance / unit)
        low = (values.amin(-1) < floor.share) & known
        if not low.any():
            return torch.where(known[:, None, None], covariance, unit.diag().diag())
        floor.reached.update(a for a, g in enumerate(blocks.tolist()) if low[g])
        clipped = (vectors * values.clamp(min=floor.share).unsqueeze(-2)) @ vectors.mT * unit
        out = torch.where(low[:, None, None], clipped, covariance)
        return torch.where(known[:, None, None], out, unit.diag().diag())

    @staticmethod
    def _in_form(name: str, covariance: Tensor) -> Tensor:
        if name == "covariance_matrix":
            return covariance
        tril = torch.linalg.cholesky(covariance)
        return tril if name == "scale_tril" else torch.cholesky_inverse(tril)


def _whitened(loc: Tensor, tril: Tensor) -> Density:
    """x [n, d] ↦ log N(x_i; loc_a, L_a L_aᵀ) [n, A] for loc [A, d], L [A, d, d]; one product for all a."""
    A, d = loc.shape
    inverse = torch.linalg.solve_triangular(tril, torch.eye(d).to(loc).expand_as(tril), upper=False)
    shift = -(inverse @ loc.unsqueeze(-1)).reshape(A * d, 1)
    inverse = inverse.reshape(A * d, d)
    constant = -0.5 * d * LOG_2PI - tril.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)  # [A, 1]

    def density(x: Tensor) -> Tensor:
        white = torch.addmm(shift, inverse, x.mT)  # [A·d, n]
        # in place, with gradients too: a product's derivative does not need its value
        distance = white.square_().reshape(A, d, len(x)).sum(1)
        return torch.add(constant, distance, alpha=-0.5).mT

    return density


def _second_moments(x: Tensor, weights: Tensor) -> Tensor:
    """Σ_i w_ia u_i u_iᵀ [A, d+1, d+1] for u = [x, 1], x [n, d]; one product."""
    n, d = x.shape
    A = weights.shape[1]
    u = torch.cat([x.mT, x.new_ones(1, n)])  # [d+1, n]
    weighted = (weights.mT.unsqueeze(1) * u).reshape(A * (d + 1), n)
    out = x.new_empty(A, d + 1, d + 1)
    out[:, :d] = (u[:d] @ weighted.mT).reshape(d, A, d + 1).transpose(0, 1)
    out[:, d, :d] = out[:, :d, d]  # what the product has already
    out[:, d, d] = weights.sum(0)
    return out


def _patterns(x: Tensor, assignments: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The missingness patterns of x [n, D], in groups that need little memory: patterns [U, D] (1.0 where seen), which of
    them each row of the group has, and the rows. A pattern that many rows share is a group of its own."""
    unique, which = torch.unique(~x.isnan(), dim=0, return_inverse=True)
    order = torch.argsort(which, stable=True)
    counts = torch.bincount(which, minlength=len(unique))
    shared = len(x) >= SHARED * len(unique)
    size = 1 if shared else max(1, BLOCK_NUMBERS // (SHARED * assignments * x.shape[1] ** 2))
    ends = counts.cumsum(0).tolist()
    for first in range(0, len(unique), size):
        last = min(first + size, len(unique))
        rows = order[(ends[first - 1] if first else 0) : ends[last - 1]]
        yield unique[first:last].to(x.dtype), which[rows] - first, rows


def _each(matrices: Tensor, which: Tensor, vectors: Tensor) -> Tensor:
    """matrices[which[i], a] @ vectors[i, a] [n, A, D], for matrices [U, A, D, D]."""
    if len(matrices) == 1:
        return torch.einsum("ade,nae->nad", matrices[0], vectors)
    return (matrices[which] @ vectors.unsqueeze(-1)).squeeze(-1)


def _masked(covariance: Tensor, unique: Tensor) -> Tensor:
    """[U, A, D, D]: the covariance among the seen entries of each pattern, the identity among the others."""
    seen = unique[:, None, :, None]
    return covariance * seen * seen.mT + torch.diag_embed(1 - unique).unsqueeze(1)


def _block_size(family: Family, name: str, params: Params) -> int:
    return math.prod(params[name].shape[-family.vectors[name] :])


def _cholesky(params: Params) -> Tensor:
    if "scale_tril" in params:
        return params["scale_tril"]
    return torch.linalg.cholesky(_covariance(params))


def _covariance(params: Params) -> Tensor:
    if "covariance_matrix" in params:
        return params["covariance_matrix"]
    if "scale_tril" in params:
        return params["scale_tril"] @ params["scale_tril"].mT
    return torch.cholesky_inverse(torch.linalg.cholesky(params["precision_matrix"]))


def _product(weight: Tensor, value: Tensor) -> Tensor:
    """weight · value, with 0 · ±inf = 0."""
    return torch.where(weight == 0, torch.zeros(()).to(value), weight * value)


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny


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


def parameters_of(fn: Any, assignments: int) -> Params | None:
    """The parameters a distribution was given, [A, E] and so on, or None where they differ from row to row.

    `fn` has batch shape [A, rows], [1, rows] or [rows]. Pyro expands parameters to the plate, so that a constant one has
    stride 0 along it: the shape says nothing (§10 of the design).
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
        out[name] = value
    return out if _whole(family, out) else None


def _whole(family: type[Family], params: Params) -> bool:
    return (
        {"loc", "scale"} <= set(params)
        if family is Normal
        else (len(params) == 2 if family is MultivariateNormal else len(params) >= 1)
    )
