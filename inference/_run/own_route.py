"""A second, independent look at an exact log p(x): the program is run on a sample of rows, and nothing else is used.

Every joint value of the discrete local latents is found by running the program: a site's support is asked for once the sites
before it have their values. Each (row, joint value) is a row of a plain batch, in random order, so a program whose rows
depend on each other, or on their place, gives other values here. With continuous latents z, the log joint of a pair is
taken to be quadratic: gradient and Hessian at one point give the Gaussian N(m, P⁻¹) that the claim implies, and then

    log p(x, a) = log p(x, a, z) − log N(z; m, P⁻¹)

has to be the same number for every z. It is evaluated at draws from that Gaussian and from the prior: if it varies, the log
joint is not quadratic, and the claim is false.

Discrete latents that are too many to list are checked in the same way (`_by_ratio`): with q(z) the distribution that summing
them out one by one gives, in another order than the engine's and a product of conditional distributions, so that it sums to 1,

    log p(x) = log p(x, z) − log q(z)

has to be the same number at every z: at draws from q, at those with a few latents changed, and at any z. Chains and trees
of normal latents likewise (`_by_normals`): there q(z) is a product of conditional normals, and z are draws from q, from ten
times as wide a q, and from the prior. What is shared with the engine is the reading of the sites and the code that eliminates;
what is not is the order, and log p(x, z), which the program alone gives.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import constraints

from inference._exact._chains.engine import Chains
from inference._exact._sums.elimination import Elimination
from inference._method.task import Task
from zoo._program.latents import support_values
from zoo._program.trace import Node, is_local, node_of, nodes_of, per_datum, sample_nodes
from zoo._reading.conjugate import FAMILIES, Parts

ROWS = 32  # that are checked, first and last among them
NUMBERS = 2**25  # in all that is evaluated
CHUNK = 2**20  # numbers side by side
DRAWS = 6  # of z from its Gaussian, and as many from the prior
MOST_RUNS = 1000  # of the whole data
LOG_2PI = math.log(2 * math.pi)


class Disagreement(ArithmeticError):
    """Two values of log p(x) that should both be exact differ by more than rounding."""


def tolerance(dtype: torch.dtype) -> float:
    """What two exact values may differ by, relative to their size (1 nat at least)."""
    return 2e-3 if dtype == torch.float32 else 1e-6


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
            return _by_ratio(task, rows, point)
        if isinstance(task.exact, Chains):
            return _by_normals(task, task.exact, rows, point)
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
            new = _joint_values(batch, nodes[site.name])
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


def _by_ratio(task: Task, rows: Tensor, point: Mapping[str, Tensor]) -> Tensor:
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


def _by_normals(task: Task, exact: Chains, rows: Tensor, point: Mapping[str, Tensor]) -> Tensor:
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


@dataclass
class Batch:
    """Some pairs of a row and values of the discrete latents, side by side as rows of one batch."""

    task: Task
    rows: Tensor  # [m] of the data
    known: Mapping[str, Tensor]  # site → its value for each pair [m, numbers]
    point: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        self.axes = self.task.structure.axes
        self.x = self.task.x[self.rows]
        self.shapes: dict[str, tuple[int, ...]] = {}

    def trace(self, values: Mapping[str, Tensor]) -> Trace:
        latents = {**self.point, **values}
        return self.task.program.trace(self.x, latents=latents)

    def placed(self, flat: Tensor, shape: tuple[int, ...], events: int) -> Tensor:
        """[m, numbers] → the shape that a site's value has in the program, the pairs where the data stand."""
        place = len(shape) + self.axes.row_dim(events)
        others = [s for d, s in enumerate(shape) if d != place]
        return flat.reshape(len(flat), *others).movedim(0, place)

    def flat(self, value: Tensor, node: Node) -> Tensor:
        """The opposite of `placed`: [m, numbers]."""
        shape = (*node["fn"].batch_shape, *node["fn"].event_shape)
        first = self.axes.datum_first(value.expand(shape), len(node["fn"].event_shape))
        return first.reshape(len(self.x), -1)

    def discrete(self) -> dict[str, Tensor]:
        """The known values in the program's shapes, as far as they are known."""
        out: dict[str, Tensor] = {}
        for name, flat in self.known.items():
            node = node_of(self.trace(out), name) if name not in self.shapes else None
            if node is not None:
                fn = node["fn"]
                self.shapes[name] = (*fn.batch_shape, *fn.event_shape)
                self._events = {**getattr(self, "_events", {}), name: len(fn.event_shape)}
            out[name] = self.placed(flat, self.shapes[name], self._events[name])
        return out

    def log_joint(self, values: Mapping[str, Tensor]) -> Tensor:
        """log p(x_i, a, z) [m] by every local site's own `log_prob`, scale and mask."""
        return self._summed(self.trace({**self.discrete(), **values}))

    def _summed(self, trace: Trace) -> Tensor:
        total = self.x.new_zeros(len(self.x))
        for node in sample_nodes(trace):
            if is_local(node):
                log_prob = node["fn"].log_prob(node["value"])
                if node["name"] in self.known:
                    log_prob = _in_support(node, log_prob)
                total = total + per_datum(node, log_prob, self.axes.data_dim, self.axes.depth).reshape(-1)
        return total

    def integrated(self) -> Tensor:
        """log p(x_i, a) [m] with z integrated out."""
        discrete = self.discrete()
        nodes = nodes_of(self.trace(discrete))
        sites = [s.name for s in self.task.structure.continuous_locals]
        parts = [self.flat(nodes[s]["value"], nodes[s]) for s in sites]
        shapes = {s: (*nodes[s]["fn"].batch_shape, *nodes[s]["fn"].event_shape) for s in sites}
        events = {s: len(nodes[s]["fn"].event_shape) for s in sites}
        sizes = [p.shape[1] for p in parts]

        def joint(z: Tensor) -> Tensor:
            values = {s: self.placed(v, shapes[s], events[s]) for s, v in zip(sites, z.split(sizes, 1), strict=True)}
            return self._summed(self.trace({**discrete, **values}))

        prior = [torch.cat(parts, 1)]
        for _ in range(DRAWS - 1):
            again = nodes_of(self.trace(discrete))
            prior.append(torch.cat([self.flat(again[s]["value"], again[s]) for s in sites], 1))
        if self.task.structure.conjugate:
            places = {s: slice(sum(sizes[:i]), sum(sizes[: i + 1])) for i, s in enumerate(sites)}
            family = {s.name: FAMILIES[s.family] for s in self.task.structure.continuous_locals}
            own: _Implied = _Natural(
                Parts(places, {s: nodes[s]["fn"].event_shape for s in sites}, family), joint, prior[0]
            )
        else:
            own = Gaussian(joint, prior[0])
        self.own = own
        found = joint(own.middle) - own.log_density(own.middle)
        for k in range(2 * DRAWS):
            z = own.draw(k) if k < DRAWS else prior[k - DRAWS]
            value, q = joint(z), own.log_density(z)
            size = torch.stack([value.abs(), q.abs(), found.abs(), torch.ones_like(q)]).amax(0)
            away = (value - q - found).abs().nan_to_num(torch.inf) / size
            if bool((away.masked_fill(own.blurred, 0.0) > tolerance(value.dtype)).any()):
                row = int(self.rows[int(away.masked_fill(own.blurred, 0.0).argmax())])
                raise Disagreement(
                    f"log p(x) of '{self.task.program.name}' was treated as exact, but its log joint is not {own.kind} in "
                    f"{', '.join(repr(s) for s in sites)} at row {row} (counting from 0): the value would be wrong. Nothing is "
                    "reported. Use a method that does not need that: importance or ais."
                )
        return found.masked_fill(own.blurred, torch.nan)


