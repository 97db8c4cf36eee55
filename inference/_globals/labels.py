"""Labels that may be exchanged: the components of a mixture with exchangeable priors have K! modes, all alike.

A group of labels is a number K and axes of latents with K entries: exchanging two entries along all of these axes at once, and
moving all of them round by one, leaves the density of the values as it is, at every point looked at. These two generate all K!
relabellings. Discrete latents are summed out, so that they need no relabelling of their own.

With p the same under every relabelling g, draws of a proposal q may be weighed by p / q̄ with q̄(v) = Σ_g q(g v) / |G|: their
mean is ∫ p, all modes counted, wherever q lies (Frühwirth-Schnatter 2004 permutes the draws at random to the same end).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from inference._globals.target import Values

MOST = 720  # relabellings that are counted one by one
MOST_AXES = 6  # of the same length, whose subsets are all looked at
POINTS = 4
NEAR, APART, ROUNDING = (
    1e-7,
    1e-5,
    1e-12,
)  # of a density's size; nats that are no rounding, beyond the rounding of large sums
PIVOTS = 8
TIGHT = 1e-12
Axis = tuple[str, int]  # site and axis of its values, from the right


class Points(Protocol):
    """Unconstrained points [B, d] of latents, their density and the values that they stand for; as `Target` has them."""

    def log_density(self, flat: Tensor) -> Tensor: ...

    def values(self, flat: Tensor, alone: bool = False) -> tuple[Values, Tensor]: ...

    def flat_of(self, values: Values) -> Tensor: ...

    def axes(self) -> list[tuple[str, int, int]]: ...


@dataclass(frozen=True)
class Group:
    """K labels and the axes that they number."""

    size: int
    axes: tuple[Axis, ...]

    def relabelled(self, values: Values, order: Sequence[int]) -> Values:
        """Label k becomes that which was order[k]."""
        index, out = torch.tensor(order), dict(values)
        for name, axis in self.axes:
            out[name] = out[name].index_select(axis, index)
        return out


class Labels:
    """The relabellings that leave the density of a target as it is."""

    def __init__(self, target: Points, points: Tensor) -> None:
        self.target = target
        self.groups = _groups(target, points)
        self.count = math.prod(math.factorial(g.size) for g in self.groups)

    @property
    def counted(self) -> bool:
        """Whether all relabellings can be gone through."""
        return self.count <= MOST

    @property
    def log_count(self) -> float:
        """log |G|, nats."""
        return sum(math.lgamma(g.size + 1) for g in self.groups)

    def all(self, values: Values) -> Iterator[Values]:
        """The values under each relabelling, as they are first."""
        orders = [list(itertools.permutations(range(g.size))) for g in self.groups]
        for chosen in itertools.product(*orders):
            out = values
            for group, order in zip(self.groups, chosen, strict=True):
                out = group.relabelled(out, order)
            yield out

    def images(self, flat: Tensor) -> Tensor:
        """One point [d] in every labelling [G, d]; as it is, where they are too many to count."""
        if self.count == 1 or not self.counted:
            return flat.unsqueeze(0)
        values, _ = self.target.values(flat.unsqueeze(0))
        each = list(self.all(values))
        return self.target.flat_of({n: torch.cat([v[n] for v in each]) for n in values})

    def keep(self, normal: torch.distributions.MultivariateNormal) -> bool:
        """Whether a normal distribution stays where it is under every relabelling, so that it stands for all of them."""
        values, _ = self.target.values(normal.mean.unsqueeze(0))
        moved = [g.relabelled(values, order) for g in self.groups for order in _generators(g.size)]
        away = [self.target.flat_of(v)[0] - normal.mean for v in moved]
        return all(
            float(torch.linalg.solve_triangular(normal.scale_tril, a[:, None], upper=False).norm()) < 1 for a in away
        )

    def hold(self, flat: Tensor) -> bool:
        """Whether the density stays as it is at the points flat [B, d] too."""
        return all(_invariant(self.target, flat, group) for group in self.groups)

    def spread(self, log_q: Callable[[Tensor], Tensor], flat: Tensor, alone: bool = False) -> Tensor:
        """log q̄ [B] of points flat [B, d], from the log-density of a proposal on such points; `alone`: on their globals."""
        if self.count == 1 or not self.counted:
            return log_q(flat)
        values, log_det = self.target.values(flat, alone)
        found = []
        for others in self.all(values):
            again = self.target.flat_of(others)
            good = again.isfinite().all(1)
            again = torch.where(good.unsqueeze(1), again, 0.0)
            density = log_q(again) - self.target.values(again, alone)[1]
            found.append(density.masked_fill(~good, -torch.inf))
        return torch.stack(found).logsumexp(0) - math.log(self.count) + log_det

    def alike(self, flat: Tensor, weights: Tensor | None = None) -> Tensor:
        """The points flat [B, d], each in that labelling in which it is nearest to the others (Stephens 2000, normal loss).

        `weights` [B]: how much each counts, in all 1. Of several first pivots the one serves that ends in the tightest
        labelling.
        """
        if self.count == 1 or not self.counted:
            return flat
        values, _ = self.target.values(flat)
        names = sorted({name for g in self.groups for name, _ in g.axes})
        every = torch.stack([torch.cat([v[n].flatten(1) for n in names], 1) for v in self.all(values)])  # [G, B, m]
        counts = torch.full((len(flat),), 1 / len(flat), dtype=flat.dtype) if weights is None else weights
        pivots = torch.searchsorted(counts.cumsum(0), (torch.arange(PIVOTS, dtype=counts.dtype) + 0.5) / PIVOTS)
        chosen = min((_nearest(every, counts, every[0, p]) for p in pivots.clamp(max=len(flat) - 1)), key=_loss)[0]
        out = flat.clone()
        for k, others in enumerate(self.all(values)):
            if k and bool((mask := chosen == k).any()):
                out[mask] = self.target.flat_of({n: v[mask] for n, v in others.items()})
        return out

    def notes(self) -> dict[str, object]:
        """For the notes of a fit."""
        if not self.groups:
            return {}
        return {
            "exchangeable": [{"labels": g.size, "axes": [f"{n}, axis {a}" for n, a in g.axes]} for g in self.groups],
            "relabellings": self.count,
        }


def _nearest(every: Tensor, weights: Tensor, pivot: Tensor) -> tuple[Tensor, Tensor]:
    """Which of its relabellings [G, B, m] each draw is nearest to the mean in [B], and the deviations then [m]."""
    before = None
    size = _spread(every.flatten(0, 1), weights.repeat(len(every)) / len(every))[1]
    for _ in range(30):
        chosen = ((every - pivot) / size).square().sum(-1).argmin(0)
        if before is not None and bool((chosen == before).all()):
            break
        mine = every[chosen, torch.arange(every.shape[1])]
        (pivot, size), before = _spread(mine, weights), chosen
    return chosen, size


def _spread(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and deviation [m] of values [B, m]."""
    mean = weights @ values
    return mean, (weights @ (values - mean).square()).sqrt().clamp(min=TIGHT)


