"""What tracing a program tells: its sites, which latents belong to a datum, and what about it is exact, and why.

`describe(program, x)` runs the program on a few rows, reads its operations, and returns a `Structure`. Inference methods decide
from it alone whether they can serve a program. What is called exact has been proved from the operations (`sites`) and
measured besides (`witness`, `curvature`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from zoo import _columns
from zoo._errors import UsageError
from zoo._program.contract import check_contract, check_growth, check_support, plain
from zoo._program.latents import cardinality
from zoo._program.program import Program, blame
from zoo._program.trace import DATA_PLATE, family_name, is_local, sample_nodes, support_of
from zoo._reading import witness as _witness
from zoo._reading.curvature import quadratic
from zoo._reading.sites import Reading, read

Exactness = Literal["enumerable", "linear-gaussian", "conditionally linear-gaussian", "no"]

PROBE_ROWS = 20
READ_ROWS = (7, 5)  # of two readings: a constant of that many entries may be one a row in one of them by chance
LARGEST_NUMBER = 2**53  # that every reader of JSON takes
COVERING_ROWS = 2000  # among which rows with holes are looked for
ENUMERATION_LIMIT = 10_000


@dataclass(frozen=True)
class Site:
    """One `sample` statement."""

    name: str
    role: Literal["latent", "observed"]
    scope: Literal["local", "global"]
    family: str
    event_shape: tuple[int, ...]
    plates: tuple[str, ...]  # inner plates first
    support: str
    discrete: bool
    cardinality: int | None = None  # values of the support, when it can be enumerated
    inner: int = 1  # independent copies of the site in each datum, from plates besides `data`
    inner_dims: tuple[tuple[int, int], ...] = ()  # the batch dimension and size of each of those plates
    completes: str | None = None  # the observed site whose missing entries this latent stands for, slot by slot
    moving: tuple[str, ...] = ()  # what the support of a discrete latent changes with, besides itself
    constraint: Any = field(default=None, repr=False, compare=False)  # the support itself


@dataclass(frozen=True)
class Parameter:
    """One parameter θ: its constrained shape and its constraint."""

    name: str
    shape: tuple[int, ...]
    constraint: str


@dataclass(frozen=True)
class Structure:
    """A program's sites and parameters, and whether its posterior and evidence are exact."""

    program: str
    n: int
    sites: tuple[Site, ...]
    parameters: tuple[Parameter, ...]
    exact: Exactness
    reason: str  # one sentence: why it is exact, or what stands in the way and at which site
    assignments: int = 1  # joint values of the discrete local latents
    data_dim: int = -1  # the batch dimension of the `data` plate
    max_plate_nesting: int = 1
    curvature_change: float | None = (
        None  # of the log joint in the continuous local latents, relative; None: there are none
    )
    warnings: tuple[str, ...] = field(default=())
    obstacle: str = ""  # why no method here can serve the program; "" where there is no such reason
    outside: tuple[str, ...] = ()  # what is observed outside the `data` plate

    @property
    def local_latents(self) -> tuple[Site, ...]:
        return tuple(s for s in self.sites if s.role == "latent" and s.scope == "local")

    @property
    def global_latents(self) -> tuple[Site, ...]:
        return tuple(s for s in self.sites if s.role == "latent" and s.scope == "global")

    @property
    def observed(self) -> tuple[Site, ...]:
        return tuple(s for s in self.sites if s.role == "observed")

    @property
    def discrete_locals(self) -> tuple[Site, ...]:
        return tuple(s for s in self.local_latents if s.discrete)

    @property
    def continuous_locals(self) -> tuple[Site, ...]:
        return tuple(s for s in self.local_latents if not s.discrete)

    def to_json(self) -> dict[str, Any]:
        """The structure as plain JSON types."""
        return {
            "model": self.program,
            "n": self.n,
            "exact": self.exact,
            "reason": self.reason,
            "assignments": self.assignments,
            "curvature_change": self.curvature_change,
            "sites": [_site_json(s) for s in self.sites],
            "parameters": [vars(p) | {"shape": list(p.shape)} for p in self.parameters],
            "warnings": list(self.warnings),
            "obstacle": self.obstacle or None,
        }


