"""Rotation of factor loadings towards simple structure, by gradient projection (Bernaards & Jennrich 2005).

Loadings A [D, L] of uncorrelated factors u become Λ = A (Tᵀ)⁻¹ of the factors f = Tᵀ u, whose correlations are Φ = Tᵀ T. An
orthogonal rotation has Tᵀ T = I; an oblique one has columns of length 1. Either way Λ Φ Λᵀ = A Aᵀ: the fit is the same.

    >>> A = np.array([[0.6, 0.6], [0.5, 0.5], [0.6, -0.6], [0.5, -0.5]])
    >>> found = rotate(A, "varimax")
    >>> abs((A @ np.linalg.inv(found.T).T).round(2))
    array([[0.85, 0.  ],
           [0.71, 0.  ],
           [0.  , 0.85],
           [0.  , 0.71]])
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Name = Literal["varimax", "quartimax", "oblimin", "promax"]
NAMES: tuple[Name, ...] = ("varimax", "quartimax", "oblimin", "promax")
OBLIQUE = ("oblimin", "promax")
NORMALISED = ("varimax", "promax")  # with Kaiser's normalisation unless told otherwise, as R does
STARTS = 10  # of which the best is kept: the principal axes, and random rotations of them
MOST_STEPS = 5000
ENOUGH = 1e-9  # length of the projected gradient at which a rotation has converged
SAME = 1e-6  # of the criterion, relatively: starts that end so close have found the same rotation
POWER = 4  # of promax
Array = np.ndarray
Criterion = Callable[[Array], tuple[float, Array]]  # Λ ↦ what is to be small, and its gradient


@dataclass(frozen=True)
class Rotation:
    """`T` [L, L]; the criterion's value there; whether it converged; how many of the starts ended at that value."""

    T: Array
    criterion: float
    converged: bool = True
    agreeing: int = 1
    starts: int = 1


def varimax(loadings: Array) -> tuple[float, Array]:
    """Minus the variance of the squared loadings within each factor (Kaiser 1958), × D / 4."""
    squares = np.square(loadings)
    centred = squares - squares.mean(0)
    return -float(np.square(centred).sum()) / 4, -loadings * centred


def quartimax(loadings: Array) -> tuple[float, Array]:
    """Minus the sum of fourth powers, / 4."""
    return -float((loadings**4).sum()) / 4, -(loadings**3)


def oblimin(loadings: Array) -> tuple[float, Array]:
    """Products of squared loadings of different factors on the same column, / 4: direct oblimin with γ = 0, or quartimin."""
    squares = np.square(loadings)
    others = squares.sum(1, keepdims=True) - squares
    return float((squares * others).sum()) / 4, loadings * others


CRITERIA: dict[str, Criterion] = {"varimax": varimax, "quartimax": quartimax, "oblimin": oblimin, "promax": varimax}


def rotate(A: Array, name: Name, kaiser: bool | None = None) -> Rotation:
    """The rotation of that name for loadings A [D, L] of uncorrelated factors.

    `kaiser`: give all columns the same weight, by dividing each row of A by the root of its communality; None: as R does,
    for varimax and promax.
    """
    L = A.shape[1]
    if L < 2 or not A.any():
        return Rotation(np.eye(L), 0.0)
    weighed = kaiser if kaiser is not None else name in NORMALISED
    lengths = np.sqrt(np.square(A).sum(1, keepdims=True))
    rows = A / np.where(lengths > 0, lengths, 1.0) if weighed else A
    found = _best(rows, CRITERIA[name], name == "oblimin")
    if name != "promax":
        return found
    return Rotation(_promax(A, found.T), found.criterion, found.converged, found.agreeing, found.starts)


def _best(A: Array, criterion: Criterion, oblique: bool) -> Rotation:
    """The lowest of the minima that several starts lead to."""
    L, random = A.shape[1], np.random.default_rng(0)
    starts = [np.eye(L), *(np.linalg.qr(random.normal(size=(L, L)))[0] for _ in range(STARTS - 1))]
    ends = [_descend(A, start, criterion, oblique) for start in starts]
    usable = [e for e in ends if np.linalg.cond(e.T) < 1e6] or ends  # factors that fall together are no solution
    best = min(usable, key=lambda e: e.criterion)
    near = [e for e in usable if e.criterion - best.criterion <= SAME * max(abs(best.criterion), SAME)]
    best = min(near, key=lambda e: not e.converged)  # the first of them, converged if any is
    return Rotation(best.T, best.criterion, best.converged, len(near), len(starts))


def _descend(A: Array, T: Array, criterion: Criterion, oblique: bool) -> Rotation:
    """Gradient projection from T: a step along the projected gradient, halved until the criterion falls enough."""
    onto = _unit_columns if oblique else _orthogonal
    value, gradient = _at(A, T, criterion, oblique)
    size, scale = 1.0, max(1.0, float(np.square(A).sum()))
    for _ in range(MOST_STEPS):
        if oblique:
            projected = gradient - T * (T * gradient).sum(0)
        else:
            inner = T.T @ gradient
            projected = gradient - T @ (inner + inner.T) / 2
        slope = float(np.square(projected).sum())
        if slope**0.5 < ENOUGH * scale:
            return Rotation(T, value)
        size *= 2
        for _ in range(60):
            moved = onto(T - size * projected)
            lower, new = _at(A, moved, criterion, oblique)
            if lower < value - 0.5 * slope * size:
                break
            size /= 2
        else:  # rounding leaves nothing to gain
            return Rotation(T, value, slope**0.5 < 1e-4 * scale)
        T, value, gradient = moved, lower, new
    return Rotation(T, value, False)


def _at(A: Array, T: Array, criterion: Criterion, oblique: bool) -> tuple[float, Array]:
    """The criterion at T, and its gradient in T."""
    if not oblique:
        value, gradient = criterion(A @ T)
        return value, A.T @ gradient
    inverse = np.linalg.inv(T)
    loadings = A @ inverse.T
    value, gradient = criterion(loadings)
    return value, -(loadings.T @ gradient @ inverse).T


def _orthogonal(T: Array) -> Array:
    left, _, right = np.linalg.svd(T)
    return left @ right


def _unit_columns(T: Array) -> Array:
    return T / np.sqrt(np.square(T).sum(0))


def _promax(A: Array, T: Array) -> Array:
    """Least squares from the varimax loadings to their own `POWER`th powers (Hendrickson & White 1964), as R's `promax`."""
    loadings = A @ T
    target = loadings * np.abs(loadings) ** (POWER - 1)
    U = np.linalg.lstsq(loadings, target, rcond=None)[0]
    U = T @ U * np.sqrt(np.diag(np.linalg.inv(U.T @ U)))  # Λ = A U, with factors of variance 1
    return np.linalg.inv(U).T
