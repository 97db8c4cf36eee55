"""Tables as text (CSV, TSV, semicolons, blanks) and as records of cells: their delimiter, their header, their notation."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from zoo._data import looks
from zoo._data.notation import MISSING, is_missing, number, without_commas
from zoo._data.raw import shown
from zoo._data.table import Table, as_text
from zoo._errors import UsageError

Text = list[tuple[int, list[str]]]  # each record's first line in the file, and its cells
LARGE = 2**20  # letters
_YEARS = (1500, 2200)


def from_text(content: bytes, what: str, source: str, blanks: bool = False) -> Table:
    """A table whose first line may name the columns; blank lines are skipped. `blanks`: they may divide cells."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{what}, line {line}: the text is not UTF-8; save the file as UTF-8.") from None
    delimiter = _delimiter(text)
    if len(text) > LARGE and (table := _by_pandas(text, delimiter, what, source)) is not None:
        return table
    if blanks and not _agreement(text, delimiter) and _agreement(text, " ", squeezed=True):
        text, delimiter = _squeezed(text), " "
    records = _records(text, delimiter, what)
    told = without_commas(records, delimiter, what) if delimiter != "," or '"' in text else []
    return from_records([(line, list[object](cells)) for line, cells in records], what, source, told)


def _by_pandas(text: str, delimiter: str, what: str, source: str) -> Table | None:
    """A large plain table, read by pandas, twenty times as fast; None for any other.

    Plain: no quotes, no commas in numbers, a header of words with a name for each column, and as many cells in every line. A
    column that pandas does not take for numbers is given as its text; so is every column that is to be text.
    """
    lines = text.removesuffix("\n").replace("\r\n", "\n").split("\n")
    header = [cell.strip() for cell in lines[0].split(delimiter)]
    odd = '"' in text or "\r" in text.replace("\r\n", "\n") or (delimiter != "," and "," in text)
    words = all(number(name) is None for name in header)
    if (
        odd
        or not words
        or header[0] == "rownames"
        or len(header) < 2
        or len({line.count(delimiter) for line in lines}) != 1
    ):
        return None
    import pandas as pd

    how: dict[str, Any] = {"sep": delimiter, "header": 0, "skip_blank_lines": False, "names": range(len(header))}
    how |= {"keep_default_na": False, "engine": "c", "quoting": csv.QUOTE_NONE, "low_memory": False}
    how |= {} if pd.__version__ >= "3" else {"float_precision": "round_trip"}  # else the last bits are not Python's
    marks = sorted({f(mark) for mark in MISSING for f in (str.lower, str.upper, str.title)})
    try:
        frame = pd.read_csv(io.StringIO(text), na_values=marks, skipinitialspace=True, **how)
    except (ValueError, OverflowError):  # for the careful reading to say what is wrong
        return None
    written = [_Written(text, {**how, "usecols": [j], "dtype": str, "na_filter": False}) for j in range(len(header))]
    numeric = [frame.dtypes.iloc[j].kind in "iuf" for j in range(len(header))]
    cells = [frame[j].to_numpy(np.float64) if numeric[j] else written[j] for j in range(len(header))]
    names = tuple(" ".join(name.split()) for name in header)
    return Table(what, source, names, cells, np.arange(2, len(frame) + 2), written=written)


class _Written(Sequence[object]):
    """A column as it is written, read where it is asked for."""

    def __init__(self, text: str, how: dict[str, Any]) -> None:
        self.text, self.how = text, how

    @cached_property
    def cells(self) -> list[str]:
        import pandas as pd

        return list(pd.read_csv(io.StringIO(self.text), **self.how).iloc[:, 0])

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, at: Any) -> Any:
        return self.cells[at]


