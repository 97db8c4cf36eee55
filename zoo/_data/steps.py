"""Tables whose rows are the steps of series, as one row of x for each series."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from zoo._data.catalogue import SERIES
from zoo._data.columns import default_names
from zoo._data.dataset import Dataset
from zoo._errors import UsageError
from zoo._options import flags

OF_ROWS = ("labels", "weights", "rows", "covariance_of")  # preparations that single steps cannot have


def asked(spec: object, series: bool, roles: dict[str, object], **others: object) -> tuple[bool, dict[str, object]]:
    """Whether rows are known to be steps, and the roles of columns: those of the named series besides.

    Raises `UsageError` for a preparation of rows that are no data of their own.
    """
    flags(series=series)
    if isinstance(spec, str) and spec in SERIES:
        series, roles = True, {**roles, "rows_by": roles.get("rows_by") or "year"}
    given = {**roles, **others}
    if (series or roles.get("series_by") is not None) and (clash := [k for k in OF_ROWS if given.get(k) is not None]):
        raise UsageError(f"{clash[0]} and series cannot be combined: the rows of the table are the steps of series.")
    return series, roles


def fold(data: Dataset, by: np.ndarray | None) -> Dataset:
    """Steps [N, D] as series [n, T, D], or [n, T] of one column, in their order; shorter ones end in NaN.

    `by` [N]: which series each step belongs to; None: all to one. Data of other rows stay as they are.
    """
    if "series" not in data.options:
        return data
    if data.x.ndim != 2:
        raise UsageError(f"series expects a table, a row for each step, got rows of shape {data.x.shape[1:]}.")
    if by is not None and "" in by:
        row = int((by == "").argmax())
        raise UsageError(f"Expected a name in column '{data.options['series_by']}' of each row, got none in row {row}.")
    names = ["all"] if by is None else list(dict.fromkeys(by.tolist()))
    places = [np.arange(len(data.x)) if by is None else np.flatnonzero(by == name) for name in names]
    n, T, D = len(names), max(map(len, places)), data.x.shape[1]
    told, options = list(data.warnings), {**data.options, "series_columns": list(data.columns)}
    if (short := min(map(len, places))) < T:
        options["series_lengths"] = list(map(len, places))
        told.append(f"the series have {short} to {T} steps: the shorter ones end in missing steps.")
    if n > 1 and data.row_names is not None:
        told.append("the names of steps are not kept, since there are several series.")

    def folded(values: np.ndarray | None) -> np.ndarray | None:
        if values is None:
            return None
        out = np.full((n, T, D), np.nan)
        for series, rows in zip(out, places, strict=True):
            series[: len(rows)] = values[rows]
        return out if D > 1 else out[..., 0]

    def each(of_column: np.ndarray | None) -> np.ndarray | None:
        return None if of_column is None else np.tile(of_column, (T, 1)) if D > 1 else np.tile(of_column, T)

    steps = default_names(T) if data.row_names is None or n > 1 else data.row_names
    x = folded(data.x)
    assert x is not None
    return replace(
        data,
        x=x,
        truth=folded(data.truth),
        center=each(data.center),
        scale=each(data.scale),
        columns=steps if D == 1 else (),
        row_names=None if by is None else tuple(names),
        options=options,
        warnings=tuple(told),
    )