def _site_json(site: Site) -> dict[str, Any]:
    shown = {k: v for k, v in vars(site).items() if k not in ("constraint", "inner_dims", "moving")}
    if (site.cardinality or 0) > LARGEST_NUMBER:
        shown["cardinality"] = _written(site.cardinality or 0)
    return shown | {"event_shape": list(site.event_shape), "plates": list(site.plates)}


def describe(program: Program, x: Tensor, limit: int = ENUMERATION_LIMIT) -> Structure:
    """Trace `program` on a few rows of `x` [n, ...] and read its structure off the trace.

    `limit`: the most joint values of discrete local latents that count as enumerable.

    Raises `UsageError` when the program breaks the contract: it raises, has no plate named `data`, observes nothing,
    or the data lie outside the support of an observed site.
    """
    probe = _probe_rows(x, bool(program.completes))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with blame(program.name):
            trace = program.trace(probe)
        nodes = sample_nodes(trace)
        data_dim = check_contract(program, trace, nodes, len(probe))
        sites = tuple(_site(node) for node in nodes)
        with blame(program.name):
            check_growth(program, probe, nodes)
        depth = max((-f.dim for node in nodes for f in node["cond_indep_stack"] if f.dim is not None), default=1)
        matrices = any(hasattr(_innermost(node["fn"]), "covariance_matrix") for node in nodes)
        check_support(program, x, matrices)
        with blame(program.name):
            readings = _readings(program, probe, nodes, data_dim)
            if readings[0].covariates:
                _check_holes(program, x, nodes, data_dim)
            obstacle = _obstacle(sites, nodes, readings)
            witness = _witness.Witness(program, x, data_dim, depth)
            obstacle = obstacle or witness.complaint()
    sites, unproved = _listed(sites, readings[0]), obstacle or _unproved(readings)
    exact, reason, assignments = _exactness(sites, unproved, limit)
    change = None
    with blame(program.name):
        if exact != "no" and (names := [s for s in sites if s.role == "latent" and s.scope == "local"]):
            discrete, continuous = [s.name for s in names if s.discrete], [s.name for s in names if not s.discrete]
            if not any(s.completes for s in names) and (
                said := witness.side_by_side(discrete, continuous, assignments)
            ):
                exact, reason, assignments = "no", said, 1
            elif continuous:
                exact, reason, change = _quadratic(program, x, probe, nodes, data_dim, depth, assignments, readings[0])
    values = program.values()
    parameters = tuple(Parameter(n, tuple(v.shape), plain(program.constraints[n])) for n, v in values.items())
    outside = tuple(s.name for s in sites if s.role == "observed" and s.scope == "global")
    facts = (exact, reason, assignments, data_dim, depth, change, (), obstacle, outside)
    return Structure(program.name, len(x), sites, parameters, *facts)


def _readings(program: Program, probe: Tensor, nodes: list[Any], data_dim: int) -> list[Reading]:
    """The program read twice, on batches of two sizes."""
    rows = probe.nan_to_num(0.0)
    continuous = frozenset(
        n["name"] for n in nodes if _is_latent(n) and is_local(n) and not n["fn"].support.is_discrete
    )
    out = []
    for size in READ_ROWS:
        some = rows[: min(size, len(rows) if size == READ_ROWS[0] else max(1, len(rows) - 1))]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(size)
            drawn = sample_nodes(program.trace(some, raw=True))
        latents = {n["name"]: _in_full(n) for n in drawn if _is_latent(n)}
        latents = {k: v for k, v in latents.items() if not any(s["name"] == k and _completes(s) for s in nodes)}
        out.append(read(program, some, latents, data_dim, continuous))
    return out


def _check_holes(program: Program, x: Tensor, nodes: list[Any], data_dim: int) -> None:
    """No density may depend on an entry that is missing: every column is looked at in a row where it is."""
    holes = _covering_rows(x, _columns.missing_in_rows(x) > 0)
    for index in holes.split(READ_ROWS[0]) if len(holes) else ():
        for name, site in _reading_with_holes(program, x[index], nodes, data_dim).sites.items():
            if site.missing:
                raise UsageError(
                    f"the density of site '{name}' of '{program.name}' depends on an entry of x that is missing, in row "
                    f"{int(index[0])} (counting from 0) or another. Only what a site observes may be missing: compute with "
                    "the value that pyro.sample returns instead of x, or fill the column in."
                )