def from_records(records: list[tuple[int, list[object]]], what: str, source: str, told: list[str]) -> Table:
    """The table of these records, the first of which may name the columns. `told`: what was noted of them so far.

    Raises `UsageError` for records of different lengths, or none.
    """
    header = bool(records) and _is_header(records, what)
    if len(records) == header:
        raise UsageError(f"{what} is empty: it has {'a header but ' * header}no rows; give at least one row.")
    first = [as_text(cell) for cell in records[0][1]] if header else [""] * len(records[0][1])
    if header and all(len(cells) == len(first) + 1 for _, cells in records[1:]):
        first = ["", *first]  # as R writes tables: names of rows stand first, and have no name themselves
    body = _even(records[header:], len(first), records[0][0], what)
    names = tuple(name or f"x{j}" for j, name in enumerate(first))
    columns: list[list[object]] = [list(column) for column in zip(*(cells for _, cells in body), strict=True)]
    lines = np.array([line for line, _ in body])
    table = Table(what, source, names, columns, lines, warnings=[*told], has_names=header)
    if header:
        if any(looks.is_number_cell(c) for c in records[0][1]):
            table.warnings.append(
                f"{what}, line {records[0][0]} ({_listed(first)}) was read as names of the columns, though some are numbers."
            )
        _without_nameless(table, first)
    elif may_be_names(records[0][1], _as_numbers(records, range(len(first)))):
        line, cells = records[0][0], _listed([as_text(c) for c in records[0][1]])
        table.warnings.append(
            f"{what}, line {line} ({cells}) was read as data and may be a header. If these are names, add a letter to each "
            "(y2020)."
        )
    return table


def _listed(cells: list[str]) -> str:
    return ", ".join(cells[:3]) + ", …" * (len(cells) > 3)


def _even(body: list[tuple[int, list[object]]], width: int, first: int, what: str) -> list[tuple[int, list[object]]]:
    for line, cells in body:
        if len(cells) != width:
            found = f"{len(cells)} cells, but line {first} has {width}"
            raise UsageError(f"{what}, line {line}: {found}; leave a cell empty where nothing was observed.")
    return body


def _without_nameless(table: Table, first: list[str]) -> None:
    """Take out a nameless first column that numbers or names the rows, and nameless columns without a cell."""
    empty = [j for j, name in enumerate(first) if not name and all(map(is_missing, table.cells[j]))]
    if empty and len(empty) < len(first):
        table.warnings.append(f"columns of {table.what} without a name and without a cell were dropped: {len(empty)}.")
    gone = empty if len(empty) < len(first) else []
    if len(first) > 1 and first[0] in ("", "rownames") and 0 not in gone:
        cells = [c for c in table.cells[0] if not is_missing(c)]
        values = [number(c) for c in cells]
        if None not in values and _counts(np.array(values, dtype=float), table.height):
            table.warnings.append(f"the first column of {table.what} only numbers the rows, and was dropped.")
            gone = [0, *gone]
        elif all(v is None for v in values) and len(cells) == len(set(map(as_text, cells))) == table.height:
            table.warnings.append(
                f"the first column of {table.what} has no name; it names the rows, and is not fitted."
            )
            table.row_names = table.text(0)
            gone = [0, *gone]
    kept = [j for j in range(len(first)) if j not in gone]
    table.names = tuple(table.names[j] for j in kept)
    table.cells = [table.cells[j] for j in kept]


def _counts(values: np.ndarray, height: int) -> bool:
    """Whether these are 1, 2, … (as R numbers rows) or 0, 1, … (as pandas does)."""
    return any(np.array_equal(values, np.arange(height) + start) for start in (0, 1))


# ---- the header


def _is_header(records: list[tuple[int, list[object]]], what: str) -> bool:
    """Whether the first record names the columns: it holds words, or columns 0, 1, … after a nameless index.

    Where it holds words and numbers it does if the words stand over numbers, or the numbers may be names (years). Where one
    word stands over numbers, and beside numbers that are no names, it is an error: a row of data with one bad cell would be
    lost as a header.
    """
    (line, cells), rest = records[0], records[1:]
    words = [j for j, c in enumerate(cells) if number(c) is None]
    numbers = [j for j, c in enumerate(cells) if looks.is_number_cell(c)]
    if not words:
        counted = len(cells) > 1 and [as_text(c) for c in cells] == ["", *map(str, range(len(cells) - 1))]
        return counted and all(as_text(c[0]) == str(i) for i, (_, c) in enumerate(rest))
    if not numbers:
        return True
    even = all(len(c) == len(cells) for _, c in rest)
    if even and may_be_names([cells[j] for j in numbers], _as_numbers(records, numbers)):
        return True
    for j in words:
        below = [c[j] for _, c in rest if len(c) > j and not is_missing(c[j])]
        if sum(number(c) is not None for c in below) > len(below) / 2 or not below:
            bad = f"{what}, line {line}, column {j + 1}: {shown(cells[j])} is not a number"
            raise UsageError(
                f"{bad}, though '{as_text(cells[numbers[0]])}' is. Give numbers alone, or a header of names alone."
            )
    return False


