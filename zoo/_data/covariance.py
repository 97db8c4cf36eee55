"""Rows whose covariance is a given matrix, for data of which only the covariances or correlations are known.

The likelihood of a Gaussian program depends on the data only through their number n, their mean and their covariance S (with
divisor n): Σ_i log N(x_i; 0, Σ) = −n/2 (D log 2π + log |Σ| + tr Σ⁻¹ S). So any n rows of mean 0 and covariance S serve.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zoo._errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

SYMMETRIC = 1e-6  # how far two entries may differ that should be equal, in units of their standard deviations
DEFINITE = 1e-10  # the least eigenvalue of the correlations
MOST_NUMBERS = 100_000_000  # of the rows that are made
MADE = (
    "the rows are made from a covariance matrix, with mean 0: log p(x) and the parameters are those of the data behind it, "
    "centred, but what is said of single rows (latents, draws, log p of a row) means nothing."
)


@dataclass(frozen=True)
class Matrix:
    """A covariance matrix as read: S [D, D], the names of its columns."""

    values: np.ndarray
    names: tuple[str, ...]
    what: str  # what an error message calls it
    name: str
    source: str

    def with_rows(self, rows: Sequence[str]) -> Matrix:
        """The same with its rows, which have these names, in the order of its columns."""
        if len(rows) != len(self.names):
            return self
        if sorted(rows) != sorted(self.names):
            odd = next(r for r in (*rows, *self.names) if (r in rows) != (r in self.names) or rows.count(r) > 1)
            raise UsageError(
                f"Expected rows named as the columns in {self.what}, got '{odd}' in one of them alone, or twice."
            )
        return replace(self, values=self.values[[rows.index(name) for name in self.names]])


def check_number(n: object) -> int:
    """The number of rows behind a matrix. Raises `UsageError` for what is none."""
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 2:
        raise UsageError(f"covariance_of must be the number of rows behind the matrix, 2 or more, got {n!r:.40}.")
    return int(n)


def rows_of(matrix: Matrix, n: int) -> pd.DataFrame:
    """n rows of mean 0 whose covariance, with divisor n, is the matrix. Raises `UsageError` for what is no covariance."""
    import pandas as pd

    S = _checked(matrix)
    D = len(S)
    if n <= D:
        raise UsageError(
            f"Expected more rows than columns behind {matrix.what}, got covariance_of={n} for {D} columns: the covariance of "
            f"{n} rows could not be positive definite."
        )
    if n * D > MOST_NUMBERS:
        raise UsageError(
            f"covariance_of={n} with {D} columns makes over {MOST_NUMBERS:,} numbers; give a smaller number."
        )
    # the cosines k = 1, …, D of a discrete cosine transform are orthonormal, and orthogonal to a constant column
    cosines = np.cos(np.pi / n * np.outer(np.arange(n) + 0.5, np.arange(1, D + 1)))
    return pd.DataFrame(np.sqrt(2) * cosines @ np.linalg.cholesky(S).T, columns=list(matrix.names))


def _checked(matrix: Matrix) -> np.ndarray:
    """The whole symmetric matrix, one of its triangles filled from the other where that is empty."""
    S, what = matrix.values, matrix.what
    if S.ndim != 2 or S.shape[0] != S.shape[1]:
        shape = " × ".join(map(str, S.shape))
        raise UsageError(f"Expected a square matrix of covariances or correlations in {what}, got {shape} numbers.")
    S = np.where(np.isnan(S), S.T, S)
    if np.isnan(S).any():
        i, j = np.argwhere(np.isnan(S))[0]
        raise UsageError(f"{what} has no covariance of {_pair(matrix, i, j)}; give at least one of the two triangles.")
    if not (np.diag(S) > 0).all():
        d = int(np.argmin(np.diag(S)))
        raise UsageError(
            f"Expected variances above 0 on the diagonal of {what}, got {S[d, d]:g} for '{matrix.names[d]}'."
        )
    deviations = np.sqrt(np.diag(S))
    R = S / np.outer(deviations, deviations)
    if (away := np.abs(R - R.T)).max() > SYMMETRIC:
        i, j = np.unravel_index(int(away.argmax()), away.shape)
        raise UsageError(
            f"{what} is not symmetric: for {_pair(matrix, i, j)} it has {S[i, j]:g} and {S[j, i]:g}. Correct one of them, or "
            "leave one triangle empty."
        )
    if (off := np.abs(R - np.diag(np.diag(R)))).max() > 1:
        i, j = np.unravel_index(int(off.argmax()), off.shape)
        raise UsageError(
            f"{what} is no covariance matrix: {S[i, j]:g} for {_pair(matrix, i, j)} means a correlation of {R[i, j]:.3g}."
        )
    if (least := float(np.linalg.eigvalsh((R + R.T) / 2)[0])) < DEFINITE:
        raise UsageError(
            f"{what} is not positive definite: the least eigenvalue of its correlations is {least:.2g}. Correlations that were "
            "taken pair by pair over different rows can be so, and a column that is a function of others: leave columns out."
        )
    return (S + S.T) / 2


def _pair(matrix: Matrix, i: np.intp | int, j: np.intp | int) -> str:
    return f"'{matrix.names[i]}' and '{matrix.names[j]}'" if i != j else f"'{matrix.names[i]}' with itself"


def in_order(spec: object) -> object:
    """The matrix; of a data frame whose index names the columns, with its rows in the order of its columns."""
    pd = sys.modules.get("pandas")  # no frame is there where it was not imported
    if pd and isinstance(spec, pd.DataFrame) and spec.index.is_unique and set(spec.index) == set(spec.columns):
        return spec.loc[spec.columns]
    return spec


def with_row_names(spec: object) -> Matrix | None:
    """A matrix in a text file whose rows begin with names, as pandas and R write them; None where it is none such."""
    if not isinstance(spec, str | os.PathLike) or not os.path.isfile(spec):
        return None
    import pandas as pd

    try:
        frame = pd.read_csv(spec, sep=None, engine="python", encoding="utf-8-sig")
        if len(frame.columns) == len(frame) + 1:  # else pandas took the names for the index itself
            frame = frame.set_index(frame.columns[0])
        values = frame.to_numpy(dtype=np.float64)
    except Exception:  # the ordinary reader says what is wrong
        return None
    names, rows = tuple(str(c).strip() for c in frame.columns), [str(r).strip() for r in frame.index]
    if sorted(rows) != sorted(names):
        return None
    path = Path(os.fsdecode(spec))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return Matrix(values, names, f"'{spec}'", path.stem, f"{path.name}, sha256 {digest}").with_rows(rows)
