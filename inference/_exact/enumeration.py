"""The exact engine of a program whose latents can be enumerated: every joint assignment weighed for every row."""

from __future__ import annotations

import torch
from torch import Tensor

from inference._exact import mstep
from inference._exact.densities import Densities, SiteStatistics, Sums, View, traceless
from inference._exact.engine import MOST_SUMMED, Engine, Plan, Points, Rows, Values
from inference._families._family import Floor
from inference._numerics import ranks
from inference._numerics.threads import one_thread
from inference._numerics.weighted import weighed


class Enumeration(Densities, Engine[SiteStatistics, Plan]):
    """The exact posterior over the joint assignments of the discrete local latents of `program`, for data `x` [N, …]."""

    @property
    def size(self) -> float:
        return self.N * self.A

    def log_prior(self, parameters: Values | None = None, globals: Values | None = None) -> Tensor:
        return self.views(parameters, globals)[1]

    def log_evidence(
        self, parameters: Values | None = None, globals: Values | None = None, every_row: bool = False
    ) -> tuple[Tensor, Tensor]:
        views, prior = self.views(parameters, globals)
        total: Tensor | float = 0.0
        for rows in self.chunks(views):
            found = self.log_joint(rows, views, parameters, globals).logsumexp(1)
            total = total + weighed(found, self.weights, rows).sum()
        return torch.as_tensor(total), prior

    @torch.no_grad()
    def per_datum(self, parameters: Values | None = None, globals: Values | None = None, own: bool = False) -> Tensor:
        views, _ = self.views(parameters, globals)
        if own:
            views = [View(v.name, v.latent, None) for v in views]
        views, out = self.ready(views), self.x.new_empty(self.N)

        def work(rows: slice) -> Sums:
            out[rows] = self.log_joint(rows, views, parameters, globals).logsumexp(1)
            return {}

        self.sweep(views, work)
        return out

    # ------------------------------------------------------------------------------------------------- posterior

    @torch.no_grad()
    def responsibilities(self, parameters: Values | None = None, globals: Values | None = None) -> Tensor:
        views = self.ready(self.views(parameters, globals)[0])
        out = self.x.new_empty(self.N, self.A)

        def work(rows: slice) -> Sums:
            out[rows] = _posterior(self.log_joint(rows, views, parameters, globals))[0]
            return {}

        self.sweep(views, work)
        return out

    @torch.no_grad()
    def e_step(self, globals: Values | None = None, responsibilities: Rows | None = None) -> SiteStatistics:
        seen, log_prior = self.views(None, globals)
        views = self.ready(seen)
        observed = [(v.name, v.params) for v in views if v.params is not None and not v.latent]
        shared = ranks.size() > 1 and traceless(views)  # what has no statistics needs the rows themselves
        whole = responsibilities is None and self.N <= MOST_SUMMED and not shared
        per_datum = self.x.new_empty(self.N if whole else 0)

        def work(rows: slice) -> Sums:
            terms = self.terms(rows, views)
            if responsibilities is None:
                weights, found = _posterior(self.log_joint(rows, views, None, globals, terms))
                found = weighed(found, self.weights, rows)
            else:
                weights, found = responsibilities[rows], per_datum
            weights = weighed(weights, self.weights, rows)
            sums = {"": {"counts": weights.sum(0), "evidence": found.sum().reshape(1)}}
            if whole:
                per_datum[rows] = found
            for name, params in observed:
                sums[name] = self.families[name].statistics(terms[name], weights, params)
            return sums

        sites = self.sweep(views, work, shared)
        totals = sites.pop("")
        counts, per_datum = totals["counts"], per_datum if whole else totals["evidence"]
        for view in views:
            if view.params is not None and view.latent:
                sites[view.name] = self._latent_statistics(view, counts)
        return SiteStatistics(counts, per_datum, log_prior, sites, seen, globals=globals or {})

    @torch.no_grad()
    def sampled(self, draws: int, globals: Values | None = None) -> tuple[SiteStatistics, Tensor]:
        chosen = torch.multinomial(self.responsibilities(None, globals), draws, replacement=True)  # [N, draws]
        shares = self.x.new_zeros(self.N, self.A).scatter_add_(1, chosen, torch.ones_like(chosen, dtype=self.x.dtype))
        return self.e_step(globals, shares.div_(draws)), shares

    @one_thread()
    def _latent_statistics(self, view: View, counts: Tensor) -> dict[str, Tensor]:
        family, out = self.families[view.name], []
        for some, value, params in self._latent_blocks(view):
            out.append(family.statistics(family.terms(value), counts[some].diag(), params))
        return {name: torch.cat([stats[name] for stats in out]) for name in out[0]}

    def summary(self, globals: Values | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {}, {}  # there are no continuous local latents

    def draw(self, responsibilities: Tensor | None, draws: int, globals: Values | None = None) -> dict[str, Tensor]:
        if not self.assignments:
            return {}
        if responsibilities is None:
            responsibilities = self.responsibilities(None, globals)
        chosen = torch.multinomial(responsibilities, draws, replacement=True).mT  # [draws, N]
        out = {}
        for site in self.structure.discrete_locals:
            value = self.structure.axes.by_datum(self.assignments[site.name], site)  # [A, 1, inner plates, event]
            out[site.name] = value[:, 0][chosen]
        return out

    @torch.no_grad()
    def points(self, rows: slice, globals: Values | None = None) -> Points:
        weights = self.log_joint(rows, self.views(None, globals)[0], None, globals).softmax(1)
        for a in range(self.A):
            yield weights[:, a], {name: value[a] for name, value in self.assignments.items()}

    # ----------------------------------------------------------------------------------------------------- M-step

    def look(self, globals: Values | None = None) -> SiteStatistics:
        views, log_prior = self.views(None, globals)
        nothing = self.x.new_zeros(0)
        return SiteStatistics(nothing, nothing, log_prior, {}, views, globals=globals or {})

    def plan(self, globals: Values) -> Plan:
        return mstep.plan(self, globals)

    def closed(self, plan: Plan, stats: SiteStatistics, floor: Floor, globals: Values) -> dict[str, Tensor]:
        return mstep.closed(self, plan, stats, floor, globals)

    def expected(
        self, stats: SiteStatistics, parameters: Values, globals: Values, responsibilities: Rows | None = None
    ) -> Tensor:
        return mstep.expected(self, stats, parameters, globals, responsibilities)

    def broken(self, plan: Plan, stats: SiteStatistics) -> list[str]:
        return mstep.broken(self, plan, stats)

    def smallest(self, stats: SiteStatistics) -> float:
        return mstep.smallest(self, stats)


def _posterior(joint: Tensor) -> tuple[Tensor, Tensor]:
    """p(a | x_i) [n, A] and log p(x_i) [n] from log p(x_i, a) [n, A], with one exponential an entry."""
    most = torch.finfo(joint.dtype).max
    top = joint.amax(1, keepdim=True).clamp_(-most, most)  # −inf − (−inf) is not a number
    weights = (joint - top).exp_()
    total = weights.sum(1, keepdim=True)
    return weights.div_(total), (top + total.log())[:, 0]
