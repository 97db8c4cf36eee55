"""Numbers as tables write them: marks of missing values, decimal commas, separators of thousands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from zoo._errors import UsageError

MISSING = frozenset({"", "na", "n/a", "nan", "none", "null", "#n/a", ".", "?", "-", "<na>", "nat"})  # in lower case
_SPACED = re.compile(r"[+-]?\d{1,3}([ '’\u00a0\u2009\u202f]\d{3})+(\.\d*)?")  # 1 234.5
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?([eE][+-]?\d+)?")  # 1,234.5
_DECIMAL = re.compile(r"[+-]?(\d+,\d*|,\d+|\d{1,3}([. '’\u00a0\u2009\u202f]\d{3})+(,\d*)?)([eE][+-]?\d+)?")  # 1.234,5
_GROUPED_BY_POINTS = re.compile(r"[+-]?\d{1,3}(\.\d{3})+")  # 1.234


@dataclass(frozen=True)
class Marks:
    """What stands for a missing value beside the usual marks: words, or numbers such as 999."""

    words: frozenset[str] = frozenset()
    numbers: tuple[float, ...] = ()

    @classmethod
    def of(cls, given: Iterable[object]) -> Marks:
        """The marks that were given: text, or numbers; text that is a number stands for both."""
        given = list(given)
        numbers = [v for g in given if (v := as_float(g)) is not None]
        return cls(frozenset(str(g).strip().lower() for g in given), tuple(numbers))

    def in_numbers(self, x: np.ndarray) -> np.ndarray:
        """Which numbers of x are marks."""
        return np.isin(x, self.numbers) if self.numbers else np.zeros(x.shape, dtype=bool)


@dataclass(frozen=True)
class Numbers:
    """A column as numbers."""

    values: np.ndarray  # [n] float64, NaN where nothing was observed, and at what is no number
    bad: list[int]  # the places of the cells that are no numbers
    marked: int = 0  # how many cells were marks of missing values that the user named


def numbers_of(cells: Sequence[object] | np.ndarray, marks: Marks) -> Numbers:
    """The cells of a column as numbers."""
    if isinstance(cells, np.ndarray) and cells.dtype == np.float64:
        values, bad, marked = cells, list[int](), 0
    else:
        values, bad, marked = _parsed(cells, marks)
    if (found := marks.in_numbers(values)).any():
        values, marked = np.where(found, np.nan, values), marked + int(found.sum())
    return Numbers(values, bad, marked)


def _parsed(cells: Sequence[object] | np.ndarray, marks: Marks) -> tuple[np.ndarray, list[int], int]:
    try:  # most columns of a text file; 1_000 is for `number` to refuse
        return np.array([float(c.replace("_", "?")) for c in cells]), [], 0  # type: ignore[union-attr]
    except (AttributeError, TypeError, ValueError):
        pass
    values, bad, marked = np.full(len(cells), np.nan), [], 0
    for i, cell in enumerate(cells):
        if (value := number(cell)) is not None:
            values[i] = value
        elif isinstance(cell, str) and cell.strip().lower() in marks.words:
            marked += 1
        else:
            bad.append(i)
    return values, bad, marked


def number(cell: object) -> float | None:
    """The number in a cell; NaN where it is empty or a usual mark of a missing value; None for anything else."""
    if isinstance(cell, str):
        text = cell.strip()
        if text.lower() in MISSING:
            return float("nan")
        if _SPACED.fullmatch(text):
            return float(re.sub(r"[^-+\d.]", "", text))
        return None if "_" in text else as_float(text)  # Python reads 1_000 as a number; no other program does
    if is_nothing(cell):
        return float("nan")
    if isinstance(cell, Real | np.bool_) or type(cell).__name__ == "Decimal":
        return _float(cell)
    return None


def is_nothing(cell: object) -> bool:
    """Whether a cell is None, NaN, or pandas' NA or NaT."""
    return cell is None or type(cell).__name__ in ("NAType", "NaTType") or (isinstance(cell, float) and cell != cell)


def is_missing(cell: object) -> bool:
    """Whether a cell holds nothing, or a usual mark of a missing value."""
    return cell.strip().lower() in MISSING if isinstance(cell, str) else is_nothing(cell)


def as_float(value: object) -> float | None:
    """`float(value)`, or None where it is not a number."""
    try:
        return float(value)  # type: ignore[arg-type]  # that is the question
    except (TypeError, ValueError, OverflowError):
        return None


def _float(cell: Any) -> float:
    try:
        return float(cell)
    except OverflowError:  # an integer beyond float64
        return np.inf if cell > 0 else -np.inf


# ---- commas


def without_commas(rows: list[tuple[int, list[str]]], delimiter: str, what: str) -> list[str]:
    """Rewrite numbers with commas, in place, as Python reads them; returns the warnings this gives.

    `rows`: each record's line in the file, and its cells. A comma is a decimal comma (1,5) or divides thousands (1,234.5).
    One reading has to fit every number of the file. Where both do, the file's delimiter decides: a semicolon goes with decimal
    commas, a comma (around which the cell stands in quotes) with thousands.

    Raises `UsageError` where no reading fits, or nothing decides.
    """
    found = [(line, c.strip()) for line, cells in rows for c in cells if "," in c]
    found = [(line, c) for line, c in found if _THOUSANDS.fullmatch(c) or _DECIMAL.fullmatch(c)]
    if not found:
        return []
    points = [c.strip() for _, cells in rows for c in cells if "." in c and number(c) is not None and not is_missing(c)]
    thousands = all(_THOUSANDS.fullmatch(c) for _, c in found)
    decimal = all(_DECIMAL.fullmatch(c) for _, c in found) and all(_GROUPED_BY_POINTS.fullmatch(c) for c in points)
    line, cell = found[0]
    if thousands and decimal and delimiter not in ",;":
        raise UsageError(
            f"{what}, line {line}: '{cell}' has a comma, which may divide thousands or be a decimal comma; write the numbers "
            "without commas."
        )
    if not thousands and not decimal:
        raise UsageError(f"{what}, line {line}: '{cell}' has a comma; write a decimal point instead.")
    if thousands and not (decimal and delimiter == ";"):
        _rewrite(rows, _THOUSANDS, ",", "")
        return [f"the commas in the numbers of {what} were read as separators of thousands ({cell})."]
    grouped = [c for c in points if _GROUPED_BY_POINTS.fullmatch(c)]
    _rewrite(rows, _GROUPED_BY_POINTS, ".", "")
    _rewrite(rows, _DECIMAL, ",", ".")
    more = f", and its points as separators of thousands ({grouped[0]})" if grouped else ""
    return [f"the decimal commas of {what} were read as decimal points{more}."]


def _rewrite(rows: list[tuple[int, list[str]]], pattern: re.Pattern[str], old: str, new: str) -> None:
    """Replace `old` by `new` in the cells that are numbers of that pattern; what else groups digits in them goes."""
    for _, cells in rows:
        for j, cell in enumerate(cells):
            if old in cell and pattern.fullmatch(text := cell.strip()):
                text = text if old == new or new == "" else re.sub(r"[. '’\u00a0\u2009\u202f]", "", text)
                cells[j] = text.replace(old, new)
