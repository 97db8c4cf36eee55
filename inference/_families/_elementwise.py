"""Families whose entries are independent given the assignment: every pass over the data is a matrix product.

For a mixture over an exponential family, log p(x | a) = T(x)·η_a − A(η_a) + log h(x) (Bishop 2006, §2.4), so the E-step
is one product of T(x) with the natural parameters and the M-step one product of the responsibilities with T(x). A missing
entry drops out of T and of A.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from inference._families._family import Density, Family, Floor, Params, Pool, product, tiny
from inference._families._prior import added


class Elementwise(Family):
    """Parameters [A, E], statistics S0, S1, … by matrix products.

    A family of one parameter and T(x) = x needs `natural` and, where that parameter is not the mean, `mean_to`.
    """

    order: ClassVar[int] = 1  # how many features there are
    bordered: ClassVar[bool] = False  # whether an M-step can reach the border of the parameters: see `blurred`

    def features(self, x: Tensor) -> list[Tensor]:
        """T(x), each [n, E]; finite also where x was filled."""
        return [x]

    def natural(self, params: Params) -> tuple[list[Tensor], Tensor]:
        """Natural parameters η, one [A, E] for each feature, and the log normaliser A(η) [A, E], constants included."""
        raise NotImplementedError

    def terms(self, x: Tensor) -> Tensor:
        """T(x) side by side [n, order·E]; where entries are missing 1 for each that was seen stands before [n, (1+order)·E]."""
        x, seen = self._fill(x)
        parts = self.features(x) if seen is None else [seen, *(t * seen for t in self.features(x))]
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def width(self, entries: int, assignments: int) -> int:
        return max((self.order + (not self.complete)) * entries, assignments)

    def density(self, params: Params) -> Density:
        eta, normaliser = self.natural(params)
        total, whole = -normaliser.sum(1, keepdim=True), torch.cat(eta, 1)
        holes = None if self.complete else torch.cat([-normaliser, whole], 1)

        def density(terms: Tensor) -> Tensor:
            if holes is None or terms.shape[1] == whole.shape[1]:
                return torch.addmm(total, whole, terms.mT).mT
            return (holes @ terms.mT).mT

        return density

    def statistics(self, terms: Tensor, weights: Tensor, params: Params) -> dict[str, Tensor]:
        entries = next(iter(params.values())).shape[1]
        sums = (weights.mT @ terms).split(entries, 1)
        if len(sums) == self.order:
            sums = (weights.sum(0).unsqueeze(1).expand(-1, entries), *sums)
        return {f"S{i}": s for i, s in enumerate(sums)}

    def expected(self, stats: dict[str, Tensor], params: Params) -> Tensor:
        eta, normaliser = self.natural(params)
        total = -(product(stats["S0"], normaliser)).sum()
        for i, e in enumerate(eta, 1):
            total = total + product(stats[f"S{i}"], e).sum()
        return total

    def maximise(self, name: str, pool: Pool, stats: dict[str, Tensor], params: Params, floor: Floor) -> Tensor:
        more = added(pool)
        n0, n1 = pool.total(stats["S0"]) + more[0], pool.total(stats["S1"]) + more[1]
        return pool.fill(self.mean_to(name, n1 / n0.clamp(min=tiny(n0))), n0 > 0)

    def mean_to(self, name: str, mean: Tensor) -> Tensor:
        """The parameter at which the expectation of x is `mean` (maximum likelihood matches moments)."""
        return mean

    def blurred(self, stats: dict[str, Tensor], share: float) -> dict[str, Tensor]:
        return blurred(stats, stats["S0"], share) if self.bordered else stats


def blurred(stats: dict[str, Tensor], n: Tensor, share: float) -> dict[str, Tensor]:
    """Each statistic [A, E, …] with a `share` of the data's mean times the assignment's count `n` [A, E] in it."""
    part = n / n.sum(0).clamp(min=tiny(n))  # of all data, in each assignment
    out = {}
    for name, value in stats.items():
        weight = part.reshape(*part.shape, *(1,) * (value.dim() - part.dim()))
        out[name] = (1 - share) * value + share * weight * value.sum(0)
    return out


def inside(probs: Tensor) -> Tensor:
    """Probabilities away from 0 and 1 by a machine epsilon: their logits are finite."""
    eps = torch.finfo(probs.dtype).eps
    return probs.clamp(eps, 1 - eps)
