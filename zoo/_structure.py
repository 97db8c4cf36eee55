"""What tracing a program tells: its sites, which latents belong to a datum, and what about it is exact, and why.

`describe(program, x)` runs the program on a few rows and returns a `Structure`. Inference methods decide from it alone
whether they can serve a program.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import pyro
import torch
from torch import Tensor

from zoo._curvature import quadratic
from zoo._errors import UsageError
from zoo._missing import Slots
from zoo._program import Program, blame
from zoo._trace import DATA_PLATE, family_name, is_local, local_log_prob, sample_nodes, shape_fits, support_of

Exactness = Literal["enumerable", "linear-gaussian", "conditionally linear-gaussian", "no"]

PROBE_ROWS = 20
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
        }


def _site_json(site: Site) -> dict[str, Any]:
    shown = {k: v for k, v in vars(site).items() if k not in ("constraint", "inner_dims")}
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
        data_dim = _check_contract(program, trace, nodes, len(probe))
        sites = tuple(_site(node) for node in nodes)
        depth = max((-f.dim for node in nodes for f in node["cond_indep_stack"] if f.dim is not None), default=1)
        _check_support(program, x, any(hasattr(_innermost(node["fn"]), "covariance_matrix") for node in nodes))
        dependent = _rows_depend(program, probe, nodes, data_dim)
    exact, reason, assignments = _exactness(sites, dependent, limit)
    change = None
    if exact != "no" and any(s.role == "latent" and s.scope == "local" and not s.discrete for s in sites):
        exact, reason, change = _quadratic(program, x, probe, nodes, data_dim, depth, assignments)
    values = program.values()
    parameters = tuple(Parameter(n, tuple(v.shape), _plain(program.constraints[n])) for n, v in values.items())
    return Structure(program.name, len(x), sites, parameters, exact, reason, assignments, data_dim, depth, change)


def _probe_rows(x: Tensor, completed: bool) -> Tensor:
    """A few rows spread over the data, of those with the least missing: an unobserved row tells little.

    `completed`: missing entries become latents, and rows with some of them missing tell about those.
    """
    missing = x.isnan().flatten(1).sum(1)
    count = max(int((missing == missing.min()).sum()), min(len(x), PROBE_ROWS))
    fullest = missing.argsort(stable=True)[:count].sort().values
    fullest = fullest[_spread(count, PROBE_ROWS)]
    if not completed:
        return x[fullest]
    holed = ((missing > 0) & (missing < x[0].numel())).nonzero()[:, 0]
    holed = holed[_spread(len(holed), PROBE_ROWS // 4)]
    return x[torch.cat([holed, fullest[: PROBE_ROWS - len(holed)]])]


def _spread(count: int, most: int) -> Tensor:
    """At most `most` of the numbers 0 … count − 1, evenly spread."""
    return torch.linspace(0, count - 1, min(count, most)).round().long().unique()


def _quadratic(
    program: Program, x: Tensor, probe: Tensor, nodes: list[Any], data_dim: int, depth: int, assignments: int
) -> tuple[Exactness, str, float]:
    """Is the log joint quadratic in the continuous local latents, with the probe rows complete and with holes in rows?"""
    verdict = quadratic(program, probe, nodes, data_dim, depth, assignments)
    if not program.completes:
        return verdict
    for rows in _covering(x).split(4):  # as many as are looked at in one go
        if verdict[0] == "no" or not len(rows):
            break
        with program.hiding(rows.isnan()):
            found = quadratic(program, rows, nodes, data_dim, depth, assignments)
        verdict = max(verdict, found, key=lambda v: (v[0] == "no", v[2]))
    return verdict


def _covering(x: Tensor) -> Tensor:
    """A few partly missing rows, chosen so that as many entries as can be are missing in one of them."""
    missing = x.isnan().flatten(1)
    partly = (missing.any(1) & ~missing.all(1)).nonzero()[:, 0]
    partly = partly[_spread(len(partly), COVERING_ROWS)]
    missing, chosen = missing[partly], list[int]()
    open_ = missing.any(0)
    while len(chosen) < PROBE_ROWS and bool(open_.any()):
        chosen.append(int((missing & open_).sum(1).argmax()))
        open_ = open_ & ~missing[chosen[-1]]
    return x[partly[chosen]]


def _check_contract(program: Program, trace: Any, nodes: list[Any], rows: int) -> int:
    frames = [f for node in nodes for f in node["cond_indep_stack"] if f.name == DATA_PLATE]
    if not frames:
        names = sorted({f.name for node in nodes for f in node["cond_indep_stack"]})
        raise UsageError(
            f"the program '{program.name}' has no plate named '{DATA_PLATE}' around its latents and observations "
            f"({'its plates: ' + ', '.join(names) if names else 'it has no plates'}); write "
            f'`with pyro.plate("{DATA_PLATE}", len(x)):`.'
        )
    if {f.size for f in frames} != {rows}:
        raise UsageError(
            f"the plate '{DATA_PLATE}' of '{program.name}' has size {frames[0].size} for {rows} rows of data; "
            "its size must be len(x)."
        )
    if not any(node["is_observed"] and is_local(node) for node in nodes):
        raise UsageError(f"the program '{program.name}' observes nothing inside the plate '{DATA_PLATE}': pass obs=x.")
    return frames[0].dim


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
        support=_plain(support_of(fn)),
        discrete=discrete,
        cardinality=_cardinality(fn) if discrete and not node["is_observed"] else None,
        inner=inner,
        inner_dims=tuple(
            (f.dim, f.size) for f in sorted(node["cond_indep_stack"], key=lambda f: f.dim) if f.name != DATA_PLATE
        ),
        completes=(node["infer"] or {}).get("_completes"),
        constraint=support_of(fn),
    )


def _cardinality(fn: Any) -> int | None:
    if isinstance(fn, Slots):  # too many, perhaps, to be made
        return fn.cardinality
    try:
        return len(fn.enumerate_support(expand=False))
    except (NotImplementedError, ValueError):
        return None


def _plain(constraint: Any) -> str:
    if type(constraint).__name__ == "_IndependentConstraint":
        constraint = constraint.base_constraint
    return str(constraint).removesuffix("()").replace("_", "")


def _exactness(sites: tuple[Site, ...], dependent: str, limit: int) -> tuple[Exactness, str, int]:
    latent = [s for s in sites if s.role == "latent"]
    local = [s for s in latent if s.scope == "local"]
    if dependent:
        return "no", dependent, 1
    for s in latent:
        if s.scope == "global" and s.discrete:
            return "no", f"the global latent '{s.name}' is discrete", 1
    for s in local:
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


def _check_support(program: Program, x: Tensor, matrices: bool) -> None:
    """Every observed value must lie in the support of its site; the first that does not is named.

    `matrices`: the program may make a matrix for each row.
    """
    width = x[0].numel()
    size = max(16, min(8192, 2**22 // max(1, width ** (2 if matrices else 1))))
    for start in range(0, len(x), size):
        _check_rows(program, x[start : start + size], start)


def _check_rows(program: Program, x: Tensor, start: int) -> None:
    with blame(program.name), pyro.poutine.block(), pyro.validation_enabled(False):
        trace = program.trace(x)
    latents = any(not node["is_observed"] for node in sample_nodes(trace))
    for node in sample_nodes(trace):
        if not node["is_observed"] or not isinstance(node["value"], Tensor):
            continue
        fn, value = node["fn"], node["value"]
        _check_shape(program, node)
        ok = torch.as_tensor(fn.support.check(value))
        dim = next(f.dim for f in node["cond_indep_stack"] if f.name == DATA_PLATE) if is_local(node) else -1
        if bool(ok.all()):
            _check_density(program, node, dim, start, x, latents)
            continue
        row = int((~ok).nonzero()[0, dim]) if ok.dim() else 0
        axis = dim - len(fn.event_shape)
        shown = value.select(axis, row).flatten()[:4].tolist() if value.dim() >= -axis else value.flatten()[:4].tolist()
        raise UsageError(
            f"the data lie outside the support of site '{node['name']}' of '{program.name}', which is "
            f"{_plain(fn.support)}: row {start + row} (counting from 0) holds {shown}."
        )


def _check_density(program: Program, node: Any, dim: int, start: int, x: Tensor, latents: bool) -> None:
    """A density that is not a number: the program computes with an entry of x that is not observed, say."""
    with blame(program.name), pyro.validation_enabled(False):
        bad = node["fn"].log_prob(node["value"]).isnan()
    if bad.any():
        row = int(bad.nonzero()[0, dim]) if bad.dim() else 0
        where = f"the density of site '{node['name']}' of '{program.name}' is not a number at row {start + row}"
        if bool(x[row].isnan().any()):
            raise UsageError(
                f"{where} (counting from 0): does it compute with an entry of x that is missing there? Only what a site "
                "observes may be missing."
            )
        cause = "for some values of its latents" if latents else "at the values its parameters start from"
        raise UsageError(
            f"{where} (counting from 0) {cause}, though nothing is missing there: see what it is computed from."
        )


def _check_shape(program: Program, node: Any) -> None:
    """An observed value must have the shape of its distribution: else every row would meet every other."""
    fn, value = node["fn"], node["value"]
    whole = tuple(fn.batch_shape) + tuple(fn.event_shape)
    fits = shape_fits(node)
    if not fits:
        raise UsageError(
            f"site '{node['name']}' of '{program.name}' observes values of shape {tuple(value.shape)}, and its distribution "
            f"has the shape {whole}; a table has one row a datum and its columns in the event: `.to_event(1)`."
        )


def _rows_depend(program: Program, probe: Tensor, nodes: list[Any], data_dim: int) -> str:
    """A sentence when a row's density changes with the other rows of the batch, else ""."""
    latents = {n["name"]: n["value"] for n in nodes if not n["is_observed"]}
    local = {n["name"]: n for n in nodes if is_local(n) and not n["is_observed"]}

    def rows(index: slice) -> dict[str, Tensor]:
        out = {}
        for name, value in latents.items():
            if name in local:
                dim = value.dim() - len(local[name]["fn"].event_shape) + data_dim
                value = value[(slice(None),) * dim + (index,)] if dim >= 0 else value
            out[name] = value
        return out

    with blame(program.name):
        whole = local_log_prob(program.trace(probe, latents=rows(slice(None))), data_dim, len(probe))
        alone = local_log_prob(program.trace(probe[:1], latents=rows(slice(0, 1))), data_dim, 1)
    tolerance = 1e-6 if probe.dtype == torch.float64 else 1e-3
    if bool(torch.isclose(whole[..., :1], alone, rtol=tolerance, atol=tolerance, equal_nan=True).all()):
        return ""
    return "a row's density changes with the other rows of the batch, so the rows are not independent given θ"
