"""Find a program's structure: its sites, which latents are local to a row, whether it is exact, and why.

`describe(program, x)` runs the program on a few rows, reads its operations, and returns a `Structure`. Inference methods decide
from it alone whether they can serve a program. Exactness is proved from the operations (`sites`), and also measured
(`witness`, `curvature`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from zoo._data import blockwise
from zoo._errors import UsageError
from zoo._program.axes import Axes
from zoo._program.contract import check_contract, check_growth, check_support, plain
from zoo._program.latents import cardinality
from zoo._program.program import Program
from zoo._program.source import blame
from zoo._program.structure import ENUMERATION_LIMIT, Exactness, Parameter, Site, Structure
from zoo._program.trace import (
    DATA_PLATE,
    Node,
    completes,
    drawn_in_full,
    family_name,
    is_discrete,
    is_latent,
    is_local,
    is_masked,
    plates,
    sample_nodes,
    support_of,
)
from zoo._reading import witness as _witness
from zoo._reading.curvature import quadratic
from zoo._reading.garbage import seldom_collected
from zoo._reading.listing import MOST_NAMED, exactness
from zoo._reading.own_values import comes_back
from zoo._reading.pairs import conjugate, globals_not_conjugate
from zoo._reading.sites import Reading, line_of, read
from zoo._reading.whole import not_jointly_normal

PROBE_ROWS = 20
READ_ROWS = (7, 5)  # rows of two readings: in one alone, a constant of as many entries may look like one entry a row
MANY_SITES = 46  # of which a reading takes seconds
COVERING_ROWS = 2000  # among which rows with holes are looked for


@dataclass(frozen=True)
class _Traced:
    """A program that was run on the rows `probe` of the data x [n, …], and its sites there."""

    program: Program
    x: Tensor
    probe: Tensor
    nodes: list[Node]
    axes: Axes

    @property
    def continuous(self) -> frozenset[str]:
        """The continuous local latents."""
        local = (n for n in self.nodes if is_latent(n) and is_local(n))
        return frozenset(n["name"] for n in local if not is_discrete(n["fn"]))


@seldom_collected()
def describe(program: Program, x: Tensor, limit: int = ENUMERATION_LIMIT) -> Structure:
    """Trace `program` on a few rows of `x` [n, ...] and read its structure off the trace.

    `limit`: the most joint values of discrete local latents that count as enumerable.

    Raises `UsageError` when the program breaks the contract: it raises, has no plate named `data`, observes nothing,
    or the data lie outside the support of an observed site.
    """
    probe = _probe_rows(x, bool(program.completes))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with blame(program.name, probe):
            trace = program.trace(probe)
        nodes = sample_nodes(trace)
        data_dim = check_contract(program, nodes, len(probe))
        sites = tuple(_site(node) for node in nodes)
        with blame(program.name):
            if not all(map(is_local, nodes)):
                check_growth(program, probe, nodes)
        depth = max((-p.dim for node in nodes for p in plates(node)), default=1)
        matrices = any(hasattr(_innermost(node["fn"]), "covariance_matrix") for node in nodes)
        check_support(program, x, matrices, None if len(x) > PROBE_ROWS or program.completes else trace)
        run = _Traced(program, x, probe, nodes, Axes(depth, data_dim))
        with blame(program.name):
            readings = _readings(run)
            if readings[0].covariates:
                _check_holes(run)
            obstacle = _obstacle(sites, nodes, readings)
            whole = len(probe) == len(x) and not bool(probe.isnan().any())
            witness = _witness.Witness(program, x, run.axes, nodes if whole else ())
            obstacle = obstacle or witness.complaint()
            if not obstacle and readings[0].covariates:
                obstacle = comes_back(program, probe[: READ_ROWS[0]].nan_to_num(0.0), readings[0])
    sites, unproved = _read_off(sites, readings), obstacle or _unproved(sites, readings)
    exact, reason, assignments, table = exactness(sites, unproved, limit)
    change = None
    with blame(program.name):
        if table is not None:
            if said := witness.tables(sites):
                exact, reason, table = Exactness.NO, said, None
            elif exact == Exactness.NO:
                reason += _statement(run, reason)
        elif exact == Exactness.NO and not unproved:
            reason += _statement(run, reason)
        elif exact != Exactness.NO and (names := [s for s in sites if s.role == "latent" and s.scope == "local"]):
            discrete, continuous = [s.name for s in names if s.discrete], [s.name for s in names if not s.discrete]
            if not any(s.completes for s in names) and (
                said := witness.side_by_side(discrete, continuous, assignments)
            ):
                exact, reason, assignments = Exactness.NO, said, 1
            elif continuous:
                exact, reason, change = _quadratic(run, assignments, readings[0])
    integrable, reason = _globals(run, sites, exact, reason)
    outside = tuple(s.name for s in sites if s.role == "observed" and s.scope == "global")
    facts = (exact, reason, assignments, data_dim, depth, change, program.notes, obstacle, outside, table)
    cut = next(
        (
            f"a parameter or global latent is detached at {r.cut}, so derivatives in it are lost"
            for r in readings
            if r.cut
        ),
        "",
    )
    return Structure(program.name, len(x), sites, _parameters(program), *facts, integrable, cut)


def _statement(run: _Traced, reason: str) -> str:
    """Where the first site stands that a reason names, in brackets; "" where it names none."""
    named = re.search(r"'([^']+)'", reason)
    rows = run.probe[: READ_ROWS[0]].nan_to_num(0.0)
    line = line_of(run.program, rows, named[1]) if named else ""
    return f" ('{named[1]}' is at {line})" if named and line else ""


def _globals(
    run: _Traced, sites: tuple[Site, ...], exact: Exactness, reason: str
) -> tuple[Literal["", "normal", "conjugate"], str]:
    """Whether the global latents of an exact program can be integrated out; and the reason with what becomes of them."""
    names = [s.name for s in sites if s.role == "latent" and s.scope == "global"]
    if exact == Exactness.NO or not names:
        return "", reason
    shown = ", ".join(f"'{n}'" for n in names[:MOST_NAMED]) + ", …" * (len(names) > MOST_NAMED)
    if flat := [s.name for s in sites if s.family == "ImproperUniform"]:
        return "", f"{reason}; this is given the global latents {shown}: the prior of '{flat[0]}' is improper"
    if exact == Exactness.ELIMINABLE:
        return "", f"{reason}; this is given the global latents {shown}, which are not integrated out"
    with blame(run.program.name):
        obstacle = globals_not_conjugate(run.program, run.probe, run.nodes, run.axes)
        if obstacle == "":
            return (
                "conjugate",
                f"{reason}; the global latents {shown} are conjugate to the data, and are integrated out",
            )
        if obstacle is None:
            obstacle = not_jointly_normal(run.program, run.probe, run.nodes, run.axes)
    if obstacle:
        return "", f"{reason}; this is given the global latents {shown}, which are not integrated out: {obstacle}"
    return "normal", f"{reason}; the global latents {shown} are jointly normal with the data, and are integrated out"


def _parameters(program: Program) -> tuple[Parameter, ...]:
    free = program.unconstrained()
    return tuple(
        Parameter(name, tuple(value.shape), plain(program.constraints[name]), free[name].requires_grad)
        for name, value in program.values().items()
    )


def _readings(run: _Traced) -> list[Reading]:
    """The program read twice, on batches of two sizes; once where it has many sites and nothing is left open."""
    rows, completing = run.probe.nan_to_num(0.0), {n["name"] for n in run.nodes if completes(n)}
    out = list[Reading]()
    for size in READ_ROWS:
        some = rows[: min(size, len(rows) if size == READ_ROWS[0] else max(1, len(rows) - 1))]
        latents, drawn = _drawn(run, some, first=not out)
        latents = {k: v for k, v in latents.items() if k not in completing}
        again = out[0].again if out else None
        out.append(read(run.program, some, latents, run.axes.data_dim, run.continuous, codes=again, drawn=drawn))
        settled = out[0].again is None and not any(s.place for s in out[0].sites.values())
        if settled and len(run.nodes) > MANY_SITES:
            break
    return out


def _drawn(run: _Traced, rows: Tensor, first: bool) -> tuple[dict[str, Tensor], list[Node]]:
    """Values of all latents for some rows, and the sites; of the first rows the run has them, where nothing is missing."""
    if first and not bool(run.probe.isnan().any()):
        latents, index = {n["name"]: n for n in run.nodes if is_latent(n)}, torch.arange(len(rows))
        whole = {name: drawn_in_full(n) for name, n in latents.items()}
        for name, n in latents.items():
            if is_local(n):
                whole[name] = whole[name].index_select(run.axes.row_dim(len(n["fn"].event_shape)), index)
        return whole, run.nodes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(rows))
        drawn = sample_nodes(run.program.trace(rows, raw=True))
    return {n["name"]: drawn_in_full(n) for n in drawn if is_latent(n)}, drawn


def _check_holes(run: _Traced) -> None:
    """No density may depend on a missing entry: each column is checked in a row where it is missing."""
    holes = _covering_rows(run.x, blockwise.missing_in_rows(run.x) > 0)
    for index in holes.split(READ_ROWS[0]) if len(holes) else ():
        for name, site in _reading_with_holes(run, run.x[index]).sites.items():
            if site.missing:
                raise UsageError(
                    f"the density of site '{name}' of '{run.program.name}' depends on a missing entry of x, in row "
                    f"{int(index[0])} (counting from 0) or another. Compute with the value that pyro.sample returns instead "
                    "of x, or fill in the column."
                )


def _obstacle(sites: tuple[Site, ...], nodes: list[Node], readings: list[Reading]) -> str:
    """Why no method can serve the program, in one sentence; "" where there is no such reason."""
    for node in nodes:
        if is_latent(node) and is_local(node) and not completes(node) and is_masked(node):
            return (
                f"the latent '{node['name']}' is masked (obs_mask or poutine.mask), so its density is not a "
                "distribution: leave out the mask; an entry of x that is NaN counts as not observed"
            )
    for reading in readings:
        if reading.choices:
            return (
                f"{reading.choices[0]} (`if`, `int()`, `.item()`, NumPy), and what the program does next may change with it: "
                "keep it a tensor, with torch.where for a choice"
            )
    completing = {s.name for s in sites if s.completes}
    hyper = {s.name for s in sites if s.role == "latent" and s.scope == "global"}
    places = frozenset.intersection(*(frozenset(k for k, s in r.sites.items() if s.place) for r in readings))
    for name, site in readings[0].sites.items():
        if name in completing:
            continue
        if site.reads_data and name in hyper:
            return (
                f"the prior of the global latent '{name}' depends on x, of which methods see some rows at a time: compute "
                "what it needs once, where the program is made"
            )
        if site.random:
            return f"site '{name}' depends on random numbers that no pyro.sample draws: make them a latent"
        if site.joined and not site.unknown:
            by = f" ({site.joined_by})" if site.joined_by else ""
            return f"{_witness.JOINED}: at site '{name}'{by}"
        if name in places:
            return f"at site '{name}', {_witness.PLACE}"
    return ""


def _unproved(sites: tuple[Site, ...], readings: list[Reading]) -> str:
    """Which operation could not be analysed, though measuring found no fault; the program is not exact then."""
    completing = {s.name for s in sites if s.completes}
    for name, site in readings[0].sites.items():
        if site.joined and site.unknown and name not in completing:
            what = f"what {site.unknown_by} does" if site.unknown_by else "an operation"
            return f"at site '{name}' {what} cannot be analysed, so the rows are not proved independent"
    return ""


def _read_off(sites: tuple[Site, ...], readings: list[Reading]) -> tuple[Site, ...]:
    """The sites with what was read of them; a support that changes with something else cannot be listed once for all."""
    place, out = {s.name: i for i, s in enumerate(sites)}, []
    for s in sites:
        seen = readings[0].sites.get(s.name)
        if seen is None:
            out.append(s)
            continue
        parents = frozenset.intersection(*(r.sites[s.name].parents for r in readings if s.name in r.sites))
        ordered = tuple(sorted(parents & place.keys(), key=lambda n: place[n]))
        moving = sorted(seen.support_from) if s.discrete and s.role == "latent" else []
        count = None if moving else s.cardinality
        data = any(r.sites[s.name].reads_data for r in readings if s.name in r.sites)
        out.append(
            replace(s, cardinality=count, moving=tuple(moving), parents=ordered, reads_data=data, moved=seen.moved)
        )
    return tuple(out)


def _probe_rows(x: Tensor, completed: bool) -> Tensor:
    """A few rows spread over the data, of those with the fewest missing entries.

    `completed`: missing entries become latents; then rows with some of them are among the few.
    """
    missing = blockwise.missing_in_rows(x)
    count = max(int((missing == missing.min()).sum()), min(len(x), PROBE_ROWS))
    fullest = _spread(count, PROBE_ROWS)
    if count < len(x):
        fullest = missing.argsort(stable=True)[:count].sort().values[fullest]
    if not completed:
        return x[fullest]
    holed = ((missing > 0) & (missing < x[0].numel())).nonzero()[:, 0]
    holed = holed[_spread(len(holed), PROBE_ROWS // 4)]
    return x[torch.cat([holed, fullest[: PROBE_ROWS - len(holed)]])]


def _spread(count: int, most: int) -> Tensor:
    """At most `most` of the numbers 0 … count − 1, evenly spread."""
    # in float32, which rounds up from 2^24 on
    return torch.linspace(0, count - 1, min(count, most)).round().long().clamp(max=count - 1).unique()


def _quadratic(run: _Traced, assignments: int, reading: Reading) -> tuple[Exactness, str, float]:
    """Is the log joint quadratic in the continuous local latents, with the probe rows complete and with holes in rows?"""
    program, probe = run.program, run.probe
    if (found := conjugate(program, probe, run.nodes, run.axes, assignments)) is not None:
        return found
    if program.completes:
        reading = _reading_with_holes(run, probe[: READ_ROWS[0]].nan_to_num(0.0))
    verdict = quadratic(program, probe, run.nodes, run.axes, assignments, reading)
    if not program.completes:
        return verdict
    for rows in _covering(run.x).split(4):  # as many as are looked at in one go
        if verdict[0] == Exactness.NO or not len(rows):
            break
        with program.hiding(rows.isnan()):
            reading = _reading_with_holes(run, rows)
            found = quadratic(program, rows, run.nodes, run.axes, assignments, reading)
        verdict = max(verdict, found, key=lambda v: (v[0] == Exactness.NO, v[2]))
    return verdict


def _reading_with_holes(run: _Traced, rows: Tensor) -> Reading:
    """The program read on partly missing rows: degrees alone."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        latents = {n["name"]: drawn_in_full(n) for n in sample_nodes(run.program.trace(rows)) if is_latent(n)}
    return read(run.program, rows, latents, run.axes.data_dim, run.continuous, raw=False)


