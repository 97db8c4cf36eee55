"""Fit → ArviZ: PSIS diagnostics, the DataTree of a fit, and its leave-one-out.

The only file that imports ArviZ; importing it takes a second, so this file is itself imported lazily.

References: Vehtari, Simpson, Gelman, Yao & Gabry 2024, "Pareto smoothed importance sampling", JMLR 25(72);
Vehtari, Gelman & Gabry 2017, "Practical Bayesian model evaluation using leave-one-out cross-validation and
WAIC", Statistics and Computing 27(5); Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021, "Rank-normalization,
folding, and localization: an improved R-hat", Bayesian Analysis 16(2).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import xarray as xr
from arviz_stats.base import array_stats

from inference._method.fit import Evidence, Fit
from zoo._errors import UsageError

Variable = tuple[tuple[str, ...], np.ndarray]  # (dims, values)
Variables = dict[str, Variable]  # by name

BLOCK = 4_000_000  # numbers worked on at once, 32 MB an array: bounds the memory
ROUNDING = 32  # units in the last place within which log weights count as equal
RELATIVE_SE = 0.1  # the Monte Carlo error of the mean weight that counts as reliable
SAME = 3  # decimals of a nat to which log-densities count as equal


# ---- PSIS ------------------------------------------------------------------------------------------------


def psis(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """PSIS k-hat [n] and effective sample size [n] of importance log weights [draws, n], nats, unnormalised.

    k-hat is the shape of the generalised Pareto distribution fitted to the largest weights of each datum
    (Vehtari et al. 2024); above 0.7 the importance sampling estimate of that datum is not to be trusted.
    ESS = (Σw)² / Σw² of the raw weights. Neither can see a region that the proposal never visited.
    Where a Pareto tail has no meaning:

    - fewer than 25 draws (a tail of under five): k-hat = inf, since it cannot be checked;
    - every weight zero, or one that is NaN or infinite: k-hat = inf, ESS = 0;
    - the largest weight is shared by more draws than the tail is long, as when all weights are equal (the
      proposal is exact, to rounding): the ratios are seen to be bounded there, k-hat = 0;
    - a tail of a few distinct values (discrete latents): such ratios have all their moments, and what is left
      of the error is in ESS; see `_khat_of_ess`.
    """
    log_weights = np.asarray(log_weights)
    if log_weights.ndim != 2:
        raise ValueError(f"log_weights has shape {log_weights.shape}; it must be [draws, n]")
    draws, n = log_weights.shape
    khat, ess = np.full(n, np.inf), np.zeros(n)
    for rows in _blocks(draws, n):
        block = np.ascontiguousarray(log_weights[:, rows].T, dtype=np.float64)
        khat[rows], ess[rows] = _psis_block(block, _resolution(log_weights.dtype))
    return khat, ess


def _psis_block(log_weights: np.ndarray, resolution: float) -> tuple[np.ndarray, np.ndarray]:
    """k-hat and ESS, each [rows], of log weights [rows, draws]."""
    rows, draws = log_weights.shape
    khat, ess = np.full(rows, np.inf), np.zeros(rows)
    with np.errstate(all="ignore"):  # weights that underflow to zero are meant to
        proper = np.isfinite(log_weights.max(axis=1))  # not so with a NaN, a +inf, or all -inf
        log_weights = log_weights[proper]
        weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
        ess[proper] = weights.sum(axis=1) ** 2 / (weights**2).sum(axis=1)
        if _tail_length(draws) >= 5:
            equal = _equal_to_rounding(log_weights, resolution)
            khat[proper] = np.where(equal, 0.0, _khat(log_weights, weights, ess[proper]))
    return khat, ess


def _khat(log_weights: np.ndarray, weights: np.ndarray, ess: np.ndarray) -> np.ndarray:
    """k-hat [rows] of weights [rows, draws] with a maximum of 1, by the kind of tail that each row has."""
    tail = _tail(weights)
    above = (tail > tail[:, :1]).sum(axis=1)  # draws strictly above the cutoff
    distinct = (np.diff(tail, axis=1) > 0).sum(axis=1)  # values strictly above the cutoff
    continuous = (above >= 5) & (2 * distinct > above)
    direct = continuous & _fittable(tail)
    khat = _khat_of_ess(ess, weights.shape[1])
    khat[direct] = _khat_of_tail(log_weights[direct])
    for row in np.flatnonzero(continuous & ~direct):  # a continuous tail, but on top of ties
        khat[row] = max(khat[row], _khat_of_tail(_shorten(log_weights[row], int(above[row])))[0])
    khat[above == 0] = 0.0
    return np.where(np.isnan(khat), np.inf, khat)


def _khat_of_tail(log_weights: np.ndarray) -> np.ndarray:
    """ArviZ's k-hat [rows] of log weights [rows, draws].

    By `psislw`, which takes log likelihoods: ratios with the sign turned. (`pareto_khat(log_weights=True)` of
    arviz-stats 0.8 fits the tail of the log weights themselves, which is another number.)
    """
    return array_stats.psislw(-log_weights, axis=-1)[1] if len(log_weights) else np.empty(0)


def _khat_of_ess(ess: np.ndarray, draws: int) -> np.ndarray:
    """A k-hat [rows] for weights that take finitely many values, from their effective sample size [rows].

    The mean of S such weights has a relative variance of (draws/ESS − 1) / S, so a relative standard error of
    10 % takes S = 100 (draws/ESS − 1). A tail of shape k takes S = 10^(1/(1 − max(0, k))) (Vehtari et al.
    2024). This is the k that takes as many: 0 for weights that are nearly equal, above 0.7 where ESS is below
    about 4 % of the draws.
    """
    needed = (draws / ess - 1) / RELATIVE_SE**2
    return 1 - 1 / np.log10(np.maximum(10.0, needed))


def _shorten(log_weights: np.ndarray, above: int) -> np.ndarray:
    """Of log weights [draws], a row [1, fewer] whose tail is just the `above` draws over the tied cutoff.

    k-hat is a function of the exceedances over the cutoff alone. Where the cutoff is tied they are not a
    whole tail, so they are given to ArviZ with as many draws at the cutoff as make them one.
    """
    draws = 5 * above if above <= 45 else -(-(above**2) // 9)
    index = np.maximum(np.arange(draws) - draws + above + 1, 0)
    return np.sort(log_weights)[-above - 1 :][None, index]


def _tail(weights: np.ndarray) -> np.ndarray:
    """The cutoff and then the tail, ascending, [rows, 1 + tail], of weights [rows, draws]."""
    first = weights.shape[1] - _tail_length(weights.shape[1]) - 1
    return np.sort(np.partition(weights, first, axis=1)[:, first:], axis=1)


def _tail_length(draws: int) -> int:
    """How many of the largest weights make the tail (Vehtari et al. 2024, with independent draws)."""
    return int(3 * draws**0.5) if draws > 225 else draws // 5


def _fittable(tail: np.ndarray) -> np.ndarray:
    """[rows] whether ArviZ can fit a tail [rows, 1 + tail]: some spread, no quarter of it at the cutoff."""
    quartile = int((tail.shape[1] - 1) / 4 + 0.5)
    return (tail[:, quartile] > tail[:, 0]) & (tail[:, -1] > tail[:, 1])


def _equal_to_rounding(values: np.ndarray, resolution: float) -> np.ndarray:
    """[rows] whether the values of a row [rows, draws] are finite and differ by rounding at most."""
    low, high = values.min(axis=1), values.max(axis=1)
    return np.isfinite(low) & (high - low <= resolution * np.maximum(1.0, np.abs(high)))


def _resolution(dtype: np.dtype) -> float:
    """The relative difference within which numbers of this dtype count as equal."""
    return ROUNDING * float(np.finfo(dtype if np.issubdtype(dtype, np.floating) else np.float64).eps)


def _blocks(draws: int, n: int) -> Iterator[slice]:
    """Slices of the n data of an array [draws, n], of at most `BLOCK` numbers each; none without draws."""
    step = max(1, BLOCK // max(1, draws))
    yield from (slice(start, min(start + step, n)) for start in range(0, n if draws else 0, step))


# ---- chains ----------------------------------------------------------------------------------------------


def mixing(log_density: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank-normalised split R-hat [n] and bulk ESS [n] of log-densities along chains [chains, draws, n], nats.

    Chains that all stand at one value agree: R-hat = 1, and every draw counts. Where a value is not finite, or
    each chain stands at a value of its own: R-hat = inf. Values are rounded first: where a state has many chains
    in it, ranks would tell its chains apart by their rounding errors.
    """
    chains, draws, n = log_density.shape
    rhat, ess = np.full(n, np.inf), np.zeros(n)
    values = np.moveaxis(np.round(log_density.astype(np.float64), SAME), -1, 0)
    finite = np.isfinite(values).all(axis=(1, 2))
    still = finite & (values == values[:, :1, :1]).all(axis=(1, 2))
    rhat[still], ess[still] = 1.0, chains * draws
    moving = finite & (values != values[:, :, :1]).any(axis=(1, 2))
    if moving.any():
        with np.errstate(all="ignore"):  # halves of chains may stand still
            rhat[moving] = np.nan_to_num(array_stats.rhat(values[moving]), nan=np.inf, posinf=np.inf)
            ess[moving] = np.nan_to_num(array_stats.ess(values[moving]), nan=0.0)
    return rhat, ess


