"""Labels as the last column of x, for models that are told them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from zoo._data.dataset import Dataset
from zoo._errors import UsageError

LEVELS = "label_levels"  # the option that says which labels 0, 1, … in that column are


def put_last(data: Dataset, known: Sequence[Any] | None = None) -> Dataset:
    """The same with the codes 0, 1, … of its labels as the last column; as it is where it has no labels.

    `known`: the labels of a run, in the order of their codes. Raises `UsageError` where rows lack labels or have others.
    """
    if data.labels is None and known is None:
        return data
    if data.labels is None:
        raise UsageError(f"the model is told labels, and '{data.name}' has none: name their column with labels.")
    if data.options.get("binarize") == "dynamic":
        raise UsageError("binarize=dynamic and labels as a column of x cannot be combined: take binarize=fixed.")
    if data.x.ndim != 2:
        raise UsageError(f"labels as a column of x expect a table, got rows of shape {data.x.shape[1:]}.")
    gone = data.labels == "" if data.labels.dtype.kind in "US" else data.labels != data.labels
    if gone.any():
        raise UsageError(f"the model is told labels, and row {int(gone.argmax())} (counting from 0) has none.")
    levels = np.unique(data.labels).tolist() if known is None else list(known)
    codes = {level: float(code) for code, level in enumerate(levels)}
    if new := sorted(set(data.labels.tolist()) - set(codes)):
        raise UsageError(f"Expected labels of the run ({', '.join(map(str, levels[:10]))}), got {new[0]!r}.")
    column = np.array([codes[label] for label in data.labels.tolist()])

    def wider(values: np.ndarray | None, last: float | np.ndarray) -> np.ndarray | None:
        return None if values is None else np.concatenate([values, np.asarray(last)[..., None]], -1)

    x = wider(data.x, column)
    assert x is not None
    return replace(
        data,
        x=x,
        truth=wider(data.truth, column),
        center=wider(data.center, np.array(0.0)),
        scale=wider(data.scale, np.array(1.0)),
        columns=(*data.columns, str(data.options.get("labels", "label"))) if data.columns else (),
        options={**data.options, LEVELS: levels},
    )
