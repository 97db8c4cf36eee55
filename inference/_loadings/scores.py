"""Factor scores of rows, each from the columns that the row has."""

from __future__ import annotations

from typing import Literal

import numpy as np

Kind = Literal["regression", "bartlett"]
KINDS: tuple[Kind, ...] = ("regression", "bartlett")
SINGULAR = 1e-10  # of the largest singular value


def scores(x: np.ndarray, slopes: np.ndarray, phi: np.ndarray, noise: np.ndarray, kind: Kind) -> np.ndarray:
    """Scores [n, L] of rows x [n, D] about their mean, NaN where unobserved, under x = Λ f + noise, f ~ N(0, Φ).

    - `regression`: the posterior mean E[f | x] = (Φ⁻¹ + Λᵀ Ψ⁻¹ Λ)⁻¹ Λᵀ Ψ⁻¹ x (Thomson 1951), 0 in a row without entries;
    - `bartlett`: (Λᵀ Ψ⁻¹ Λ)⁻¹ Λᵀ Ψ⁻¹ x, unbiased given f (Bartlett 1937); NaN in a row whose columns do not determine f.

    `slopes` Λ [D, L]; `noise` Ψ: variances [D], or a covariance [D, D].
    """
    out = np.full((len(x), slopes.shape[1]), np.nan)
    seen = ~np.isnan(x)
    patterns, which = np.unique(seen, axis=0, return_inverse=True)
    for k, mask in enumerate(patterns):
        rows = which.reshape(-1) == k
        block = noise[mask] if noise.ndim == 1 else noise[np.ix_(mask, mask)]
        out[rows] = _of_whole_rows(x[np.ix_(rows, mask)], slopes[mask], phi, block, kind)
    return out


def _of_whole_rows(x: np.ndarray, slopes: np.ndarray, phi: np.ndarray, noise: np.ndarray, kind: Kind) -> np.ndarray:
    """The same for rows in which nothing is missing, by least squares of whitened residuals, which lose no digits."""
    (D, L), n = slopes.shape, len(x)
    if noise.ndim == 1:
        left, right = slopes / np.sqrt(noise)[:, None], x.T / np.sqrt(noise)[:, None]
    else:
        root = np.linalg.cholesky(noise)
        left, right = np.linalg.solve(root, slopes), np.linalg.solve(root, x.T)
    if kind == "regression":
        prior = np.linalg.inv(np.linalg.cholesky(phi))
        left, right = np.concatenate([left, prior]), np.concatenate([right, np.zeros((L, n))])
    elif D < L or (sizes := np.linalg.svd(left, compute_uv=False))[-1] <= SINGULAR * sizes[0]:
        return np.full((n, L), np.nan)
    return np.linalg.lstsq(left, right, rcond=None)[0].T