def _is_latent(node: Any) -> bool:
    return not node["is_observed"]


def _completes(node: Any) -> bool:
    return bool((node["infer"] or {}).get("_completes"))


def _is_masked(node: Any) -> bool:
    """Whether a mask, the program's or the distribution's own, takes away a part of a site's density."""
    fn, masks = node["fn"], [node["mask"]]
    while hasattr(fn, "base_dist"):
        masks.append(getattr(fn, "_mask", None))
        fn = fn.base_dist
    return any(m is not None and not bool(torch.as_tensor(m).all()) for m in masks)


def _in_full(node: Any) -> Tensor:
    fn, value = node["fn"], node["value"]
    return value.expand(torch.broadcast_shapes(value.shape, fn.batch_shape + fn.event_shape)).clone()


def _obstacle(sites: tuple[Site, ...], nodes: list[Any], readings: list[Reading]) -> str:
    """Why the program can be served by no method, in one sentence; "" where there is no such reason."""
    for node in nodes:
        if _is_latent(node) and is_local(node) and not _completes(node) and _is_masked(node):
            return (
                f"the latent '{node['name']}' is masked (obs_mask or poutine.mask), so that its density is no "
                "distribution: leave the mask out; an entry of x that is NaN counts as not observed"
            )
    for reading in readings:
        if reading.choices:
            return (
                f"{reading.choices[0]} (`if`, `int()`, `.item()`, NumPy), and what the program does next may change with it: "
                "keep it a tensor, with torch.where for a choice"
            )
    places = frozenset.intersection(*(frozenset(k for k, s in r.sites.items() if s.place) for r in readings))
    for name, site in readings[0].sites.items():
        if any(s.completes and s.name == name for s in sites):
            continue
        if site.random:
            return f"site '{name}' depends on random numbers that no pyro.sample draws: make them a latent"
        if site.joined and not site.unknown:
            by = f" ({site.joined_by})" if site.joined_by else ""
            return f"{_witness.JOINED}: at site '{name}'{by}"
        if name in places:
            return f"at site '{name}', {_witness.PLACE}"
    return ""


def _unproved(readings: list[Reading]) -> str:
    """What could not be followed, where measuring found nothing wrong: nothing is exact then."""
    for name, site in readings[0].sites.items():
        if site.joined and site.unknown and not name.endswith("_missing"):
            what = f"what {site.unknown_by} does" if site.unknown_by else "an operation"
            return f"at site '{name}' {what} cannot be followed, so that the rows are not proved independent"
    return ""


def _listed(sites: tuple[Site, ...], reading: Reading) -> tuple[Site, ...]:
    """The sites, where a support that changes with something else cannot be listed once for all."""
    out = []
    for s in sites:
        seen = reading.sites.get(s.name)
        moving = sorted(seen.support_from) if seen is not None and s.discrete and s.role == "latent" else []
        out.append(replace(s, cardinality=None, moving=tuple(moving)) if moving else s)
    return tuple(out)


def _probe_rows(x: Tensor, completed: bool) -> Tensor:
    """A few rows spread over the data, of those with the least missing: an unobserved row tells little.

    `completed`: missing entries become latents, and rows with some of them missing tell about those.
    """
    missing = _columns.missing_in_rows(x)
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


def _quadratic(
    program: Program,
    x: Tensor,
    probe: Tensor,
    nodes: list[Any],
    data_dim: int,
    depth: int,
    assignments: int,
    reading: Reading,
) -> tuple[Exactness, str, float]:
    """Is the log joint quadratic in the continuous local latents, with the probe rows complete and with holes in rows?"""
    if program.completes:
        reading = _reading_with_holes(program, probe[: READ_ROWS[0]].nan_to_num(0.0), nodes, data_dim)
    verdict = quadratic(program, probe, nodes, data_dim, depth, assignments, reading)
    if not program.completes:
        return verdict
    for rows in _covering(x).split(4):  # as many as are looked at in one go
        if verdict[0] == "no" or not len(rows):
            break
        with program.hiding(rows.isnan()):
            reading = _reading_with_holes(program, rows, nodes, data_dim)
            found = quadratic(program, rows, nodes, data_dim, depth, assignments, reading)
        verdict = max(verdict, found, key=lambda v: (v[0] == "no", v[2]))
    return verdict