# ---- DataTree --------------------------------------------------------------------------------------------


def to_datatree(fit: Fit) -> xr.DataTree:
    """The fit in ArviZ's schema; a group with nothing in it is left out.

    - `posterior` (chain, draw, …): the draws; a local site has the dimension `data` next
    - `posterior_predictive` (chain, draw, data, …): each observed site, and `x`, all of a datum, where the program returns it
    - `log_likelihood` (chain, draw, data): `x`, where θ or the global latents have draws; one point has no leave-one-out
    - `sample_stats` (data, …): `khat`, `ess`, evidence per datum (nats), `<site>_probability` where discrete
    - `observed_data`: `x`, NaN where unobserved, and each observed site's own part of it
    - `constant_data`: the parameters under their own names (with "." for "/"), and `labels`
    - `trace`: what was followed over the iterations

    Evidence, provenance and options stand in the root's attributes. Without draws there is no `posterior`,
    and `arviz_stats.summary` and `loo` say that they need one.
    """
    allow_certain_draws()
    groups = {
        "posterior": _posterior(fit),
        "posterior_predictive": _data(fit.predictive, fit, ("chain", "draw")),
        "log_likelihood": _log_likelihood(fit),
        "sample_stats": _sample_stats(fit),
        "observed_data": {} if fit.x is None else _data({**fit.observed, "x": fit.x}, fit),
        "constant_data": _constant_data(fit),
        "trace": _trace(fit.trace),
    }
    datasets = {name: _dataset(variables, fit) for name, variables in groups.items() if variables}
    if "log_likelihood" in datasets:
        datasets["log_likelihood"].attrs.update(LOG_LIKELIHOOD_ATTRS)
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=_attrs(fit)), **datasets})


