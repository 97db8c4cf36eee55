"""EM of a multivariate normal with missing entries, against the same EM written by hand in NumPy, a pattern at a time.

A tenth of the entries is missing, in some patterns that many rows share. By hand: rows are sorted by their pattern once; each
iteration factors the covariance of each pattern's seen entries, fills in the others and adds up second moments (Little & Rubin
2002, §11.2; so does the R package norm). Ours is the general engine on the program `zoo/gmm.py` with one component.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from scipy import linalg

from benchmarks._suite.documents import Document
from benchmarks.peers import em
from benchmarks.peers._turns import OURS, Side, turns
from inference._method.task import Task
from inference._run.cost import versions
from zoo._options import Count
from zoo._program.describe import describe
from zoo._program.load import load

QUICK = {"n": 500, "patterns": 20}
SEED, MISSING, FACTORS = 0, 0.1, 10
PEER = "by hand"


def measure(
    *,
    n: Count = 50_000,
    d: Count = 50,
    patterns: Count = 1_250,
    iterations: Count = 5,
    rounds: Count = 5,
    quick: bool = False,
) -> Document:
    """The document: times, their ratio, log-likelihoods."""
    sizes = {"n": n, "patterns": patterns} | (QUICK if quick else {}) | {"d": d, "iterations": iterations}
    x = _data(sizes["n"], d, sizes["patterns"])
    tensor = torch.as_tensor(x)
    program = load("gmm", tensor, {"components": 1})
    task = Task(program, describe(program, tensor), tensor, seed=SEED, quiet=True)
    start = {name: value.detach().clone() for name, value in program.values().items()}
    sides: dict[str, Side] = {
        OURS: lambda: em.steps(task, start, iterations),
        PEER: lambda: _by_hand(x, start, iterations),
    }
    return {
        "benchmark": "peers/holes",
        "what": "EM, normal with missing entries, float64: " + ", ".join(f"{a}={v:,}" for a, v in sizes.items()),
        "short": "em with holes",
        **turns(sides, rounds),
        "skipped": [],
        **sizes,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _data(n: int, d: int, patterns: int) -> np.ndarray:
    rng = np.random.default_rng(SEED)
    x = rng.normal(size=(n, FACTORS)) @ rng.normal(size=(FACTORS, d)) + rng.normal(size=(n, d))
    x[(rng.random((patterns, d)) < MISSING)[rng.integers(patterns, size=n)]] = np.nan
    return x


def _by_hand(x: np.ndarray, start: dict[str, torch.Tensor], iterations: int) -> tuple[float, float]:
    began = time.perf_counter()
    patterns, which = np.unique(~np.isnan(x), axis=0, return_inverse=True)
    order, counts = np.argsort(which, kind="stable"), np.bincount(which)
    groups = list(zip(patterns, np.split(x[order], counts.cumsum()[:-1]), strict=True))
    loc, tril = start["locs"][0].numpy(), start["scale_tril"][0].numpy()
    covariance = tril @ tril.T
    log_p, first, second = _completed(groups, loc, covariance)
    for _ in range(iterations):
        loc = first / len(x)
        log_p, first, second = _completed(groups, loc, second / len(x) - np.outer(loc, loc))
    return time.perf_counter() - began, log_p


def _completed(groups: list, loc: np.ndarray, covariance: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """log p(x; μ, Σ), and Σ_i E[x_i], Σ_i E[x_i x_iᵀ] given what is seen."""
    log_p, first, second = 0.0, np.zeros_like(loc), np.zeros_like(covariance)
    for seen, rows in groups:
        o, m = np.flatnonzero(seen), np.flatnonzero(~seen)
        factor = linalg.cholesky(covariance[np.ix_(o, o)], lower=True)
        away = rows[:, o] - loc[o]
        white = linalg.solve_triangular(factor, away.T, lower=True)
        log_p -= 0.5 * (white**2).sum() + len(rows) * (
            np.log(factor.diagonal()).sum() + 0.5 * len(o) * np.log(2 * np.pi)
        )
        half = linalg.solve_triangular(factor, covariance[np.ix_(o, m)], lower=True)
        full = rows.copy()
        full[:, m] = loc[m] + white.T @ half
        first += full.sum(0)
        second += full.T @ full
        second[np.ix_(m, m)] += len(rows) * (covariance[np.ix_(m, m)] - half.T @ half)
    return log_p, first, second
