"""log p(x_i, a) of an enumerable program, for every row i and every joint value a of its discrete local latents.

The program is run with every joint assignment of its discrete local latents as a leading dimension. Sites whose
parameters do not differ from row to row go through their family's matrix products (`_families`), over chunks of rows;
any other site is evaluated by its own `log_prob`, and is still right.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pyro
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference._exact.engine import Statistics, Values
from inference._exact.reading import local_nodes, observed, probe
from inference._families._family import Family, Params
from inference._families._registry import family_of, parameters_of
from inference._numerics import ranks
from inference._numerics.replayed import Replayed
from inference._numerics.slices import evenly, fitting, slices
from inference._numerics.threads import one_thread, side_by_side
from zoo._program.latents import joint_values
from zoo._program.program import Program
from zoo._program.structure import Structure
from zoo._program.trace import global_log_prob, is_plain, per_datum

CHUNK_NUMBERS = 2**19  # numbers in the largest temporary of a chunk: it should stay in the processor's cache
CHUNK_ROWS = 8192
ALIKE_NUMBERS = 2**23  # numbers in the data of a chunk whose rows share work by their missingness pattern
PAIRS = 64  # assignments that are set against each other at a time
REPLAYED = 12  # runs of the program from which on its record pays for itself
KEPT = 2**23  # numbers in the terms of all rows of a site up to which they are worked out once
Terms = dict[str, Tensor]  # observed site → what its family takes of some rows
LogProb = Callable[[slice, Terms], Tensor]  # rows and their terms ↦ log p [rows, A] or [A], nats
Sums = dict[str, dict[str, Tensor]]  # site → statistic → its sum over some rows


@dataclass
class View:
    """A local site at one setting of the parameters."""

    name: str
    latent: bool
    params: Params | None  # what the family's products need, or None: use the site's own log_prob
    log_prob: LogProb | None = None  # its log-density, where a pass over the data has it ready


@dataclass
class SiteStatistics(Statistics):
    """What an E-step leaves: sums of each family's sufficient statistics."""

    views: list[View]  # the sites that it saw

    @property
    def need_responsibilities(self) -> bool:
        return not traceless(self.views)


