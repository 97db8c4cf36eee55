"""How many free parameters a program has: the dimensions of θ that its likelihood feels.

Every parameter brings the dimensions of its constraint: K − 1 of weights on a simplex, D(D + 1)/2 of a covariance. Directions
of θ that leave every log p(x) as it is do not count: rotating the loadings of factor analysis, say, takes off L(L − 1)/2.
They are found from the scores ∂ log p(x_i)/∂θ of rows that the program simulates: the rank of that matrix is the number of
directions that matter (Rothenberg 1971). It is taken at several θ in general position, near the fit and near the start: at a
special point, such as an empty component, a direction may seem not to matter, and the highest rank that is found twice counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from inference._exact.choose import engine_for
from inference._exact.enumeration import Enumeration
from inference._exact.normal_engine import NormalEngine
from inference._method.task import Task
from inference._numerics.coordinates import Coordinates
from zoo._program.trace import node_of

MOST = 1500  # dimensions whose scores are looked at
ROWS = 1.25  # simulated rows for each dimension
MORE_ROWS = 200  # so that a small component has some
NOTHING = 1e-11  # singular values below, as a share of the largest, are rounding
DOUBTFUL = 1e-9  # and those between the two are neither
BATCH = 64  # rows whose scores are taken at once


@dataclass(frozen=True)
class Free:
    """`count` free parameters; `sure`: whether directions without effect were looked for, and told apart clearly."""

    count: int
    dimensions: int
    sure: bool


def free_parameters(task: Task, start: Mapping[str, Tensor]) -> Free:
    """The free parameters of the program of `task`, whose θ stays as it is; `start`: other values of θ, as it began."""
    learnable = {p.name for p in task.structure.parameters if p.learnable}
    values = {n: v.detach().double() for n, v in task.program.values().items() if n in learnable}
    if not values:
        return Free(0, 0, True)
    coordinates = Coordinates(values, {n: task.program.constraints[n] for n in values})
    d = coordinates.d
    if d > MOST or not task.structure.is_exact:
        return Free(d, d, False)
    found = []
    for flat in _places(coordinates, values, {n: start[n].detach().double() for n in values}):
        found.append(_rank(task, coordinates, flat))
        best = max(found)
        if best == d or (best > 0 and found.count(best) == 2):
            return Free(best, d, True)
    return Free(d, d, False)


def _places(coordinates: Coordinates, fitted: dict[str, Tensor], start: dict[str, Tensor]) -> Iterator[Tensor]:
    """Values of θ in general position, as free numbers."""
    generator = torch.Generator().manual_seed(11)
    for values, size in ((fitted, 0.05), (start, 0.3), (fitted, 0.3), (start, 0.1)):
        flat = coordinates.flatten(values)
        yield flat + size * torch.randn(len(flat), generator=generator, dtype=torch.float64)


def _rank(task: Task, coordinates: Coordinates, flat: Tensor) -> int:
    """Rank of the scores at θ; 0 where it is not clear, or the program cannot be simulated there."""
    values = {n: v.detach() for n, v in coordinates.unflatten(flat).items()}
    try:
        x = _simulated(task, values, int(ROWS * len(flat)) + MORE_ROWS)
        scores = _scores(replace(task.doubled(), x=x, weights=None), coordinates, flat)
    except (ArithmeticError, RuntimeError, ValueError):
        return 0
    if not bool(scores.isfinite().all()):
        return 0
    singular = torch.linalg.svdvals(scores / scores.norm(dim=0).clamp(min=1e-300))
    share = singular / singular[0]
    doubtful = bool(((share > NOTHING) & (share <= DOUBTFUL)).any())
    return 0 if doubtful else int((share > DOUBTFUL).sum())


@torch.no_grad()
def _simulated(task: Task, values: dict[str, Tensor], count: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        trace = task.doubled().program.trace(None, size=count, parameters=values)
    found = torch.as_tensor(node_of(trace, "_RETURN")["value"])
    return found.reshape(count, *task.x.shape[1:]).double()


def _scores(task: Task, coordinates: Coordinates, flat: Tensor) -> Tensor:
    """∂ log p(x_i)/∂θ [rows, d] in free coordinates."""
    flat = flat.clone().requires_grad_()
    each = _each_row(task)(coordinates.unflatten(flat))
    out = []
    for rows in torch.eye(len(each), dtype=each.dtype).split(BATCH):
        (found,) = torch.autograd.grad(each, flat, rows, retain_graph=True, is_grads_batched=True)
        out.append(torch.as_tensor(found))
    return torch.cat(out)


def _each_row(task: Task) -> Callable[[dict[str, Tensor]], Tensor]:
    """θ ↦ log p(x_i; θ) [rows], differentiable."""
    engine = engine_for(task.program, task.structure, task.x)
    if isinstance(engine, NormalEngine):
        return lambda theta: torch.cat([p.log_evidence.logsumexp(1) for _, p in engine.posteriors(theta)])
    if isinstance(engine, Enumeration):
        return lambda theta: _enumerated(engine, theta)
    raise ValueError("the posterior is not exact")


def _enumerated(engine: Enumeration, theta: dict[str, Tensor]) -> Tensor:
    views, _ = engine.views(theta, None)
    return torch.cat([engine.log_joint(r, views, theta, None).logsumexp(1) for r in engine.chunks(views)])
