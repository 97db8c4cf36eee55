"""Names of the rows of data, and of the numbers in a row."""

from __future__ import annotations

import numpy as np

from zoo._data.columns import default_names
from zoo._data.datasets import Dataset


def names_of(data: Dataset) -> np.ndarray:
    """Names of the rows [n], else their numbers from 0."""
    return np.arange(len(data.x)) if data.row_names is None else np.asarray(data.row_names, dtype=object)


def columns_of(data: Dataset) -> tuple[str, ...]:
    """Names of the numbers in a row of x, in their order: the columns', else x0, x1, …, of images x[0,0], x[0,1], …"""
    if data.columns:
        return tuple(data.columns)
    row = data.x.shape[1:]
    if len(row) == 1:
        return default_names(row[0])
    return tuple(f"x[{','.join(map(str, at))}]" for at in np.ndindex(*row))