def _posterior(fit: Fit) -> Variables:
    out: Variables = {}
    for name, values in fit.draws.items():
        local = name in fit.local_sites
        if local and fit.x is not None and np.shape(values)[1:2] != (fit.n,):
            shape = f"has shape {np.shape(values)}; it must be [draws, {fit.n}, ...]"
            raise ValueError(f"the array of draws of the local site '{name}' {shape}")
        lead = ("chain", "draw", "data") if local else ("chain", "draw")
        out[_key(name)] = _variable(name, np.asarray(values)[None], lead)
    return out


def _data(values: Mapping[str, np.ndarray], fit: Fit, lead: tuple[str, ...] = ()) -> Variables:
    """Data by name, `x` and observed sites, after the dimensions `lead`; a row of the data is an entry of `data`."""
    out: Variables = {}
    for name, value in values.items():
        value, inner = _plain(value), value.shape[len(lead) - 1 if lead else 0 :]
        rows = ("data",) if inner[:1] == (fit.n,) else ()
        dims = _x_dims(fit) if name == "x" else _dims(_key(name), len(inner), rows)
        out[_key(name)] = ((*lead, *dims), value[None] if lead else value)
    return out


LOG_LIKELIHOOD_ATTRS = {"units": "nats", "comment": "log p(x_i | draw of theta), local latents integrated out."}


