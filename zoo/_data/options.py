"""The options that prepare data: their names, and the names of columns that they are given. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral, Real

from zoo._errors import UsageError

COLUMNS = ("columns", "drop", "covariates", "categories")  # name some columns
COLUMN = ("labels", "rows_by", "weights", "series_by")  # name one
ROLES = (*COLUMNS, *COLUMN, "na")  # what is to become of columns and cells
ENTRIES = ("rows", "standardize", "binarize", "missing", "series")  # what is to become of rows and entries
MADE = "covariance_of"  # the number of rows behind a covariance matrix, for which rows are made
PREPARATIONS = (*ROLES, *ENTRIES, MADE)


def names(option: str, value: object) -> tuple[str, ...]:
    """The names that an option lists: text, in which commas part names, or a list of names. A name may be a year, say."""
    listed = _listed(value, str | Integral)
    if listed is None or not all(_is_name(n) for n in listed):
        raise UsageError(f"Expected names of columns for {option}, got {value!r:.60}.")
    return tuple(map(str, listed))


def one_name(option: str, value: object) -> str | None:
    """The name of a column, None for none."""
    if value is not None and not _is_name(value):
        raise UsageError(f"Expected the name of a column for {option}, got {value!r:.60}.")
    return None if value is None else str(value)


def _is_name(value: object) -> bool:
    return isinstance(value, str | Integral) and not isinstance(value, bool) and bool(str(value).strip(" ,"))


def marks(value: object) -> tuple[str | float, ...]:
    """What stands for a missing value: numbers and words."""
    listed = _listed(value, str | Real)
    if listed is None or not all(isinstance(v, str | Real) and str(v).strip() for v in listed):
        raise UsageError(f"Expected numbers or words for na, got {value!r:.60}.")
    return tuple(v if isinstance(v, str) else _plain(v) for v in listed if isinstance(v, str | Real))


def _plain(value: Real) -> int | float:
    """A number as JSON has it."""
    number = float(value)
    return int(number) if number.is_integer() else number


def _listed(value: object, single: object) -> list[object] | None:
    """One value or several as a list; None for what is neither."""
    if value is None:
        return []
    if isinstance(value, single):  # type: ignore[arg-type]
        return [value]
    return list(value) if isinstance(value, Iterable) and not isinstance(value, bytes) else None


def given(preparation: Mapping[str, object]) -> dict[str, object]:
    """The preparations that were asked for, those of columns as lists of names. Raises `UsageError` for what names none."""
    out = {k: v for k, v in preparation.items() if v is not None and v is not False}
    out |= {k: list(names(k, v)) for k, v in out.items() if k in COLUMNS}
    return out | ({"na": list(marks(out["na"]))} if "na" in out else {})