def _reading_with_holes(program: Program, rows: Tensor, nodes: list[Any], data_dim: int) -> Reading:
    """The program read on partly missing rows: degrees alone."""
    continuous = frozenset(
        n["name"] for n in nodes if _is_latent(n) and is_local(n) and not n["fn"].support.is_discrete
    )
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        latents = {n["name"]: _in_full(n) for n in sample_nodes(program.trace(rows)) if _is_latent(n)}
    return read(program, rows, latents, data_dim, continuous, raw=False)


def _covering(x: Tensor) -> Tensor:
    """A few partly missing rows, chosen so that as many entries as can be are missing in one of them."""
    missing = _columns.missing_in_rows(x)
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


def _site(node: Any) -> Site:
    fn = node["fn"]
    discrete = bool(getattr(fn.support, "is_discrete", False))
    local = is_local(node)
    plates = tuple(f.name for f in sorted(node["cond_indep_stack"], key=lambda f: -f.dim))
    inner = math.prod(f.size for f in node["cond_indep_stack"] if f.name != DATA_PLATE)
    return Site(
        name=node["name"],
        role="observed" if node["is_observed"] else "latent",
        scope="local" if local else "global",
        family=family_name(fn),
        event_shape=tuple(fn.event_shape),
        plates=plates,
        support=plain(support_of(fn)),
        discrete=discrete,
        cardinality=cardinality(fn) if discrete and not node["is_observed"] else None,
        inner=inner,
        inner_dims=tuple(
            (f.dim, f.size) for f in sorted(node["cond_indep_stack"], key=lambda f: f.dim) if f.name != DATA_PLATE
        ),
        completes=(node["infer"] or {}).get("_completes"),
        constraint=support_of(fn),
    )


def _exactness(sites: tuple[Site, ...], dependent: str, limit: int) -> tuple[Exactness, str, int]:
    latent = [s for s in sites if s.role == "latent"]
    local = [s for s in latent if s.scope == "local"]
    if dependent:
        return "no", dependent, 1
    for s in latent:
        if s.scope == "global" and s.discrete:
            return "no", f"the global latent '{s.name}' is discrete", 1
    for s in local:
        if s.discrete and s.moving:
            what = ", ".join(f"'{m}'" if " " not in m else m for m in s.moving)
            return (
                "no",
                (
                    f"the support of '{s.name}' ({s.family}) changes with {what}: write it as a Categorical over all "
                    "values, with probability 0 for those that cannot be"
                ),
                1,
            )
        if s.discrete and s.cardinality is None:
            return "no", f"the support of '{s.name}' ({s.family}) cannot be enumerated", 1
    discrete = [s for s in local if s.discrete]
    count = math.prod((s.cardinality or 1) ** s.inner for s in discrete)
    if count > limit:
        names = ", ".join(f"'{s.name}'" for s in discrete)
        many = f"have {_written(count)} joint values, more than the limit of {limit:,}"
        return "no", f"the discrete latents {names} {many}", 1
    if not local:
        return "enumerable", "it has no local latents: the density itself is exact", 1
    names = " × ".join(f"'{s.name}'" for s in discrete)
    return "enumerable", f"the joint values of {names} can all be visited: {count}", count


def _written(count: int) -> str:
    """A count in digits, or as a power where it has too many."""
    if count < 10**15:
        return f"{count:,}"
    twos = (count & -count).bit_length() - 1
    odd = count >> twos
    tens = math.floor(count.bit_length() * math.log10(2))  # python does not write more than 4300 digits
    return f"2^{twos}" if odd == 1 else f"{odd} × 2^{twos}" if odd < 10**6 else f"about 10^{tens}"


def _innermost(fn: Any) -> type:
    """The class of a distribution, without what is wrapped around it."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn)