def _log_likelihood(fit: Fit) -> Variables:
    if fit.log_likelihood is None:
        return {}
    return {"x": (("chain", "draw", "data"), _spread_ties(fit.log_likelihood)[None])}


def _spread_ties(log_likelihood: np.ndarray) -> np.ndarray:
    """The log likelihood [draws, n], as float64, without the ties that `arviz_stats.loo` fails on.

    It raises where all ratios of a datum's tail are equal (a row with nothing observed: 0 at every θ), and divides by
    zero where over a quarter of the tail is tied with the cutoff (repeated draws). Of a row that no draw changes the
    leave-one-out is its log likelihood. Values spread evenly, by 1e-9 of their size (by rounding, if that already sets
    them apart), have this answer to as many digits, and a k-hat far below zero.
    """
    out = np.array(log_likelihood, dtype=np.float64)
    draws, n = out.shape
    if _tail_length(draws) < 5:  # ArviZ has no LOO of so few draws at all
        return out
    resolution = _resolution(np.asarray(log_likelihood).dtype)
    golden = (np.arange(draws) + 0.5) * (5**0.5 - 1) / 2 % 1  # even over [0, 1), and no trend over the draws
    for rows in _blocks(draws, n):
        tied = rows.start + np.flatnonzero(_tied(-out[:, rows].T, resolution))
        size = np.maximum(1.0, np.abs(out[0, tied]))
        size *= np.where(np.ptp(out[:, tied], axis=0) > 0, max(1e-9, resolution), 1e-9)
        out[:, tied] += (2 * golden - 1)[:, None] * size
    return out


def _tied(log_ratios: np.ndarray, resolution: float) -> np.ndarray:
    """[rows] whether log ratios [rows, draws] are all finite, and too much alike for ArviZ to fit a tail."""
    finite = np.isfinite(log_ratios).all(axis=1)
    log_ratios = np.where(finite[:, None], log_ratios, 0.0)
    with np.errstate(under="ignore"):
        ratios = np.exp(log_ratios - log_ratios.max(axis=1, keepdims=True))
    return finite & (_equal_to_rounding(log_ratios, resolution) | ~_fittable(_tail(ratios)))


def _sample_stats(fit: Fit) -> Variables:
    per_datum = {
        "khat": fit.khat,
        "ess": fit.ess,
        "log_evidence": fit.claimed and fit.claimed.per_datum,
        "log_evidence_se": fit.claimed and fit.claimed.se_per_datum,
        "verified_log_evidence": fit.verified and fit.verified.per_datum,
    }
    out: Variables = {k: (("data",), np.asarray(v)) for k, v in per_datum.items() if v is not None}
    for site, values in fit.probabilities.items():
        name = f"{_key(site)}_probability"
        out[name] = _variable(name, values, ("data",))
    return out


def _constant_data(fit: Fit) -> Variables:
    out = {_key(name): _variable(name, values) for name, values in fit.parameters.items()}
    if fit.labels is not None:
        out["labels" if "labels" not in out else "data_labels"] = (("data",), np.asarray(fit.labels))
    return out


def _trace(trace: Mapping[str, np.ndarray]) -> Variables:
    """Traces along `iteration`; one that is shorter than the longest has a dimension of its own."""
    steps = max((len(values) for values in trace.values()), default=0)
    own = {name: "iteration" if len(v) == steps else f"{_key(name)}_iteration" for name, v in trace.items()}
    return {_key(name): _variable(name, values, (own[name],)) for name, values in trace.items()}


def _dataset(variables: Variables, fit: Fit) -> xr.Dataset:
    """Variables with an index 0, 1, … along every dimension, and the column names along `column`."""
    sizes = {dim: size for dims, v in variables.values() for dim, size in zip(dims, v.shape, strict=True)}
    coords: dict[str, Any] = {dim: np.arange(size) for dim, size in sizes.items() if dim not in variables}
    if "column" in sizes:
        coords["column"] = list(fit.columns)
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


