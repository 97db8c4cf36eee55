"""The dependency graph of a program, as it is drawn: sites and parameters, and which depends on which.

A long chain is folded: of z0 … z999, each on the one before, stay z0 → z1 → … → z999, and of x0 … x999 those beside them. The
node "…" stands for all that are left out, with all of their edges. A tree, of which no site is like the one before, stays
whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zoo._program.program import Program
from zoo._program.repeats import Line, regular, split
from zoo._program.structure import Site, Structure
from zoo._program.trace import drawn_in_full, is_latent, log_prob, sample_nodes

LONGEST = 6  # sites of a family that are drawn one by one, where it can be folded
MOST_NODES = 150  # beyond which a family that cannot be folded is one node
NETWORK = 3  # parameters of one module, from which on they are one node


@dataclass(frozen=True)
class Vertex:
    """A circle of the picture, or the name of a parameter."""

    name: str
    kind: str  # "latent", "observed", "parameter" or "more"
    plates: tuple[str, ...] = ()  # outer plates first
    family: str = ""  # of distributions
    series: str = ""  # z, of z12 in a chain
    number: int = 0  # 12
    sites: tuple[str, ...] = ()  # what it stands for


@dataclass(frozen=True)
class Graph:
    """What is drawn."""

    vertices: tuple[Vertex, ...]
    edges: frozenset[tuple[str, str]]  # (parent, child), by name
    sizes: Mapping[str, int]  # of plates


def graph(structure: Structure, depends: Mapping[str, frozenset[str]] | None = None) -> Graph:
    """The graph of a structure; `depends`: parameter → the sites whose density it is in (see `of_parameters`)."""
    foldable = _foldable(structure.lines)
    vertices = [v for line in structure.lines for v in _of_line(structure, line, foldable.get(line.name))]
    place = {site: v.name for v in vertices for site in v.sites}
    edges = {(place[parent], place[s.name]) for s in structure.sites for parent in s.parents}
    groups: dict[tuple[str, frozenset[str]], list[str]] = {}
    for name, sites in (depends or {}).items():
        children = frozenset(place[s] for s in sites)
        groups.setdefault((name.partition(".")[0] if "." in name else "", children), []).append(name)
    for (module, children), names in groups.items():
        one = bool(module) and len(names) >= NETWORK
        for name in [f"{module} ({len(names)} tensors)"] if one else names:
            vertices.append(Vertex(name, "parameter", sites=tuple(names) if one else (name,)))
            edges |= {(name, child) for child in children}
    sizes = {structure_plate: size for s in structure.sites for structure_plate, size in _sizes(structure, s)}
    return Graph(tuple(vertices), frozenset((a, b) for a, b in edges if a != b), sizes)


def _foldable(lines: list[Line]) -> dict[str, int]:
    """The families of which all steps are alike, and those of the sites they are computed from too; how far they reach."""
    out = {line.name: lag for line in lines if line.members and (lag := regular(line.members)) is not None}
    family = {s["name"]: line.name for line in lines for s in line.members}
    while wrong := [
        line.name
        for line in lines
        if line.name in out and any(family.get(p, line.name) not in out for s in line.members for p in s["parents"])
    ]:
        out = {name: lag for name, lag in out.items() if name not in wrong}
    return out


def _of_line(structure: Structure, line: Line, lag: int | None) -> list[Vertex]:
    """The vertices of one site, or of a family; `lag`: how far back it reaches, where it can be folded."""
    sites = {s.name: s for s in structure.sites}
    if line.count == 1:
        return [_vertex(sites[line.name])]
    members = [sites[s["name"]] for s in line.members]
    if lag is None and len(structure.sites) <= MOST_NODES:
        return [_vertex(s) for s in members]
    if lag is None:
        return [replace(_vertex(members[0]), name=line.name, sites=tuple(s.name for s in members))]
    found = [_numbered(s) for s in members]
    if len(found) <= LONGEST:
        return found
    kept = max(2, lag + 1)
    prefix, more = found[0].series, found[kept:-1]
    dots = Vertex(f"{prefix}…", "more", found[0].plates, "", prefix, more[0].number, tuple(v.name for v in more))
    return [*found[:kept], dots, found[-1]]


def _vertex(s: Site) -> Vertex:
    return Vertex(s.name, s.role, tuple(reversed(s.plates)), s.family, sites=(s.name,))


def _numbered(s: Site) -> Vertex:
    series, number = split(s.name)
    return replace(_vertex(s), series=series, number=number or 0)


def _sizes(structure: Structure, s: Site) -> list[tuple[str, int]]:
    inner = [p for p in reversed(s.plates) if p != "data"]
    return [("data", structure.n)] * ("data" in s.plates) + [
        (p, n) for p, (_, n) in zip(inner, s.inner_dims, strict=False)
    ]


def of_parameters(program: Program, rows: Tensor) -> dict[str, frozenset[str]]:
    """Parameter → the sites whose log-density has a derivative in it, on a few rows of the data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with torch.no_grad():
            drawn = sample_nodes(program.trace(rows))
        latents = {n["name"]: drawn_in_full(n) for n in drawn if is_latent(n)}
        values = {k: v.detach().clone().requires_grad_() for k, v in program.values().items()}
        with torch.enable_grad():
            nodes = sample_nodes(program.trace(rows, parameters=values, latents=latents))
            out: dict[str, set[str]] = {name: set() for name in values}
            for node in nodes if values else ():
                density = log_prob(node).sum()
                if not density.requires_grad:
                    continue
                found = torch.autograd.grad(density, list(values.values()), retain_graph=True, allow_unused=True)
                for name, gradient in zip(values, found, strict=True):
                    if gradient is not None:
                        out[name].add(node["name"])
    return {name: frozenset(sites) for name, sites in out.items()}
