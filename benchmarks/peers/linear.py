"""Factor analysis and PCA, against scikit-learn's FactorAnalysis and PCA: time over time at equal likelihood.

Both sides take the same data and run until they converge, alternating in one process, each with the threads that it takes by
itself. Ours is `em` on the programs `zoo/factor_analysis.py` and `zoo/ppca.py`, which finds by itself that they are linear
and Gaussian. scikit-learn's are written for these models: an SVD an iteration, and one SVD. Ours is timed as a user gets it,
with its start and its draws; not timed is its check. Log-likelihoods are each side's own.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from benchmarks._suite.documents import Document
from benchmarks.peers._turns import OURS, Side, timed, turns
from inference._run import runner
from inference._run.cost import versions
from zoo._options import Count

QUICK = 1_000
SEED = 0


def measure(
    *,
    model: Literal["factor_analysis", "ppca"] = "factor_analysis",
    n: Count = 20_000,
    d: Count = 50,
    l: Count = 5,  # noqa: E741 - the number of latents, as everywhere here
    rounds: Count = 5,
    quick: bool = False,
) -> Document:
    """The document: times, their ratios, log-likelihoods."""
    x = _data(QUICK if quick else n, d, l)
    prepared = runner.prepare(model, x, {"latents": l}, [])

    def ours() -> tuple[float, float]:
        fit = runner.run_prepared(prepared, "em", {"tol": 1e-9, "max_iter": 2000}, verified=False)
        assert fit.claimed is not None
        return fit.seconds, fit.claimed.value

    sides: dict[str, Side] = {OURS: ours, "scikit-learn": lambda: _sklearn(model, x, l)}
    out = turns(sides, rounds)
    sizes = {"n": len(x), "d": d, "l": l}
    name = "ppca by EM, beside one SVD" if model == "ppca" else model
    return {
        "benchmark": "peers/linear",
        "what": f"{name}, float64, until converged: " + ", ".join(f"{a}={v:,}" for a, v in sizes.items()),
        "short": model,
        **out,
        "skipped": [],
        **sizes,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _data(n: int, d: int, latents: int) -> np.ndarray:
    """Draws from a factor analyser [n, d]."""
    rng = np.random.default_rng(SEED)
    loadings, noise = rng.normal(size=(latents, d)), rng.uniform(0.3, 1.5, size=d)
    return rng.normal(size=(n, latents)) @ loadings + noise * rng.normal(size=(n, d)) + rng.normal(size=d)


def _sklearn(model: str, x: np.ndarray, latents: int) -> tuple[float, float]:
    from sklearn.decomposition import PCA, FactorAnalysis

    made = PCA(latents) if model == "ppca" else FactorAnalysis(latents, tol=1e-9 * len(x), max_iter=5000)
    return timed(lambda: made.fit(x)), float(made.score_samples(x).sum())
