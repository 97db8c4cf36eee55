"""The multivariate normal: whitened, and with its missing entries filled by their conditional moments.

The second is the classical EM for incomplete normal data (Little & Rubin 2002, §11.2). All log-densities in nats.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from inference._families._family import LOG_2PI, Density, Floor, Params, Pool, block_size, tiny
from inference._families._gaussian import Gaussian
from inference._families._prior import covariance_mode, precision_of
from zoo._program.noise import InverseWishart, Separated

BLOCK_NUMBERS = 2**20  # in the matrices of the patterns that are worked on at once: they should stay in the cache
WORD = 52  # bits that a float64 holds exactly
FEW = 8  # rows of a pattern that are padded to without a thought


@dataclass
class Alike:
    """Some missingness patterns, and the rows that have them. Nearly as many rows have each: little of a pad is wasted."""

    seen: Tensor  # [U, D], 1.0 where a pattern sees an entry
    rows: Tensor  # which rows [n]
    which: Tensor  # the pattern of each [n]
    place: Tensor  # of each in the pad, row after row [n]
    most: int  # rows of a pattern in the pad

    def pad(self, values: Tensor) -> Tensor:
        """[n, A, D] → [U, A, D, most], 0 where a pattern has fewer rows."""
        out = values.new_zeros(len(self.seen) * self.most, *values.shape[1:]).index_copy(0, self.place, values)
        return out.unflatten(0, (len(self.seen), self.most)).permute(0, 2, 3, 1)

    def back(self, padded: Tensor) -> Tensor:
        """[U, A, D, most] → [n, A, D]."""
        return padded.permute(0, 3, 1, 2).flatten(0, 1)[self.place]


class MultivariateNormal(Gaussian):
    """Whitened: one product gives y = (x − μ_a) L_a⁻ᵀ for all a; second moments of [x, 1] are all the M-step needs."""

    distribution = dist.MultivariateNormal
    parameters = {
        "loc": constraints.real_vector,
        "scale_tril": constraints.lower_cholesky,
        "covariance_matrix": constraints.positive_definite,
        "precision_matrix": constraints.positive_definite,
    }
    one_of = ("scale_tril", "covariance_matrix", "precision_matrix")
    location = "loc"
    joint = by_pattern = True
    priors = {
        "loc": (dist.Normal,),
        "covariance_matrix": (InverseWishart, Separated),
        "precision_matrix": (dist.Wishart,),
    }

    @classmethod
    def given(cls, params: Params) -> bool:
        """The location and one form of the covariance: a second one would be computed from the first."""
        return super().given(params) and len(params) == 2

    def width(self, entries: int, assignments: int) -> int:
        # with holes the temporaries are those of some patterns, however many rows there are
        return assignments * (entries + 1) if self.complete else max(entries, assignments)

    def density(self, params: Params) -> Density:
        loc, tril = params["loc"] - self.center, _cholesky(params)
        whole = _whitened(loc, tril)

        def density(x: Tensor) -> Tensor:
            if self._whole(x):
                return whole(x - self.center)
            out = x.new_zeros(len(x), len(loc))
            for some in _alike(x, len(loc)):
                out = out.index_copy(0, some.rows, self._marginal(x[some.rows], loc, tril, some))
            return out

        return density

    def statistics(self, x: Tensor, weights: Tensor, params: Params) -> dict[str, Tensor]:
        """`moments` [A, D+1, D+1] = Σ_i w_ia E[u uᵀ | observed], u = [x_i − center, 1]; rows wholly missing drop out."""
        if self._whole(x):
            return {"moments": _second_moments(x - self.center, weights)}
        loc, tril = params["loc"] - self.center, _cholesky(params)
        moments = x.new_zeros(len(loc), x.shape[1] + 1, x.shape[1] + 1)
        for some in _alike(x, len(loc)):
            moments += self._completed(x[some.rows], weights[some.rows], loc, tril, some)
        return {"moments": moments}

    def _away(self, x: Tensor, loc: Tensor) -> Tensor:
        """x − μ_a [n, A, D], 0 where unseen."""
        return torch.where(x.isnan().unsqueeze(1), 0.0, (x - self.center).unsqueeze(1) - loc)

    def _marginal(self, x: Tensor, loc: Tensor, tril: Tensor, some: Alike) -> Tensor:
        """log-density of the seen entries of each row [n, A]."""
        factor = _seen_root(tril, some.seen)  # [U, A, D, D]
        white = torch.linalg.solve_triangular(factor, some.pad(self._away(x, loc)), upper=False)
        distance = some.back(white.square().sum(2, keepdim=True)).squeeze(2)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 0.5 * LOG_2PI * some.seen.sum(1, keepdim=True)
        return -0.5 * distance - log_det[some.which]

    def _completed(self, x: Tensor, weights: Tensor, loc: Tensor, tril: Tensor, some: Alike) -> Tensor:
        """Second moments [A, D+1, D+1], unseen entries by their conditional mean and covariance given the seen ones."""
        seen, covariance, D = some.seen[:, None, :, None], tril @ tril.mT, x.shape[1]
        factor = _seen_root(tril, some.seen)
        # covariance of the whitened seen entries with the unseen ones [U, A, D, D]
        half = torch.linalg.solve_triangular(factor, covariance * seen * (1 - seen.mT), upper=False)
        conditional = covariance * (1 - seen) * (1 - seen.mT) - half.mT @ half
        away = self._away(x, loc)
        white = torch.linalg.solve_triangular(factor, some.pad(away), upper=False)
        filled = away + some.back(half.mT @ white)
        weights = weights * (some.seen.sum(1) > 0)[some.which].unsqueeze(1)
        extended = torch.cat([filled + loc, filled.new_ones(*filled.shape[:2], 1)], -1).movedim(1, 0)  # [A, n, D+1]
        moments = extended.mT @ (weights.mT.unsqueeze(-1) * extended)
        by_pattern = weights.new_zeros(len(seen), weights.shape[1]).index_add(0, some.which, weights)
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
        D, size = params["loc"].shape[1], block_size(self, name, params)
        blocks = pool.blocks(size)
        assert blocks is not None  # `closed` said so
        moments, groups = stats["moments"], pool.value.numel() // size
        n = moments.new_zeros(groups).index_add(0, blocks, moments[:, -1, -1])
        # a group with almost no rows determines nothing: it keeps its value
        known = (n > 10 * torch.finfo(n.dtype).eps) | (pool.prior is not None)
        if name == self.location:
            value = self._locs(blocks, groups, moments, params, pool)
        else:
            total = self._scatter(moments, params["loc"])
            scatter = moments.new_zeros(groups, D, D).index_add(0, blocks, total)
            if pool.prior is not None:
                return covariance_mode(pool, scatter, n).reshape(pool.value.shape)
            covariance = scatter / n.clamp(min=tiny(n))[:, None, None]
            value = self.in_form(name, self._floored(covariance, pool.theta, blocks, known, floor))
        return torch.where(
            known.reshape(-1, *(1,) * (value.dim() - 1)), value, pool.value.reshape(value.shape)
        ).reshape(pool.value.shape)

    def _locs(self, blocks: Tensor, groups: int, moments: Tensor, params: Params, pool: Pool) -> Tensor:
        """Means, precision-weighted where assignments with different covariances share one, or they have a prior."""
        D = params["loc"].shape[1]
        first, n = moments[:, :-1, -1], moments[:, -1, -1]
        if pool.prior is None and groups == len(blocks) and len(blocks.unique()) == len(blocks):
            zero = moments.new_zeros(groups, D)
            return self.center + zero.index_add(0, blocks, first / n.clamp(min=tiny(n)).unsqueeze(1))
        precision = torch.cholesky_inverse(_cholesky(params))  # [A, D, D]
        if pool.prior is None:
            precision = precision / precision.abs().amax()
        left = moments.new_zeros(groups, D, D).index_add(0, blocks, n[:, None, None] * precision)
        right = moments.new_zeros(groups, D, 1).index_add(0, blocks, precision @ first.unsqueeze(-1))
        if pool.prior is not None:
            known, at = (torch.as_tensor(v).reshape(groups, D) for v in precision_of(pool))
            left, right = left + known.diag_embed(), right + (at - known * self.center).unsqueeze(-1)
        unused = left.abs().amax((-2, -1)) == 0
        left[unused] = torch.eye(D, dtype=left.dtype)
        return self.center + torch.linalg.solve(left, right).squeeze(-1)

    def _floored(self, covariance: Tensor, theta: str, blocks: Tensor, known: Tensor, floor: Floor) -> Tensor:
        """Eigenvalues, in units of the data's standard deviations, no smaller than the floor.

        That is the constrained maximum, so the likelihood still cannot fall.
        """
        unit = torch.outer(self.spread, self.spread)
        values, vectors = torch.linalg.eigh(
            torch.where(known[:, None, None], covariance / unit, torch.eye(len(unit)).to(unit))
        )
        lowest = floor.lowest(theta, values.amin(-1), known)
        low = ~(values.amin(-1) >= lowest) & known
        out = torch.where(known[:, None, None], covariance, unit.diag().diag())
        if not low.any():
            return out
        floor.reached.update(a for a, g in enumerate(blocks.tolist()) if low[g])
        floor.resting[theta] = low
        clipped = (vectors * torch.maximum(values, lowest.unsqueeze(-1)).unsqueeze(-2)) @ vectors.mT * unit
        return torch.where(low[:, None, None], clipped, out)

    @torch.no_grad()
    def smallest(self, params: Params) -> Tensor:
        root = _cholesky(params) / self.spread.unsqueeze(-1)
        return torch.linalg.svdvals(root).amin(-1).square()

    @classmethod
    def root(cls, params: Params) -> Tensor:
        return _cholesky(params)

    @classmethod
    def covariance(cls, params: Params, entries: list[int]) -> Tensor:
        if "scale_tril" in params:
            part = params["scale_tril"][:, entries]
            return part @ part.mT
        full = params["covariance_matrix"] if "covariance_matrix" in params else _inverse(params["precision_matrix"])
        return full[:, entries][:, :, entries]

    @classmethod
    def in_form(cls, name: str, covariance: Tensor) -> Tensor:
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


def _alike(x: Tensor, assignments: int) -> Iterator[Alike]:
    """The missingness patterns of x [n, D], a few at a time, those that most rows have first."""
    unique, which = _patterns(~x.isnan())
    sizes, by_size = torch.bincount(which, minlength=len(unique)).sort(descending=True, stable=True)
    rank = torch.empty_like(by_size).index_copy_(0, by_size, torch.arange(len(by_size)).to(by_size))
    unique, which, counts = unique[by_size].to(x.dtype), rank[which], [int(n) for n in sizes]
    order, ends, first = which.argsort(stable=True), [0, *itertools.accumulate(counts)], 0
    while first < len(unique):
        most, D = counts[first], x.shape[1]
        last = first + max(1, BLOCK_NUMBERS // (assignments * D * (D + most)))
        last = first + sum(count >= most / 2 or most <= FEW for count in counts[first:last])
        rows = order[ends[first] : ends[last]]
        mine = which[rows] - first
        within = torch.arange(len(rows)).to(rows) - (torch.tensor(ends[first:last]).to(rows) - ends[first])[mine]
        yield Alike(unique[first:last], rows, mine, mine * most + within, most)
        first = last


def _patterns(seen: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows of a boolean [n, D], and which of them each row is: by sorting numbers, a word of bits each."""
    which = torch.zeros(len(seen), dtype=torch.long, device=seen.device)
    for word in seen.split(WORD, 1):
        bits = 2.0 ** torch.arange(word.shape[1], dtype=torch.float64, device=seen.device)
        values, mine = torch.unique(word.double() @ bits, return_inverse=True)
        which = torch.unique(which * len(values) + mine, return_inverse=True)[1]
    example = which.new_empty(int(which.max()) + 1).index_copy_(0, which, torch.arange(len(which)).to(which))
    return seen[example], which


