"""A program whose discrete local latents are summed out one by one, given all its other latents (Rao & Blackwell).

Its trace at values of the other latents has one density for each row, log p(x, z) = log Σ_s p(x, z, s): the discrete s go
through the program side by side, and their tables are summed. What is drawn from it are the other latents z alone; `complete`
draws s given them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.distributions import constraints

from inference._exact._sums import sum_product
from inference._exact._sums.schedule import Schedule, schedules
from inference._exact.reading import probe as few_rows
from inference._numerics.slices import fitting, slices
from inference._sampling.weights import unmasked
from zoo._program.axes import Axes
from zoo._program.program import Program
from zoo._program.structure import Structure
from zoo._program.trace import Node, altered, is_local, log_prob, nodes_of, per_datum, sample_nodes
from zoo._reading.enumerated import Enumerated

LOWEST = -1e30  # what stands for log 0 in a sum, whose gradient then is no NaN
COMPLETED = 2**22  # numbers in the tables of some draws
ALONE = "\0"  # before the name of a latent: a factor of it alone

Arrays = dict[str, Tensor]


class Held(dist.TorchDistribution):
    """Stands for a site whose log-density is known: its `log_prob` is that, whatever the value."""

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real

    def __init__(self, log_density: Tensor, event: tuple[int, ...] = ()) -> None:
        self.log_density = log_density
        super().__init__(log_density.shape, torch.Size(event), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.log_density


class SummedOut(Program):
    """`program` with the discrete local latents of `structure` summed out, or those of `block`. It shares the parameters.

    `joint_trace` is its density, `trace` the program itself, to draw from.
    """

    def __init__(self, program: Program, structure: Structure, x: Tensor, block: Collection[str] | None = None) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(program.__dict__)
        self.axes = structure.axes
        self.cards = {k: v for k, v in structure.cards.items() if block is None or k in block}
        self.scopes = {k: tuple(n for n in v if n in self.cards) for k, v in structure.scopes.items()}
        self.others = {s.name for s in structure.local_latents if s.name not in self.cards}
        given = {s.name for s in structure.observed} | self.others
        mine = (s for s in structure.discrete_locals if s.name in self.cards and not s.reads_data)
        self.rowless = {s.name for s in mine if not given & set(s.parents)}
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            nodes = {n["name"]: n for n in sample_nodes(program.trace(few_rows(x), raw=True))}
        lifted = Axes(self.axes.depth + 1, self.axes.data_dim)  # a place is left for a plate of draws
        self.every = Enumerated(self, lifted, self.cards, self.scopes, nodes)
        self._schedules = self._planned(self.scopes)

    def _planned(self, scopes: Mapping[str, tuple[str, ...]]) -> list[Schedule]:
        return schedules(self.cards, scopes, {site: site not in self.rowless for site in scopes})

    # ----------------------------------------------------------------------------------------------------- density

    def joint_trace(
        self,
        x: Tensor,
        *,
        parameters: Mapping[str, Tensor] | None = None,
        latents: Mapping[str, Tensor] | None = None,
        apart: bool = False,
    ) -> Trace:
        trace = self._side_by_side(x, parameters, latents)
        nodes = [n for n in sample_nodes(trace) if is_local(n) and n["name"] in self.scopes]
        whole = self._sum(self._tables(nodes, len(x)), len(x))
        drawn = self._sum(self._tables(nodes, len(x), latent=True), len(x)) if apart else torch.zeros_like(whole)
        densities = {"observed": whole - drawn, "latent": drawn}
        out = Trace()
        for name, node in nodes_of(trace).items():
            if name not in self.scopes:
                out.add_node(name, **node)
                continue
            kind = "observed" if name not in self.cards and name not in self.others else "latent"
            if name in self.cards or (kind == "observed" and kind not in densities):
                continue
            held = Held(densities.pop(kind, torch.zeros_like(whole)), tuple(node["fn"].event_shape))
            out.add_node(name, **altered(node, held))
        return out

    def _side_by_side(
        self, x: Tensor, parameters: Mapping[str, Tensor] | None, latents: Mapping[str, Tensor] | None
    ) -> Trace:
        values = {name: v.to(x.device) for name, v in self.every.values.items()}
        return self.trace(x, parameters=parameters, latents={**values, **(latents or {})})

    def _tables(self, nodes: list[Node], n: int, latent: bool = False) -> Arrays:
        """Site → its table [draws · n or 1, values…]. `latent`: of what the latents are drawn from alone."""
        found = {}
        for node in nodes:
            own = altered(node, unmasked(node["fn"])) if latent else node
            value = per_datum(own, log_prob(own), self.axes.data_dim, self.axes.depth)
            if latent and node["name"] not in self.cards and node["name"] not in self.others:
                value = torch.zeros_like(value)
            found[node["name"]] = value.unsqueeze(0) if value.dim() == 1 else value
        draws = max(v.shape[-2] for v in found.values())
        out = {}
        for site, value in found.items():
            rows = (1, 1) if site in self.rowless else (draws, n)
            value = value[..., :1, :1] if site in self.rowless else value.expand(*value.shape[:-2], *rows)
            out[site] = self.every.in_order(site, value.flatten(-2))
        return out

    def _sum(self, tables: Arrays, n: int) -> Tensor:
        """The total in the shape of the program's batch, with the draws in front."""
        rows = max(n, *(len(t) for t in tables.values()))
        plan = min(self._schedules, key=lambda s: s.seconds(rows, along_chains=False))
        total = sum_product.summed(plan, _placed(tables, plan), _log_sum_exp).log_evidence
        total = torch.where(total < 0.5 * LOWEST, -torch.inf, total)
        shape = [1] * self.axes.depth
        shape[self.axes.data_dim] = n
        return total.expand(rows).reshape(*((rows // n,) if rows > n else ()), *shape)

    # ------------------------------------------------------------------------------------------------------- draws

    @torch.no_grad()
    def complete(self, structure: Structure, x: Tensor, drawn: Mapping[str, Tensor]) -> tuple[Arrays, Arrays]:
        """The discrete latents given draws of all others, site → [draws, N, …] and of a global latent [draws, …].

        Returns one draw of them for each, and p(s | x) [N, values] averaged over the draws.
        """
        draws, n = len(next(iter(drawn.values()))), len(x)
        whole = any(s.name in drawn for s in structure.global_latents)  # then each draw has its own
        plan = self.with_marginals()
        width = sum(s.numbers(1) for s in plan.steps)
        out = {name: v.new_empty(draws, n, *v.shape[1:]) for name, v in self.every.support.items()}
        sums = {name: x.new_zeros(n, card) for name, card in self.cards.items()}
        for some in slices(draws, 1 if whole else fitting(COMPLETED, n * width)):
            for rows in slices(n, fitting(COMPLETED, width * (some.stop - some.start))):
                states = self._completed(structure, x[rows], _some(structure, drawn, some, rows), plan, sums, rows)
                for name, state in states.items():
                    out[name][some, rows] = self.every.support[name][state]
        order = {name: self.every.support[name].reshape(len(t[0]), -1)[:, 0].argsort() for name, t in sums.items()}
        plain = [s.name for s in structure.discrete_locals if not s.event_shape]
        return out, {name: sums[name][:, order[name]] / draws for name in plain}

    def _completed(
        self, structure: Structure, x: Tensor, drawn: Arrays, plan: Schedule, sums: Arrays, rows: slice
    ) -> Arrays:
        """Latent → the number of its value [draws, rows]; the posterior probabilities are added to `sums`."""
        sites = {s.name: s for s in structure.sites}
        local = {k: v for k, v in drawn.items() if sites[k].scope == "local"}
        draws, n = len(next(iter(drawn.values()))), len(x)
        latents = {k: self.axes.as_program(v.flatten(0, 1), sites[k]) for k, v in local.items()}
        latents |= {k: v[0] for k, v in drawn.items() if k not in local}
        many = x.repeat(draws, *(1,) * (x.dim() - 1))
        found = self.given(many, latents, plan)
        for name, probabilities in found.probabilities.items():
            sums[name][rows] += probabilities.reshape(draws, n, -1).sum(0)
        return {name: state.reshape(draws, n) for name, state in found.states.items()}

    def with_marginals(self) -> Schedule:
        """A schedule with a table of zeros for each latent besides: its gradient is the latent's posterior."""
        return self._planned({**self.scopes, **{ALONE + name: (name,) for name in self.cards}})[0]

    @torch.no_grad()
    def given(self, x: Tensor, latents: Mapping[str, Tensor], plan: Schedule) -> Given:
        """What was summed out given values of all other latents, in the shapes of the program; rows R are draws · n."""
        nodes = [
            k for k in sample_nodes(self._side_by_side(x, None, latents)) if is_local(k) and k["name"] in self.scopes
        ]
        tables = self._tables(nodes, len(x))
        R = max(len(x), *(len(t) for t in tables.values()))
        with torch.enable_grad():
            own = {k: x.new_zeros(R, card, requires_grad=True) for k, card in self.cards.items()}
            found = sum_product.summed(plan, _placed(tables, plan) | {ALONE + k: t for k, t in own.items()})
            gradients = torch.autograd.grad(found.log_evidence.sum(), list(own.values()))
        states, density = sum_product.drawn(plan, found, 1, R)
        return Given(
            {name: s[0] for name, s in zip(plan.order, states, strict=True)},
            found.log_evidence.detach() + density[0],
            dict(zip(own, gradients, strict=True)),
        )


@dataclass(frozen=True)
class Given:
    """A draw of some latents given all others, for R rows."""

    states: Arrays  # latent → the number of its value [R]
    log_p: Tensor  # log p(x, z) with them [R]
    probabilities: Arrays  # latent → its posterior given the others [R, values], in the order of its support


def _some(structure: Structure, drawn: Mapping[str, Tensor], draws: slice, rows: slice) -> Arrays:
    local = {s.name for s in structure.local_latents}
    return {k: v[draws, rows] if k in local else v[draws] for k, v in drawn.items()}


def _placed(tables: Arrays, plan: Schedule) -> Arrays:
    return {site: t.permute(0, *(1 + d for d in plan.dims[site])) for site, t in tables.items()}


def _log_sum_exp(x: Tensor) -> Tensor:
    """log Σ exp over the last dimension, twice differentiable, and under `vmap`: gradients are 0 where all terms are log 0."""
    return x.clamp(min=LOWEST).logsumexp(-1)
