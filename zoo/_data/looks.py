"""What columns look like: text that is no number, and numbers that are ids, dates or labels; and which option is for them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from zoo._data.notation import is_missing, number
from zoo._data.table import as_text

_DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}([-/.]\d{1,2})?([T ]\d{1,2}:\d{2}.*)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}( .*)?|\d{1,2}:\d{2}(:\d{2})?"
    r"|\d{1,2}[- ][A-Za-z]{3,9}[- ,]+\d{2,4}|[A-Za-z]{3,9} \d{1,2},? \d{4}"
)
_TRUTHS = ({"true", "false"}, {"yes", "no"}, {"t", "f"}, {"y", "n"}, {"on", "off"})
_ID = re.compile(
    r"(.*[_\s.-])?(id|ids|idx|index|uid|uuid|key|row|rownames|nr|no|number|#|unnamed: 0)|x?id", re.IGNORECASE
)
_LABEL = re.compile(
    r"(.*[_\s.-])?(class|classes|label|labels|species|target|cluster|category|diagnosis)", re.IGNORECASE
)
_COUNTS_FROM = 10  # rows from which numbers that count up by one look like an id
_CLASSES = 20  # numbers that a column of labels holds at most


def of_text(cells: Sequence[object] | np.ndarray) -> str:
    """What a column of text looks like: "names", "dates", "truths", "classes" or "text"."""
    present = [as_text(c) for c in cells if not is_missing(c)]
    distinct = {c.lower() for c in present}
    if all(_DATE.fullmatch(c) for c in present):
        return "dates"
    if any(distinct <= truth for truth in _TRUTHS):
        return "truths"
    if len(distinct) == len(present):
        return "names"
    return "classes" if len(distinct) <= max(2, len(present) // 2) else "text"


def is_text(cells: Sequence[object] | np.ndarray, bad: int) -> bool:
    """Whether a column with `bad` cells that are no numbers is a column of text, not one of numbers with a slip in it."""
    present = sum(not is_missing(c) for c in cells)
    return present > 1 and bad > present / 2


def said(
    columns: Mapping[str, Sequence[object] | np.ndarray], what: str, labelled: bool, named: bool, has_names: bool
) -> str:
    """The error for columns of text, all of them at once, with the options that serve.

    `labelled`, `named`: whether labels and names of rows have a column already; `has_names`: whether the columns do.
    """
    kinds = {name: of_text(cells) for name, cells in columns.items()}
    names = [n for n, k in kinds.items() if k == "names" and not named]
    classes = sorted((n for n, k in kinds.items() if k == "classes" and not labelled), key=_unlike_labels)
    roles = {"rows_by": names[:1], "labels": classes[:1]}
    roles["drop"] = [n for n in columns if n not in (*roles["rows_by"], *roles["labels"])]
    given = {role: ",".join(chosen) for role, chosen in roles.items() if chosen}
    flags = " ".join(f"--{role.replace('_', '-')} {quoted(value)}" for role, value in given.items())
    keywords = ", ".join(f'{role}="{value}"' for role, value in given.items())
    shown = [f"'{name}' ({_in_words(kinds[name], columns[name])})" for name in columns]
    some = ", ".join(shown[:10]) + ", …" * (len(shown) > 10)
    subject = (
        f"column {some} does not hold numbers"
        if len(shown) == 1
        else f"{len(shown)} columns do not hold numbers: {some}"
    )
    codes = [n for n, k in kinds.items() if k in ("truths", "classes")]
    coded = f", or --categories {quoted(','.join(codes))} to code categories as numbers" if codes else ""
    called = "" if has_names else "; columns without names are called x0, x1 and so on"
    return f"{what}: {subject}. Use {flags} (in Python {keywords}){coded}{called}."


def _unlike_labels(name: str) -> bool:
    return _LABEL.fullmatch(name) is None


def _in_words(kind: str, cells: Sequence[object] | np.ndarray) -> str:
    present = [as_text(c) for c in cells if not is_missing(c)]
    first = f"'{present[0][:30]}', …"
    words = {
        "names": f"each once: {first}",
        "dates": f"dates: {first}",
        "truths": " or ".join(sorted(set(present))),
        "classes": f"{len(set(present))} class{'es' * (len(set(present)) > 1)}: {first}",
    }
    return words.get(kind, first)


def quoted(value: str) -> str:
    return value if re.fullmatch(r"[\w.,-]+", value) else f'"{value}"'


def of_numbers(name: str, values: np.ndarray, what: str) -> str | None:
    """The warning for a column of numbers that looks like an id, dates or labels; None for any other."""
    values = np.where(np.isinf(values), 0.5, values)  # is refused later
    if (values[:100] % 1 > 0).any():  # most columns
        return None
    seen = values[~np.isnan(values)]
    if len(seen) < 3 or not (seen % 1 == 0).all():
        return None
    where, distinct = f"column '{name}' of {what}", len(np.unique(seen))
    if distinct == len(values) and (
        _ID.fullmatch(name) or (len(values) >= _COUNTS_FROM and (np.diff(values) == 1).all())
    ):
        return (
            f"{where} looks like an id: whole numbers, each once. If it only names the rows, use --rows-by {quoted(name)} or "
            f"--drop {quoted(name)}."
        )
    if _are_days(seen):
        days = f"{where} looks like dates ({int(seen[0])}, …), and is fitted as numbers"
        return f"{days}. To leave it out, use --drop {quoted(name)}."
    if _LABEL.fullmatch(name) and distinct <= min(_CLASSES, len(seen) // 2):
        return (
            f"{where} looks like class labels: {distinct} whole numbers. If it is not data to fit, use --labels "
            f"{quoted(name)} or --drop {quoted(name)}."
        )
    return None


def _are_days(values: np.ndarray) -> bool:
    """Whether these are days written as 20240131, most of them different from zero to the last digit."""
    year, month, day = values // 10_000, values // 100 % 100, values % 100
    inside = (year >= 1800) & (year <= 2200) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
    return bool(inside.all())


def is_number_cell(cell: object) -> bool:
    """Whether a cell is a number, and not a mark of a missing value."""
    return not is_missing(cell) and number(cell) is not None
