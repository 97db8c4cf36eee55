"""Parallel analysis: as many factors as eigenvalues of the correlations that noise of the same size does not reach.

Horn 1965, with the 95th percentile of the simulated eigenvalues in place of their mean (Glorfeld 1995). Columns are compared
pair by pair over the rows that have both, in the data and in the noise, which has the data's holes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zoo._errors import UsageError

REPLICATES = 200
QUANTILE = 0.95
STREAM = 6  # of the random numbers


@dataclass(frozen=True)
class Parallel:
    """`factors`: how many leading eigenvalues lie above the simulated ones."""

    factors: int
    eigenvalues: tuple[float, ...]
    simulated: tuple[float, ...]  # their 95th percentiles

    def to_json(self) -> dict[str, object]:
        """As plain JSON types."""
        return {"factors": self.factors, "eigenvalues": list(self.eigenvalues), "simulated": list(self.simulated)}


def checked(x: np.ndarray) -> None:
    """Raise `UsageError` for data that parallel analysis is not for."""
    if x.ndim != 2 or x.shape[1] < 2:
        raise UsageError("parallel analysis needs a table of at least two columns.")
    if not np.isfinite(_eigenvalues(x)).all():
        raise UsageError(
            "parallel analysis needs columns that vary, and pairs of columns observed together; drop the others."
        )


def analysis(x: np.ndarray, seed: int, replicates: int = REPLICATES) -> Parallel:
    """Parallel analysis of a table x [n, D], NaN where unobserved."""
    own = _eigenvalues(x)
    random, holes = np.random.default_rng([seed, STREAM]), np.isnan(x)
    noise = [_eigenvalues(np.where(holes, np.nan, random.normal(size=x.shape))) for _ in range(replicates)]
    bar = np.quantile(noise, QUANTILE, axis=0)
    below = np.flatnonzero(own <= bar)
    return Parallel(int(below[0]) if len(below) else len(own), tuple(map(float, own)), tuple(map(float, bar)))


def _eigenvalues(x: np.ndarray) -> np.ndarray:
    """Of the correlation matrix, the largest first."""
    if np.isnan(x).any():
        import pandas as pd

        correlations = pd.DataFrame(x).corr(min_periods=3).to_numpy()
    else:
        with np.errstate(invalid="ignore", divide="ignore"):
            correlations = np.corrcoef(x.T)
    if not np.isfinite(correlations).all():
        return np.full(x.shape[1], np.nan)
    return np.linalg.eigvalsh(correlations)[::-1]
