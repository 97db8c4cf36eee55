"""What a trace of the program shows: the nodes of local sites, and what they observe; the priors of global latents."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from inference._exact.copies import Copy, Given, parts_of
from inference._exact.engine import Plan
from inference._families._family import Family, Floor, Params, Pool
from inference._families._prior import has_mode, smallest_spread
from inference._families._registry import base_of, family_of
from zoo._program.program import Program
from zoo._program.trace import Node, global_log_prob, is_local, is_plain, node_of, nodes_of, sample_nodes, support_of

Values = Mapping[str, Tensor]
ROWS = 4096  # that are traced at once


def local_nodes(trace: Trace) -> list[Node]:
    """The nodes of the local sites of a trace."""
    return [n for n in nodes_of(trace).values() if n["type"] == "sample" and is_local(n)]


def probe(x: Tensor) -> Tensor:
    """Two rows of x, which are enough to see what differs from row to row."""
    return x[[0, -1]].nan_to_num(0.0) if len(x) else x


def observed(node: Node, few: Tensor, x: Tensor, trace: Callable[[Tensor], Trace]) -> Tensor:
    """What a site observes [N, …], NaN where unobserved; `node` is its node in a trace of the rows `few`.

    x itself where the site observes that, without a copy.
    """
    if is_same(node["value"], few):
        return x
    return torch.cat([node_of(trace(rows), node["name"])["value"] for rows in x.split(ROWS)])


def is_same(value: Tensor, x: Tensor) -> bool:
    """Whether what a site observes of the rows `x` is x itself, by its place in memory."""
    return value.shape == x.shape and value.data_ptr() == x.data_ptr() and value.stride() == x.stride()


# ------------------------------------------------------------------------------------------------------------- priors


@dataclass(frozen=True)
class Priors:
    """The priors of global latents, at one setting of θ and the globals.

    A latent whose distribution has a family is itself seen as one row of data, of which the latents that its prior depends
    on are parameters: loadings with the prior N(0, 1/α) tell α.
    """

    nodes: list[Node]  # of all sites outside the rows
    names: tuple[str, ...]  # of the global latents

    @classmethod
    def at(cls, program: Program, x: Tensor, values: Values, globals: Values) -> Priors:
        """`values` of θ and of the `globals`, differentiable."""
        apart = split(values, globals)
        with torch.random.fork_rng(devices=[]):
            trace = program.trace(x[:2], parameters=apart["parameters"], latents=apart["globals"])
        return cls([n for n in sample_nodes(trace) if not is_local(n)], tuple(globals))

    @classmethod
    def asked(cls, program: Program, x: Tensor, globals: Values) -> Priors:
        """The same where what depends on what is to be asked of them."""
        if not globals:
            return cls([], ())
        leaves = {n: v.detach().clone().requires_grad_() for n, v in {**program.values(), **globals}.items()}
        with torch.enable_grad():
            return cls.at(program, x, leaves, globals)

    def plan(self, found: Mapping[str, Copy | None]) -> dict[str, Any]:
        """What a `Plan` says of priors, where the latents are the copies that were `found`."""
        seen, of = self.seen(), self.of(self.names)
        above = {n: c for n, c in found.items() if c is not None and n in self.names and c.site in seen}
        above = {n: c for n, c in above.items() if serves(seen[c.site][0], c, of.get(n))}
        return {"priors": of, "changing": tuple(self.changing()), "hypers": above}

    def of(self, names: Collection[str]) -> dict[str, Distribution]:
        """Global latent → its prior, without what is wrapped around it; where no mask or scale changes it."""
        return {n["name"]: base_of(n["fn"]) for n in self.nodes if n["name"] in names and is_plain(n)}

    def supports(self) -> dict[str, Constraint]:
        """Global latent → its support."""
        return {n["name"]: support_of(n["fn"]) for n in self.nodes if n["name"] in self.names}

    def changing(self) -> list[str]:
        """The latents whose prior depends on anything."""
        named = [n for n in self.nodes if n["name"] in self.names]
        return [n["name"] for n in named if n["fn"].log_prob(n["value"].detach()).requires_grad]

    def seen(self) -> dict[str, tuple[type[Family], Params]]:
        """Latent → the family of its prior, and what that was given [1, E]."""
        out = {}
        for name, prior in self.of(self.names).items():
            family, value = family_of(prior), next(n["value"] for n in self.nodes if n["name"] == name)
            if family is None or family.joint or any(c.event_dim for c in family.parameters.values()):
                continue
            given = {k: v for k in family.parameters if (v := prior.__dict__.get(k)) is not None}
            if family.given(given):
                out[name] = family, {k: v.to(value).expand(value.shape).reshape(1, -1) for k, v in given.items()}
        return out

    def parts(self) -> list[Given]:
        """The parameters of those priors."""
        return [part for name, (family, params) in self.seen().items() for part in parts_of(name, family, params)]

    def rest(self) -> Tensor:
        """Σ log p of the other sites, of which only what their distributions depend on can be differentiated."""
        return global_log_prob([n for n in self.nodes if n["name"] not in self.seen()], values=False)


def serves(family: Family | type[Family], copy: Copy, prior: Distribution | None) -> bool:
    """Whether the most probable value of a global latent that is a family's parameter has a closed form."""
    known = family.priors.get(copy.form or copy.parameter, ())
    return prior is not None and type(prior) in known and has_mode(prior)


def priors_now(program: Program, x: Tensor, plan: Plan, globals: Values) -> Mapping[str, Distribution]:
    """The priors at these globals: those of the plan, unless they change with other values."""
    if not plan.changing:
        return plan.priors
    return Priors.at(program, x, {**program.values(), **globals}, globals).of(globals)


def split(leaves: Values, globals: Values) -> dict[str, dict[str, Tensor]]:
    """Values of θ (`parameters`) and of global latents (`globals`), apart."""
    theta = {n: v for n, v in leaves.items() if n not in globals}
    return {"parameters": theta, "globals": {n: leaves[n] for n in globals}}


def hypers(program: Program, x: Tensor, plan: Plan, globals: Values, floor: Floor) -> dict[str, Tensor]:
    """The most probable values of the latents that are parameters of other latents' priors, given those."""
    if not plan.hypers:
        return {}
    found = Priors.at(program, x, {**program.values(), **globals}, globals)
    seen, priors, new = found.seen(), found.of(plan.hypers), {}
    for name, copy in plan.hypers.items():
        family, params = seen[copy.site]
        row = globals[copy.site].reshape(1, -1)
        sites = family(row)
        stats = sites.statistics(sites.terms(row), row.new_ones(1, 1), params)
        pool = Pool(name, globals[name], copy.places, priors[name], copy.form)
        best, least = sites.maximise(copy.parameter, pool, stats, params, floor), smallest_spread(priors[name])
        new[name] = torch.where(best < least, least, best)
    return new
