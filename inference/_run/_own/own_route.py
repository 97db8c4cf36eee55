"""A second, independent look at an exact log p(x): the program is run on a sample of rows, and nothing else is used.

Every joint value of the discrete local latents is found by running the program: a site's support is asked for once the sites
before it have their values. Each (row, joint value) is a row of a plain batch, in random order, so a program whose rows
depend on each other, or on their place, gives other values here. With continuous latents z, the log joint of a pair is
taken to be quadratic: gradient and Hessian at one point give the Gaussian N(m, P⁻¹) that the claim implies, and then

    log p(x, a) = log p(x, a, z) − log N(z; m, P⁻¹)

has to be the same number for every z. It is evaluated at draws from that Gaussian and from the prior: if it varies, the log
joint is not quadratic, and the claim is false.

Discrete latents that are too many to list are checked in the same way (`_own/eliminated.py`): with q(z) the distribution that
summing them out one by one gives, in another order than the engine's and a product of conditional distributions, so that it
sums to 1,

    log p(x) = log p(x, z) − log q(z)

has to be the same number at every z: at draws from q, at those with a few latents changed, and at any z. Chains and trees
of normal latents likewise: there q(z) is a product of conditional normals, and z are draws from q, from ten times as wide a
q, and from the prior. What is shared with the engine is the reading of the sites and the code that eliminates; what is not is
the order, and log p(x, z), which the program alone gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import pyro
import torch
from torch import Tensor

from inference._exact._chains.engine import Chains
from inference._method.task import Task
from inference._run._own.batch import DRAWS, Batch, assignments, joint_values
from inference._run._own.eliminated import by_normals, by_ratio
from zoo._program.trace import nodes_of

ROWS = 32  # that are checked, first and last among them
NUMBERS = 2**25  # in all that is evaluated
CHUNK = 2**20  # numbers side by side
MOST_RUNS = 1000  # of the whole data


def rows_of(task: Task) -> Tensor:
    """The rows to check, spread over the data."""
    structure, x = task.structure, task.x
    L = sum(s.inner * math.prod(s.event_shape) for s in structure.continuous_locals)
    each = structure.assignments * (x[:1].numel() + L) * (1 + L + (2 * DRAWS if L else 0))
    if structure.eliminable:
        cards = structure.cards
        each = DRAWS * sum(math.prod(cards[n] for n in scope) for scope in structure.scopes.values())
    elif isinstance(task.exact, Chains):
        each = structure.assignments * task.exact.steps.numbers() * 3 * DRAWS
    count = max(2, min(ROWS, len(x), NUMBERS // max(1, each)))
    rows: Tensor = torch.linspace(0, len(x) - 1, min(count, len(x))).long().clamp(max=len(x) - 1).unique()
    return rows


@torch.no_grad()
def log_evidence(task: Task, rows: Tensor, point: Mapping[str, Tensor]) -> Tensor:
    """log p(x_i | θ, globals) [rows], nats; `point`: the globals' values.

    Raises `Disagreement` where the log joint is not quadratic in the continuous latents, or not of their conjugate families.
    """
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        torch.manual_seed(0)
        if task.structure.eliminable:
            return by_ratio(task, rows, point)
        if isinstance(task.exact, Chains):
            return by_normals(task, task.exact, rows, point)
        row, known = assignments(task, rows, point)
        order = torch.randperm(len(row))
        each = task.x.new_empty(len(row))
        L = sum(s.inner * math.prod(s.event_shape) for s in task.structure.continuous_locals)
        size = max(2, CHUNK // (task.x[:1].numel() + L * L + 1))
        for some in order.split(size):
            batch = Batch(task, rows[row[some]], {k: v[some] for k, v in known.items()}, point)
            each[some] = batch.integrated() if L else batch.log_joint({})
    top = torch.full_like(rows, 0, dtype=each.dtype).scatter_reduce(0, row, each, "amax", include_self=False)
    safe = torch.where(top.isfinite(), top, torch.zeros_like(top))
    return safe + torch.zeros_like(top).index_add(0, row, (each - safe[row]).exp()).log()


@torch.no_grad()
def in_place(task: Task, point: Mapping[str, Tensor]) -> Tensor | None:
    """log p(x_i | θ, globals) [N] with every row in its place among all data; None where that would take too long.

    For programs that read a row's number. In each of A runs every row is under another joint value than its neighbours, and
    after all runs it has been under each: where rows depend on each other, the sums are other ones than those of the claim.
    """
    if task.structure.eliminable or isinstance(task.exact, Chains):
        return None
    N, L = len(task.x), sum(s.inner * math.prod(s.event_shape) for s in task.structure.continuous_locals)
    each = task.structure.assignments * (task.x[:1].numel() + L * L) * (1 + L + (2 * DRAWS if L else 0))
    if N * each > 4 * NUMBERS or task.structure.assignments > MOST_RUNS:
        return None
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        torch.manual_seed(1)
        everything = torch.arange(N)
        tables: dict[str, Tensor] = {}
        batch = Batch(task, everything, {}, point)
        nodes = nodes_of(batch.trace({}))
        for site in task.structure.discrete_locals:
            new = joint_values(batch, nodes[site.name])
            size = len(next(iter(tables.values()))) if tables else 1
            tables = {k: v.repeat_interleave(len(new), 0) for k, v in tables.items()}
            tables[site.name] = new.repeat(size, 1)
        A = len(next(iter(tables.values()))) if tables else 1
        first, each_run = torch.randint(A, (N,)), []
        for k in range(A):
            known = {name: table[(first + k) % A] for name, table in tables.items()}
            batch = Batch(task, everything, known, point)
            each_run.append(batch.integrated() if L else batch.log_joint({}))
    return torch.stack(each_run).logsumexp(0)