def _loss(found: tuple[Tensor, Tensor]) -> float:
    """The entropy of the draws as independent normals, up to a constant."""
    return float(found[1].log().sum())


def _groups(target: Points, points: Tensor) -> tuple[Group, ...]:
    """The smallest groups, from few axes to many; axes of a group that was found are not looked at again."""
    sizes: dict[int, list[Axis]] = {}
    for name, axis, size in target.axes():
        if size > 1:
            sizes.setdefault(size, []).append((name, axis))
    found: list[Group] = []
    for K, axes in sizes.items():
        first = {name: min(a for n, a in axes if n == name) for name, _ in axes}  # where components are mostly numbered
        for among in (list(first.items()), axes):
            free = [a for a in among if not any(a in g.axes for g in found)]
            for some in _subsets(free):
                group = Group(K, some)
                if not any(a in g.axes for g in found for a in some) and _invariant(target, points, group):
                    found.append(group)
    return tuple(found)


def _subsets(axes: list[Axis]) -> Iterator[tuple[Axis, ...]]:
    """The subsets to look at, the smallest first: of many axes one by one, and all."""
    for count in range(1, len(axes) + 1) if len(axes) <= MOST_AXES else (1, len(axes)):
        yield from itertools.combinations(axes, count)


def _generators(K: int) -> tuple[list[int], list[int]]:
    """Two relabellings of which all others are made: the first two exchanged, and all moved round by one."""
    return [1, 0, *range(2, K)], [*range(1, K), 0]


def _invariant(target: Points, points: Tensor, group: Group) -> bool:
    """Whether two relabellings that generate all leave the density of the values as it is."""
    values, log_det = target.values(points)
    before = target.log_density(points) - log_det
    good = before.isfinite()
    if not bool(good.any()):
        return False
    for order in _generators(group.size):
        relabelled = group.relabelled(values, order)
        again = target.flat_of(relabelled)
        if not bool(again[good].isfinite().all()):
            return False
        kept, after_det = target.values(again)
        if not all(torch.allclose(kept[n], relabelled[n], rtol=1e-6, atol=1e-9) for n in kept):
            return False
        away, size = (target.log_density(again) - after_det - before)[good].abs(), 1 + before[good].abs()
        if bool((away > (NEAR * size).clamp(max=APART) + ROUNDING * size).any()):
            return False
    return True
