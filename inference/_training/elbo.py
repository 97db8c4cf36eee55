"""The evidence lower bound of each row, differentiable in θ and in the guide, by the estimator with the least noise.

- continuous latents: reparametrised draws (Kingma & Welling 2014), the divergence from the prior in closed form where
  there is one; `particles` > 1 gives the importance-weighted bound (Burda, Grosse & Salakhutdinov 2016);
- discrete latents that can be enumerated: summed out under the guide (`enumerated`, Pyro's TraceEnum_ELBO, or `listed`);
- other discrete latents, and vectors of many bits: draws, with the leave-one-out baselines of VIMCO (Mnih & Rezende 2016);
- no latents: log p(x) itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import kl_divergence

from guides import Derived, at
from inference._method.task import Task
from inference._numerics.weighted import weighed
from inference._sampling import weights
from zoo._program.latents import joint_values
from zoo._program.structure import Structure
from zoo._program.trace import (
    DATA_PLATE,
    DRAWS_PLATE,
    Node,
    global_log_prob,
    is_local,
    is_plain,
    local_log_prob,
    log_prob,
    node_of,
    per_datum,
    sample_nodes,
)

SUMMED_BITS = 256  # joint values of a vector of bits from which draws, whose baselines are good, are the cheaper way
FULL = 64  # rows of a batch, of which fewer cost hardly less
SCORE_DRAWS = 8  # of a discrete q, where none are asked for: each is the others' baseline

Index = slice | Tensor  # of rows
Objective = Callable[[Index, Tensor], Tensor]


def objective(task: Task, guide: torch.nn.Module | None, particles: int) -> Objective:
    """(rows, x[rows]) ↦ the bound, nats per row, for a batch that stands for all the data: a scalar to climb."""
    structure = task.structure
    if not structure.local_latents and not structure.global_latents:
        return lambda rows, x: _log_likelihood(task, rows, x)
    assert guide is not None  # there are latents to draw
    if structure.discrete_locals and particles == 1 and sums_out(structure, task.limit):
        few = task.weights is not None or structure.assignments == max(
            s.cardinality or 0 for s in structure.discrete_locals
        )
        return listed(task, guide) if few else enumerated(task, guide)
    bound = Bound(task, guide, particles)
    return lambda rows, x: bound.surrogate(rows, x)


def sums_out(structure: Structure, limit: int) -> bool:
    """Whether the discrete local latents are to be summed out."""
    sizes = {s.name: (s.cardinality or math.inf) ** s.inner for s in structure.discrete_locals}
    bits = (s.name for s in structure.discrete_locals if s.completes is not None)
    if any(s.event_shape and s.completes is None for s in structure.discrete_locals):
        return False  # Pyro lists no values of a vector of independent entries
    return math.prod(sizes.values()) <= limit and all(sizes[name] <= SUMMED_BITS for name in bits)


def draws_of_few(task: Task, guide: torch.nn.Module | None, batch: int) -> int:
    """How many draws of its latents each row of a batch has where all rows are few: as many as make up a batch of `FULL`.

    1 where no local latent is drawn, so that there is no noise to average out, and for a guide of the user's own, which may
    know rows by their place.
    """
    structure = task.structure
    summed_out = bool(structure.discrete_locals) and sums_out(structure, task.limit)
    drawn = bool(structure.continuous_locals) or (bool(structure.discrete_locals) and not summed_out)
    if not drawn or not isinstance(guide, Derived) or batch < len(task.x):
        return 1
    return max(1, FULL // batch)


def _log_likelihood(task: Task, rows: Index, x: Tensor) -> Tensor:
    """log p(x), nats per row; what is observed outside the data plate counts once for all the data."""
    trace = task.program.trace(x)
    mean = weighed(local_log_prob(trace, task.structure.data_dim, len(x)).reshape(len(x)), task.relative, rows).mean()
    return mean + global_log_prob(trace) / task.count if has_global_sites(task.structure) else mean


def has_global_sites(structure: Structure) -> bool:
    """Whether anything is drawn or observed outside the data plate."""
    return any(s.scope == "global" for s in structure.sites)


def enumerated(task: Task, guide: torch.nn.Module) -> Objective:
    """The ELBO with the discrete local latents summed out under the guide."""
    elbo = TraceEnum_ELBO(max_plate_nesting=task.structure.max_plate_nesting)
    N = len(task.x)

    def of(rows: Index, x: Tensor) -> Tensor:
        q = config_enumerate(at(guide, rows), "parallel", expand=False)
        with task.program.settings(), _ScaleLocal(N / len(x)):
            # the differentiable loss cannot be computed where gradients are off
            loss = elbo.differentiable_loss if torch.is_grad_enabled() else elbo.loss
            return torch.as_tensor(-loss(task.program, q, x) / N)

    return of


def listed(task: Task, guide: torch.nn.Module) -> Objective:
    """`enumerated` for rows with weights, for which Pyro's has no place."""
    tables = joint_tables(task)

    def of(rows: Index, x: Tensor) -> Tensor:
        gain, outside = summed(task, guide, tables, rows, x)
        return weighed(gain.sum(0), task.relative, rows).mean() + outside / task.count

    return of