def _seen_root(tril: Tensor, unique: Tensor) -> Tensor:
    """The Cholesky factor [U, A, D, D] of the covariance L Lᵀ among the seen entries of each pattern, 1 for the others.

    Where that matrix is nearly singular its factor comes from L itself (R of a QR decomposition of the seen rows, Lᵀ): the
    product L Lᵀ would lose half of the digits.
    """
    masked = _masked(tril @ tril.mT, unique)
    factor, failed = torch.linalg.cholesky_ex(masked)
    with torch.no_grad():
        share = factor.diagonal(dim1=-2, dim2=-1) / masked.diagonal(dim1=-2, dim2=-1).sqrt()
        fine = not bool(failed.any()) and bool((share > torch.finfo(tril.dtype).eps ** 0.25).all())
    if fine:
        return factor
    rows = torch.cat([tril * unique[:, None, :, None], torch.diag_embed(1 - unique).unsqueeze(1).expand_as(masked)], -1)
    root = torch.linalg.qr(rows.mT).R.mT
    return root * root.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


def _masked(covariance: Tensor, unique: Tensor) -> Tensor:
    """[U, A, D, D]: the covariance among the seen entries of each pattern, the identity among the others."""
    seen = unique[:, None, :, None]
    return covariance * seen * seen.mT + torch.diag_embed(1 - unique).unsqueeze(1)


def _cholesky(params: Params) -> Tensor:
    if "scale_tril" in params:
        return params["scale_tril"]
    full = params["covariance_matrix"] if "covariance_matrix" in params else _inverse(params["precision_matrix"])
    return torch.linalg.cholesky(full)


def _inverse(precision: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(precision))
