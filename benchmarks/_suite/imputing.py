"""How well hidden entries are filled in, by a model or without one: error, coverage, log-likelihood of what was hidden.

All in standardised units: an error of 1 is one standard deviation of the column. What was hidden is known, so every score is
taken on hidden entries alone.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np

from benchmarks._suite.documents import Options, Scores
from zoo._data import datasets

STREAM = 3  # of the random numbers for `high:P`; the preparations of data sets have 0, 1 and 2
COVERED = 0.9


def hidden(name: str, pattern: str, seed: int, preparation: Options) -> datasets.Dataset:
    """A data set, standardised or as prepared, with entries hidden by `pattern`; `truth` holds them.

    - `random:P`: each entry with probability P.
    - `high:P`: not at random. The probability rises with an entry's rank in its column, from 0 to 2P.
    - `top`, `bottom`, `left`, `right`: that half of each image.
    """
    kind, _, share = pattern.partition(":")
    if kind != "high":
        return datasets.load(name, seed=seed, missing=pattern, **preparation)
    data = datasets.load(name, seed=seed, **preparation)
    x = data.x.reshape(len(data.x), -1)
    rank = (x.argsort(0).argsort(0) + 0.5) / len(x)
    gone = np.random.default_rng([seed, STREAM]).random(x.shape) < 2 * float(share) * rank
    options = {**data.options, "missing": pattern, "seed": seed}
    return replace(data, x=np.where(gone, np.nan, x).reshape(data.x.shape), truth=data.x, options=options)


def scores(truth: np.ndarray, x: np.ndarray, mean: np.ndarray, draws: np.ndarray | None) -> Scores:
    """Error of `mean` [n, …], and how often the 90% intervals of `draws` [S, n, …] hold the truth."""
    gone = np.isnan(x) & ~np.isnan(truth)
    miss = mean[gone] - truth[gone]
    out: Scores = {
        "hidden": int(gone.sum()),
        "rmse": float(np.sqrt(np.square(miss).mean())),
        "rmse_se": float(
            np.square(miss).std() / max(2 * np.sqrt(np.square(miss).sum()), 1e-300)
        ),  # entries as if independent
        "mae": float(np.abs(miss).mean()),
        "coverage": None,
        "width": None,
    }
    if draws is not None:
        low, high = interval(draws[:, gone])
        out["coverage"] = float(((low <= truth[gone]) & (truth[gone] <= high)).mean())
        out["width"] = float((high - low).mean())
    return out


def interval(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ranks of S draws between which another draw falls with probability 0.9, where S + 1 is a multiple of 20."""
    outside = round((1 - COVERED) / 2 * (len(draws) + 1))
    ordered = np.sort(draws, axis=0)
    return ordered[outside - 1], ordered[-outside]


class Filled(NamedTuple):
    """What a baseline fills in: the mean [n, …], and draws [S, n, …] where the way has any."""

    mean: np.ndarray
    draws: np.ndarray | None
    seconds: float
    warnings: list[str]


class Imputer(Protocol):
    """scikit-learn's."""

    def fit_transform(self, x: np.ndarray) -> np.ndarray: ...


def baseline(name: str, options: Options, x: np.ndarray, draws: int, seed: int) -> Filled:
    """Fill x [n, …] in without a model."""
    flat, began = x.reshape(len(x), -1), time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mean = _imputer(name, options, seed).fit_transform(flat)
        seconds = time.perf_counter() - began
        drawn = None
        if name == "iterative":
            several = [_imputer(name, options, seed + s, sample=True).fit_transform(flat) for s in range(draws)]
            drawn = np.stack(several).reshape(draws, *x.shape)
    said = sorted({str(w.message) for w in caught})
    return Filled(mean.reshape(x.shape), drawn, seconds, said)


def _imputer(name: str, options: Options, seed: int, sample: bool = False) -> Imputer:
    """scikit-learn's; a column with nothing observed is kept, and filled with zeros."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401 - importing it is what makes the next one exist
    from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

    if name == "mean":
        return SimpleImputer(keep_empty_features=True)
    if name == "knn":
        return KNNImputer(keep_empty_features=True, **options)
    return IterativeImputer(random_state=seed, sample_posterior=sample, keep_empty_features=True, **options)
