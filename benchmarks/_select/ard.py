"""Automatic relevance determination: as many factors as columns of loadings that their own prior does not shrink to nothing.

Bishop 1999, "Bayesian PCA". Each column w_l of the loadings of probabilistic PCA has the prior N(0, α_l⁻¹ I), and α_l is
re-estimated as D / ‖w_l‖² between steps of EM. A column that the data do not need goes to 0. It begins at the maximum
likelihood solution with as many columns as there can be, and all of it needs only the covariance of the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zoo._errors import UsageError

MOST_COLUMNS = 300
STEPS = 20_000
TOLERANCE = 1e-9  # of the loadings' size, from one step to the next
NOTHING = 1e-6  # of a column's variance, beside that of the noise


@dataclass(frozen=True)
class Relevance:
    """`factors`: how many columns of loadings stay; `variances`: ‖w_l‖² of each column, the largest first."""

    factors: int
    variances: tuple[float, ...]
    noise: float  # σ²

    def to_json(self) -> dict[str, object]:
        """As plain JSON types."""
        return {"factors": self.factors, "variances": list(self.variances), "noise": self.noise}


def checked(x: np.ndarray) -> None:
    """Raise `UsageError` for data that this is not for."""
    if x.ndim != 2 or not 2 <= x.shape[1] <= MOST_COLUMNS or len(x) < 3:
        raise UsageError(f"ard needs a table of 2 to {MOST_COLUMNS} columns, and at least 3 rows.")
    if np.isnan(x).any():
        raise UsageError("ard needs rows without holes; choose by heldout, bic or parallel.")
    if not np.ptp(x, axis=0).all():
        raise UsageError("ard needs columns that vary; drop the others.")


def relevance(x: np.ndarray) -> Relevance:
    """The columns of loadings that a table x [n, D] keeps."""
    n, D = x.shape
    covariance = np.cov(x.T, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
    q = min(D - 1, n - 1)
    noise = max(float(values[q:].mean()), 1e-12 * float(values[0]))
    loadings = vectors[:, :q] * np.sqrt((values[:q] - noise).clip(min=1e-12 * noise))
    for _ in range(STEPS):
        before = loadings
        precision = D / np.square(loadings).sum(0).clip(min=1e-300)
        loadings, noise = _step(covariance, loadings, noise, precision, n)
        if np.abs(loadings - before).max() <= TOLERANCE * np.abs(loadings).max():
            break
    variances = np.sort(np.square(loadings).sum(0))[::-1]
    return Relevance(int((variances > NOTHING * noise).sum()), tuple(map(float, variances)), noise)


def _step(
    covariance: np.ndarray, loadings: np.ndarray, noise: float, precision: np.ndarray, n: int
) -> tuple[np.ndarray, float]:
    """One step of EM for loadings [D, q] with the prior's `precision` [q], and for the noise σ²."""
    inverse = np.linalg.inv(loadings.T @ loadings + noise * np.eye(len(precision)))
    cross = covariance @ loadings @ inverse  # mean of (x − μ) E[z]ᵀ
    second = noise * inverse + inverse @ loadings.T @ cross  # mean of E[z zᵀ]
    loadings = np.linalg.solve(second + np.diag(noise / n * precision), cross.T).T
    gone = 2 * np.sum(cross * loadings) - np.sum((second @ loadings.T) * loadings.T)
    return loadings, max(float(np.trace(covariance) - gone) / len(covariance), 1e-300)
