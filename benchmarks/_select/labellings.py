"""The evidence of a program whose parameters have priors, over all names that its components could have.

A mixture's posterior has K! modes, one for each order of its components. Laplace's approximation sits at one, and importance
sampling from it sees the mass of one: it must be counted K! times before programs with different K can be compared
(Neal 1999; Marin & Robert 2008). That the joint density stays the same when components change places is not assumed but
computed at the fit. Nor is it assumed that the modes are apart: where draws of one are as probable under another, their
masses overlap, and there is no evidence to report.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from inference._method.fit import Evidence, GlobalGaussian
from inference._method.task import Task
from inference._run.result import Run

ALIKE = 1e-8  # relative: log joints closer than this are equal
APART = 0.01  # how much of one mode's mass may be another's
DRAWS = 400
Point = dict[str, Tensor]


def evidence(run: Run) -> dict[str, object]:
    """`{value, se, kind, labellings, reason}`, as JSON; `value` is None, with a reason, where there is none."""
    nothing: dict[str, object] = {"value": None, "se": None, "kind": None, "labellings": 1}
    task, q = run.task, run.global_gaussian
    if not task.structure.global_latents:
        return {**nothing, "reason": "evidence needs parameters with priors, and the program has none"}
    found = run.verified
    if q is None or found is None or found.given:
        return {**nothing, "reason": f"evidence needs the method laplace, not {run.method}"}
    if task.structure.parameters and task.structure.learnable:
        return {**nothing, "reason": "evidence needs priors on every parameter, and some are learned as points"}
    count, names = _labellings(task, {n: torch.as_tensor(run.parameters[n]) for n in _globals(task)})
    if count is None:
        return {
            **nothing,
            "reason": f"which of the program's {task.structure.assignments} states can change places is unclear",
        }
    if count > 1 and (shared := _shared(task, q, names, count)) > APART:
        why = (
            f"{shared:.0%} of the mass of its posterior mode belongs to modes with its components in another order too"
        )
        return {**nothing, "reason": f"evidence cannot be counted: {why}"}
    return _said(found, count)


def _said(found: Evidence, components: int) -> dict[str, object]:
    times = math.lgamma(components + 1)
    return {
        "value": found.value + times,
        "se": found.se,
        "kind": found.kind,
        "labellings": math.factorial(components),
        "reason": None,
    }


def _globals(task: Task) -> list[str]:
    return [s.name for s in task.structure.global_latents]


def _labellings(task: Task, point: Point) -> tuple[int | None, list[str]]:
    """How many components can change places, and the sites that then do; 1 where none can, None where it is unclear."""
    K = task.structure.assignments
    if K < 2:
        return 1, []
    if len(task.structure.discrete_locals) != 1:
        return None, []
    able = [n for n in point if point[n].dim() and point[n].shape[0] == K]
    before = _joint(task, point)
    for some in _choices(able):
        swaps = [_swapped(point, some, i, i + 1) for i in range(K - 1)]
        if all(abs(_joint(task, p) - before) <= ALIKE * max(1.0, abs(before)) for p in swaps):
            return K, some
    return None, []


def _choices(names: list[str]) -> Iterator[list[str]]:
    """All, then ever fewer of the names: a tied covariance of D = K columns only looks like one for each component."""
    for size in range(len(names), 0, -1):
        yield from map(list, itertools.combinations(names, size))


def _swapped(point: Point, names: list[str], i: int, j: int) -> Point:
    order = list(range(len(point[names[0]])))
    order[i], order[j] = order[j], order[i]
    return {n: v[order] if n in names else v for n, v in point.items()}


@torch.no_grad()
def _joint(task: Task, point: Point) -> float:
    try:
        value, prior = task.engine.log_evidence(None, point)
    except ValueError:  # a site does not take such values: it is no list of the components'
        return math.nan
    return float(value + prior)


@torch.no_grad()
def _shared(task: Task, q: GlobalGaussian, names: list[str], K: int) -> float:
    """How much of the mass of q lies where q with two components swapped is as dense: 0 where the modes are apart."""
    normal = torch.distributions.MultivariateNormal(q.mean, scale_tril=q.scale_tril)
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(DRAWS, len(q.mean), generator=generator, dtype=torch.float64).to(q.mean)
    flat = q.mean + noise @ q.scale_tril.mT

    def density(u: Tensor) -> Tensor:
        return normal.log_prob(u) - q.coordinates.log_abs_det(u)

    own, total = torch.stack([density(u) for u in flat]), torch.zeros(DRAWS, dtype=q.mean.dtype)
    for i, j in itertools.combinations(range(K), 2):
        other = torch.stack([density(q.coordinates.flatten(_swapped(_values(q, u), names, i, j))) for u in flat])
        total = total + (other - own).exp().clamp(max=1.0)
    return float(total.mean())


def _values(q: GlobalGaussian, u: Tensor) -> Point:
    return dict(q.coordinates.unflatten(u))