class _Implied(Protocol):
    """The posterior that a claim implies: its density must be the log joint's, up to a constant, at every z."""

    kind: str
    middle: Tensor
    blurred: Tensor  # [m] where it cannot be worked out in these digits

    def log_density(self, z: Tensor) -> Tensor:
        """log q(z) [m]."""

    def draw(self, k: int) -> Tensor:
        """A draw [m, L], the wider the larger k modulo 3."""


class Gaussian:
    kind = "quadratic"

    def __init__(self, joint: Callable[[Tensor], Tensor], like: Tensor) -> None:
        self.middle, self.factor, self.blurred = _square(joint, torch.zeros_like(like))

    def log_density(self, z: Tensor) -> Tensor:
        return _log_normal(z, self.middle, self.factor)

    def draw(self, k: int) -> Tensor:
        white = torch.randn_like(self.middle).unsqueeze(-1) * (1 + k % 3)
        away: Tensor = torch.linalg.solve_triangular(self.factor.mT, white, upper=True).squeeze(-1)
        return self.middle + away


class _Natural:
    kind = "that of its conjugate family"

    def __init__(self, parts: Parts, joint: Callable[[Tensor], Tensor], like: Tensor) -> None:
        self._parts = parts
        points = parts.first(like)
        for _ in range(3):
            c = parts.coefficients(joint, *points)[1]
            points = parts.near(c)
        self._c, self.middle = c, points[0]
        proper = [parts.families[k].proper(v).all(-1) for k, v in c.items()]
        if not bool(torch.stack(proper).all()):
            raise Disagreement(
                "log p(x) was treated as exact, but its log joint is not that of a conjugate family: no member has its "
                "derivatives. Nothing is reported. Use a method that does not need that: importance or ais."
            )
        self.blurred = torch.zeros(len(like), dtype=torch.bool)

    def log_density(self, z: Tensor) -> Tensor:
        return self._parts.log_density(self._c, z)

    def draw(self, k: int) -> Tensor:
        return self._parts.joined({n: self._parts.families[n].distribution(c).sample() for n, c in self._c.items()})


