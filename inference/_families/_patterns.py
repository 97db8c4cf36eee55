"""A multivariate normal of which rows see some entries: rows that miss the same ones share the work.

Say Σ = L Lᵀ, W = L⁻¹, and of d = x − μ the entries o are seen and m are not. Two ways lead to log p(x_o) and to the mean and
covariance of x_m given x_o; each factors one matrix for a pattern:

- `BySeen`, the textbook's (Little & Rubin 2002, §11.2): Σ_oo.
- `ByUnseen`, for few unseen entries: the precision W_mᵀ W_m of x_m given x_o. The mean of d_m is what makes |W d| smallest, for
  d_o as it is, and that smallest square is the distance in log p(x_o): nothing cancels. With D = 50 and 5 unseen entries a
  matrix of 5 × 5 is factored in place of one of 45 × 45.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from inference._families._family import LOG_2PI

KEPT_NUMBERS = 2**24  # in what is kept of patterns, and of rows that were worked on until they are asked about again
BLOCK_NUMBERS = 2**20  # in the matrices of the patterns that are worked on at once: they should stay in the cache
WORD = 52  # bits that a float64 holds exactly
FEW = 8  # rows of a pattern that are padded to without a thought


@dataclass
class Root:
    """Σ_a = L_a L_aᵀ of each assignment: `tril` L and its `inverse` W [A, D, D]."""

    tril: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, tril: Tensor) -> Root:
        eye = torch.eye(tril.shape[-1]).to(tril).expand_as(tril)
        return cls(tril, torch.linalg.solve_triangular(tril, eye, upper=False))


@dataclass
class Alike:
    """Some missingness patterns, and the rows that have them. Nearly as many rows have each: little of a pad is wasted."""

    seen: Tensor  # [U, D], 1.0 where a pattern sees an entry
    unseen: Tensor | None  # [U, M] the others, D for none; None where that is most of them
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

    def any_seen(self) -> Tensor:
        """Whether a row has any entry [n]."""
        return (self.seen.sum(1) > 0)[self.which]

    def total(self, weights: Tensor) -> Tensor:
        """Σ over the rows of each pattern of their weights [n, A] → [U, A]."""
        return weights.new_zeros(len(self.seen), weights.shape[1]).index_add(0, self.which, weights)


class Solved(Protocol):
    """What is known of rows, from the entries that they see."""

    def log_prob(self) -> Tensor:
        """log-density of the seen entries of each row [n, A], nats."""

    def completed(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """d with the mean of unseen entries given the seen ones [n, A, D], and Σ_i w_ia Cov(d | d_o) [A, D, D]."""

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""


def solved(root: Root, away: Tensor, some: Alike) -> Solved:
    """`away`: x − μ_a [n, A, D] of the rows of `some`, 0 where unseen."""
    if some.unseen is not None:
        found = ByUnseen(root, away, some, some.unseen)
        if found.fine:
            return found
    return BySeen(root, away, some)


class BySeen:
    """By the Cholesky factor of Σ_oo."""

    def __init__(self, root: Root, away: Tensor, some: Alike) -> None:
        self.root, self.away, self.some = root, away, some
        self.factor = _seen_root(root.tril, some.seen)  # [U, A, D, D]
        self.white = torch.linalg.solve_triangular(self.factor, some.pad(away), upper=False)

    def log_prob(self) -> Tensor:
        some, distance = self.some, self.white.square().sum(2, keepdim=True)
        log_det = _log_det(self.factor) + 0.5 * LOG_2PI * some.seen.sum(1, keepdim=True)
        return -0.5 * some.back(distance).squeeze(2) - log_det[some.which]

    def completed(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        seen, covariance = self.some.seen[:, None, :, None], self.root.tril @ self.root.tril.mT
        # covariance of the whitened seen entries with the unseen ones [U, A, D, D]
        half = torch.linalg.solve_triangular(self.factor, covariance * seen * (1 - seen.mT), upper=False)
        conditional = covariance * (1 - seen) * (1 - seen.mT) - half.mT @ half
        rest = torch.einsum("ua,uade->ade", self.some.total(weights), conditional)
        return self.away + self.some.back(half.mT @ self.white), rest

    @property
    def numbers(self) -> int:
        return self.away.numel() + self.factor.numel() + self.white.numel()


class ByUnseen:
    """By the Cholesky factor of the precision of the unseen entries given the seen ones.

    `fine`: whether it has most of its digits; where the seen entries nearly fix the unseen ones it has not.
    """

    def __init__(self, root: Root, away: Tensor, some: Alike, unseen: Tensor) -> None:
        self.root, self.away, self.some, self.unseen = root, away, some, unseen
        self.D = away.shape[-1]
        real = unseen < self.D  # [U, M]
        W = torch.nn.functional.pad(root.inverse, (0, 1))  # the entry D, which is none, has a column of zeros
        self.columns = W[:, :, unseen].permute(2, 0, 1, 3)  # W_m [U, A, D, M]
        precision = self.columns.mT @ self.columns + (~real).to(away).diag_embed().unsqueeze(1)
        self.factor, failed = torch.linalg.cholesky_ex(precision)
        self.fine = not bool(failed.any()) and _has_digits(self.factor, precision)
        if self.fine:
            self.white = some.pad((away.movedim(1, 0) @ root.inverse.mT).movedim(0, 1))  # W_o d_o [U, A, D, most]
            self.mean = -torch.cholesky_solve(self.columns.mT @ self.white, self.factor)  # of d_m [U, A, M, most]

    def log_prob(self) -> Tensor:
        some, distance = self.some, (self.white + self.columns @ self.mean).square().sum(2, keepdim=True)
        log_det = _log_det(self.root.tril) + _log_det(self.factor) + 0.5 * LOG_2PI * some.seen.sum(1, keepdim=True)
        return -0.5 * some.back(distance).squeeze(2) - log_det[some.which]

    def completed(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        some, A, D = self.some, self.away.shape[1], self.D
        place = self.unseen[some.which].unsqueeze(1).expand(-1, A, -1)  # [n, A, M]
        filled = torch.nn.functional.pad(self.away, (0, 1)).scatter(2, place, some.back(self.mean))[..., :D]
        cross = self.unseen.unsqueeze(2) * (D + 1) + self.unseen.unsqueeze(1)  # [U, M, M]
        terms = some.total(weights)[..., None, None] * torch.cholesky_inverse(self.factor)  # [U, A, M, M]
        flat = terms.movedim(1, 0).reshape(A, -1)
        rest = flat.new_zeros(A, (D + 1) ** 2).index_add(1, cross.reshape(-1), flat)
        return filled, rest.unflatten(1, (D + 1, D + 1))[:, :D, :D]

    @property
    def numbers(self) -> int:
        return sum(t.numel() for t in (self.away, self.columns, self.factor, self.white, self.mean))


def _log_det(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _has_digits(factor: Tensor, matrix: Tensor) -> bool:
    """Whether the Cholesky factor of a matrix has at least half of its digits."""
    with torch.no_grad():
        share = factor.diagonal(dim1=-2, dim2=-1) / matrix.diagonal(dim1=-2, dim2=-1).sqrt()
        return bool((share > torch.finfo(matrix.dtype).eps ** 0.25).all())


# ------------------------------------------------------------------------------------------------------------ patterns


class Sorted:
    """The patterns of some of the `data` [N, D], sorted the first time that these rows are asked about."""

    def __init__(self, data: Tensor) -> None:
        self._place = data.untyped_storage()
        self._known: dict[tuple[int, ...], tuple[int, list[Alike]]] = {}
        self._left = KEPT_NUMBERS

    def of(self, x: Tensor, assignments: int) -> Iterable[Alike]:
        """`alike(x, assignments)`."""
        if x.untyped_storage().data_ptr() != self._place.data_ptr():  # other rows, which may not stay where they are
            return alike(x, assignments)
        key = x.data_ptr(), *x.shape, *x.stride(), assignments
        version, patterns = self._known.get(key, (-1, []))
        return patterns if version == x._version else self._sort(key, x, assignments)

    def _sort(self, key: tuple[int, ...], x: Tensor, assignments: int) -> Iterator[Alike]:
        """The same, kept where there is room."""
        found: list[Alike] = []
        for some in alike(x, assignments):
            self._left -= some.seen.numel() + 3 * len(some.rows)
            if self._left >= 0:
                found.append(some)
            yield some
        if self._left >= 0:
            self._known[key] = x._version, found


@dataclass
class Memo:
    """What was solved for some rows under some parameters, as long as these rows, the very tensor, are held.

    An E-step asks for the density of rows and then for their statistics: both follow from the same `Solved`.
    `_of`: rows → their version, the parameters, and what was solved.
    """

    _of: WeakIdKeyDictionary = field(default_factory=WeakIdKeyDictionary)

    def solved(
        self, x: Tensor, params: object, patterns: Iterable[Alike], work: Callable[[Alike], Solved]
    ) -> Iterator[tuple[Alike, Solved]]:
        """Each of the `patterns` and its rows, solved by `work`, unless that is known."""
        if torch.is_grad_enabled():
            yield from ((some, work(some)) for some in patterns)
            return
        version, of, known = self._of.get(x, (-1, None, []))
        old = known if version == x._version and of is params else []
        new: list[Solved] = []
        numbers = 0
        for i, some in enumerate(patterns):
            found = old[i] if i < len(old) else work(some)
            yield some, found
            if len(new) == i and (numbers := numbers + found.numbers) <= KEPT_NUMBERS:
                new.append(found)
        self._of[x] = x._version, params, new


def alike(x: Tensor, assignments: int) -> Iterator[Alike]:
    """The missingness patterns of x [n, D], a few at a time: first those that see most entries, of these the commonest."""
    seen, which, sizes = _patterns(~x.isnan())
    D, little = x.shape[1], 2 * seen.sum(1) < x.shape[1]
    order = (sizes + little * -(len(x) + 1)).argsort(descending=True, stable=True)
    rank = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order)).to(order))
    seen, which, counts = seen[order], rank[which], [int(n) for n in sizes[order]]
    rows_by, ends, first = which.argsort(stable=True), [0, *itertools.accumulate(counts)], 0
    much = len(seen) - int(little.sum())
    while first < len(seen):
        most, last = counts[first], much if first < much else len(seen)
        last = min(last, first + max(1, BLOCK_NUMBERS // (assignments * D * (D + most))))
        last = first + sum(count >= most / 2 or most <= FEW for count in counts[first:last])
        rows, mine = rows_by[ends[first] : ends[last]], seen[first:last]
        of = which[rows] - first
        within = torch.arange(len(rows)).to(rows) - (torch.tensor(ends[first:last]).to(rows) - ends[first])[of]
        yield Alike(mine.to(x), _unseen(mine) if first < much else None, rows, of, of * most + within, most)
        first = last


def _unseen(seen: Tensor) -> Tensor:
    """Which entries are not seen [U, M] in a boolean [U, D]; D where a pattern has fewer of them."""
    most = max(1, int((~seen).sum(1).max()))
    first = (~seen).to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return torch.where(seen.gather(1, first), seen.shape[1], first)


def _patterns(seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct rows of a boolean [n, D], which of them each row is, and how many are: by sorting words of bits."""
    which = torch.zeros(len(seen), dtype=torch.long, device=seen.device)
    for word in seen.split(WORD, 1):
        bits = 2.0 ** torch.arange(word.shape[1], dtype=torch.float64, device=seen.device)
        values, mine = torch.unique(word.double() @ bits, return_inverse=True)
        which = torch.unique(which * len(values) + mine, return_inverse=True)[1]
    sizes = torch.bincount(which)
    example = torch.empty_like(sizes).index_copy_(0, which, torch.arange(len(which)).to(which))
    return seen[example], which, sizes


def _seen_root(tril: Tensor, seen: Tensor) -> Tensor:
    """The Cholesky factor [U, A, D, D] of the covariance L Lᵀ among the seen entries of each pattern, 1 for the others.

    Where that matrix is nearly singular its factor comes from L itself (R of a QR decomposition of the seen rows, Lᵀ): the
    product L Lᵀ would lose half of the digits.
    """
    at, one = seen[:, None, :, None], torch.diag_embed(1 - seen).unsqueeze(1)
    masked = (tril @ tril.mT) * at * at.mT + one
    factor, failed = torch.linalg.cholesky_ex(masked)
    if not bool(failed.any()) and _has_digits(factor, masked):
        return factor
    rows = torch.cat([tril * at, one.expand_as(masked)], -1)
    root = torch.linalg.qr(rows.mT).R.mT
    return root * root.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
