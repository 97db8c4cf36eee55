"""Run → ArviZ: the DataTree of a run, and its leave-one-out. Imported where it is needed: xarray takes half a second.

Reference: Vehtari, Gelman & Gabry 2017, "Practical Bayesian model evaluation using leave-one-out cross-validation
and WAIC", Statistics and Computing 27(5).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from inference._method.fit import Evidence
from inference._numerics.psis import blocks, resolution_of, tail_length, too_alike
from inference._run.record import ROW_WEIGHTS, Record
from zoo._errors import UsageError

if TYPE_CHECKING:
    from arviz_stats.utils import ELPDData

Variable = tuple[tuple[str, ...], np.ndarray]  # (dims, values)
Variables = dict[str, Variable]  # by name
Attributes = dict[str, str | bool | int | float]


def to_datatree(run: Record) -> xr.DataTree:
    """The run in ArviZ's schema; a group with nothing in it is left out.

    - `posterior` (chain, draw, …): the draws; a local site has the dimension `data` next
    - `posterior_predictive` (chain, draw, data, …): each observed site, and `x`, all of a row, where the program returns it
    - `log_likelihood` (chain, draw, data): `x`, where θ or the global latents have draws; one point has no leave-one-out
    - `sample_stats` (data, …): `khat`, `ess`, evidence per row (nats); of local sites `<site>_probability`, or `<site>_mean`
      and `<site>_sd`
    - `observed_data`: `x`, NaN where unobserved, and each observed site's own part of it
    - `constant_data`: the parameters under their own names (with "." for "/"), `labels`, and `row_weights` where rows have some
    - `standard_errors`: of the parameters; `trace`: what was followed over the iterations

    Evidence, provenance and options stand in the root's attributes. Without draws there is no `posterior`,
    and `arviz_stats.summary` and `loo` say that they need one.
    """
    allow_certain_draws()
    groups = {
        "posterior": _posterior(run),
        "posterior_predictive": _data(run.predictive, run, ("chain", "draw")),
        "log_likelihood": _log_likelihood(run),
        "sample_stats": _sample_stats(run),
        "observed_data": _data({**run.observed, "x": run.x}, run),
        "constant_data": _constant_data(run),
        "standard_errors": {_key(name): _variable(name, values) for name, values in run.standard_errors.items()},
        "trace": _trace(run.trace),
    }
    datasets = {name: _dataset(variables, run) for name, variables in groups.items() if variables}
    if "log_likelihood" in datasets:
        datasets["log_likelihood"].attrs.update(LOG_LIKELIHOOD_ATTRS)
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=_attrs(run)), **datasets})


def _posterior(run: Record) -> Variables:
    out: Variables = {}
    for name, values in run.draws.items():
        local = name in run.local_sites
        if local and np.shape(values)[1:2] != (run.n,):
            wanted = f"[draws, {run.n}, ...] for the draws of the local site '{name}'"
            raise ValueError(f"Expected shape {wanted}, got {np.shape(values)}.")
        lead = ("chain", "draw", "data") if local else ("chain", "draw")
        out[_key(name)] = _variable(name, np.asarray(values)[None], lead)
    return out


def _data(values: Mapping[str, np.ndarray], run: Record, lead: tuple[str, ...] = ()) -> Variables:
    """Data by name, `x` and observed sites, after the dimensions `lead`; each row is an entry of the dimension `data`."""
    out: Variables = {}
    for name, value in values.items():
        value, inner = _plain(value), value.shape[len(lead) - 1 if lead else 0 :]
        rows = ("data",) if inner[:1] == (run.n,) else ()
        dims = _x_dims(run) if name == "x" else _dims(_key(name), len(inner), rows)
        out[_key(name)] = ((*lead, *dims), value[None] if lead else value)
    return out


LOG_LIKELIHOOD_ATTRS = {"units": "nats", "comment": "log p(x_i | draw of theta), local latents integrated out."}


def _log_likelihood(run: Record) -> Variables:
    if run.log_likelihood is None:
        return {}
    return {"x": (("chain", "draw", "data"), _spread_ties(run.log_likelihood)[None])}


def _spread_ties(log_likelihood: np.ndarray) -> np.ndarray:
    """The log likelihood [draws, n], as float64, without the ties that `arviz_stats.loo` fails on.

    It raises where all ratios of a row's tail are equal (a row with nothing observed: 0 at every θ), and divides by
    zero where over a quarter of the tail is tied with the cutoff (repeated draws). Of a row that no draw changes the
    leave-one-out is its log likelihood. Values spread evenly, by 1e-9 of their size (by rounding, if that already sets
    them apart), have this answer to as many digits, and a k-hat far below zero.
    """
    out = np.array(log_likelihood, dtype=np.float64)
    draws, n = out.shape
    if tail_length(draws) < 5:  # ArviZ has no LOO of so few draws at all
        return out
    resolution = resolution_of(np.asarray(log_likelihood).dtype)
    golden = (np.arange(draws) + 0.5) * (5**0.5 - 1) / 2 % 1  # even over [0, 1), and no trend over the draws
    for rows in blocks(draws, n):
        tied = rows.start + np.flatnonzero(too_alike(-out[:, rows].T, resolution))
        size = np.maximum(1.0, np.abs(out[0, tied]))
        size *= np.where(np.ptp(out[:, tied], axis=0) > 0, max(1e-9, resolution), 1e-9)
        out[:, tied] += (2 * golden - 1)[:, None] * size
    return out


def _sample_stats(run: Record) -> Variables:
    per_datum = {"khat": run.khat, "ess": run.ess}
    if run.claimed is not None:
        per_datum |= {"log_evidence": run.claimed.per_datum, "log_evidence_se": run.claimed.se_per_datum}
    if run.verified is not None:
        per_datum["verified_log_evidence"] = run.verified.per_datum
        per_datum["verified_log_evidence_se"] = run.verified.se_per_datum
    out: Variables = {k: (("data",), np.asarray(v)) for k, v in per_datum.items() if v is not None}
    of_sites = {"probability": run.probabilities, "mean": run.means, "sd": run.deviations}
    for what, arrays in of_sites.items():
        for site, values in arrays.items():
            name = f"{_key(site)}_{what}"
            out[name] = _variable(name, values, ("data",))
    return out


def _constant_data(run: Record) -> Variables:
    out: Variables = {_key(name): _variable(name, values) for name, values in run.parameters.items()}
    if run.labels is not None:
        out["labels" if "labels" not in out else "data_labels"] = (("data",), np.asarray(run.labels))
    if run.dataset.weights is not None:
        out[ROW_WEIGHTS] = (("data",), np.asarray(run.dataset.weights))
    return out


def _trace(trace: Mapping[str, np.ndarray]) -> Variables:
    """Traces along `iteration`; one that is shorter than the longest has a dimension of its own."""
    steps = max((len(values) for values in trace.values()), default=0)
    own = {name: "iteration" if len(v) == steps else f"{_key(name)}_iteration" for name, v in trace.items()}
    return {_key(name): _variable(name, values, (own[name],)) for name, values in trace.items()}


def _dataset(variables: Variables, run: Record) -> xr.Dataset:
    """Variables with an index 0, 1, … along every dimension; the columns' names along `column`, the rows' along `data`."""
    sizes = {dim: size for dims, v in variables.values() for dim, size in zip(dims, v.shape, strict=True)}
    coords: dict[str, np.ndarray | list[str]] = {
        dim: np.arange(size) for dim, size in sizes.items() if dim not in variables
    }
    if "column" in sizes:
        coords["column"] = list(run.columns)
    if "data" in sizes and run.dataset.row_names is not None:
        coords["data"] = list(run.dataset.row_names)
    return xr.Dataset(variables, coords=coords)


def _variable(name: str, values: np.ndarray, lead: tuple[str, ...] = ()) -> Variable:
    """(dims, values): the leading dimensions, then `<name>_dim_0`, `<name>_dim_1`, …"""
    values = _plain(np.asarray(values))
    return _dims(_key(name), values.ndim, lead), values


def _plain(values: np.ndarray) -> np.ndarray:
    """Booleans as 0 and 1: ArviZ's quantiles do not take them."""
    return values.astype(np.int8) if values.dtype == bool else values


