"""Series with steps added at their ends, and the names of steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from zoo._data.columns import default_names
from zoo._data.dataset import Dataset
from zoo._errors import UsageError


def with_steps(data: Dataset, steps: int) -> Dataset:
    """Data with so many steps more at the end of each series, of which nothing is seen."""
    if data.x.ndim not in (2, 3):
        raise UsageError(
            f"predicting ahead needs series, n × T or n × T × D numbers, got rows of shape {data.x.shape[1:]}."
        )
    center, scale = data.center, data.scale
    if center is not None and scale is not None:
        if len(center) and not ((center == center[:1]).all() and (scale == scale[:1]).all()):
            raise UsageError(
                "the data were standardized column by column, and steps that come have no mean of their own: give the data as "
                "a table of steps (--series), which is standardized as one."
            )
        center, scale = (np.repeat(v[:1], len(v) + steps, 0) for v in (center, scale))
    more = np.full((len(data.x), steps, *data.x.shape[2:]), np.nan)
    columns = tuple(names_of_steps(data, data.x.shape[1] + steps).astype(str)) if data.columns else ()
    x = np.concatenate([data.x, more], 1)
    return replace(data, x=x, columns=columns, center=center, scale=scale, labels=None, truth=None, weights=None)


def names_of_steps(data: Dataset, T: int) -> np.ndarray:
    """The names of steps [T], continued where they are numbers in even steps, such as years; else their numbers from 0."""
    try:
        known = np.array([int(name) for name in data.columns])
    except ValueError:
        known = np.zeros(0, dtype=int)
    if len(known) > 1 and len(set(np.diff(known))) == 1:
        return known[0] + np.arange(T) * (known[1] - known[0])
    same = len(data.columns) == T and data.columns != default_names(T)
    return np.array(data.columns, dtype=object) if same else np.arange(T)
