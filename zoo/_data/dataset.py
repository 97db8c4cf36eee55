"""What a data set is once it is read and prepared: `Dataset`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Dataset:
    """Data that is ready for a model, with all that was done to it."""

    x: np.ndarray  # [n, ...] float64, C-contiguous, NaN = unobserved
    name: str  # as given; for a file its stem
    columns: tuple[str, ...]  # names of the columns of x; () for images, and for more than two dimensions
    labels: np.ndarray | None  # [n]
    options: dict[str, Any]  # the source, and the preparations that were used; JSON-ready
    image_shape: tuple[int, int] | None  # (height, width), where a row of x is an image
    center: np.ndarray | None  # [...] of one row: x * scale + center is in the data's own units
    scale: np.ndarray | None
    truth: np.ndarray | None  # x before ``missing`` hid entries
    warnings: tuple[str, ...]
    row_names: tuple[str, ...] | None = None  # of the rows, where a column names them
    weights: np.ndarray | None = None  # [n] how many times each row counts, where it is not once

    @property
    def has_rows(self) -> bool:
        """Whether the rows are data. Else they are made from a covariance matrix, and no single row means anything."""
        return "covariance_of" not in self.options
