"""Exact posterior and evidence of an enumerable program, read off the program itself.

The program is run with every joint assignment of its discrete local latents as a leading dimension. Sites whose
parameters do not differ from row to row go through their family's matrix products (`_families`), over chunks of rows;
any other site is evaluated by its own `log_prob`, and is still right.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference._families import Family, Params, family_of, parameters_of
from zoo._program import Program
from zoo._structure import Structure, global_log_prob, is_local, per_datum

Values = Mapping[str, Tensor]
CHUNK_NUMBERS = 2**19  # numbers in the largest temporary of a chunk: it should stay in the processor's cache


@dataclass
class View:
    """A local site at one setting of the parameters."""

    name: str
    latent: bool
    params: Params | None  # what the family's products need, or None: use the site's own log_prob


@dataclass
class Statistics:
    """What an E-step leaves for the M-step."""

    counts: Tensor  # [A] expected number of data under each assignment
    sites: dict[str, dict[str, Tensor]]  # site → its family's sufficient statistics
    per_datum: Tensor  # [N] log p(x_i)


class Enumeration:
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

    def _joint_values(self) -> dict[str, Tensor]:
        """Site → its value under every joint assignment: [A, 1, …, 1, event], or with the site's inner plates."""
        locals_ = self.structure.discrete_locals
        if not locals_:
            return {}
        fns = {n["name"]: n for n in self.program.trace(self._probe).nodes.values() if n["type"] == "sample"}
        supports = {s.name: fns[s.name]["fn"].enumerate_support(expand=False) for s in locals_}
        keys = [(s.name, i) for s in locals_ for i in range(s.inner)]
        choices = torch.tensor(
            list(itertools.product(*(range(len(supports[name])) for name, _ in keys))), dtype=torch.long
        )  # [A, keys]
        depth, out = self.structure.max_plate_nesting, {}
        for s in locals_:
            support = supports[s.name].reshape(len(supports[s.name]), *s.event_shape)
            columns = [i for i, (name, _) in enumerate(keys) if name == s.name]
            inner = [1] * depth
            for frame in fns[s.name]["cond_indep_stack"]:
                if frame.dim != self.structure.data_dim:
                    inner[frame.dim] = frame.size
            out[s.name] = support[choices[:, columns]].reshape(len(choices), *inner, *s.event_shape)
        return out

    def _observed_values(self) -> tuple[dict[str, Tensor], dict[str, Family]]:
        with torch.no_grad():
            probe = self._trace(self._probe, raw=True)
            values = {}
            for node in self._locals(probe):
                name, fn = node["name"], node["fn"]
                if name in self.assignments:
                    values[name] = self.assignments[name].reshape(self.A, -1).to(self.x.dtype)
                elif parameters_of(fn, self.A) is not None and self.structure.max_plate_nesting == 1:
                    same = node["value"].shape == self._probe.shape and node["value"].data_ptr() == self._probe.data_ptr()
                    value = self.x if same else self._gather(name)
                    values[name] = value.reshape(self.N, -1)
            fns = {n["name"]: n["fn"] for n in self._locals(probe)}
            families = {}
            for name, value in values.items():
                family = family_of(fns[name])
                if family is not None and self.structure.max_plate_nesting == 1:
                    families[name] = family(value)
        return values, families

    def _gather(self, name: str) -> Tensor:
        """What the program observes at a site, for all rows, NaN where unobserved."""
        return torch.cat([self._trace(rows, raw=True).nodes[name]["value"] for rows in self.x.split(4096)])

    def _trace(self, x: Tensor, parameters: Values | None = None, globals: Values | None = None, raw: bool = False) -> Any:
        return self.program.trace(x, parameters=parameters, latents={**self.assignments, **(globals or {})}, raw=raw)

    @staticmethod
    def _locals(trace: Any) -> list[Any]:
        return [n for n in trace.nodes.values() if n["type"] == "sample" and is_local(n)]

    # ------------------------------------------------------------------------------------------------- densities

    def views(self, parameters: Values | None = None, globals: Values | None = None) -> tuple[list[View], Tensor]:
        """The local sites at these values, and the log prior of the globals (nats)."""
        trace = self._trace(self._probe, parameters, globals, raw=True)
        views = []
        for node in self._locals(trace):
            params = parameters_of(node["fn"], self.A) if node["name"] in self.families else None
            views.append(View(node["name"], node["name"] in self.assignments, params))
        return views, global_log_prob(trace)

    def log_joint(
        self, rows: slice, views: list[View], parameters: Values | None = None, globals: Values | None = None
    ) -> Tensor:
        """log p(x_i, a) [rows, A] in nats, for the data in `rows`."""
        total: Tensor | float = 0.0
        for view in views:
            if view.params is not None:
                family, value = self.families[view.name], self.values[view.name]
                if view.latent:
                    total = total + family.log_prob(value, view.params).diagonal()
                else:
                    total = total + family.log_prob(value[rows], view.params)
        general = {v.name for v in views if v.params is None}
        if general:
            total = total + self.general_log_prob(rows, general, parameters, globals)
        return torch.as_tensor(total).expand(rows.stop - rows.start, self.A)

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

    def chunks(self) -> Iterator[slice]:
        """Slices of rows whose temporaries stay small."""
        width = max([v.shape[1] for n, v in self.values.items() if n not in self.assignments], default=self.x[0].numel())
        rows = max(64, min(8192, CHUNK_NUMBERS // (self.A * (width + 1))))
        for start in range(0, self.N, rows):
            yield slice(start, min(start + rows, self.N))

    def log_evidence(self, parameters: Values | None = None, globals: Values | None = None) -> tuple[Tensor, Tensor]:
        """(Σ_i log p(x_i | θ, globals), log p(globals)), both differentiable, nats."""
        views, prior = self.views(parameters, globals)
        total = sum(self.log_joint(r, views, parameters, globals).logsumexp(1).sum() for r in self.chunks())
        return torch.as_tensor(total), prior

    @torch.no_grad()
    def per_datum(
        self, parameters: Values | None = None, globals: Values | None = None, own: bool = False
    ) -> Tensor:
        """log p(x_i | θ, globals) [N], nats. `own`: by the sites' own `log_prob` throughout, as a check on the products."""
        views, _ = self.views(parameters, globals)
        if own:
            views = [View(v.name, v.latent, None) for v in views]
        return torch.cat([self.log_joint(r, views, parameters, globals).logsumexp(1) for r in self.chunks()])

    # ------------------------------------------------------------------------------------------------- posterior

    @torch.no_grad()
    def responsibilities(self, parameters: Values | None = None, globals: Values | None = None) -> Tensor:
        """p(a | x_i) [N, A]."""
        views, _ = self.views(parameters, globals)
        return torch.cat([self.log_joint(r, views, parameters, globals).softmax(1) for r in self.chunks()])

    @torch.no_grad()
    def e_step(self, globals: Values | None = None, responsibilities: Tensor | None = None) -> Statistics:
        """Expected sufficient statistics and log p(x_i), in one pass over the data.

        `responsibilities` [N, A]: use these in place of the posterior (a start from a clustering).
        """
        views, _ = self.views(None, globals)
        counts, sites, per_datum = torch.zeros(self.A, dtype=self.x.dtype), {}, []
        for rows in self.chunks():
            if responsibilities is None:
                joint = self.log_joint(rows, views, None, globals)
                evidence = joint.logsumexp(1, keepdim=True)
                weights = (joint - evidence).exp_()
                per_datum.append(evidence[:, 0])
            else:
                weights = responsibilities[rows]
            counts += weights.sum(0)
            for view in views:
                if view.params is not None and not view.latent:
                    new = self.families[view.name].statistics(self.values[view.name][rows], weights, view.params)
                    old = sites.get(view.name)
                    sites[view.name] = new if old is None else {k: old[k] + v for k, v in new.items()}
        for view in views:
            if view.params is not None and view.latent:
                family, value = self.families[view.name], self.values[view.name]
                sites[view.name] = family.statistics(value, counts.diag(), view.params)
        return Statistics(counts, sites, torch.cat(per_datum) if per_datum else torch.zeros(0))

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
                zero = responsibilities.new_zeros(self.N, len(values))
                out[site.name] = zero.index_add(1, index, responsibilities)
        return out

    def draw(self, responsibilities: Tensor, draws: int) -> dict[str, Tensor]:
        """Site → exact posterior draws [draws, N, …]."""
        if not self.assignments:
            return {}
        chosen = torch.multinomial(responsibilities, draws, replacement=True).mT  # [draws, N]
        out = {}
        for site in self.structure.discrete_locals:
            value = self.assignments[site.name]
            out[site.name] = value.reshape(self.A, *(site.inner,) * (site.inner > 1), *site.event_shape)[chosen]
        return out