def joint_tables(task: Task) -> dict[str, Tensor]:
    """Discrete local site → its value under every joint assignment, as the program takes it."""
    structure = task.structure
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        trace = task.program.trace(task.x[:2])
    nodes = {n["name"]: n for n in sample_nodes(trace)}
    return joint_values(nodes, [s.name for s in structure.discrete_locals], structure.axes)


def summed(
    task: Task,
    guide: torch.nn.Module,
    tables: dict[str, Tensor],
    rows: Index,
    x: Tensor,
    weighted: bool = False,
) -> tuple[Tensor, Tensor]:
    """What each joint value adds to each row's bound [A, n], and the bound of what is global; nats.

    All other latents are drawn once. `weighted`: [1, n], the discrete latents summed exactly, whatever the guide says.
    """
    structure = task.structure
    with task.program.settings():
        q = pyro.poutine.trace(pyro.poutine.condition(at(guide, rows), data=tables)).get_trace(x)
    drawn = {n["name"]: n["value"] for n in sample_nodes(q) if n["name"] not in tables}
    p = task.program.joint_trace(x, latents={**tables, **drawn})

    def each(node: Node) -> Tensor:
        value = per_datum(node, log_prob(node), structure.data_dim, structure.max_plate_nesting)
        return value.reshape(-1, value.shape[-1])

    log_q: Any = sum(each(n) for n in sample_nodes(q) if n["name"] in tables)  # [A, n]
    rest: Any = sum(each(n) for n in sample_nodes(q) if is_local(n) and n["name"] not in tables)
    log_p: Any = sum(each(n) for n in sample_nodes(p) if is_local(n))
    outside = global_log_prob(p) - global_log_prob(q)
    if weighted:
        return (log_p - rest).logsumexp(0, keepdim=True), outside
    weight = log_q.exp()
    gain = torch.where(weight > 0, log_p - rest - log_q, torch.zeros_like(weight))
    return weight * gain, outside


