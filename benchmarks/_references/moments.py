"""Posterior moments of every number that a fit or a reference speaks of, each with its Monte Carlo error.

Names are Stan's and posteriordb's: `mu`, `theta[1]`, `line[3,2]`, counted from 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import numpy as np

from inference._method.fit import Arrays, Fit
from inference._numerics.psis import agreement, mean_ess

MOST_NUMBERS = 2000  # of one site


@dataclass(frozen=True)
class Moments:
    """Of m numbers: E[v], E[v²] and the standard deviation, with the Monte Carlo error of each [m]; NaN where not known."""

    names: list[str]
    mean: np.ndarray
    mcse_mean: np.ndarray
    mean_square: np.ndarray
    mcse_mean_square: np.ndarray
    sd: np.ndarray
    mcse_sd: np.ndarray

    def of(self, names: Iterable[str]) -> Moments:
        """Those of these names, in this order."""
        at = {name: i for i, name in enumerate(self.names)}
        index = [at[name] for name in names]
        return Moments(list(names), *(getattr(self, key)[index] for key in KEYS))


KEYS = [f.name for f in fields(Moments) if f.name != "names"]


def numbered(values: Mapping[str, np.ndarray]) -> tuple[list[str], np.ndarray]:
    """Site → draws [C, S, …] as the names of all numbers, and their draws [m, C, S]."""
    names, parts = [], []
    for site, value in values.items():
        C, S, *shape = value.shape
        names += [site + _index(i) for i in np.ndindex(*shape)]
        parts.append(np.moveaxis(value.reshape(C, S, -1), -1, 0))
    return names, np.concatenate(parts).astype(float) if parts else np.zeros((0, 1, 1))


def _index(i: tuple[int, ...]) -> str:
    return "[" + ",".join(str(k + 1) for k in i) + "]" if i else ""


def of_draws(names: list[str], draws: np.ndarray, effective: float | None = None) -> Moments:
    """Of draws [m, C, S] along chains; `effective`: of draws that were resampled from so many effective ones, one "chain"."""
    mean = draws.mean((1, 2))
    away = draws - mean[:, None, None]
    sd = (away**2).mean((1, 2)) ** 0.5

    def error(values: np.ndarray) -> np.ndarray:
        C, S = values.shape[1:]
        alone = S / (1 + S / effective) if effective else float(S)
        ess = mean_ess(values, C * S) if C > 1 else np.full(len(values), alone)
        return values.std((1, 2)) / np.maximum(ess, 1) ** 0.5

    with np.errstate(divide="ignore", invalid="ignore"):
        of_sd = np.where(sd > 0, error(away**2) / (2 * sd), 0.0)
    return Moments(names, mean, error(draws), (draws**2).mean((1, 2)), error(draws**2), sd, of_sd)


def of_fit(fit: Fit, wanted: Iterable[str] | None = None) -> Moments:
    """Of the draws that a fit holds, of all its continuous sites or of those that are `wanted`."""
    names, draws = numbered(chains_of(fit, wanted))
    effective = fit.notes.get("effective_draws")
    return of_draws(names, draws, float(effective) if isinstance(effective, float) else None)


def chains_of(fit: Fit, wanted: Iterable[str] | None = None) -> Arrays:
    """The draws of a fit's continuous sites along their chains: site → [C, S, …]."""
    C = len(fit.chains["lp"]) if "lp" in fit.chains else 1
    out = {}
    for site, value in fit.draws.items():
        if (wanted is None or site in wanted) and value[0].size <= MOST_NUMBERS and value.dtype.kind == "f":
            out[site] = value.reshape(C, len(value) // C, *value.shape[1:])
    return {site: value for site, value in out.items() if site not in fit.probabilities}


def site_of(name: str) -> str:
    """The site of a number: of "line[3,2]" "line"."""
    return name.split("[")[0]


def diagnosed(draws: np.ndarray) -> dict[str, float]:
    """The largest R-hat and the fewest effective draws of all numbers [m, C, S], as a reference states them."""
    rhat, bulk, tail = agreement(np.ascontiguousarray(draws))
    return {"rhat_max": float(rhat.max()), "ess_bulk_min": float(bulk.min()), "ess_tail_min": float(tail.min())}
