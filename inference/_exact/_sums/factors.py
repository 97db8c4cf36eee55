"""The tables of a program's local sites, over the discrete latents that each depends on; those of sites that are alike at once.

- a latent whose density reads no data has one table for all rows, and latents of a kind (`alike`) share it;
- observed sites of a kind are one site to their family, with the data of all of them;
- any other site goes by its own `log_prob`, in a run of the program on the rows that are asked for.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

import pyro
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference._exact._sums import alike
from inference._exact._sums.alike import Group, Kind, groups, parameters
from inference._exact._sums.schedule import Schedule
from inference._exact.densities import View
from inference._exact.engine import Values
from inference._exact.reading import probe as few_rows
from inference._families._family import Family, Params
from inference._families._registry import family_of
from inference._numerics.replayed import Replayed
from zoo._errors import UsageError
from zoo._program.program import Program
from zoo._program.structure import Structure
from zoo._program.trace import global_log_prob, node_of, sample_nodes
from zoo._reading.enumerated import Enumerated

ROWS = 4096  # that are traced at once
Sums = dict[str, list[dict[str, Tensor] | None]]  # group → for each kind, its sums so far


@dataclass
class Tables:
    """Tables, or the posterior probabilities of their entries; dimensions in the order of the sites' scopes."""

    shared: dict[str, Tensor] = field(default_factory=dict)  # kind of latents, by its first site → [1, values]
    by_row: dict[str, Tensor] = field(default_factory=dict)  # kind of observed sites → [sites, n, values]
    other: dict[str, Tensor] = field(default_factory=dict)  # site → [n or 1, values]

    def leaves(self) -> Tables:
        """The same, to differentiate by."""
        return Tables(*({k: v.detach().clone().requires_grad_() for k, v in d.items()} for d in self._parts()))

    def gradients(self, of: Tensor) -> Tables:
        """The gradient of a number."""
        inputs = [v for d in self._parts() for v in d.values()]
        found = iter(torch.autograd.grad(of, inputs, materialize_grads=True))
        return Tables(*({k: next(found) for k in d} for d in self._parts()))

    def _parts(self) -> tuple[dict[str, Tensor], ...]:
        return self.shared, self.by_row, self.other


class Look(NamedTuple):
    """What two rows show of the program at some θ: all that is the same for every row."""

    params: dict[str, Params]  # kind, by its first site → the parameters of its distributions
    tables: dict[str, Tensor]  # site, or kind, without data → its table [1, values]
    log_prior: Tensor  # of the global latents, nats
    alike: Tensor  # 1 where all sites of each kind have the same parameters, else 0