class _ScaleLocal(Messenger):
    """Each local site counts `factor` times: a batch stands for all the data."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def _pyro_sample(self, msg: Node) -> None:
        if any(f.name == DATA_PLATE for f in msg["cond_indep_stack"]):
            msg["scale"] = msg["scale"] * self.factor


class DrawsOfLocals(pyro.plate):
    """A plate of `samples` draws for each row at once, around a program or guide; what is global is drawn only once.

    A program may so index a global by a local one, `mu[z]`: with draws of its own, `mu` would have another first dimension.
    """

    def __init__(self, structure: Structure, samples: int) -> None:
        super().__init__(DRAWS_PLATE, samples, dim=-1 - structure.max_plate_nesting)
        self._once = {s.name for s in structure.sites if s.scope == "global"}

    def _process_message(self, msg: Message) -> None:
        if msg["name"] not in self._once:
            super()._process_message(msg)


class Bound:
    """The bound by draws from the guide, `particles` for each row."""

    def __init__(self, task: Task, guide: torch.nn.Module, particles: int) -> None:
        structure = task.structure
        self.task, self.guide, self.structure = task, guide, structure
        self.score = {s.name for s in structure.discrete_locals}  # sites whose draws carry no gradient
        self.has_globals = has_global_sites(structure)
        self.weighted = particles > 1
        self.K = SCORE_DRAWS if self.score and not self.weighted else particles
        self.analytic: dict[str, bool] = {}  # site → whether its divergence has a closed form that may be used

    def surrogate(self, rows: Index, x: Tensor) -> Tensor:
        """A scalar whose value is the bound (nats per row) and whose gradient is an unbiased estimate of the bound's."""
        q, p = self._traces(rows, x)
        local = self._terms(q, p, len(x))  # [K, n] log p(x, z) − log q(z), or with divergences in closed form
        value = weights.log_mean(local)[0] if self.weighted else local
        share = self._globals(q, p) / self.task.count if self.has_globals else 0.0
        if not self.score:
            return self._mean(value, rows) + share
        value = value if self.weighted else value.mean(0)
        log_q = sum(self._log_prob(node_of(q, name), len(x)) for name in self.score)
        signal = _vimco(local.detach()) if self.weighted else _leave_one_out(local.detach())
        learn = (signal * log_q).sum(0)
        return self._mean(value + learn - learn.detach(), rows) + share

    def each(self, rows: Index, x: Tensor) -> Tensor:
        """The bound of each row at the draws [K, n], nats, without what is global; differentiable where no draw is discrete."""
        return self._terms(*self._traces(rows, x), len(x))

    def _mean(self, value: Tensor, rows: Index) -> Tensor:
        """The mean of the rows' values [n] or [K, n], weighted where rows are."""
        return value.mean() if self.task.weights is None else weighed(value.mT, self.task.relative, rows).mean()

    def _traces(self, rows: Index, x: Tensor) -> tuple[Trace, Trace]:
        guide = at(self.guide, rows)
        plate = DrawsOfLocals(self.structure, self.K) if self.K > 1 else None
        with self.task.program.settings():
            if plate is None:
                q = pyro.poutine.trace(guide).get_trace(x)
            else:
                with plate:
                    q = pyro.poutine.trace(guide).get_trace(x)
        latents = {n["name"]: n["value"] for n in sample_nodes(q)}
        if plate is None:
            return q, self.task.program.joint_trace(x, latents=latents)
        with DrawsOfLocals(self.structure, self.K):
            return q, self.task.program.joint_trace(x, latents=latents)

    def _terms(self, q: Trace, p: Trace, n: int) -> Tensor:
        latents = [node["name"] for node in sample_nodes(q) if is_local(node)]
        if not self.analytic:
            self.analytic = self._closed_forms(q, p, latents)
        total: Tensor | float = 0.0
        for node in sample_nodes(p):
            if not is_local(node):
                continue
            name = node["name"]
            if self.analytic.get(name):
                divergence = kl_divergence(node_of(q, name)["fn"], node["fn"])
                total = total - self._shaped(per_datum(node, divergence, self.structure.data_dim, self._depth), n)
                continue
            total = total + self._log_prob(node, n)
            if name in q.nodes:
                total = total - self._log_prob(node_of(q, name), n)
        return torch.as_tensor(total)

    @property
    def _depth(self) -> int:
        return self.structure.max_plate_nesting

    def _log_prob(self, node: Node, n: int) -> Tensor:
        return self._shaped(per_datum(node, log_prob(node), self.structure.data_dim, self._depth), n)

    def _shaped(self, value: Tensor, n: int) -> Tensor:
        if self.K == 1 and value.shape == (n,):  # the usual case, at every step
            return value.unsqueeze(0)
        return value.expand(torch.broadcast_shapes(value.shape, (self.K, n))).reshape(self.K, n)

    def _closed_forms(self, q: Trace, p: Trace, latents: list[str]) -> dict[str, bool]:
        """A divergence in closed form holds for a site whose conditions in the program are all drawn before it in the
        guide: what is drawn later depends on it."""
        out = {}
        order = [node["name"] for node in sample_nodes(p) if node["name"] in latents]
        for name in latents:
            before = set(order[: order.index(name)])
            fits = not self.weighted and name not in self.score and before <= set(latents[: latents.index(name)])
            plain = is_plain(node_of(p, name)) and is_plain(
                node_of(q, name)
            )  # a scale is of one of the two densities alone
            if fits and plain:
                try:
                    kl_divergence(node_of(q, name)["fn"], node_of(p, name)["fn"])
                except NotImplementedError:
                    fits = False
            out[name] = fits and plain
        return out

    def _globals(self, q: Trace, p: Trace) -> Tensor:
        """log p − log q of all that stands outside the data plate, nats."""
        zero = torch.zeros((), dtype=self.task.x.dtype, device=self.task.x.device)
        return zero + global_log_prob(p) - global_log_prob(q)


def _leave_one_out(value: Tensor) -> Tensor:
    """[K, n] what to weigh ∇ log q by, for the ELBO: each draw's value less the mean of the others', over K."""
    K = len(value)
    return (value - value.mean(0)) * (1 / (K - 1)) if K > 1 else value


def _vimco(log_w: Tensor) -> Tensor:
    """[K, n] the same for the importance-weighted bound: the bound, less the bound with this draw's weight replaced by the
    geometric mean of the others' (Mnih & Rezende 2016, equation 9)."""
    K = len(log_w)
    bound = log_w.logsumexp(0)
    others = (log_w.sum(0) - log_w) / (K - 1)
    replaced = log_w.unsqueeze(0).expand(K, K, -1).clone()
    diagonal = torch.arange(K)
    replaced[diagonal, diagonal] = others
    return bound - replaced.logsumexp(1)


@torch.no_grad()
def culprit(task: Task, guide: torch.nn.Module | None, rows: Index, x: Tensor) -> str:
    """Where a bound stopped being a number: the first site whose density is not finite, in words."""
    try:
        with task.program.settings(), pyro.validation_enabled(False):
            q = None if guide is None else pyro.poutine.trace(at(guide, rows)).get_trace(x)
            values = {} if q is None else {n["name"]: n["value"] for n in sample_nodes(q)}
            p = task.program.joint_trace(x, latents=values)
            for what, trace in (("the guide's density of", q), ("the density of", p)):
                for node in [] if trace is None else sample_nodes(trace):
                    found = node["fn"].log_prob(node["value"])
                    if not bool(found.isfinite().all()):
                        how = "not a number" if bool(found.isnan().any()) else "infinite"
                        given = (
                            " for some values of its latents or parameters"
                            if values and node["name"] not in values
                            else ""
                        )
                        return f"{what} site '{node['name']}' is {how}{given}"
    except Exception as error:
        return f"the program raised {type(error).__name__}: {error}"
    return "a parameter's gradient was not finite"
