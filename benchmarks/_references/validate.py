"""References held against what is not ours: closed forms and quadrature, posteriordb, NumPyro, scikit-learn."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._references import exactly, weighed
from benchmarks._references.cases import Case
from benchmarks._references.moments import Moments, numbered
from benchmarks._references.reference import FOLDER, Reference, load

Record = Mapping[str, Any]
POSTERIORDB = "posteriordb's published means and mean squares"
WEIGHED = "importance sampling by NumPy alone"
PUBLISHED = {  # of posteriordb: the files with E[v] and E[v²]
    "eight_schools_centred": ("eight_schools.mean_value.json", "eight_schools.mean_squared_value.json"),
    "eight_schools": ("eight_schools.mean_value.json", "eight_schools.mean_squared_value.json"),
    "poisson_gp": ("gp_pois_regr.mean_value.json", "gp_pois_regr.mean_squared_value.json"),
}


def independent(name: str) -> Reference | None:
    """The reference of a program that is known without any of our samplers; None for the others."""
    found = exactly.known(name)
    if found is not None:
        evidence = {"value": found.log_evidence, "se": 0.0, "how": found.how}
        return Reference(name, _of_exact(found), evidence, {"by": found.how})
    if name == "poisson_gp":
        return Reference(name, _published(name).moments.of(["rho", "alpha"]), made={"by": POSTERIORDB})
    moments = weighed.known(name) if name == "hmm" else None
    return None if moments is None else Reference(name, moments, made={"by": WEIGHED})


def validated(reference: Reference, walked: Moments | None = None) -> Reference:
    """A new reference with the records of all that it is held against; `walked`: a long run of ours."""
    out = []
    if walked is not None:
        out.append(against(reference, walked, "our nuts"))
    if reference.name in PUBLISHED and reference.made["by"] != POSTERIORDB:
        out.append(against(reference, _published(reference.name).moments, POSTERIORDB))
    if reference.made["by"] != WEIGHED and (moments := weighed.known(reference.name)) is not None:
        out.append(against(reference, moments, WEIGHED))
    return replace(reference, validated=out)


def _published(name: str) -> Reference:
    return load(*(FOLDER / "posteriordb" / f for f in PUBLISHED[name]))


def _of_exact(found: exactly.Exact) -> Moments:
    pairs = {
        n: np.stack([np.asarray(a, dtype=float), np.asarray(b, dtype=float)]) for n, (a, b) in found.moments.items()
    }
    names, both = numbered({n: v[None] for n, v in pairs.items()})  # one "chain" of two "draws"
    mean, square = both[:, 0, 0], both[:, 0, 1]
    zero = np.zeros(len(names))
    return Moments(names, mean, zero, square, zero, np.sqrt(square - mean**2), zero)


def against(reference: Reference, other: Moments, whose: str) -> Record:
    """The differences to another answer: the largest z-scores of means and mean squares, and the sds' ratios."""
    common = [n for n in reference.moments.names if n in set(other.names)]
    mine, theirs = reference.moments.of(common), other.of(common)

    def largest(key: str) -> float:
        """The largest z-score."""
        error = np.hypot(getattr(mine, f"mcse_{key}"), getattr(theirs, f"mcse_{key}"))
        return float(np.nanmax(np.abs(getattr(mine, key) - getattr(theirs, key)) / error))

    ratio = mine.sd / theirs.sd
    return {
        "against": whose,
        "numbers": len(common),
        "largest_z_mean": round(largest("mean"), 2),
        "largest_z_mean_square": round(largest("mean_square"), 2),
        "largest_z_sd": round(largest("sd"), 2),
        "sd_ratios": [round(float(np.nanmin(ratio)), 4), round(float(np.nanmax(ratio)), 4)],
    }


def with_file(reference: Reference, path: Path, whose: str) -> Reference:
    """The reference with the record of one more answer, in a file of posteriordb's format."""
    record = against(reference, load(path).moments, whose)
    kept = [r for r in reference.validated if r["against"] != whose]
    return replace(reference, validated=[*kept, record])


def maximum(case: Case, x: np.ndarray) -> dict[str, Any]:
    """log p(x; θ̂) of a model on data by another package, or by its closed form."""
    value, whose = MAXIMA[str(case.model)](x, case.options)
    return {"against": whose, "log_evidence": value}


def _sklearn_gmm(x: np.ndarray, options: Mapping[str, Any]) -> tuple[float, str]:
    from sklearn.mixture import GaussianMixture

    K = options.get("components", 2)
    fitted = GaussianMixture(K, tol=1e-10, max_iter=5000, reg_covar=0.0, n_init=20, random_state=0).fit(x)
    return float(fitted.score(x) * len(x)), f"scikit-learn {importlib.metadata.version('scikit-learn')}, 20 starts"


def _sklearn_fa(x: np.ndarray, options: Mapping[str, Any]) -> tuple[float, str]:
    from sklearn.decomposition import FactorAnalysis

    fitted = FactorAnalysis(options["latents"], tol=1e-10, max_iter=100_000, svd_method="lapack").fit(x)
    return float(fitted.score(x) * len(x)), f"scikit-learn {importlib.metadata.version('scikit-learn')}"


def _closed_ppca(x: np.ndarray, options: Mapping[str, Any]) -> tuple[float, str]:
    return exactly.maximum_of_ppca(x, options["latents"]), "closed form of Tipping & Bishop 1999"


MAXIMA: dict[str, Callable[[np.ndarray, Mapping[str, Any]], tuple[float, str]]] = {
    "gmm": _sklearn_gmm,
    "factor_analysis": _sklearn_fa,
    "ppca": _closed_ppca,
}
