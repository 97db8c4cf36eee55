"""log p(x_i) = log p(x_i, z) − log q(z | x_i), where eliminating the latents one by one gives q: the same at every z."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from inference._exact._chains.engine import Chains
from inference._exact._sums.elimination import Elimination
from inference._method.task import Task
from inference._numerics.slices import slices
from inference._run._own.batch import DRAWS
from inference._run._own.disagreement import Disagreement, tolerance
from zoo._program.trace import is_local, nodes_of, per_datum, sample_nodes

CHUNK = 2**20  # values of sites side by side


def by_ratio(task: Task, rows: Tensor, point: Mapping[str, Tensor]) -> Tensor:
    """log p(x_i) [rows] of a program whose latents are summed out one by one, from log p(x_i, z) at some z.

    Every row has other z than its neighbours, and the rows are in random order. Raises `Disagreement` where log p(x_i, z)
    and log q(z | x_i) do not go together.
    """
    rows = rows[torch.randperm(len(rows))]
    engine = Elimination(task.program, task.structure, task.x[rows], backwards=True)
    states, density = engine.trials(DRAWS, point)
    values = engine.factors.every.at({k: v.reshape(-1) for k, v in states.items()})
    joint = _plain_joint(engine, {k: v.unflatten(0, density.shape) for k, v in values.items()}, point)
    impossible = joint.isneginf() & density.isneginf()
    ratio = (joint - density).masked_fill(impossible, 0.0)
    found = ratio[0]
    _all_equal(task, rows, ratio, joint, density, impossible)
    return found[rows.argsort()]


def _all_equal(
    task: Task, rows: Tensor, ratio: Tensor, joint: Tensor, density: Tensor, impossible: Tensor | None = None
) -> None:
    """Raise `Disagreement` unless log p(x_i, z) − log q(z | x_i) [z, rows] is the same at every z."""
    if impossible is None:
        impossible = torch.zeros_like(ratio, dtype=torch.bool)
    found = ratio[0]
    size = torch.stack([joint.abs(), density.abs(), found.abs().expand_as(joint), torch.ones_like(joint)]).nan_to_num(
        0.0
    )
    size = torch.where(size.isfinite(), size, torch.ones_like(size)).amax(0)
    away = ((ratio - found).abs() / size).masked_fill(impossible, 0.0).nan_to_num(torch.inf)
    if bool((away > tolerance(joint.dtype)).any()):
        row = int(rows[int(away.amax(0).argmax())])
        raise Disagreement(
            f"log p(x) of '{task.program.name}' was treated as exact, but eliminating its latents one by one gives another "
            f"posterior than its log joint at row {row} (counting from 0): the value would be wrong. Nothing is reported. Use "
            "a method that does not need that: importance or ais."
        )


def by_normals(task: Task, exact: Chains, rows: Tensor, point: Mapping[str, Tensor]) -> Tensor:
    """log p(x_i) [rows] of a program whose normal latents are eliminated one by one, from log p(x_i, a, z) at some z.

    Rows have other z and a than their neighbours, and are in random order.
    """
    rows = rows[torch.randperm(len(rows))]
    engine = Chains(exact.program, exact.structure, exact.x[rows], exact.graph, backwards=True)
    x, n, A = engine.x, len(rows), engine.A
    drawn = nodes_of(engine.program.trace(_repeated(x, DRAWS), latents=dict(point)))
    prior = engine.layout.flatten(drawn, DRAWS * n).reshape(DRAWS, n, engine.L)
    z, density = engine.trials(DRAWS, prior, point)  # [D, A, n, L], [D, A, n]
    first, each, index = torch.randint(A, (n,)), x.new_zeros(n, A), torch.arange(n)
    for a in range(A):
        mine = (first + a) % A
        q, discrete = density[:, mine, index], {k: v[mine, 0] for k, v in engine.assignments.items()}
        values = {k: v.expand(len(q), *v.shape) for k, v in discrete.items()} | engine.layout.natural(z[:, mine, index])
        joint = _plain_joint(engine, values, point)
        _all_equal(task, rows, joint - q, joint, q)
        each[index, mine] = joint[0] - q[0]
    return each.logsumexp(1)[rows.argsort()]


def _plain_joint(engine: Elimination | Chains, latents: Mapping[str, Tensor], point: Mapping[str, Tensor]) -> Tensor:
    """log p(x_i, latents) [D, n] at D values of the latents [D, n, …], each (row, value) a row of a plain run."""
    x, axes, sites = engine.x, engine.structure.axes, len(engine.structure.sites)
    parts, D = [], len(next(iter(latents.values())))
    for some in slices(D, max(1, CHUNK // (len(x) * sites))):
        batch = _repeated(x, some.stop - some.start)
        trace = engine.program.trace(batch, latents={**point, **{k: v[some].flatten(0, 1) for k, v in latents.items()}})
        total = batch.new_zeros(len(batch))
        for node in filter(is_local, sample_nodes(trace)):
            found = per_datum(node, node["fn"].log_prob(node["value"]), axes.data_dim, axes.depth)
            total = total + found.reshape(-1)
        parts.append(total.reshape(-1, len(x)))
    return torch.cat(parts)


def _repeated(x: Tensor, times: int) -> Tensor:
    return x.repeat(times, *(1,) * (x.dim() - 1))