class Factors:
    """`rowless`: sites whose table is the same for all rows; `families`: group → its family, with all its data."""

    def __init__(self, program: Program, structure: Structure, x: Tensor, weights: Tensor | None = None) -> None:
        self.program, self.structure, self.x, self.weights = program, structure, x, weights
        self._few = few_rows(x)
        self.scopes = structure.scopes
        observed = {s.name for s in structure.observed}
        latents = {s.name for s in structure.discrete_locals}
        self.rowless = frozenset(
            s.name for s in structure.discrete_locals if not s.reads_data and not observed & set(s.parents)
        )
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            nodes = {n["name"]: n for n in sample_nodes(program.trace(self._few, raw=True))}
        self.every = Enumerated(program, structure.axes, structure.cards, self.scopes, nodes)
        plain = {site: site in latents for site in self.scopes}
        able = [site for site in self.scopes if site in self.rowless or site not in latents]
        self.groups = groups(program, self.every, self._few, able, plain)
        self.values = self._observed()
        self.families: dict[str, Family] = {}
        self.groups = [g for g in self.groups if self._has_data(g)]
        self._kind_of: dict[str, tuple[Kind, int]] = {}
        self._settle()

    def _observed(self) -> dict[str, Tensor]:
        """Kind of observed sites → what they observe [sites, N, E], NaN where unobserved."""
        wanted = [site for g in self.groups if not g.latent for kind in g.kinds for site in kind.sites]
        parts: dict[str, list[Tensor]] = {site: [] for site in wanted}
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for rows in self.x.split(ROWS) if wanted else ():
                trace = self.every.trace(rows, raw=True)
                for site in wanted:
                    value = node_of(trace, site)["value"]
                    if value.numel() % len(rows) or value.dim() != 1 + len(node_of(trace, site)["fn"].event_shape):
                        parts[site].append(value.new_empty(0))  # it depends on latents itself
                    else:
                        parts[site].append(value.reshape(len(rows), -1))
        out = {}
        for g in self.groups:
            for kind in g.kinds if not g.latent else ():
                found = [torch.cat(parts[site]) for site in kind.sites]
                if all(len(value) == len(self.x) for value in found):
                    out[kind.sites[0]] = torch.stack(found)
        return out

    def _has_data(self, g: Group) -> bool:
        """Make a group's family with its data; False where there are none."""
        if g.latent:
            value = self.every.support[g.name]
            data = value.reshape(len(value), -1).to(self.x.dtype)
        elif all(kind.sites[0] in self.values for kind in g.kinds):
            data = torch.cat([self.values[kind.sites[0]].flatten(0, 1) for kind in g.kinds])
        else:
            return False
        with torch.no_grad():
            family = family_of(node_of(self._run(), g.name)["fn"])
        assert family is not None
        self.families[g.name] = made = family(data)
        if self.weights is not None and not g.latent:
            made.weigh(data, self.weights.repeat(len(data) // len(self.weights)))
        return True

    def _settle(self) -> None:
        """Which kind each site is of, and the parts of densities that no parameter enters."""
        self._bases: dict[str, Tensor | None] = {}
        for g in self.groups:
            for kind in g.kinds:
                for place, site in enumerate(kind.sites):
                    self._kind_of[site] = kind, place
                if not kind.latent:
                    family, values = self.families[g.name], self.values[kind.sites[0]]
                    bases = [family.log_base(v) for v in values]
                    known = [b for b in bases if b is not None]
                    self._bases[kind.sites[0]] = torch.stack(known) if known else None
        self.lone = frozenset(self.scopes.keys() - self._kind_of.keys())
        kinds = {k.sites[0] for g in self.groups for k in g.kinds if k.latent}
        self._tabled = kinds | (self.lone & self.rowless)
        self._replayed = Replayed(self._at, lambda values: {**values, **self.program.elsewhere()})

    # ----------------------------------------------------------------------------------------------------- one run

    def look(self, parameters: Values | None = None, globals: Values | None = None, own: bool = False) -> Look:
        """The program on two rows, with the values of all latents side by side. `own`: with the table of every site.

        Raises `UsageError` where sites of a kind are not alike.
        """
        if own or torch.is_grad_enabled() or self.program.is_hiding:
            found = self._seen(self._run(parameters, globals), self.rowless if own else self._tabled)
        else:
            found = self._replayed({**self.program.values(), **(parameters or {}), **(globals or {})})
        if not found.alike:
            raise UsageError(alike.unlike(self.program.name))
        return found

    def _run(self, parameters: Values | None = None, globals: Values | None = None) -> Trace:
        return self.every.trace(self._few, parameters, globals, raw=True)

    def _seen(self, trace: Trace, tabled: Collection[str]) -> Look:
        hold = [alike.hold(self.every, trace, k) for g in self.groups for k in g.kinds]
        params = {k.sites[0]: self._params(trace, k) for g in self.groups for k in g.kinds}
        tables = {site: table[:1] for site, table in self.every.tables(trace, tabled).items()}
        same = torch.stack(hold).all() if hold else torch.tensor(True)
        return Look(params, tables, torch.as_tensor(global_log_prob(trace)), same.to(self.x.dtype))

    def _at(self, values: Values) -> Look:
        """What is seen at values of θ and of the global latents."""
        own = self.program.constraints.keys()
        parameters = {n: v for n, v in values.items() if n in own}
        with pyro.validation_enabled(False):  # a check decides by values, which no record can
            return self._seen(self._run(parameters, {n: v for n, v in values.items() if n not in own}), self._tabled)

    def views(self, look: Look) -> list[View]:
        """The groups with the parameters of all their kinds, and the sites without a family."""
        out = []
        for g in self.groups:
            found = [look.params[kind.sites[0]] for kind in g.kinds]
            params = {name: torch.cat([p[name] for p in found]) for name in found[0]} if len(found) > 1 else found[0]
            out.append(View(g.name, g.latent, params))
        return out + [View(site, site in self.rowless, None) for site in sorted(self.lone)]

    def _params(self, trace: Trace, kind: Kind) -> Params:
        params = parameters(self.every, node_of(trace, kind.sites[0]))
        if params is None:
            raise ArithmeticError(f"the parameters of '{kind.sites[0]}' differ from row to row at these values of θ")
        return {name: value.to(self.x.dtype) for name, value in params.items()}

    def tables(
        self,
        rows: slice,
        look: Look,
        parameters: Values | None = None,
        globals: Values | None = None,
        own: bool = False,
    ) -> Tables:
        """All tables of some rows. `own`: each site by its own `log_prob`."""
        if own:
            return Tables(other=self.others(rows, look, parameters, globals, self.scopes.keys()))
        n = rows.stop - rows.start
        out = Tables({site: table for site, table in look.tables.items() if site not in self.lone})
        for g in self.groups:
            for kind in g.kinds if not g.latent else ():
                site = kind.sites[0]
                value = self.values[site][:, rows]
                family = self.families[g.name]
                found = family.density(look.params[site])(family.terms(value.flatten(0, 1)))
                found = found.reshape(*value.shape[:2], -1)
                base = self._bases[site]
                found = found if base is None else found + base[:, rows].unsqueeze(-1)
                out.by_row[site] = found.reshape(len(value), n, *(self.every.cards[s] for s in self.every.scopes[site]))
        out.other = self.others(rows, look, parameters, globals, self.lone)
        return out

    def others(
        self, rows: slice, look: Look, parameters: Values | None, globals: Values | None, sites: Collection[str]
    ) -> dict[str, Tensor]:
        """The tables of these sites, by their own `log_prob`."""
        out = {site: look.tables[site] for site in sites if site in self.rowless}
        if rest := set(sites) - self.rowless:
            trace = self.every.trace(self.x[rows], parameters, globals)
            out |= self.every.tables(trace, rest)
        return out

    def placed(self, tables: Tables, plan: Schedule) -> dict[str, Tensor]:
        """Site → its table with the dimensions in the order of a schedule."""
        out: dict[str, Tensor] = {}
        turned: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        rows = {site: t.unbind(0) for site, t in tables.by_row.items()}
        for site in self.scopes:
            dims = plan.dims[site]
            if site in tables.other:
                out[site] = _turned(tables.other[site], dims)
                continue
            kind, place = self._kind_of[site]
            if not kind.latent:
                out[site] = _turned(rows[kind.sites[0]][place], dims)
                continue
            key = kind.sites[0], dims
            if key not in turned:
                turned[key] = _turned(tables.shared[key[0]], dims)
            out[site] = turned[key]
        return out

    def ascending(self, latent: str) -> Tensor:
        """The order of a latent's values from the smallest up."""
        return self.every.support[latent].reshape(-1).argsort()

    # ------------------------------------------------------------------------------------------------------- sums

    def empty(self, views: list[View]) -> Sums:
        """No sums yet."""
        return {g.name: [None] * len(g.kinds) for g in self.groups}

    def add(self, sums: Sums, rows: slice, weights: Tables, views: list[View]) -> None:
        """Add the statistics of some rows, whose posterior the weights are."""
        params = {v.name: v.params or {} for v in views}
        for g in self.groups:
            family = self.families[g.name]
            for k, kind in enumerate(g.kinds):
                mine = {name: value[k * g.A : (k + 1) * g.A] for name, value in params[g.name].items()}
                site = kind.sites[0]
                if kind.latent:
                    weight = weights.shared[site][0]
                    own = self.every.scopes[site].index(site)
                    weight = weight.movedim(own, 0).flatten(1) if weight.dim() > 1 else weight.unsqueeze(1)
                    value = self.every.support[site].reshape(len(weight), -1).to(self.x.dtype)
                else:
                    weight = weights.by_row[site].flatten(0, 1).reshape(-1, g.A)
                    value = self.values[site][:, rows].flatten(0, 1)
                found, before = family.statistics(family.terms(value), weight, mine), sums[g.name][k]
                sums[g.name][k] = found if before is None else {n: before[n] + v for n, v in found.items()}

    def statistics(self, sums: Sums) -> dict[str, dict[str, Tensor]]:
        """Group → its sufficient statistics, those of its kinds one below the other."""
        out = {}
        for name, kinds in sums.items():
            found = [s for s in kinds if s is not None]
            out[name] = {key: torch.cat([s[key] for s in found]) for key in found[0]}
        return out


def _turned(table: Tensor, dims: tuple[int, ...]) -> Tensor:
    """[rows, values…] with the values' dimensions in another order."""
    return table if dims == tuple(range(len(dims))) else table.permute(0, *(1 + d for d in dims))
