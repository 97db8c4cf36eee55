"""The columns of a table: read from a data frame or from Python objects, and matched by name between two tables."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from zoo._errors import UsageError

MOST_SHOWN = 20  # names in a message


def default_names(count: int) -> tuple[str, ...]:
    """x0, x1, …: the names of columns that have none."""
    return tuple(f"x{j}" for j in range(count))


# ---- matching


def match(known: Sequence[str], given: Sequence[str]) -> list[int]:
    """For each known column its place among the given ones: by name, or by position where either table has no names.

    Raises `UsageError` that lists the missing and unknown columns, or says how many were expected.
    """
    known, given = list(known), list(given)
    if known == given:
        return list(range(len(known)))
    for names in (known, given):
        if len(set(names)) < len(names) and sorted(known) == sorted(given):
            raise UsageError(
                f"the column name '{_repeated(names)}' is used twice, so the columns cannot be matched by name; "
                "give each column its own name."
            )
    if sorted(known) == sorted(given):
        return [given.index(name) for name in known]
    nameless = [tuple(names) == default_names(len(names)) for names in (known, given)]
    if any(nameless):
        if len(known) == len(given):
            return list(range(len(known)))
        named = "" if nameless[0] else f" ({_listed(known)})"
        raise UsageError(
            f"Expected {_count(known)}{named}, got {len(given)}{'' if nameless[1] else f' ({_listed(given)})'}."
        )
    missing = [name for name in known if name not in given]
    extra = [name for name in given if name not in known]
    found = [f"missing: {_listed(missing)}"] * bool(missing) + [f"unknown: {_listed(extra)}"] * bool(extra)
    if not found:  # the same names, some of them more than once
        found = [f"twice: {_repeated(given if len(given) > len(known) else known)}"]
    raise UsageError(f"Expected the columns {_listed(known)}. {'; '.join(found).capitalize()}.")


def _repeated(names: list[str]) -> str:
    return next((name for name in names if names.count(name) > 1), "")


def _count(names: list[str]) -> str:
    return f"{len(names)} column{'s' * (len(names) != 1)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_SHOWN]) + ", …" * (len(names) > MOST_SHOWN)


# ---- data frames and objects


def is_frame(value: object) -> bool:
    """Whether this is a data frame or a series, of pandas or a library with the same interface."""
    return hasattr(value, "iloc") and (hasattr(value, "columns") or hasattr(value, "to_frame"))


def from_frame(frame: Any, what: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """A pandas data frame (or series) as numbers [n, columns], NaN where missing, and the names of its columns.

    Raises `UsageError` for a column of another kind than numbers, naming the first cell that is not a number.
    """
    if not hasattr(frame, "columns"):
        frame = frame.to_frame(name="x0" if frame.name is None else frame.name)
    labels = list(frame.columns)
    numbered = labels == list(range(len(labels)))  # pandas numbers columns that have no names
    names = default_names(len(labels)) if numbered else tuple(_name(label) for label in labels)
    x = np.empty((len(frame), len(names)))
    for j, name in enumerate(names):
        x[:, j] = _column(frame.iloc[:, j], name, what)
    return x, names


def _name(label: object) -> str:
    """A column's label on one line; the levels of a compound one with spaces between."""
    return " ".join(" ".join(map(str, label if isinstance(label, tuple) else (label,))).split())


def _column(column: Any, name: str, what: str) -> np.ndarray:
    kind = getattr(column.dtype, "kind", "O")
    if kind in "biuf":
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    if kind in "mMc":
        raise UsageError(
            f"{what}, column '{name}', must hold real numbers, got the type {column.dtype}; convert or drop the column."
        )
    return from_objects(np.asarray(column, dtype=object), f"{what}, column '{name}'")


def from_objects(cells: np.ndarray, what: str) -> np.ndarray:
    """An array of Python objects as numbers of the same shape; None, pandas' NA and NaT are missing.

    Raises `UsageError` that names the first cell that is not a number.
    """
    out = np.empty(cells.shape)
    for at, cell in np.ndenumerate(cells):
        if cell is None or type(cell).__name__ in ("NAType", "NaTType"):
            out[at] = np.nan
        elif isinstance(cell, Real | np.bool_) or type(cell).__name__ == "Decimal":
            out[at] = _float(cell)
        else:
            column = f", column {at[1]}" if len(at) > 1 else ""
            shown = f"'{' '.join(cell.split())[:80]}'" if isinstance(cell, str) else f"a {type(cell).__name__}"
            row = f", row {at[0]} (counting from 0){column}" if at else ""
            raise UsageError(f"{what}{row}: {shown} is not a number; use NaN or None where nothing was observed.")
    return out


def _float(cell: Any) -> float:
    try:
        return float(cell)
    except OverflowError:  # an integer beyond float64
        return np.inf if cell > 0 else -np.inf