def _square(joint: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [m, L] and Cholesky factor of the precision [m, L, L] of a quadratic log joint, from its derivatives at z.

    And where the precision is so nearly singular that its inverse in these digits would say nothing [m].
    """
    z = z.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(joint(z).sum(), z, create_graph=True, materialize_grads=True)
        columns = []
        for k in range(z.shape[1]):
            if not gradient.requires_grad:
                columns.append(torch.zeros_like(z))
                continue
            columns.append(
                torch.autograd.grad(gradient[:, k].sum(), z, retain_graph=True, materialize_grads=True)[0].detach()
            )
    precision = -torch.stack(columns, -1)
    precision = (precision + precision.mT) / 2
    factor, info = torch.linalg.cholesky_ex(precision)
    blurred = _nearly_singular(precision)
    if bool(blurred.any()):
        identity = torch.eye(z.shape[1], dtype=z.dtype).expand_as(factor)
        factor = torch.where((blurred & (info != 0))[:, None, None], identity, factor)
    if bool(((info != 0) & ~blurred).any()):
        raise Disagreement(
            "log p(x) was treated as exact, but the log joint is not Gaussian in the continuous latents: its curvature is "
            "not negative. Nothing is reported. Use a method that does not need that: importance or ais."
        )
    return z.detach() + torch.cholesky_solve(gradient.detach().unsqueeze(-1), factor).squeeze(-1), factor, blurred


def _nearly_singular(precision: Tensor) -> Tensor:
    """Which matrices [m, L, L], in units of their diagonal, have a condition that eats most digits; concave ones alone."""
    size = precision.diagonal(dim1=-2, dim2=-1).clamp(min=1e-300).rsqrt()
    values = torch.linalg.eigvalsh((precision * size.unsqueeze(-1) * size.unsqueeze(-2)).nan_to_num(0.0))
    least = torch.finfo(precision.dtype).eps * len(values[0]) * 64
    concave = (values[:, 0] > -least) & (precision.diagonal(dim1=-2, dim2=-1) > 0).all(1)
    blurred: Tensor = concave & (values[:, 0] < values[:, -1] * torch.finfo(precision.dtype).eps * 1e8)
    return blurred


def _log_normal(z: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """log N(z; m, P⁻¹) [m], P = factor factorᵀ."""
    white = (factor.mT @ (z - mean).unsqueeze(-1)).squeeze(-1)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return log_det - 0.5 * white.square().sum(-1) - 0.5 * z.shape[1] * LOG_2PI


def assignments(task: Task, rows: Tensor, point: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Pairs: which of `rows` [m], and site → the values of each discrete local latent [m, numbers]."""
    row = torch.arange(len(rows))
    known: dict[str, Tensor] = {}
    names = [s.name for s in task.structure.discrete_locals]
    for name in names:  # in the order in which the program draws them
        batch = Batch(task, rows[row], known, point)
        node = node_of(batch.trace(batch.discrete()), name)
        joint = _joint_values(batch, node)
        known = {k: v.repeat_interleave(len(joint), 0) for k, v in known.items()}
        known[name] = joint.repeat(len(row), 1)
        row = row.repeat_interleave(len(joint))
    return row, known


def _joint_values(batch: Batch, node: Node) -> Tensor:
    """Every value of a discrete site in one row [K^copies, numbers], where copies stand in plates inside `data`."""
    values = _support(node["fn"])  # [K, event numbers]
    copies = batch.flat(node["value"], node).shape[1] // values.shape[1]
    return torch.stack([torch.cat(v) for v in itertools.product(values, repeat=copies)])


def _support(fn: dist.TorchDistribution) -> Tensor:
    """Every value of a discrete distribution [K, numbers of one value]."""
    try:
        values = support_values(fn)
    except NotImplementedError:  # a count whose bound differs by row: up to the largest, with no density above its own
        bound = cast(constraints.integer_interval, fn.support).upper_bound
        values = torch.arange(int(torch.as_tensor(bound).max()) + 1).to(torch.get_default_dtype())
    return values.reshape(len(values), -1)


def _in_support(node: Node, log_prob: Tensor) -> Tensor:
    """−∞ where a value lies beyond the site's support, which the densities of some families ignore."""
    try:
        inside = cast(constraints.Constraint, node["fn"].support).check(node["value"])
    except NotImplementedError:
        return log_prob
    return torch.where(inside, log_prob, torch.full_like(log_prob, -torch.inf))