def _dims(name: str, ndim: int, lead: tuple[str, ...] = ()) -> tuple[str, ...]:
    return (*lead, *(f"{name}_dim_{i}" for i in range(ndim - len(lead))))


def _x_dims(run: Record) -> tuple[str, ...]:
    return ("data", "column") if run.columns and run.x.ndim == 2 else _dims("x", run.x.ndim, ("data",))


def _key(name: str) -> str:
    """A name that a DataTree takes: there, a slash parts groups."""
    return name.replace("/", ".")


def _attrs(run: Record) -> Attributes:
    """The root's attributes: numbers, booleans, strings, JSON for what is nested; the unknown is left out."""
    out: Attributes = {
        "model": run.model,
        "data": run.data,
        "method": run.method,
        "seed": run.seed,
        "n": run.n,
        "seconds": float(run.seconds),
        "peak_memory_mb": float(run.peak_memory_mb),
        "inference_library": "latent-zoo",
        "created_at": run.created,
    }
    if run.converged is not None:
        out["converged"] = bool(run.converged)
    out |= _evidence_attrs("log_evidence", run.claimed)
    out |= _evidence_attrs("verified_log_evidence", run.verified)
    nested = {"options": run.options, "notes": run.notes, "warnings": run.warnings, "versions": run.versions}
    if renamed := {_key(name): name for name in (*run.parameters, *run.draws, *run.trace) if _key(name) != name}:
        nested["names"] = renamed
    return out | {k: json.dumps(v, ensure_ascii=False, default=str) for k, v in nested.items()}