def _covering(x: Tensor) -> Tensor:
    """A few partly missing rows, chosen so that as many entries as can be are missing in one of them."""
    missing = blockwise.missing_in_rows(x)
    return x[_covering_rows(x, (missing > 0) & (missing < x[:1].numel()))]


def _covering_rows(x: Tensor, among: Tensor) -> Tensor:
    """The numbers of a few of those rows, in which as many entries as can be are missing once."""
    rows = among.nonzero()[:, 0]
    rows = rows[_spread(len(rows), COVERING_ROWS)]
    missing, chosen = x[rows].isnan().flatten(1), list[int]()
    open_ = missing.any(0)
    while len(chosen) < PROBE_ROWS and bool(open_.any()):
        chosen.append(int((missing & open_).sum(1).argmax()))
        open_ = open_ & ~missing[chosen[-1]]
    return rows[chosen]


def _site(node: Node) -> Site:
    fn = node["fn"]
    discrete, local = is_discrete(fn), is_local(node)
    inner = [p for p in plates(node) if p.name != DATA_PLATE]
    return Site(
        name=node["name"],
        role="observed" if node["is_observed"] else "latent",
        scope="local" if local else "global",
        family=family_name(fn),
        event_shape=tuple(fn.event_shape),
        plates=tuple(p.name for p in reversed(plates(node))),
        support=plain(support_of(fn)),
        discrete=discrete,
        cardinality=cardinality(fn) if discrete and is_latent(node) else None,
        inner=math.prod(p.size for p in inner),
        inner_dims=tuple((p.dim, p.size) for p in inner),
        completes=completes(node),
        improper=is_latent(node) and (family_name(fn) == "ImproperUniform" or (not local and is_masked(node))),
        constraint=support_of(fn),
    )


def _innermost(fn: TorchDistribution) -> type:
    """The class of a distribution, without what is wrapped around it."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn)
