"""The normal sites of a program with few parents each, read off its traces: x = B z + b + noise, z its parents' numbers alone.

Which latents a site depends on was proved from the program's operations (`Site.parents`), and that it does so by affine ones
alone. So not each number of z needs a point of its own: parents of one site have colours of their own, and one point for each
colour and entry shows all coefficients. A chain z0 → z1 → … has one colour, and takes two points: z = 0, and z far from 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference._exact.latent_program import FAR, LatentProgram
from inference._exact.reading import ROWS, local_nodes
from inference._families import _gaussian as families
from inference._families._family import Family
from inference._families._registry import base_of, family_of
from zoo._program.structure import Site
from zoo._program.trace import Node, is_plain, node_of
from zoo._reading.codes import coloured


@dataclass(frozen=True)
class Group:
    """S normal sites of one family whose values and parents have the same sizes."""

    names: tuple[str, ...]
    family: type[families.Gaussian]
    form: str  # the distribution's own parameter besides its location
    latent: bool
    by_row: bool  # whether its parameters differ from row to row
    E: int  # numbers of a value
    scopes: tuple[tuple[str, ...], ...]  # the latents of each, its own first
    columns: Tensor  # [S, c] their numbers in z
    points: Tensor  # [S, p] which point shows the coefficient of each parent's number

    @property
    def own(self) -> int:
        """How many of the columns are its own value."""
        return self.E if self.latent else 0


@dataclass
class Seen:
    """The sites of a group at one setting of the parameters; of R = 1 rows where all have the same."""

    coefficients: Tensor  # B [S, A, R, E, p]
    offset: Tensor  # b [S, A, R, E]
    given: Tensor  # the parameter `form`
    scale: Tensor  # standard deviations [S, A, R, E], or of a joint family Cholesky factors [S, A, R, E, E]

    def some(self, which: Tensor) -> Seen:
        """Some of the sites."""
        return Seen(self.coefficients[which], self.offset[which], self.given[which], self.scale[which])


@dataclass(frozen=True)
class Graph:
    """The normal sites of a program in groups, the others, and the points at which they show all of themselves."""

    groups: tuple[Group, ...]
    others: dict[str, type[Family]]  # sites that no continuous latent enters
    points: Tensor  # [P, L]

    @property
    def by_row(self) -> bool:
        """Whether the parameters of any site differ from row to row."""
        return any(g.by_row for g in self.groups)


def graph(latent: LatentProgram) -> Graph | None:
    """None where a site is of another kind: not of a known family, masked, in a plate inside `data`."""
    structure = latent.structure
    if structure.max_plate_nesting != 1 or latent.program.completes or not latent.L:
        return None
    with torch.no_grad():
        nodes = {n["name"]: n for n in local_nodes(latent.trace(latent._probe, latent.origin(), raw=True))}
    continuous, observed = set(latent.layout.places), {s.name for s in structure.observed}
    sites = [s for s in structure.sites if s.scope == "local"]
    parents = {s.name: [p for p in s.parents if p in continuous] for s in sites}
    points, starts = _points(latent, parents.values())
    found, others = dict[tuple[object, ...], list[Site]](), dict[str, type[Family]]()
    for s in sites:
        node, family = nodes[s.name], family_of(nodes[s.name]["fn"])
        by_row = s.reads_data or bool(observed & set(s.parents))
        if family is None or not is_plain(node) or s.moved:
            return None
        if not issubclass(family, families.Gaussian):
            if parents[s.name] or by_row or s.name in continuous:
                return None
            others[s.name] = family
            continue
        form = [n for n in family.parameters if n != family.location and n in base_of(node["fn"]).__dict__]
        if len(form) != 1:
            return None
        widths = tuple(_width(latent, p) for p in parents[s.name])
        key = family, form[0], math.prod(s.event_shape), s.name in continuous, by_row, widths, len(s.event_shape)
        found.setdefault(key, []).append(s)
    groups = tuple(_group(latent, key, members, parents, starts) for key, members in found.items())
    return Graph(groups, others, points)


def _width(latent: LatentProgram, name: str) -> int:
    place = latent.layout.places[name]
    return int(place.stop - place.start)


def _points(latent: LatentProgram, groups: object) -> tuple[Tensor, dict[str, int]]:
    """The points [P, L], the first of them 0, and for each latent the point at which its first number is `FAR`."""
    places = latent.layout.places
    colours = coloured(list(places), list(groups))  # type: ignore[call-overload]
    sizes = [
        max((_width(latent, n) for n in places if colours[n] == c), default=0) for c in range(1 + max(colours.values()))
    ]
    starts = {n: 1 + sum(sizes[:c]) for n, c in colours.items()}
    points = torch.zeros(1 + sum(sizes), latent.L, dtype=latent.x.dtype)
    for name, place in places.items():
        size = _width(latent, name)
        points[starts[name] + torch.arange(size), place.start + torch.arange(size)] = FAR
    return points, starts


def _group(
    latent: LatentProgram,
    key: tuple[object, ...],
    members: Sequence[Site],
    parents: dict[str, list[str]],
    starts: dict[str, int],
) -> Group:
    family, form, E, is_latent, by_row, *_ = key
    scopes = tuple((*([s.name] if is_latent else []), *parents[s.name]) for s in members)
    places = latent.layout.places
    columns = [[i for n in scope for i in range(places[n].start, places[n].stop)] for scope in scopes]
    points = [[starts[n] + i for n in parents[s.name] for i in range(_width(latent, n))] for s in members]
    return Group(
        tuple(s.name for s in members),
        family,  # type: ignore[arg-type]
        form,  # type: ignore[arg-type]
        bool(is_latent),
        bool(by_row),
        E,  # type: ignore[arg-type]
        scopes,
        torch.tensor(columns, dtype=torch.long).reshape(len(members), -1),
        torch.tensor(points, dtype=torch.long).reshape(len(members), -1),
    )


def seen(g: Group, trace: Trace, A: int, P: int, rows: int, dtype: torch.dtype) -> Seen:
    """The sites of a group in a trace of `rows` rows at all points."""
    family = g.family
    n = rows if g.by_row else 1
    raw: dict[str, list[Tensor]] = {family.location: [], g.form: []}
    events = {name: family.parameters[name].event_dim if family.joint else 0 for name in raw}
    for name in g.names:
        base = base_of(node_of(trace, name)["fn"])
        entries = len(base.batch_shape) + len(base.event_shape) - len(node_of(trace, name)["fn"].batch_shape)
        for k, values in raw.items():
            value = base.__dict__[k]
            inner = max(entries - (1 if family.joint else 0), 0) + events[k]
            values.append(_with_points(value.to(dtype), inner, A * P, rows, n))
    loc, given = (torch.stack(raw[k]) for k in (family.location, g.form))
    loc = loc.reshape(len(g.names), A, P, n, g.E)
    given = given.reshape(len(g.names), A, P, n, g.E, *(g.E,) * (events[g.form] - 1))[:, :, 0]
    base_loc = loc[:, :, 0]
    S, p = g.points.shape
    index = g.points.reshape(S, 1, p, 1, 1).expand(S, A, p, n, g.E)
    coefficients = (loc.gather(2, index) - base_loc.unsqueeze(2)).movedim(2, -1) / FAR
    flat = given.reshape(-1, *given.shape[3:])
    scale = family.root({g.form: flat}).reshape(given.shape)
    return Seen(coefficients, base_loc, given, scale)


def _with_points(value: Tensor, inner: int, points: int, rows: int, kept: int) -> Tensor:
    """A parameter with all its batch dimensions: [points, kept rows, …]."""
    lead = value.dim() - inner
    if lead < 2:
        value = value.reshape(*(1,) * (2 - lead), *value.shape)
    value = value.expand(points, rows, *value.shape[2:])
    return value[:, :kept] if kept != rows else value


@torch.no_grad()
def observed(latent: LatentProgram, g: Graph) -> tuple[list[Tensor | None], dict[str, Tensor]]:
    """What the sites of each group observe [S, N, E], None for latents; and what the others do [N, E]; NaN where missing."""
    few = latent.origin()
    pieces: list[list[Tensor]] = [[] for _ in g.groups]
    others: dict[str, list[Tensor]] = {n: [] for n in g.others if n not in latent.assignments}
    for rows in latent.x.split(ROWS):
        trace = latent.trace(rows, few, raw=True)
        for group, into in zip(g.groups, pieces, strict=True):
            if not group.latent:
                into.append(torch.stack([_rows(node_of(trace, n), len(rows)) for n in group.names]))
        for name, values in others.items():
            values.append(_rows(node_of(trace, name), len(rows)))
    out = [torch.cat(p, 1).to(latent.x.dtype) if p else None for p in pieces]
    return out, {n: torch.cat(v) for n, v in others.items()}


def _rows(node: Node, n: int) -> Tensor:
    value, events = node["value"], len(node["fn"].event_shape)
    return value.expand(n, *value.shape[value.dim() - events :]).reshape(n, -1)