class Densities:
    """`values` and `families` hold what each site that has a family observes [N, E], and the family; latent sites [A, E].

    `parameters` and `globals` in the methods are constrained values used in place of the program's own; differentiable.
    """

    def __init__(self, program: Program, structure: Structure, x: Tensor, weights: Tensor | None = None) -> None:
        self.program, self.structure, self.x, self.weights = program, structure, x, weights
        self.N, self.A = len(x), structure.assignments
        self._probe = probe(x)
        with torch.no_grad():
            self.assignments = self._joint_values()
        self.values, self.families = self._observed_values()
        self._bases = self._parameter_free()
        self._kept: Terms = {}
        self._replayed = Replayed(self._at, lambda values: {**values, **program.elsewhere()}, REPLAYED)

    def _joint_values(self) -> dict[str, Tensor]:
        """Site → its value under every joint assignment: [A, 1, …, 1, event], or with the site's inner plates."""
        names = [site.name for site in self.structure.discrete_locals]
        nodes = {n["name"]: n for n in local_nodes(self.program.trace(self._probe))} if names else {}
        return joint_values(nodes, names, self.structure.axes)

    def _observed_values(self) -> tuple[dict[str, Tensor], dict[str, Family]]:
        with torch.no_grad():
            trace = self._trace(self._probe, raw=True)
            values = {}
            for node in local_nodes(trace):
                name, fn = node["name"], node["fn"]
                if name in self.assignments:
                    values[name] = self.assignments[name].reshape(self.A, -1).to(self.x.dtype)
                elif name in self.program.completes:
                    continue
                elif is_plain(node) and self.structure.max_plate_nesting == 1 and parameters_of(fn, self.A) is not None:
                    value = observed(node, self._probe, self.x, lambda rows: self._trace(rows, raw=True))
                    values[name] = value.reshape(self.N, -1)
            fns = {n["name"]: n["fn"] for n in local_nodes(trace) if is_plain(n)}
            families = {}
            for name, value in values.items():
                family = family_of(fns.get(name))
                if family is not None and self.structure.max_plate_nesting == 1:
                    families[name] = family(value)
                    if self.weights is not None and name not in self.assignments:
                        families[name].weigh(value, self.weights)
        return values, families

    @torch.no_grad()
    def _parameter_free(self) -> dict[str, Tensor]:
        """Observed site → the part of log p(x_i | a) that no parameter enters [N], where there is one."""
        out = {}
        for name, family in self.families.items():
            if name not in self.assignments:
                bases = map(family.log_base, self.values[name].split(4096))
                parts = [base for base in bases if base is not None]
                if parts:
                    out[name] = torch.cat(parts)
        return out

    def _trace(
        self, x: Tensor, parameters: Values | None = None, globals: Values | None = None, raw: bool = False
    ) -> Trace:
        return self.program.trace(x, parameters=parameters, latents={**self.assignments, **(globals or {})}, raw=raw)

    # ------------------------------------------------------------------------------------------------- densities

    def views(self, parameters: Values | None = None, globals: Values | None = None) -> tuple[list[View], Tensor]:
        """The local sites at these values, and the log prior of the globals (nats)."""
        with one_thread():  # for two rows, threads would only wait for each other
            if torch.is_grad_enabled() or self.program.is_hiding:
                found, prior = self._seen(parameters, globals)
            else:
                found, prior = self._replayed({**self.program.values(), **(parameters or {}), **(globals or {})})
        return [View(name, name in self.assignments, params or None) for name, params in found.items()], prior

    def _seen(self, parameters: Values | None, globals: Values | None) -> tuple[dict[str, Params], Tensor]:
        """Local site → the parameters that its family's products need, empty where it has none; and the log prior."""
        trace, out = self._trace(self._probe, parameters, globals, raw=True), {}
        for node in local_nodes(trace):
            served = node["name"] in self.families
            out[node["name"]] = (parameters_of(node["fn"], self.A, self.x.dtype) if served else None) or {}
        return out, torch.as_tensor(global_log_prob(trace))

    def _at(self, values: Values) -> tuple[dict[str, Params], Tensor]:
        own = self.program.constraints.keys()
        globals = {name: value for name, value in values.items() if name not in own}
        with pyro.validation_enabled(False):  # a check decides by values, which no record can
            return self._seen({name: value for name, value in values.items() if name in own}, globals)

    def log_joint(
        self,
        rows: slice,
        views: list[View],
        parameters: Values | None = None,
        globals: Values | None = None,
        terms: Terms | None = None,
    ) -> Tensor:
        """log p(x_i, a) [rows, A] in nats, for the data in `rows`; of their `terms` where these are known."""
        total: Tensor | float = 0.0
        terms = self.terms(rows, views) if terms is None else terms
        for view in views:
            if view.params is not None:
                total = total + (view.log_prob or self._log_prob(view))(rows, terms)
        general = {v.name for v in views if v.params is None}
        if general:
            total = total + self.general_log_prob(rows, general, parameters, globals)
        return torch.as_tensor(total).expand(rows.stop - rows.start, self.A)

    def terms(self, rows: slice, views: list[View]) -> Terms:
        """What the families of observed sites take of some rows."""
        out = {}
        for v in views:
            if v.params is not None and not v.latent:
                kept = self._kept.get(v.name)
                out[v.name] = self.families[v.name].terms(self.values[v.name][rows]) if kept is None else kept[rows]
        return out

    @one_thread()
    def ready(self, views: list[View]) -> list[View]:
        """`views` with all that is the same for all rows worked out."""
        for v in views:
            if v.params is None or v.latent or v.name in self._kept:
                continue
            family, value = self.families[v.name], self.values[v.name]
            if self.N * family.width(value.shape[1], self.A) <= KEPT:
                terms = family.terms(value)
                self._kept[v.name] = terms if terms is value else terms.mT.contiguous().mT  # products are fastest so
        return [v if v.params is None else replace(v, log_prob=self._log_prob(v)) for v in views]

    def _log_prob(self, view: View) -> LogProb:
        assert view.params is not None
        family = self.families[view.name]
        if view.latent:  # each assignment under its own parameters
            blocks = self._latent_blocks(view)
            known = torch.cat([family.log_prob(value, params).diagonal() for _, value, params in blocks])
            return lambda rows, terms: known
        density, base = family.density(view.params), self._bases.get(view.name)
        if base is None:
            return lambda rows, terms: density(terms[view.name])
        return lambda rows, terms: density(terms[view.name]) + base[rows].unsqueeze(1)

    def _latent_blocks(self, view: View) -> Iterator[tuple[slice, Tensor, Params]]:
        """Some assignments at a time, a latent site's values and parameters: families work on all pairs of the two."""
        assert view.params is not None  # only such views come here
        for some in slices(self.A, PAIRS):
            yield some, self.values[view.name][some], {name: value[some] for name, value in view.params.items()}

    def general_log_prob(
        self, rows: slice, sites: set[str], parameters: Values | None = None, globals: Values | None = None
    ) -> Tensor:
        """Σ over `sites` of log p [rows, A] by the sites' own `log_prob`."""
        trace = self._trace(self.x[rows], parameters, globals)
        n = rows.stop - rows.start
        total = torch.zeros((), dtype=self.x.dtype)
        for node in local_nodes(trace):
            if node["name"] in sites:
                log_prob = per_datum(node, node["fn"].log_prob(node["value"]), self.structure.data_dim)
                total = total + log_prob.reshape(-1, log_prob.shape[-1])
        return total.expand(self.A, n).mT

    def chunks(self, views: list[View] | None = None) -> Iterator[slice]:
        """Slices of rows whose temporaries stay small: as the sites need, or the `views`."""
        observed = {n: v.shape[1] for n, v in self.values.items() if n not in self.assignments}
        if views is not None and traceless(views):
            width = max([self.families[name].width(entries, self.A) for name, entries in observed.items()], default=1)
        else:
            width = self.A * (max(observed.values(), default=self.x[0].numel()) + 1)
        if (
            views is not None
            and traceless(views)
            and any(f.by_pattern and not f.complete for f in self.families.values())
        ):
            return slices(self.N, fitting(ALIKE_NUMBERS, width))
        # completions are so many that a few rows of them are much memory already
        least = 1 if any(s.completes for s in self.structure.discrete_locals) else 64
        return slices(self.N, fitting(CHUNK_NUMBERS, width, least, CHUNK_ROWS))

    def sweep(self, views: list[View], work: Callable[[slice], Sums], shared: bool = False) -> Sums:
        """The sum over all chunks of `work(rows)`, without gradients; to the last bit the same in every run.

        `shared`: among the processes of the run, each of which works on its rows alone.

        Each of torch's threads takes as many rows, the same ones every time. Shared out one by one, the products of a
        chunk are so small that the threads would mostly wait for each other: on a busy machine a product of 272 × 4 numbers
        takes 40 ms on two threads and 3 µs on one. Where a site needs a trace of the program Python has one thread, because
        Pyro's handlers are not made for more.
        """

        @torch.no_grad()
        def share(mine: list[slice]) -> Sums:
            return functools.reduce(_add, map(work, mine), {})

        chunks = list(ranks.mine(self.chunks(views), self.N) if shared else self.chunks(views))
        if not chunks or not traceless(views) or self.x.device.type != "cpu":
            found = share(chunks)
        else:
            first, last, most = chunks[0].start, chunks[-1].stop, max(rows.stop - rows.start for rows in chunks)
            parts = evenly(first, last, most, min(torch.get_num_threads(), len(chunks)))
            found = functools.reduce(_add, side_by_side(share, parts))
        return ranks.total(found, self.N) if shared else found


def traceless(views: list[View]) -> bool:
    """Whether the families serve every site, so that the program need not be run for each chunk."""
    return all(v.params is not None for v in views)


def _add(old: Sums, new: Sums) -> Sums:
    return {n: {k: old[n][k] + v for k, v in stats.items()} if n in old else stats for n, stats in new.items()}
