"""The multivariate normal: whitened, and with its missing entries filled by their conditional moments.

The second is the classical EM for incomplete normal data (Little & Rubin 2002, §11.2). All log-densities in nats.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from inference._families._family import LOG_2PI, Density, Floor, Params, Pool, block_size, tiny
from inference._families._gaussian import Gaussian
from inference._families._patterns import Alike, Memo, Root, Solved, Sorted, solved
from inference._families._prior import covariance_mode, precision_of
from zoo._program.noise import InverseWishart, Separated


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

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self._sorted, self._memo = Sorted(x), Memo()

    @classmethod
    def given(cls, params: Params) -> bool:
        """The location and one form of the covariance: a second one would be computed from the first."""
        return super().given(params) and len(params) == 2

    def width(self, entries: int, assignments: int) -> int:
        # with holes the temporaries are those of some patterns, however many rows there are
        return assignments * (entries + 1) if self.complete else max(entries, assignments)

    def density(self, params: Params) -> Density:
        loc, root = params["loc"] - self.center, Root.of(_cholesky(params))
        whole = _whitened(loc, root)

        def density(x: Tensor) -> Tensor:
            if self._whole(x):
                return whole(x - self.center)
            out = x.new_zeros(len(x), len(loc))
            for some, found in self._solved(x, params, loc, root):
                out = out.index_copy(0, some.rows, found.log_prob())
            return out

        return density

    def statistics(self, x: Tensor, weights: Tensor, params: Params) -> dict[str, Tensor]:
        """`moments` [A, D+1, D+1] = Σ_i w_ia E[u uᵀ | observed], u = [x_i − center, 1]; rows wholly missing drop out."""
        if self._whole(x):
            return {"moments": _second_moments(x - self.center, weights)}
        loc, root = params["loc"] - self.center, Root.of(_cholesky(params))
        moments = x.new_zeros(len(loc), x.shape[1] + 1, x.shape[1] + 1)
        for some, found in self._solved(x, params, loc, root):
            mine = weights[some.rows] * some.any_seen().unsqueeze(1)
            filled, rest = found.completed(mine)
            extended = torch.cat([filled + loc, filled.new_ones(*filled.shape[:2], 1)], -1).movedim(1, 0)  # [A, n, D+1]
            moments += extended.mT @ (mine.mT.unsqueeze(-1) * extended)
            moments[:, :-1, :-1] += rest
        return {"moments": moments}

    def _solved(self, x: Tensor, params: Params, loc: Tensor, root: Root) -> Iterator[tuple[Alike, Solved]]:
        """The rows of x by their patterns, solved; `loc` is about the center, and `root` that of the covariances."""

        def work(some: Alike) -> Solved:
            rows = x[some.rows]
            away = torch.where(rows.isnan().unsqueeze(1), 0.0, (rows - self.center).unsqueeze(1) - loc)
            return solved(root, away, some)

        return self._memo.solved(x, params, self._sorted.of(x, len(loc)), work)

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


def _whitened(loc: Tensor, root: Root) -> Density:
    """x [n, d] ↦ log N(x_i; loc_a, L_a L_aᵀ) [n, A] for loc [A, d], L [A, d, d]; one product for all a."""
    A, d = loc.shape
    inverse, tril = root.inverse, root.tril
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


def _cholesky(params: Params) -> Tensor:
    if "scale_tril" in params:
        return params["scale_tril"]
    full = params["covariance_matrix"] if "covariance_matrix" in params else _inverse(params["precision_matrix"])
    return torch.linalg.cholesky(full)


def _inverse(precision: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(precision))
