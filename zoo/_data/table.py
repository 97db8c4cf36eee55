"""A table before its columns are chosen: cells of numbers and text under names, from a data frame or records of cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zoo._data.columns import default_names
from zoo._data.notation import is_nothing
from zoo._data.raw import Raw, place
from zoo._errors import UsageError

Cells = Sequence[object] | np.ndarray  # of a column [n]


@dataclass
class Table:
    """Named columns of cells; a cell is a number, text, or nothing."""

    what: str  # what an error message calls it
    source: str
    names: tuple[str, ...]
    cells: Sequence[Cells]  # a column each
    lines: np.ndarray | None = None  # [n] where each row stood in a file
    row_names: np.ndarray | None = None  # [n] text
    warnings: list[str] = field(default_factory=list)
    has_names: bool = True  # whether the names are its own
    raw: Raw | None = None  # the array that it is a view of
    written: Sequence[Cells] | None = None  # the columns as text, where `cells` holds numbers that were read from it

    @property
    def height(self) -> int:
        return len(self.lines) if self.lines is not None else len(self.cells[0]) if self.cells else 0

    def place(self, row: int) -> str:
        """Where a row is in the source."""
        return place([row], self.lines)

    def text(self, j: int) -> np.ndarray:
        """The cells of a column as text [n], "" where there is none; whole numbers without a point."""
        return np.array([as_text(c) for c in (self.written or self.cells)[j]], dtype=np.str_)


def as_text(cell: object) -> str:
    """A cell as text."""
    if isinstance(cell, str):
        return " ".join(cell.split())
    if is_nothing(cell):
        return ""
    if isinstance(cell, float | np.floating) and float(cell).is_integer():
        return str(int(cell))
    return str(cell)


# ---- data frames and the like


def is_table(value: object) -> bool:
    """Whether this has columns with names: a data frame of any library, a structured array, an xarray object."""
    return _is_pandas(value) or _is_column_store(value) or _is_structured(value) or _is_xarray(value)


def _is_pandas(value: object) -> bool:
    return hasattr(value, "iloc") and (hasattr(value, "columns") or hasattr(value, "to_frame"))


def _is_column_store(value: object) -> bool:
    """A polars frame, lazy frame or series; a pyarrow table."""
    if hasattr(value, "collect_schema") or hasattr(value, "column_names"):
        return True
    return (hasattr(value, "columns") and hasattr(value, "to_dict")) or all(
        hasattr(value, n) for n in ("to_list", "to_frame")
    )


def _is_structured(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.names is not None


def _is_xarray(value: object) -> bool:
    return type(value).__module__.partition(".")[0] == "xarray" and hasattr(value, "dims")


def from_frame(value: Any, what: str, source: str) -> Table | None:
    """The table that a data frame, a structured array or an xarray object holds; None for an xarray object without columns.

    Raises `UsageError` for an xarray data set whose variables have not all the same one dimension.
    """
    if _is_xarray(value):
        return _from_xarray(value, what, source)
    if _is_structured(value):
        names = [str(n) for n in value.dtype.names]
        return _checked(Table(what, source, tuple(names), [_plain(value[n]) for n in value.dtype.names]))
    if _is_pandas(value):
        return _from_pandas(value, what, source)
    if hasattr(value, "collect"):
        value = value.collect()
    if not hasattr(value, "columns") and hasattr(value, "to_frame"):
        value = value.to_frame()
    columns = value.to_dict() if hasattr(value, "to_dict") else {n: value.column(n) for n in value.column_names}
    return _checked(Table(what, source, tuple(map(_name, columns)), [_plain(np.asarray(v)) for v in columns.values()]))


def _plain(column: np.ndarray) -> np.ndarray:
    """Numbers as float64, all else as Python objects."""
    if column.dtype.kind == "M":
        column = column.astype("datetime64[us]")  # the finest that Python has dates for
    return column.astype(np.float64) if column.dtype.kind in "biuf" else column.astype(object)


def _from_pandas(frame: Any, what: str, source: str) -> Table:
    if not hasattr(frame, "columns"):
        frame = frame.to_frame(name="x0" if frame.name is None else frame.name)
    labels = list(frame.columns)
    numbered = labels == list(range(len(labels)))  # pandas numbers columns that have no names
    names = tuple(_name(label) for label in labels)
    if all(isinstance(label, int | np.integer) for label in labels) and sorted(labels) == list(range(len(labels))):
        names = tuple(
            f"x{label}" for label in labels
        )  # in another order too, so that they are matched by their numbers
    cells = [_column(frame.iloc[:, j], name, what) for j, name in enumerate(names)]
    own = type(frame.index).__name__ == "RangeIndex" and frame.index.start == 0 and frame.index.step == 1
    rows = None if own else np.array([_name(label) for label in frame.index], dtype=np.str_)
    return _checked(Table(what, source, names, cells, row_names=rows, has_names=not numbered))


def _name(label: object) -> str:
    """A label on one line; the levels of a compound one with spaces between."""
    return " ".join(" ".join(map(str, label if isinstance(label, tuple) else (label,))).split())


def _column(column: Any, name: str, what: str) -> np.ndarray:
    kind = getattr(column.dtype, "kind", "O")
    if kind in "biuf":
        found: np.ndarray = column.to_numpy(dtype=np.float64, na_value=np.nan)
        return found
    if kind in "mc":
        raise UsageError(
            f"{what}, column '{name}', must hold real numbers, got the type {column.dtype}; convert or drop the column."
        )
    return np.asarray(column, dtype=object)


def _from_xarray(value: Any, what: str, source: str) -> Table | None:
    """A data set's variables are columns; so are the labels along the second dimension of a two-dimensional array."""
    if hasattr(value, "data_vars"):
        dims = {v.dims for v in value.data_vars.values()}
        if len(dims) != 1 or len(next(iter(dims))) != 1:
            raise UsageError(
                f"{what}: Expected variables along one dimension, the rows, got {', '.join(map(str, dims)) or 'none'}; give "
                "one of its arrays."
            )
        names = tuple(map(str, value.data_vars))
        cells, (rows,) = [_plain(v.values) for v in value.data_vars.values()], next(iter(dims))
    elif value.ndim <= 2 and (value.ndim == 1 or value.dims[1] in value.coords):
        names = (str(value.name or "x0"),) if value.ndim == 1 else tuple(map(str, value.coords[value.dims[1]].values))
        cells, rows = list(_plain(value.values.reshape(len(value), -1)).T), value.dims[0]
    else:
        return None
    named = np.array(list(map(str, value.coords[rows].values)), dtype=np.str_) if rows in value.coords else None
    return _checked(Table(what, source, names, cells, row_names=named))


def _checked(table: Table) -> Table:
    if not table.height:
        shape = (table.height, len(table.names))
        raise UsageError(f"{table.what} is empty, of shape {shape}; give at least one row and one column.")
    return table


def view_of(raw: Raw) -> Table:
    """A two-dimensional array as a table of its columns."""
    own = raw.columns != default_names(len(raw.columns))
    cells = list(raw.x.T)
    return Table(raw.what, raw.source, raw.columns, cells, raw.lines, raw.row_names, raw.warnings, own, raw)
