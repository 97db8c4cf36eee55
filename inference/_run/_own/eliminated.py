"""log p(x_i) = log p(x_i, z) − log q(z | x_i), where eliminating the latents one by one gives q: the same at every z."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from inference._exact._chains.engine import Chains
from inference._exact._sums.elimination import Elimination
from inference._method.task import Task
from inference._run._own.batch import DRAWS
from inference._run._own.disagreement import Disagreement, tolerance
from zoo._program.trace import is_local, nodes_of, per_datum, sample_nodes


def by_ratio(task: Task, rows: Tensor, point: Mapping[str, Tensor]) -> Tensor:
    """log p(x_i) [rows] of a program whose latents are summed out one by one, from log p(x_i, z) at some z.

    Every row has other z than its neighbours, and the rows are in random order. Raises `Disagreement` where log p(x_i, z)
    and log q(z | x_i) do not go together.
    """
    rows = rows[torch.randperm(len(rows))]
    engine = Elimination(task.program, task.structure, task.x[rows], backwards=True)
    states, density = engine.trials(DRAWS, point)
    joint = torch.stack([_joint_at(engine, {k: v[d] for k, v in states.items()}, point) for d in range(len(density))])
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
    prior = [engine.layout.flatten(nodes_of(engine.program.trace(x, latents=dict(point))), n) for _ in range(DRAWS)]
    z, density = engine.trials(DRAWS, torch.stack(prior), point)  # [D, A, n, L], [D, A, n]
    first, each, index = torch.randint(A, (n,)), x.new_zeros(n, A), torch.arange(n)
    for a in range(A):
        mine = (first + a) % A
        q, discrete = density[:, mine, index], {k: v[mine, 0] for k, v in engine.assignments.items()}
        values = [{k: v[0] for k, v in engine.layout.natural(one.unsqueeze(0)).items()} for one in z[:, mine, index]]
        joint = torch.stack([_plain_joint(engine, {**point, **discrete, **value}) for value in values])
        _all_equal(task, rows, joint - q, joint, q)
        each[index, mine] = joint[0] - q[0]
    return each.logsumexp(1)[rows.argsort()]


def _joint_at(engine: Elimination, states: Mapping[str, Tensor], point: Mapping[str, Tensor]) -> Tensor:
    """log p(x_i, z) [n] at the numbers of the latents' values, in a plain run."""
    return _plain_joint(engine, {**point, **engine.factors.every.at(states)})


def _plain_joint(engine: Elimination | Chains, latents: Mapping[str, Tensor]) -> Tensor:
    """log p(x_i, latents) [n] in a plain run."""
    x, axes = engine.x, engine.structure.axes
    trace = engine.program.trace(x, latents=latents)
    total = x.new_zeros(len(x))
    for node in sample_nodes(trace):
        if is_local(node):
            total = total + per_datum(node, node["fn"].log_prob(node["value"]), axes.data_dim, axes.depth).reshape(-1)
    return total
