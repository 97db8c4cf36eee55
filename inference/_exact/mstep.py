"""The M-step of an enumerable program: closed form where a site's parameters are the program's parameters, else numeric.

Which it is, `copies` finds. Where all entries of a parameter of a distribution are copies of entries of one θ, its family
has the best values in closed form. Anything else, and global latents, go to L-BFGS on the expected complete log joint,
through the sufficient statistics wherever a site has them, so that its cost does not grow with the data.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from inference._exact import copies
from inference._exact.copies import Given, parts_of
from inference._exact.densities import Densities, SiteStatistics, View
from inference._exact.engine import Plan, Rows, Values
from inference._exact.reading import Priors, hypers, priors_now, serves, split
from inference._families._family import Family, Floor, Pool
from inference._numerics.weighted import weighed
from zoo._program.program import Program


class Sites(Protocol):
    """A program's sites as an M-step sees them: parameters of those with a family, densities of all others."""

    program: Program
    families: dict[str, Family]
    x: Tensor
    N: int

    def views(self, parameters: Values | None = None, globals: Values | None = None) -> tuple[list[View], Tensor]:
        """The sites at these values, and the log prior of the globals."""

    def general_log_prob(
        self, rows: slice, sites: set[str], parameters: Values | None = None, globals: Values | None = None
    ) -> Tensor:
        """The densities of sites without a family."""


class Seen(Protocol):
    """What an E-step saw of the sites."""

    views: list[View]
    sites: dict[str, dict[str, Tensor]]
    globals: Values


def plan(exact: Sites, globals: Values) -> Plan:
    """Find, by differentiation, which parameters and global latents have a closed-form update."""
    priors = Priors.asked(exact.program, exact.x, globals)

    def look(leaves: Values) -> tuple[list[Given], list[Tensor]]:
        at = split(leaves, globals)
        views, prior = exact.views(**at)
        seen = [(v.name, v.params) for v in views if v.params is not None]
        parts = [part for name, params in seen for part in parts_of(name, exact.families[name], params)]
        general = {v.name for v in views if v.params is None}
        rows = slice(0, min(2, exact.N))
        rest = [exact.general_log_prob(rows, general, **at)] if general else []
        if not globals:
            return parts, [prior, *rest]
        now = Priors.at(exact.program, exact.x, leaves, globals)
        return [*parts, *now.parts()], [now.rest(), *rest]

    found = copies.find(exact.program, look, globals, priors.supports())
    params = {v.name: v.params or {} for v in exact.views(None, globals)[0]}
    values, best = {**exact.program.values(), **globals}, {}
    for theta, copy in found.items():
        if copy is not None and copy.site in exact.families:
            family, pool = exact.families[copy.site], Pool(theta, values[theta].detach(), copy.places)
            known = theta not in globals or serves(family, copy, priors.of([theta]).get(theta))
            if known and family.closed(copy.parameter, pool, params[copy.site]):
                best[theta] = copy
    return Plan(best, tuple(n for n in found if n not in best and n not in globals), **priors.plan(found))


def closed(exact: Sites, plan: Plan, stats: Seen, floor: Floor, globals: Values) -> dict[str, Tensor]:
    """Put the parameters that have a closed form at their best value; returns the globals that have one.

    One after the other, each given the last value of the others (ECM; Meng & Rubin 1993).
    """
    # locations first: a scale is taken about the new location
    order = sorted(plan.copies.items(), key=lambda item: item[1].parameter != exact.families[item[1].site].location)
    if not order:
        return hypers(exact.program, exact.x, plan, globals, floor)
    params = {v.name: dict(v.params or {}) for v in stats.views}
    values, new = {**exact.program.values(), **globals}, {}
    priors = priors_now(exact.program, exact.x, plan, globals)
    for theta, copy in order:
        mine, pool = params[copy.site], Pool(theta, values[theta], copy.places, priors.get(theta), copy.form)
        new[theta] = exact.families[copy.site].maximise(copy.parameter, pool, stats.sites[copy.site], mine, floor)
        mine[copy.parameter] = copy.of(new[theta], mine[copy.parameter])
    exact.program.assign({n: v for n, v in new.items() if n not in globals})
    found = {n: v for n, v in new.items() if n in globals}
    return found | hypers(exact.program, exact.x, plan, {**globals, **found}, floor)


def broken(exact: Sites, plan: Plan, stats: Seen) -> list[str]:
    """The parameters with a closed form that the sites, as the last E-step saw them, do not copy where they stand."""
    params, values = {v.name: v.params or {} for v in stats.views}, {**exact.program.values(), **stats.globals}
    return [n for n, copy in plan.copies.items() if not copy.holds(params[copy.site][copy.parameter], values[n])]


def smallest(exact: Sites, stats: Seen) -> float:
    """The smallest variance of an observed site, as a share of its data's own; ∞ where there is none."""
    found = [exact.families[v.name].smallest(v.params) for v in stats.views if v.params is not None and not v.latent]
    return min((float(f.amin()) for f in found if f is not None), default=math.inf)


def expected(
    exact: Densities, stats: SiteStatistics, parameters: Values, globals: Values, responsibilities: Rows | None
) -> Tensor:
    """E_q[log p(x, z, globals)] up to a constant, nats; differentiable in parameters and globals."""
    views, total = exact.views(parameters, globals)
    general = set()
    for view in views:
        if view.params is None:
            general.add(view.name)
        else:
            total = total + exact.families[view.name].expected(stats.sites[view.name], view.params)
    if general:
        assert responsibilities is not None
        for rows in exact.chunks():
            weights = weighed(responsibilities[rows], exact.weights, rows)
            density = exact.general_log_prob(rows, general, parameters, globals)
            total = total + torch.where(weights == 0, torch.zeros_like(density), weights * density).sum()
    return total
