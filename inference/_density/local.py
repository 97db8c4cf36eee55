"""The density of each row with its latents, log p(x_i, a, z; θ): what Newton's method climbs and annealing walks on.

`a` is one of the A joint values of the discrete local latents; z are the L numbers of the continuous ones in unconstrained
coordinates, and the density is theirs: the log-determinant of the map to constrained values is in it. The map is found
site by site as the program runs, so a support may depend on parameters, on the row, and on the latents before it.

Every evaluation is one plain run of the program on a batch of rows: what is asked for many times of a row (draws,
chains, assignments) is asked as that many rows. So any program serves, also one that cannot take dimensions left of `data`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import transforms
from torch.distributions.constraints import Constraint, independent

from inference._density import sparse
from inference._exact._sums.summed_out import SummedOut
from inference._numerics.coordinates import bijection
from inference._numerics.slices import fitting, slices
from inference._sampling.weights import unmasked
from zoo._program.latents import joint_values
from zoo._program.program import Program
from zoo._program.structure import Site, Structure
from zoo._program.trace import (
    Node,
    altered,
    is_fixed,
    is_local,
    is_plain,
    node_of,
    nodes_of,
    per_datum,
    sample_nodes,
    support_of,
)

NUMBERS = 2**24  # that a chunk's graph may hold, roughly
FARTHEST = 300.0  # of a constrained value's free coordinate, where a draw rounded onto the edge of its support


def refusal(structure: Structure, given_globals: bool = False) -> str | None:
    """Why the program has no such density for each row by itself, or None; `given_globals`: at given values of its globals."""
    if not structure.by_row:
        return structure.reason
    if structure.global_latents and not given_globals:
        names = ", ".join(f"'{s.name}'" for s in structure.global_latents)
        local = ", ".join(f"'{s.name}'" for s in structure.continuous_locals)
        return f"the program has global latents, {names}, beside the local {local}"
    for site in structure.continuous_locals:
        if site.family == "Delta":
            return f"'{site.name}' is a Delta, which has no density: use its value itself, or pyro.deterministic"
        try:
            onto(site.constraint)
        except NotImplementedError:
            return f"the support of '{site.name}' ({site.support}) has no unconstrained coordinates"
    return None


@dataclass(frozen=True)
class Place:
    """Where a continuous site stands in z, and how the program shapes it."""

    site: Site
    part: slice  # of the L numbers
    plates: tuple[int, ...]  # the extents of its inner plates, as dimensions of the program, the data's taken out
    data: int  # where among them the data dimension goes
    free: tuple[int, ...]  # the shape of one value in unconstrained coordinates
    fixed: transforms.Transform | None  # its bijection where that is the same in every run, else None
    real: bool  # whether it is the identity


class LocalDensity:
    """log p(x_i, a, z; θ) of a program, for the data `x` [n, …] (NaN where unobserved), i = 0 … n − 1.

    - `A`, `L`, `n`: how many joint values of the discrete local latents, numbers in z, and data;
    - `sites`: where each continuous site stands in z;
    - `pattern`: which entries of its Hessian in z may differ from 0, where that saves work;
    - `assignments`: discrete site → its value under each assignment [A, inner plates, event];
    - `rows(index)`: the same density for some of the data, in any order, repeats allowed;
    - `given(globals)`: the same density at these values of the global latents (and parameters).

    z is [..., n, L] and an assignment [..., n] (dtype long; None where A = 1), with the same leading dimensions.
    """

    def __init__(self, program: Program, structure: Structure, x: Tensor) -> None:
        self.program, self.structure, self.x = program, structure, x
        self.A = structure.assignments
        with torch.no_grad(), torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
            torch.manual_seed(0)
            trace = program.trace(x[:2])
        nodes = {n["name"]: n for n in sample_nodes(trace) if is_local(n)}
        discrete = [s.name for s in structure.discrete_locals]
        self._tables = {
            k: _natural(v, nodes[k], structure.max_plate_nesting).to(x.device)
            for k, v in joint_values(nodes, discrete, structure.axes).items()
        }
        self.sites: list[Place] = []
        for site in structure.continuous_locals:
            self.sites.append(self._place(site, nodes[site.name]))
        self.L = sum(p.part.stop - p.part.start for p in self.sites)
        self.assignments = {s.name: self._by_datum(self._tables[s.name], s) for s in structure.discrete_locals}
        self._tiled: tuple[int, Tensor] | None = None
        # latents that were summed out have joined the others
        self.pattern = None if isinstance(program, SummedOut) else sparse.pattern(structure, self.sites)
        self._given: tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None] = {}, None

    def _place(self, site: Site, node: Node) -> Place:
        transform = onto(node["fn"].support)
        free = transform.inv(node["value"])
        batch = free.shape[: free.dim() - (len(site.event_shape) - _lost(transform))]
        extents, data = list(batch), len(batch) + self.structure.data_dim
        del extents[data]
        shape = tuple(free.shape[len(batch) :])
        first = self.sites[-1].part.stop if self.sites else 0
        part = slice(first, first + math.prod(extents) * math.prod(shape))
        fixed = transform if is_fixed(site.constraint) else None
        return Place(site, part, tuple(extents), data, shape, fixed, fixed is not None and _identity(fixed))

    @property
    def n(self) -> int:
        """Number of data."""
        return len(self.x)

    def rows(self, index: Tensor | slice) -> LocalDensity:
        """The density of the data `index`."""
        some = copy.copy(self)
        some.x, some._tiled = self.x[index], None
        return some

    def given(self, globals: Mapping[str, Tensor], parameters: Mapping[str, Tensor] | None = None) -> LocalDensity:
        """The density at these values of the global latents, and of parameters in place of the program's own."""
        there = copy.copy(self)
        there._given = globals, parameters
        return there

    def _trace(
        self,
        x: Tensor,
        discrete: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor] | None = None,
        apart: bool = False,
    ) -> Trace:
        globals, others = self._given
        latents = {**globals, **discrete}
        return self.program.joint_trace(x, parameters=parameters or others, latents=latents, apart=apart)

    def _drawn(self, x: Tensor, discrete: Mapping[str, Tensor]) -> Trace:
        """The program, which draws what has no value here."""
        globals, parameters = self._given
        return self.program.trace(x, parameters=parameters, latents={**globals, **discrete})

    def chunks(self, columns: int, copies: int) -> Iterator[slice]:
        """Slices of the data small enough to look at `columns` places of each at once, `copies` of its width kept for each."""
        return slices(self.n, fitting(NUMBERS, columns * copies * (self.x[:1].numel() + self.L)))

    @property
    def places(self) -> dict[str, slice]:
        """Continuous site → its numbers in z."""
        return {p.site.name: p.part for p in self.sites}

    # -------------------------------------------------------------------------------------------------- densities

    def log_joint(
        self, z: Tensor, assignment: Tensor | None = None, parameters: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """log p(x_i, a, z) [..., n], nats; differentiable in z and θ. Not finite where the program has no density.

        `parameters`: constrained values in place of the program's own.
        """
        latent, observed = self.terms(z, assignment, parameters, apart=False)
        return latent + observed

    def terms(
        self,
        z: Tensor,
        assignment: Tensor | None = None,
        parameters: Mapping[str, Tensor] | None = None,
        apart: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """log p(a, z) and log p(x_i | a, z), each [..., n], nats.

        The first is the density that the program draws its latents from. A `poutine.scale` or `mask` on them belongs to the
        posterior and not to the draws, so it is in the second: with scale s, the term (s − 1) log p(z). The log-determinant of
        the map to constrained values is never scaled. Without `apart` their sum alone is meant.
        """
        trace, log_det = self._run(z, assignment, parameters, apart)
        depth, dim = self.structure.max_plate_nesting, self.structure.data_dim
        latent = observed = torch.zeros((), dtype=self.x.dtype, device=self.x.device)
        mine = {s.name for s in self.structure.local_latents}
        for node in sample_nodes(trace):
            if not is_local(node):
                continue
            if node["name"] not in mine:
                observed = observed + per_datum(node, node["fn"].log_prob(node["value"]), dim, depth)
                continue
            own = altered(node, unmasked(node["fn"]))
            drawn = per_datum(own, own["fn"].log_prob(node["value"]), dim, depth)
            latent = latent + drawn
            if not is_plain(node) or own["fn"] is not node["fn"]:
                observed = observed + per_datum(node, node["fn"].log_prob(node["value"]), dim, depth) - drawn
            if node["name"] in log_det:
                latent = latent + per_datum(own, log_det[node["name"]], dim, depth)
        shape, columns = z.shape[:-1], z.shape[:-1].numel()
        return latent.expand(columns).reshape(shape), observed.expand(columns).reshape(shape)

    def _run(
        self, z: Tensor, assignment: Tensor | None, parameters: Mapping[str, Tensor] | None, apart: bool = False
    ) -> tuple[Trace, dict[str, Tensor]]:
        flat = z.reshape(-1, self.L)
        free = Free({p.site.name: _in_program(flat[:, p.part], p) for p in self.sites})
        chosen = _chosen(assignment, z).reshape(-1)
        discrete = {k: self._discrete(k, v[chosen]) for k, v in self._tables.items()}
        with pyro.validation_enabled(False), free:
            x = self._repeated(len(flat))
            trace = self._trace(x, discrete, parameters, apart)
        return trace, free.log_det

    def _discrete(self, name: str, value: Tensor) -> Tensor:
        """[columns, plates with a 1 for the data's, event] → [plates with the columns in the data's place, event]."""
        site = next(s for s in self.structure.discrete_locals if s.name == name)
        rows = self.structure.axes.row_dim(len(site.event_shape))
        place = value.dim() + rows - 1  # once the data's own dimension is gone
        return value.squeeze(rows).movedim(0, place)

    def _repeated(self, columns: int) -> Tensor:
        """x as often as there are leading values: [columns, …]; kept, since annealing asks for the same one again."""
        times = columns // max(1, self.n)
        if times == 1:
            return self.x
        if self._tiled is None or self._tiled[0] != times:
            self._tiled = (times, self.x.repeat(times, *(1,) * (self.x.dim() - 1)))
        return self._tiled[1]

    # ----------------------------------------------------------------------------------------------------- values

    @torch.no_grad()
    def values(self, z: Tensor, assignment: Tensor | None = None) -> dict[str, Tensor]:
        """Site → the value that z [T, n, L] and the assignment [T, n] stand for, [T, n, inner plates, event]."""
        T, n = z.shape[:2]
        out = {}
        if any(p.fixed is None for p in self.sites):
            nodes = nodes_of(self._run(z, assignment, None)[0])
        for p in self.sites:
            if p.fixed is not None:
                value = p.fixed(z[..., p.part].reshape(T * n, *p.plates, *p.free))
            else:
                value = nodes[p.site.name]["value"].movedim(p.data, 0)
            natural = self._by_datum(value, p.site)
            out[p.site.name] = natural.reshape(T, n, *natural.shape[1:])
        for name, table in self.assignments.items():
            out[name] = table[_chosen(assignment, z)]
        return out

    @staticmethod
    def _by_datum(value: Tensor, site: Site) -> Tensor:
        """[m, plates, event] → [m, inner plates, event], without the ones of plates that are not the site's."""
        return value.reshape(len(value), *(size for _, size in site.inner_dims), *site.event_shape)

    def marginals(self, weights: Tensor) -> dict[str, np.ndarray]:
        """Site → q(z = k | x_i) [n, K] as an array, from q(a | x_i) [n, A]; for discrete sites with one value per row."""
        out, weights = {}, weights.detach().cpu()
        for site in self.structure.discrete_locals:
            if site.inner == 1 and not site.event_shape:
                values, index = self.assignments[site.name].cpu().reshape(-1).unique(return_inverse=True)
                out[site.name] = weights.new_zeros(len(weights), len(values)).index_add(1, index, weights).numpy()
        return out

    @torch.no_grad()
    def prior(self, draws: int, assignment: Tensor | None = None) -> Tensor:
        """Draws of z from the program itself [draws, n, L]; given the assignment [draws, n], or with it drawn as well."""
        columns = draws * self.n
        discrete: dict[str, Tensor] = {}
        if assignment is not None:
            discrete = {k: self._discrete(k, v[assignment.reshape(-1)]) for k, v in self._tables.items()}
        with pyro.validation_enabled(False):
            trace = self._drawn(self._repeated(columns), discrete)
        return self._read(trace).reshape(draws, self.n, self.L)

    @torch.no_grad()
    def middle(self, assignment: Tensor | None = None) -> Tensor:
        """The prior means of the latents, each given those before it, as z [n, L]; a draw where there is no mean."""
        discrete = {}
        if assignment is not None:
            discrete = {k: self._discrete(k, v[assignment]) for k, v in self._tables.items()}
        with pyro.validation_enabled(False), _Middle({p.site.name for p in self.sites}):
            trace = self._drawn(self.x, discrete)
        return self._read(trace)

    @torch.no_grad()
    def coordinates(self, latents: Mapping[str, Tensor], draws: int = 1) -> Tensor:
        """z [draws, n, L] of values of all latents, site → value in the program's shape for draws · n rows."""
        with pyro.validation_enabled(False):
            trace = self.program.trace(self._repeated(draws * self.n), latents=latents)
        return self._read(trace).reshape(draws, self.n, self.L)

    def log_guide(self, z: Tensor, guide: Callable[[Tensor], object]) -> Tensor:
        """log q(z | x_i) [..., n] of a guide that draws the continuous latents alone; differentiable in z.

        `guide`: takes x of as many rows as there are places in z, copy after copy of the data.
        """
        trace, log_det = self._run(z, None, None)
        values = {p.site.name: node_of(trace, p.site.name)["value"] for p in self.sites}
        x, depth, dim = (
            self._repeated(len(z.reshape(-1, self.L))),
            self.structure.max_plate_nesting,
            self.structure.data_dim,
        )
        with self.program.settings():
            q = pyro.poutine.trace(pyro.poutine.condition(guide, data=values)).get_trace(x)
        total = torch.zeros((), dtype=z.dtype, device=z.device)
        for node in sample_nodes(q):
            if is_local(node):
                own = altered(node, unmasked(node["fn"]))
                total = total + per_datum(own, own["fn"].log_prob(node["value"]), dim, depth)
                if node["name"] in log_det:
                    total = total + per_datum(own, log_det[node["name"]], dim, depth)
        return total.reshape(z.shape[:-1])

    def _read(self, trace: Trace) -> Tensor:
        """The continuous sites of a trace as z [columns, L]."""
        parts = []
        for p in self.sites:
            node = node_of(trace, p.site.name)
            value = node["value"].expand(node["fn"].batch_shape + node["fn"].event_shape)
            free = onto(node["fn"].support).inv(value)
            if not p.real:
                free = free.nan_to_num(0.0, FARTHEST, -FARTHEST).clamp(-FARTHEST, FARTHEST)
            parts.append(free.movedim(p.data, 0).flatten(1) if free.dim() > 1 else free.unsqueeze(1))
        return torch.cat(parts, 1) if parts else self.x.new_zeros(len(self.x), 0)


class Free(Messenger):
    """Gives each latent site the value that its free numbers stand for, and notes the log-determinants."""

    def __init__(self, free: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.free = free
        self.log_det: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Node) -> None:
        free = self.free.get(msg["name"])
        if free is None:
            return
        transform = onto(msg["fn"].support)
        msg["value"] = free if _identity(transform) else transform(free)
        msg["is_observed"] = True
        if not _identity(transform):
            log_det = transform.log_abs_det_jacobian(free, msg["value"])
            extra = len(msg["fn"].event_shape) - transform.codomain.event_dim
            self.log_det[msg["name"]] = log_det.flatten(log_det.dim() - extra).sum(-1) if extra else log_det


class _Middle(Messenger):
    """Gives the sites `names` their means, where there are any within the support."""

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Node) -> None:
        if msg["name"] not in self.names:
            return
        try:
            mean = msg["fn"].mean
            if bool(mean.isfinite().all()) and bool(torch.as_tensor(support_of(msg["fn"]).check(mean)).all()):
                msg["value"] = mean
        except NotImplementedError:
            pass


def _in_program(part: Tensor, place: Place) -> Tensor:
    """[columns, numbers] → [plates with the columns in the data's place, free shape]."""
    return part.reshape(len(part), *place.plates, *place.free).movedim(0, place.data)


def _natural(table: Tensor, node: Node, depth: int) -> Tensor:
    """[A, 1, …, event] with as many plate dimensions as the site itself has."""
    spare = depth - len(node["fn"].batch_shape)
    return table.reshape(len(table), *table.shape[1 + max(0, spare) :])


def _lost(transform: transforms.Transform) -> int:
    """How many event dimensions fewer the free numbers have."""
    return transform.codomain.event_dim - transform.domain.event_dim


def _identity(transform: transforms.Transform) -> bool:
    parts = getattr(transform, "parts", None)
    if parts is not None:
        return all(_identity(p) for p in parts)
    base = getattr(transform, "base_transform", None)
    return base is not None and _identity(base)


def _chosen(assignment: Tensor | None, z: Tensor) -> Tensor:
    """The assignment [..., n], the only one where none is given."""
    return torch.zeros(z.shape[:-1], dtype=torch.long, device=z.device) if assignment is None else assignment


def onto(support: Constraint | None) -> transforms.Transform:
    """From free numbers onto the support; a mixture's is that of its components."""
    inner = (
        cast(independent, support).base_constraint
        if type(support).__name__ == "MixtureSameFamilyConstraint"
        else support
    )
    assert inner is not None
    return bijection(inner)
