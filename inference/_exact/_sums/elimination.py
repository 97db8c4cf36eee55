"""The exact engine of a program whose discrete latents are too many to list together, and can be summed out one by one.

The program is run once with all values of its latents side by side (`enumerated`); every site's log-density then is a table
over the few latents that it depends on. The tables are summed over one latent after the other (`sum_product`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from inference._exact import mstep
from inference._exact._sums import sum_product
from inference._exact._sums.factors import Factors, Look, Tables
from inference._exact._sums.schedule import Schedule, schedule, schedules
from inference._exact.densities import View
from inference._exact.engine import Engine, Plan, Points, Rows, Statistics, Values
from inference._families._family import Floor
from inference._numerics.slices import fitting, slices
from inference._numerics.threads import one_thread
from inference._numerics.weighted import count, weighed
from zoo._errors import UsageError
from zoo._program.program import Program
from zoo._program.structure import Structure

CHUNK_NUMBERS = 2**23  # in the tables of some rows; some six times as many are held at once
CHUNK_ROWS = 4096
ALONE = "\0"  # before the name of a latent: a factor of it alone
DRAWN = 2**22  # numbers that a step of drawing may make


@dataclass
class TableStatistics(Statistics):
    """What an E-step leaves: sums for the groups, and for other sites the posterior of the latents that they depend on."""

    views: list[View]
    others: dict[str, Tensor]  # site → weights [N or 1, values of its latents]


class Elimination(Engine[TableStatistics, Plan]):
    """The exact posterior of discrete local latents, for data `x` [N, …]. There are no joint values to list: A = 1.

    `backwards`: sum the latents out in another order, which begins at the other end of a chain.
    """

    def __init__(
        self,
        program: Program,
        structure: Structure,
        x: Tensor,
        weights: Tensor | None = None,
        backwards: bool = False,
    ) -> None:
        self.program, self.structure, self.x, self.weights = program, structure, x, weights
        self.N, self.A, self.assignments = len(x), 1, {}
        self.factors = Factors(program, structure, x, weights)
        self.families = self.factors.families
        self.cards, self.scopes = structure.cards, structure.scopes
        by_row = {site: site not in self.factors.rowless for site in self.scopes}
        self._schedules = schedules(self.cards, self.scopes, by_row, backwards)
        self._chosen: dict[tuple[int, bool], Schedule] = {}
        self._marginal: Schedule | None = None

    def schedule(self, rows: int, along_chains: bool = True) -> Schedule:
        """The order in which to sum so many rows."""
        if (rows, along_chains) not in self._chosen:
            self._chosen[rows, along_chains] = min(self._schedules, key=lambda s: s.seconds(rows, along_chains))
        return self._chosen[rows, along_chains]

    @cached_property
    def _numbers(self) -> int:
        """How many numbers a row takes in all tables."""
        return self._schedules[0].numbers()

    @property
    def size(self) -> float:
        return self.N * self._numbers

    @property
    def states(self) -> int:
        return sum(self.cards.values())

    def chunks(self) -> Iterator[slice]:
        """Slices of rows whose tables are not too much memory."""
        yield from slices(self.N, fitting(CHUNK_NUMBERS, self._numbers, 1, CHUNK_ROWS))

    # ------------------------------------------------------------------------------------- evidence and posterior

    def views(self, parameters: Values | None = None, globals: Values | None = None) -> tuple[list[View], Tensor]:
        """The groups of sites, and the sites without a family, at these values; and the log prior of the globals (nats)."""
        look = self.factors.look(parameters, globals)
        return self.factors.views(look), look.log_prior

    def log_prior(self, parameters: Values | None = None, globals: Values | None = None) -> Tensor:
        return self.factors.look(parameters, globals).log_prior

    def log_evidence(
        self, parameters: Values | None = None, globals: Values | None = None, every_row: bool = False
    ) -> tuple[Tensor, Tensor]:
        look = self.factors.look(parameters, globals)
        total: Tensor | float = 0.0
        for rows in self.chunks():
            found = self._summed(rows, look, parameters, globals)
            total = total + weighed(found, self.weights, rows).sum()
        return torch.as_tensor(total), look.log_prior

    def _summed(
        self, rows: slice, look: Look, parameters: Values | None, globals: Values | None, own: bool = False
    ) -> Tensor:
        """log p(x_i) [rows]."""
        n = rows.stop - rows.start
        once = not torch.is_grad_enabled()  # some differentiate it twice
        plan = self.schedule(n, once)
        tables = self.factors.tables(rows, look, parameters, globals, own)
        return sum_product.summed(plan, self.factors.placed(tables, plan), along_chains=once).log_evidence.expand(n)

    @torch.no_grad()
    def per_datum(self, parameters: Values | None = None, globals: Values | None = None, own: bool = False) -> Tensor:
        look = self.factors.look(parameters, globals, own)
        return torch.cat([self._summed(r, look, parameters, globals, own) for r in self.chunks()])

    def responsibilities(self, parameters: Values | None = None, globals: Values | None = None) -> Tensor:
        return self.x.new_ones(self.N, 1)  # of the one joint value; see `marginals`

    def values_of(self, latent: str) -> Tensor:
        return self.factors.every.support[latent].reshape(-1).sort().values

    @torch.no_grad()
    def marginals(self, responsibilities: Tensor, globals: Values | None = None) -> dict[str, Tensor]:
        look, plan = self.factors.look(None, globals), self._of_marginals()
        names = [s.name for s in self.structure.discrete_locals if not s.event_shape]
        if not names:
            return {}
        out = {name: self.x.new_empty(self.N, self.cards[name]) for name in names}
        for rows in self.chunks():
            n = rows.stop - rows.start
            tables = self.factors.placed(self.factors.tables(rows, look, None, globals), self._schedules[0])
            with torch.enable_grad():
                own = {name: self.x.new_zeros(n, card, requires_grad=True) for name, card in self.cards.items()}
                found = sum_product.summed(
                    plan, {**tables, **{ALONE + name: t for name, t in own.items()}}, along_chains=True
                ).log_evidence
                gradients = torch.autograd.grad(found.sum(), [own[name] for name in names])
            for name, gradient in zip(names, gradients, strict=True):
                out[name][rows] = gradient[:, self.factors.ascending(name)]
        return out

    def _of_marginals(self) -> Schedule:
        """The first schedule with a table of zeros for each latent besides: its gradient is the latent's posterior."""
        if self._marginal is None:
            scopes = {**self.scopes, **{ALONE + n: (n,) for n in self.cards}}
            by_row = {site: site not in self.factors.rowless for site in scopes}
            self._marginal = schedule(self._schedules[0].order, self.cards, scopes, by_row)
        return self._marginal

    @torch.no_grad()
    def draw(self, responsibilities: Tensor | None, draws: int, globals: Values | None = None) -> dict[str, Tensor]:
        out = {n: v.new_empty(draws, self.N, *v.shape[1:]) for n, v in self.factors.every.support.items()}
        look = self.factors.look(None, globals)
        plan = self._schedules[0]
        width = max(1, draws * max((max(s.sizes) * len(s.latents) for s in plan.steps), default=1))
        for rows in slices(self.N, fitting(DRAWN, max(width, plan.numbers()), 1, CHUNK_ROWS)):
            states, _ = self.drawn(rows, draws, look, globals)
            for name, state in zip(plan.order, states, strict=True):
                out[name][:, rows] = self.factors.every.support[name][state]
        return out

    def drawn(self, rows: slice, draws: int, look: Look, globals: Values | None = None) -> tuple[Tensor, Tensor]:
        """Joint draws, as numbers of the values of each latent in the order [latents, draws, rows], and log p(z | x)."""
        plan = self._schedules[0]
        found = sum_product.summed(plan, self.factors.placed(self.factors.tables(rows, look, None, globals), plan))
        return sum_product.drawn(plan, found, draws, rows.stop - rows.start)

    @torch.no_grad()
    def trials(self, draws: int, globals: Values | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Values of all latents, as the numbers of their values [3 · draws, N], and log p(z | x) [3 · draws, N] of each.

        A third are posterior draws, a third are those with a few latents changed, and a third are any values. All is worked
        out by each site's own `log_prob`.
        """
        plan, rows = self._schedules[0], slice(0, self.N)
        tables = self.factors.tables(rows, self.factors.look(None, globals, own=True), None, globals, own=True)
        found = sum_product.summed(plan, self.factors.placed(tables, plan))
        own, _ = sum_product.drawn(plan, found, draws, self.N)
        cards = torch.tensor([self.cards[name] for name in plan.order]).reshape(-1, 1, 1)
        anything = (torch.rand(2, *own.shape) * cards).long()
        changed = torch.where(torch.rand(own.shape) < max(0.05, 2 / len(cards)), anything[0], own)
        states = torch.cat([own, changed, anything[1]], 1)
        density = sum_product.log_density(plan, found, states)
        return dict(zip(plan.order, states, strict=True)), density

    @torch.no_grad()
    def most_probable(self, globals: Values | None = None) -> dict[str, Tensor]:
        """Local site → its value [N, …] in the most probable joint value of all latents."""
        look, plan = self.factors.look(None, globals), self._schedules[0]
        out = {n: v.new_empty(self.N, *v.shape[1:]) for n, v in self.factors.every.support.items()}
        for rows in self.chunks():
            tables = self.factors.placed(self.factors.tables(rows, look, None, globals), plan)
            found = sum_product.summed(plan, tables, sum_product.highest)
            states, _ = sum_product.drawn(plan, found, 0, rows.stop - rows.start)
            for name, state in zip(plan.order, states[:, 0], strict=True):
                out[name][rows] = self.factors.every.support[name][state]
        return out

    def summary(self, globals: Values | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {}, {}  # there are no continuous local latents

    def points(self, rows: slice, globals: Values | None = None) -> Points:
        raise UsageError(
            f"'{self.program.name}' has too many joint values of its latents to list them, and what is missing of x is "
            "imputed from that list. Use its posterior draws."
        )

    # ---------------------------------------------------------------------------------------------------- learning

    @torch.no_grad()
    def e_step(self, globals: Values | None = None, responsibilities: Rows | None = None) -> TableStatistics:
        with one_thread():
            look = self.factors.look(None, globals)
        views = self.factors.views(look)
        sums, others = self.factors.empty(views), dict[str, list[Tensor]]()
        per_datum = self.x.new_empty(self.N)
        for rows in self.chunks():
            n = rows.stop - rows.start
            plan, tables = self.schedule(n), self.factors.tables(rows, look, None, globals)
            weights = self._weights(plan, tables, rows, per_datum)
            self.factors.add(sums, rows, weights, views)
            for site, weight in weights.other.items():
                others.setdefault(site, []).append(weight)
        kept = {s: sum(w) if s in self.factors.rowless else torch.cat(w) for s, w in others.items()}
        counts = self.x.new_full((1,), count(self.weights, self.N))
        sites = self.factors.statistics(sums)
        return TableStatistics(
            counts,
            per_datum,
            look.log_prior,
            sites,
            views,
            {s: torch.as_tensor(w) for s, w in kept.items()},
            globals=globals or {},
        )

    def _weights(self, plan: Schedule, tables: Tables, rows: slice, per_datum: Tensor) -> Tables:
        """The posterior probability of each entry of each table, and log p(x_i), which is written to `per_datum`; both times
        the weights of their rows."""
        with torch.enable_grad():
            leaves = tables.leaves()
            found = sum_product.summed(plan, self.factors.placed(leaves, plan), along_chains=True).log_evidence
            found = weighed(found.expand(rows.stop - rows.start), self.weights, rows)
            per_datum[rows] = found.detach()
            return leaves.gradients(found.sum())

    def look(self, globals: Values | None = None) -> TableStatistics:
        views, log_prior = self.views(None, globals)
        nothing = self.x.new_zeros(0)
        return TableStatistics(nothing, nothing, log_prior, {}, views, {}, globals=globals or {})

    def plan(self, globals: Values) -> Plan:
        return mstep.plan(self, globals)

    def general_log_prob(
        self, rows: slice, sites: set[str], parameters: Values | None = None, globals: Values | None = None
    ) -> Tensor:
        """The sum of the densities of some sites without a family, at all values of their latents; for the planning of an
        M-step, which asks what they depend on."""
        found = self.factors.others(rows, self.factors.look(parameters, globals), parameters, globals, sites)
        return torch.stack([t[t.isfinite()].sum() for t in found.values()]).sum()

    def closed(self, plan: Plan, stats: TableStatistics, floor: Floor, globals: Values) -> dict[str, Tensor]:
        return mstep.closed(self, plan, stats, floor, globals)

    def expected(
        self, stats: TableStatistics, parameters: Values, globals: Values, responsibilities: Rows | None = None
    ) -> Tensor:
        look = self.factors.look(parameters, globals)
        total = look.log_prior
        for view in self.factors.views(look):
            if view.params is not None:
                total = total + self.families[view.name].expected(stats.sites[view.name], view.params)
        rowless, whole = self.factors.rowless, slice(0, self.N)
        for rows in self.chunks() if stats.others.keys() - rowless else [whole]:
            sites = set(stats.others) if rows.start == 0 else stats.others.keys() - rowless
            for site, table in self.factors.others(rows, look, parameters, globals, sites).items():
                weight = stats.others[site] if site in rowless else stats.others[site][rows]
                total = total + torch.where(weight == 0, torch.zeros_like(table), weight * table).sum()
        return total

    def broken(self, plan: Plan, stats: TableStatistics) -> list[str]:
        return mstep.broken(self, plan, stats)

    def smallest(self, stats: TableStatistics) -> float:
        return mstep.smallest(self, stats)