def _as_numbers(records: list[tuple[int, list[object]]], columns: list[int] | range) -> np.ndarray:
    """These columns of all records as numbers [n, columns], NaN for anything else."""
    return np.array(
        [[v if (v := number(c[j])) is not None else np.nan for j in columns] for _, c in records], dtype=float
    )


def may_be_names(cells: list[object], x: np.ndarray) -> bool:
    """Whether a first line of numbers looks like names: whole numbers that count up, unlike the rows below.

    `cells`: the first line; x [n, columns]: all lines. It is unlike the others where the rest of each column is mostly no whole
    numbers, or is further from it than the rest is wide; and it counts up where most others do not. 0, 1, 2, …, as pandas
    numbers columns, is always told. Years over none serve for any table, other numbers for three columns and rows or more.
    """
    first, rest, columns = x[0], x[1:], x.shape[1]
    if not len(rest) or not all(as_text(c).lstrip("+-").isdecimal() for c in cells) or (np.diff(first) <= 0).any():
        return False
    if columns > 2 and np.array_equal(first, np.arange(columns)):
        return True
    seen, among = ~np.isnan(rest), (x >= _YEARS[0]) & (x <= _YEARS[1])
    years = bool(among[0].all() and not among[1:].any())
    up = columns > 1 and np.mean((np.diff(rest, axis=1) > 0).all(1)) > 0.5
    if not seen.any(0).all() or (not years and (columns < 3 or len(rest) < 3 or up)):
        return False
    low, high = np.where(seen, rest, np.inf).min(0), np.where(seen, rest, -np.inf).max(0)
    far = np.maximum(low - first, first - high) > high - low
    broken = np.where(seen, rest % 1 != 0, False).sum(0) > 0.8 * seen.sum(0)
    return bool(far.all() if years else (far | broken).all())


# ---- lines and cells


def _delimiter(text: str) -> str:
    """Of , ; and tab the one that divides the most of the first lines into equally many cells (over one)."""
    # Where all agree the comma comes last, for it may be a decimal comma: 1,5;2,5.
    return max(",;\t", key=lambda d: (_agreement(text, d), d != "," and _agreement(text, d) > 0))


def _agreement(text: str, delimiter: str, squeezed: bool = False) -> float:
    """The share of the first lines that the delimiter divides into equally many cells, more than one."""
    start = "\n".join(text[: 2**20].splitlines()[:200])
    reader = csv.reader(
        io.StringIO(_squeezed(start) if squeezed else start, newline=""), delimiter=delimiter, skipinitialspace=True
    )
    try:
        widths = [len(cells) for cells in islice(reader, 100) if cells]
    except csv.Error:
        return 0.0
    widths = widths[1:] or widths  # the first may be a header, and a name may hold anything
    wide = Counter(w for w in widths if w > 1)
    return max(wide.values(), default=0) / max(len(widths), 1)


def _squeezed(text: str) -> str:
    """Text whose cells are divided by blanks, with one blank between two."""
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


def _records(text: str, delimiter: str, what: str) -> Text:
    """The records that are not blank; but between others of a single cell, a blank line is an empty cell."""
    source = io.StringIO(text, newline="")
    reader = csv.reader(source, delimiter=delimiter, strict=True, skipinitialspace=True)
    records: Text = []
    line = 1
    try:
        for cells in reader:
            records.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(f"{what}, line {line}: the cells cannot be read ({error}); check the quotes.") from None
    if any(len(cells) > 1 for _, cells in records):
        return [(i, cells) for i, cells in records if len(cells) > 1 or any(c.strip() for c in cells)]
    written = [k for k, (_, cells) in enumerate(records) if cells]
    return [(i, cells or [""]) for i, cells in records[written[0] : written[-1] + 1]] if written else []