def _x_dims(fit: Fit) -> tuple[str, ...]:
    ndim = 0 if fit.x is None else fit.x.ndim
    return ("data", "column") if fit.columns and ndim == 2 else _dims("x", ndim, ("data",))


def _key(name: str) -> str:
    """A name that a DataTree takes: there, a slash parts groups."""
    return name.replace("/", ".")


def _attrs(fit: Fit) -> dict[str, Any]:
    """The root's attributes: numbers, booleans, strings, JSON for what is nested; the unknown is left out."""
    out: dict[str, Any] = {
        "model": fit.model,
        "data": fit.data,
        "method": fit.method,
        "seed": fit.seed,
        "n": fit.n,
        "seconds": float(fit.seconds),
        "peak_memory_mb": float(fit.peak_memory_mb),
        "inference_library": "latent-zoo",
        "created_at": datetime.now(UTC).isoformat(),
    }
    if fit.converged is not None:
        out["converged"] = bool(fit.converged)
    out |= _evidence_attrs("log_evidence", fit.claimed)
    out |= _evidence_attrs("verified_log_evidence", fit.verified)
    for name in ("options", "notes", "warnings", "versions"):
        out[name] = json.dumps(getattr(fit, name), ensure_ascii=False, default=str)
    return out


def _evidence_attrs(name: str, evidence: Evidence | None) -> dict[str, Any]:
    """`<name>` (the total, nats) and `<name>_kind`; `<name>_se` and `<name>_given` where there are such."""
    if evidence is None:
        return {}
    out: dict[str, Any] = {name: float(evidence.value), f"{name}_kind": evidence.kind}
    if evidence.se is not None:
        out[f"{name}_se"] = float(evidence.se)
    return out | ({f"{name}_given": evidence.given} if evidence.given else {})


LEAST_DRAWS = 25  # from which a tail can be fitted


def loo(fit: Fit, **options: Any) -> Any:
    """`arviz_stats.loo` of a fit whose θ or global latents have draws.

    Raises `UsageError` where they are one point (its `loo` would be the training likelihood, which always prefers the
    larger model), where log p(x_i | draw) is not known, or for fewer than 25 draws.
    """
    import arviz_stats

    instead = (
        "Compare models by the evidence under priors (global latents, method=laplace or svi), by log p(x) of held-out rows "
        "(`infer` with other data), or by BIC."
    )
    drawn = [name for name in fit.draws if name not in fit.local_sites]
    if not drawn:
        raise UsageError(
            f"loo needs draws of θ, and this fit has one point, whose loo is the training likelihood. {instead}"
        )
    if fit.log_likelihood is None and not fit.learned:
        raise UsageError(
            f"loo needs draws around a mode, and this fit keeps the θ of another run; run laplace itself. {instead}"
        )
    if fit.log_likelihood is None:
        raise UsageError(
            f"loo needs log p(x_i | draw), which is not known at the draws of {', '.join(drawn)}. {instead}"
        )
    if len(fit.log_likelihood) < LEAST_DRAWS:
        raise UsageError(f"loo needs {LEAST_DRAWS} draws of θ, and this fit keeps {len(fit.log_likelihood)}. {instead}")
    return arviz_stats.loo(to_datatree(fit), **options)


def allow_certain_draws() -> None:
    """Keep `arviz_stats.summary` from warning of a latent that is the same in every draw.

    ArviZ computes the standard error of its standard deviation as 0/0: the summary says NaN, rightly, but
    with a RuntimeWarning for each, and a discrete latent that is certain is no mishap. The user makes that
    call after we are done, so only a warnings filter can help: for this message, from that module of ArviZ.
    """
    warnings.filterwarnings(
        "ignore",
        message=r"invalid value encountered in (scalar divide|sqrt)",
        category=RuntimeWarning,
        module=r"arviz_stats\.base\.diagnostics",
    )
