"""Exact posterior and evidence of an enumerable program, read off the program itself.

The program is run with every joint assignment of its discrete local latents as a leading dimension. Sites whose
parameters do not differ from row to row go through their family's matrix products (`_all`), over chunks of rows;
any other site is evaluated by its own `log_prob`, and is still right.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from inference._families._all import family_of, parameters_of
from inference._families._family import Family, Params
from inference._numerics.threads import one_thread
from zoo._program.latents import by_datum, joint_values
from zoo._program.program import Program
from zoo._program.structure import Structure
from zoo._program.trace import global_log_prob, is_local, is_plain, per_datum

Values = Mapping[str, Tensor]
CHUNK_NUMBERS = 2**19  # numbers in the largest temporary of a chunk: it should stay in the processor's cache
MOST_SUMMED = 2**21  # rows: of more, an E-step keeps log p(x_i) summed over chunks alone
PAIRS = 64  # assignments that are set against each other at a time
LogProb = Callable[[slice], Tensor]  # rows ↦ log p [rows, A] or [A], nats
Sums = dict[str, dict[str, Tensor]]  # site → statistic → its sum over some rows


class Rows(Protocol):
    """Numbers [N, A] of which some rows at a time are asked for: a tensor, or what makes them as they are needed."""

    def __getitem__(self, rows: slice, /) -> Tensor: ...


@dataclass
class View:
    """A local site at one setting of the parameters."""

    name: str
    latent: bool
    params: Params | None  # what the family's products need, or None: use the site's own log_prob
    log_prob: LogProb | None = None  # its log-density, where a pass over the data has it ready


@dataclass
class Statistics:
    """What an E-step leaves for the M-step."""

    counts: Tensor  # [A] expected number of data under each assignment
    sites: dict[str, dict[str, Tensor]]  # site → its family's sufficient statistics
    per_datum: Tensor  # [N] log p(x_i), or of more than `MOST_SUMMED` rows their sums over chunks
    log_prior: Tensor  # of the globals
    views: list[View]  # the sites that it saw


class Assignments:
    """The joint values of the discrete local latents: `assignments` is site → its value under each [A, …]."""

    assignments: dict[str, Tensor]
    structure: Structure
    x: Tensor
    _probe: Tensor  # two rows of x
    N: int

    def label(self, assignment: int) -> str:
        """An assignment in words: "z=1"."""
        parts = []
        for name, value in self.assignments.items():
            shown = value[assignment].flatten().tolist()
            parts.append(f"{name}={shown[0] if len(shown) == 1 else shown}")
        return ", ".join(parts)

    def marginals(self, responsibilities: Tensor) -> dict[str, Tensor]:
        """Site → p(z = k | x_i) [N, K], for discrete sites with one value a datum."""
        out = {}
        for site in self.structure.discrete_locals:
            if site.inner == 1 and not site.event_shape:
                values, index = self.assignments[site.name].reshape(-1).unique(return_inverse=True)
                if torch.equal(index, torch.arange(responsibilities.shape[1])):
                    out[site.name] = responsibilities  # the only site: each assignment is one of its values
                    continue
                zero = responsibilities.new_zeros(self.N, len(values))
                out[site.name] = zero.index_add_(1, index, responsibilities)
        return out

    @staticmethod
    def _locals(trace: Any) -> list[Any]:
        return [n for n in trace.nodes.values() if n["type"] == "sample" and is_local(n)]

    def _gather(self, node: Any, trace: Callable[[Tensor], Any]) -> Tensor:
        """What a site observes, for all rows, NaN where unobserved; x itself where it is that, without a copy."""
        if is_same(node["value"], self._probe):
            return self.x
        return torch.cat([trace(rows).nodes[node["name"]]["value"] for rows in self.x.split(4096)])


class Enumeration(Assignments):
    """The exact posterior over the joint assignments of the discrete local latents of `program`, for data `x` [N, …].

    `parameters` and `globals` in the methods are constrained values used in place of the program's own; differentiable.
    """

    def __init__(self, program: Program, structure: Structure, x: Tensor) -> None:
        self.program, self.structure, self.x = program, structure, x
        self.N, self.A = len(x), structure.assignments
        # two rows are enough to see what differs from row to row
        self._probe = x[[0, -1]].nan_to_num(0.0) if len(x) else x
        with torch.no_grad():
            self.assignments = self._joint_values()
        self.values, self.families = self._observed_values()
        self._bases = self._parameter_free()

    @property
    def size(self) -> float:
        """Rows × joint values: what one pass over the data costs."""
        return self.N * self.A

    def _joint_values(self) -> dict[str, Tensor]:
        """Site → its value under every joint assignment: [A, 1, …, 1, event], or with the site's inner plates."""
        names = [site.name for site in self.structure.discrete_locals]
        nodes = {n["name"]: n for n in self._locals(self.program.trace(self._probe))} if names else {}
        return joint_values(nodes, names, self.structure.data_dim, self.structure.max_plate_nesting)

    def _observed_values(self) -> tuple[dict[str, Tensor], dict[str, Family]]:
        with torch.no_grad():
            probe = self._trace(self._probe, raw=True)
            values = {}
            for node in self._locals(probe):
                name, fn = node["name"], node["fn"]
                if name in self.assignments:
                    values[name] = self.assignments[name].reshape(self.A, -1).to(self.x.dtype)
                elif name in self.program.completes:
                    continue
                elif is_plain(node) and self.structure.max_plate_nesting == 1 and parameters_of(fn, self.A) is not None:
                    value = self._gather(node, lambda rows: self._trace(rows, raw=True))
                    values[name] = value.reshape(self.N, -1)
            fns = {n["name"]: n["fn"] for n in self._locals(probe) if is_plain(n)}
            families = {}
            for name, value in values.items():
                family = family_of(fns.get(name))
                if family is not None and self.structure.max_plate_nesting == 1:
                    families[name] = family(value)
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
    ) -> Any:
        return self.program.trace(x, parameters=parameters, latents={**self.assignments, **(globals or {})}, raw=raw)

    # ------------------------------------------------------------------------------------------------- densities

    def views(self, parameters: Values | None = None, globals: Values | None = None) -> tuple[list[View], Tensor]:
        """The local sites at these values, and the log prior of the globals (nats)."""
        with one_thread():  # for two rows, threads would do nothing but wait for each other
            trace = self._trace(self._probe, parameters, globals, raw=True)
        views = []
        for node in self._locals(trace):
            params = parameters_of(node["fn"], self.A, self.x.dtype) if node["name"] in self.families else None
            views.append(View(node["name"], node["name"] in self.assignments, params))
        return views, global_log_prob(trace)

    def log_joint(
        self, rows: slice, views: list[View], parameters: Values | None = None, globals: Values | None = None
    ) -> Tensor:
        """log p(x_i, a) [rows, A] in nats, for the data in `rows`."""
        total: Tensor | float = 0.0
        for view in views:
            if view.params is not None:
                total = total + (view.log_prob or self._log_prob(view))(rows)
        general = {v.name for v in views if v.params is None}
        if general:
            total = total + self.general_log_prob(rows, general, parameters, globals)
        return torch.as_tensor(total).expand(rows.stop - rows.start, self.A)

    def _ready(self, views: list[View]) -> list[View]:
        """`views` with all that is the same for all rows worked out."""
        return [v if v.params is None else replace(v, log_prob=self._log_prob(v)) for v in views]

    def _log_prob(self, view: View) -> LogProb:
        assert view.params is not None
        family, value = self.families[view.name], self.values[view.name]
        if view.latent:  # each assignment under its own parameters
            blocks = self._latent_blocks(view)
            known = torch.cat([family.log_prob(value, params).diagonal() for _, value, params in blocks])
            return lambda rows: known
        density, base = family.density(view.params), self._bases.get(view.name)
        if base is None:
            return lambda rows: density(value[rows])
        return lambda rows: density(value[rows]) + base[rows].unsqueeze(1)

    def _latent_blocks(self, view: View) -> Iterator[tuple[slice, Tensor, Params]]:
        """Some assignments at a time, a latent site's values and parameters: families work on all pairs of the two."""
        assert view.params is not None  # only such views come here
        for start in range(0, self.A, PAIRS):
            some = slice(start, start + PAIRS)
            yield some, self.values[view.name][some], {name: value[some] for name, value in view.params.items()}

    def general_log_prob(
        self, rows: slice, sites: set[str], parameters: Values | None = None, globals: Values | None = None
    ) -> Tensor:
        """Σ over `sites` of log p [rows, A] by the sites' own `log_prob`."""
        trace = self._trace(self.x[rows], parameters, globals)
        n = rows.stop - rows.start
        total = torch.zeros((), dtype=self.x.dtype)
        for node in self._locals(trace):
            if node["name"] in sites:
                log_prob = per_datum(node, node["fn"].log_prob(node["value"]), self.structure.data_dim)
                total = total + log_prob.reshape(-1, log_prob.shape[-1])
        return total.expand(self.A, n).mT

    def chunks(self, views: list[View] | None = None) -> Iterator[slice]:
        """Slices of rows whose temporaries stay small: whatever the sites need, or what `views` do."""
        observed = {n: v.shape[1] for n, v in self.values.items() if n not in self.assignments}
        if views is not None and _traceless(views):
            width = max([self.families[name].width(entries, self.A) for name, entries in observed.items()], default=1)
        else:
            width = self.A * (max(observed.values(), default=self.x[0].numel()) + 1)
        # completions are so many that a few rows of them are much memory already
        least = 1 if any(s.completes for s in self.structure.discrete_locals) else 64
        rows = max(least, min(8192, CHUNK_NUMBERS // width))
        for start in range(0, self.N, rows):
            yield slice(start, min(start + rows, self.N))

    def _sweep(self, views: list[View], work: Callable[[slice], Sums]) -> Sums:
        """The sum over all chunks of `work(rows)`, without gradients; to the last bit the same in every run.

        Each of torch's threads takes chunks of its own, the same ones every time. Shared out one by one, the products of
        a chunk are so small that the threads would mostly wait for each other. Where a site needs a trace of the program
        there is one thread, because Pyro's handlers are not made for more.
        """

        @torch.no_grad()
        def share(mine: list[slice]) -> Sums:
            return functools.reduce(_add, map(work, mine), {})

        chunks = list(self.chunks(views))
        alone = not _traceless(views) or self.x.device.type != "cpu"
        workers = 1 if alone else min(torch.get_num_threads(), len(chunks))
        if workers == 1:
            return share(chunks)
        with one_thread(), ThreadPoolExecutor(workers) as pool:
            return functools.reduce(_add, pool.map(share, [chunks[i::workers] for i in range(workers)]))

    def log_evidence(self, parameters: Values | None = None, globals: Values | None = None) -> tuple[Tensor, Tensor]:
        """(Σ_i log p(x_i | θ, globals), log p(globals)), both differentiable, nats."""
        views, prior = self.views(parameters, globals)
        total = sum(self.log_joint(r, views, parameters, globals).logsumexp(1).sum() for r in self.chunks(views))
        return torch.as_tensor(total), prior

    @torch.no_grad()
    def per_datum(self, parameters: Values | None = None, globals: Values | None = None, own: bool = False) -> Tensor:
        """log p(x_i | θ, globals) [N], nats. `own`: by the sites' own `log_prob` throughout, as a check on the products."""
        views, _ = self.views(parameters, globals)
        if own:
            views = [View(v.name, v.latent, None) for v in views]
        views, out = self._ready(views), self.x.new_empty(self.N)

        def work(rows: slice) -> Sums:
            out[rows] = self.log_joint(rows, views, parameters, globals).logsumexp(1)
            return {}

        self._sweep(views, work)
        return out

    # ------------------------------------------------------------------------------------------------- posterior

    @torch.no_grad()
    def responsibilities(self, parameters: Values | None = None, globals: Values | None = None) -> Tensor:
        """p(a | x_i) [N, A]."""
        views = self._ready(self.views(parameters, globals)[0])
        out = self.x.new_empty(self.N, self.A)

        def work(rows: slice) -> Sums:
            out[rows] = _posterior(self.log_joint(rows, views, parameters, globals))[0]
            return {}

        self._sweep(views, work)
        return out

    @torch.no_grad()
    def e_step(self, globals: Values | None = None, responsibilities: Rows | None = None) -> Statistics:
        """Expected sufficient statistics and log p(x_i), in one pass over the data.

        `responsibilities` [N, A]: use these in place of the posterior (a start from a clustering).
        """
        seen, log_prior = self.views(None, globals)
        views = self._ready(seen)
        observed = [(v.name, v.params) for v in views if v.params is not None and not v.latent]
        whole = responsibilities is None and self.N <= MOST_SUMMED
        per_datum = self.x.new_empty(self.N if whole else 0)

        def work(rows: slice) -> Sums:
            if responsibilities is None:
                weights, found = _posterior(self.log_joint(rows, views, None, globals))
            else:
                weights, found = responsibilities[rows], per_datum
            sums = {"": {"counts": weights.sum(0), "evidence": found.sum().reshape(1)}}
            if whole:
                per_datum[rows] = found
            for name, params in observed:
                sums[name] = self.families[name].statistics(self.values[name][rows], weights, params)
            return sums

        sites = self._sweep(views, work)
        totals = sites.pop("")
        counts, per_datum = totals["counts"], per_datum if whole else totals["evidence"]
        for view in views:
            if view.params is not None and view.latent:
                sites[view.name] = self._latent_statistics(view, counts)
        return Statistics(counts, sites, per_datum, log_prior, seen)

    def _latent_statistics(self, view: View, counts: Tensor) -> dict[str, Tensor]:
        family, out = self.families[view.name], []
        for some, value, params in self._latent_blocks(view):
            out.append(family.statistics(value, counts[some].diag(), params))
        return {name: torch.cat([stats[name] for stats in out]) for name in out[0]}

    def summary(self, globals: Values | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Posterior means and standard deviations of continuous local latents: there are none."""
        return {}, {}

    def draw(self, responsibilities: Tensor, draws: int, globals: Values | None = None) -> dict[str, Tensor]:
        """Site → exact posterior draws [draws, N, …]."""
        if not self.assignments:
            return {}
        chosen = torch.multinomial(responsibilities, draws, replacement=True).mT  # [draws, N]
        out = {}
        for site in self.structure.discrete_locals:
            value = by_datum(self.assignments[site.name], site, self.structure)  # [A, 1, inner plates, event]
            out[site.name] = value[:, 0][chosen]
        return out


def is_same(value: Tensor, x: Tensor) -> bool:
    """Whether what a site observes of the rows `x` is x itself, by its place in memory."""
    return value.shape == x.shape and value.data_ptr() == x.data_ptr() and value.stride() == x.stride()


def _traceless(views: list[View]) -> bool:
    """Whether the families serve every site, so that the program need not be run for each chunk."""
    return all(v.params is not None for v in views)


def _posterior(joint: Tensor) -> tuple[Tensor, Tensor]:
    """p(a | x_i) [n, A] and log p(x_i) [n] from log p(x_i, a) [n, A], with one exponential an entry."""
    top = joint.amax(1, keepdim=True)
    top = torch.where(top.isfinite(), top, torch.zeros_like(top))
    weights = (joint - top).exp_()
    total = weights.sum(1, keepdim=True)
    return weights.div_(total), (top + total.log())[:, 0]


def _add(old: Sums, new: Sums) -> Sums:
    return {n: {k: old[n][k] + v for k, v in stats.items()} if n in old else stats for n, stats in new.items()}