def _evidence_attrs(name: str, evidence: Evidence | None) -> Attributes:
    """`<name>` (the total, nats) and `<name>_kind`; `<name>_se` and `<name>_given` where there are such."""
    if evidence is None:
        return {}
    out: Attributes = {name: float(evidence.value), f"{name}_kind": evidence.kind}
    if evidence.se is not None:
        out[f"{name}_se"] = float(evidence.se)
    return out | ({f"{name}_given": evidence.given} if evidence.given else {})


LEAST_DRAWS = 25  # from which a tail can be fitted


def loo(run: Record, tree: xr.DataTree, **options: object) -> ELPDData:
    """`arviz_stats.loo` of a run, whose `to_datatree` is given, and whose θ or global latents have draws.

    Raises `UsageError` where they are one point (its `loo` would be the training likelihood, which always prefers the
    larger model), where log p(x_i | draw) is not known, or for fewer than 25 draws.
    """
    import arviz_stats

    instead = (
        "Compare models by the evidence under priors (global latents, method=laplace or svi), by log p(x) of held-out rows "
        "(`infer` with other data), or by BIC."
    )
    drawn = [name for name in run.draws if name not in run.local_sites]
    if not drawn:
        raise UsageError(
            f"loo needs draws of θ, and this fit has a single point, whose loo would be the training likelihood. {instead}"
        )
    if run.log_likelihood is None and not run.learned:
        raise UsageError(
            f"loo needs draws around a mode, and this fit keeps the θ of another run; run laplace itself. {instead}"
        )
    if run.log_likelihood is None:
        raise UsageError(f"loo needs log p(x_i | draw), which is unknown at the draws of {', '.join(drawn)}. {instead}")
    if len(run.log_likelihood) < LEAST_DRAWS:
        raise UsageError(f"loo needs {LEAST_DRAWS} draws of θ, and this fit keeps {len(run.log_likelihood)}. {instead}")
    if run.dataset.weights is not None:
        raise UsageError(f"loo counts every row once, and the rows of this run have weights. {instead}")
    found: ELPDData = arviz_stats.loo(tree, **options)
    return found


def allow_certain_draws() -> None:
    """Keep `arviz_stats.summary` from warning of a latent that is the same in every draw.

    ArviZ computes the standard error of its standard deviation as 0/0: the summary rightly says NaN, with a RuntimeWarning
    for each, though a discrete latent may well be certain. The user calls `summary` after the run, so only a warnings filter
    can help: for this message, from that module of ArviZ.
    """
    warnings.filterwarnings(
        "ignore",
        message=r"invalid value encountered in (scalar divide|sqrt)",
        category=RuntimeWarning,
        module=r"arviz_stats\.base\.diagnostics",
    )
