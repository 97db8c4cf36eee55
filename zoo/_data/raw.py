"""Data as read, before any preparation, and arrays as such data; errors name the row and the column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from zoo._data import mapped as mapped_file
from zoo._data.columns import default_names
from zoo._data.notation import number
from zoo._errors import UsageError

_HUGE = 1e150  # the square of anything larger may overflow float64, and every Gaussian squares its data
_NUMBERS = 2**20  # that are checked at once


@dataclass
class Raw:
    """Data as read, before any preparation."""

    x: np.ndarray  # [n, ...] real; the set is x / divisor
    what: str  # what an error message calls it
    source: str
    columns: tuple[str, ...] = ()
    labels: np.ndarray | None = None
    image_shape: tuple[int, int] | None = None
    divisor: float = 1.0  # applied after ``rows``, so that a full set stays bytes until then
    peak: float = 1.0  # full intensity, for ``binarize``
    lines: np.ndarray | None = None  # [n] where each row stood in a text file
    warnings: list[str] = field(default_factory=list)
    row_names: np.ndarray | None = None  # [n] text
    weights: np.ndarray | None = None  # [n]
    series: np.ndarray | None = None  # [n] text: which series each row is a step of
    used: dict[str, object] = field(default_factory=dict)  # which columns became labels, weights, …; JSON-ready

    def __post_init__(self) -> None:
        self.total = len(self.x)
        self.rows = np.arange(self.total)  # where each row of x stood before ``rows`` chose some

    def place(self, at: Sequence[int] | np.ndarray) -> str:
        """Where these rows of x are in the source: "line 3", or "rows 0, 4 (counting from 0)"; the first five."""
        return place(self.rows[at], self.lines)

    def column(self, at: Sequence[int | np.integer] | np.ndarray) -> str:
        """The name of a column, or of a position in a row of more dimensions."""
        if len(at) > 1:
            return f"x{list(map(int, at))}"
        return self.columns[at[0]] if self.columns else f"x{at[0]}"

    def some_columns(self, chosen: np.ndarray) -> str:
        """The subject of a sentence: "column 'a' is", "4 of 9 columns ('a', 'b', 'c', …) are"."""
        places = np.argwhere(chosen)
        shown = ", ".join(f"'{self.column(at)}'" for at in places[:3]) + ", …" * (len(places) > 3)
        return f"column {shown} is" if len(places) == 1 else f"{len(places)} of {chosen.size} columns ({shown}) are"

    def take(self, rows: np.ndarray) -> None:
        """Keep these rows."""
        self.rows, self.x = rows, self.x[rows]
        self.labels = None if self.labels is None else self.labels[rows]
        self.row_names = None if self.row_names is None else self.row_names[rows]
        self.weights = None if self.weights is None else self.weights[rows]


def place(rows: np.ndarray | Sequence[int], lines: np.ndarray | None) -> str:
    """Where rows stand: their lines in a file, or their numbers; the first five."""
    found = np.asarray(rows) if lines is None else lines[rows]
    kind = ("row" if lines is None else "line") + "s" * (len(found) > 1)
    shown = ", ".join(map(str, found[:5])) + ", …" * (len(found) > 5)
    return f"{kind} {shown}" + " (counting from 0)" * (lines is None)


def from_array(value: object, what: str, source: str, labels: np.ndarray | None = None) -> Raw:
    """An array [n, ...] of one to four dimensions; [n] becomes [n, 1]. A masked entry, None and NA are unobserved."""
    x = _numbers_of(value, what)
    if not 1 <= x.ndim <= 4:
        raise UsageError(f"{what} must have 1 to 4 dimensions, rows first, got {x.ndim}.")
    if 0 in x.shape:
        raise UsageError(f"{what} is empty, of shape {x.shape}; give at least one row and one column.")
    columns = default_names(x.shape[1] if x.ndim == 2 else 1) if x.ndim <= 2 else ()
    x = x[:, None] if x.ndim == 1 else x
    if labels is not None and labels.shape != (len(x),):
        raise UsageError(f"the labels of {what} must have shape ({len(x)},), one for each row, got {labels.shape}.")
    return Raw(x, what, source, columns, labels)


def _numbers_of(value: object, what: str) -> np.ndarray:
    """An array-like value as float64."""
    if hasattr(value, "detach") and hasattr(value, "cpu"):  # a tensor: it may require a gradient or lie on a device
        value = value.detach().cpu()
    try:
        x = value if isinstance(value, np.ma.MaskedArray) else np.asarray(value)
    except ValueError:
        raise UsageError(
            f"{what} has rows of different lengths; give each as many numbers, NaN where unobserved."
        ) from None
    except (TypeError, RuntimeError) as error:
        raise UsageError(f"{what} is not an array of numbers: {error}.") from None
    if x.dtype.kind == "O" and x.ndim:
        return from_objects(np.ma.filled(x, None) if isinstance(x, np.ma.MaskedArray) else x, what)
    if x.dtype.kind == "O":
        raise UsageError(
            f"{what} is a {type(value).__name__}; give an array, a table, or the name of a data set or file."
        )
    if x.dtype.kind not in "biuf":
        raise UsageError(f"{what} must hold real numbers, NaN where unobserved, got the type {x.dtype}.")
    with np.errstate(over="ignore"):  # a long double that is too large becomes infinite: caught later
        if np.ma.isMaskedArray(x):
            return np.ma.filled(x.astype(np.float64), np.nan)
        mapped = mapped_file.private(x)
        return x.astype(np.float64, copy=not x.flags.writeable) if mapped is None else mapped


def from_objects(cells: np.ndarray, what: str) -> np.ndarray:
    """An array of Python objects as numbers of the same shape; None, pandas' NA and NaT are missing.

    Raises `UsageError` that names the first cell that is not a number.
    """
    out = np.empty(cells.shape)
    for at, cell in np.ndenumerate(cells):
        value = None if isinstance(cell, str) else number(cell)
        if value is None:
            column = f", column {at[1]}" if len(at) > 1 else ""
            raise UsageError(
                f"{what}, row {at[0]} (counting from 0){column}: {shown(cell)} is not a number; use NaN or None where "
                "nothing was observed."
            )
        out[at] = value
    return out


def shown(cell: object) -> str:
    """A cell as an error message quotes it: on one line, and not all of a long one."""
    return f"'{' '.join(cell.split())[:80]}'" if isinstance(cell, str) else f"a {type(cell).__name__}"


def check_finite(raw: Raw) -> Raw:
    """The same data, when no entry is infinite or too large to square."""
    step = max(1, _NUMBERS // max(1, raw.x[:1].size))
    for first in range(0, len(raw.x), step):
        bad = np.abs(raw.x[first : first + step]) > _HUGE  # False for NaN
        if not bad.any():
            continue
        row, *at = np.unravel_index(int(np.argmax(bad)), bad.shape)
        row += first
        value, where = raw.x[(row, *at)], f"{raw.what}, {raw.place([int(row)])}, column '{raw.column(at)}'"
        if np.isinf(value):
            raise UsageError(f"{where}: the value is infinite ({value}); use NaN for what is not observed.")
        raise UsageError(f"{where}: {value:g} is too large to square (limit {_HUGE:g}); use a larger unit.")
    return raw
