"""Read and check an array or a .csv, .npy or .npz file; errors name the file, the row and the column."""

from __future__ import annotations

import csv
import difflib
import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from zoo._data import mapped as mapped_file
from zoo._data.catalogue import SETS
from zoo._data.columns import default_names, from_frame, from_objects, is_frame
from zoo._errors import UsageError

_MISSING = {"", "NA", "NaN", "nan", "?"}
_HUGE = 1e150  # the square of anything larger may overflow float64, and every Gaussian squares its data
_NUMBERS = 2**20  # that are checked at once
SUFFIXES = (".csv", ".npy", ".npz")


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

    def __post_init__(self) -> None:
        self.total = len(self.x)
        self.rows = np.arange(self.total)  # where each row of x stood before ``rows`` chose some

    def place(self, at: Sequence[int] | np.ndarray) -> str:
        """Where these rows of x are in the source: "line 3", or "rows 0, 4 (counting from 0)"; the first five."""
        found = (self.rows if self.lines is None else self.lines[self.rows])[at]
        kind = ("row" if self.lines is None else "line") + "s" * (len(found) > 1)
        shown = ", ".join(map(str, found[:5])) + ", …" * (len(found) > 5)
        return f"{kind} {shown}" + " (counting from 0)" * (self.lines is None)

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


def from_array(value: object, what: str, source: str, labels: np.ndarray | None = None) -> Raw:
    """An array [n, ...] of one to four dimensions; [n] becomes [n, 1]. A masked entry, None and NA are unobserved.

    A data frame keeps the names of its columns.
    """
    if is_frame(value):
        x, columns = from_frame(value, what)
    else:
        x = _numbers_of(value, what)
        columns = default_names(x.shape[1] if x.ndim == 2 else 1) if x.ndim <= 2 else ()
    if not 1 <= x.ndim <= 4:
        raise UsageError(f"{what} must have 1 to 4 dimensions, rows first, got {x.ndim}.")
    if 0 in x.shape:
        raise UsageError(f"{what} is empty, of shape {x.shape}; give at least one row and one column.")
    x = x[:, None] if x.ndim == 1 else x
    if labels is not None and labels.shape != (len(x),):
        raise UsageError(f"the labels of {what} must have shape ({len(x)},), one for each row, got {labels.shape}.")
    return _check_finite(Raw(x, what, source, columns, labels))


def _numbers_of(value: object, what: str) -> np.ndarray:
    """An array-like value as float64."""
    if hasattr(value, "detach"):  # a tensor: it may require a gradient or lie on a device
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
    with np.errstate(over="ignore"):  # a long double that is too large becomes infinite: caught below
        if np.ma.isMaskedArray(x):
            return np.ma.filled(x.astype(np.float64), np.nan)
        mapped = mapped_file.private(x)
        return x.astype(np.float64, copy=not x.flags.writeable) if mapped is None else mapped


def _check_finite(raw: Raw) -> Raw:
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


def from_numpy(content: bytes | Path, what: str, source: str) -> Raw:
    """The array of a .npy file; of a .npz file the only array, or the one named x, and its labels if any.

    `content`: the file's bytes, or its path, where it is to be mapped.
    """
    try:
        if isinstance(content, Path):
            loaded = mapped_file.open_private(content)
        else:
            loaded = np.load(io.BytesIO(content), allow_pickle=False)
        _check_size(loaded)
        arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else {k: loaded[k] for k in loaded.files}
    except MemoryError:
        raise UsageError(f"{what} unpacks to more than the memory of this machine; save fewer rows.") from None
    except Exception as error:  # damaged bytes raise a dozen kinds: of zip, zlib, tokenize, numpy
        if str(error).startswith(("Object arrays", "Array can't be memory-mapped: Python objects")):
            raise UsageError(f"{what} holds Python objects, which are not loaded; save numbers.") from None
        # Not numpy's own text: for any bytes that it does not know it speaks of pickles.
        raise UsageError(f"{what} is empty, cut short or not a NumPy file; save it again.") from None
    data = ["x"] if "x" in arrays else [k for k in arrays if k not in ("labels", "y")] or list(arrays)
    if len(data) != 1:
        raise UsageError(f"{what} holds {', '.join(arrays) or 'nothing'}; name the data x, and any labels y.")
    labels = next((arrays[k] for k in ("labels", "y") if k in arrays and k != data[0]), None)
    return from_array(arrays[data[0]], what, source, labels)


def _check_size(loaded: object) -> None:
    """Raise `MemoryError` for an archive that unpacks to more than the machine's memory, before it kills the process."""
    archive = getattr(loaded, "zip", None)
    if archive is None:
        return
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # a system that does not say
        return
    if sum(info.file_size for info in archive.infolist()) > memory:
        raise MemoryError


# --- csv ---

_Records = list[tuple[int, list[str]]]  # each record's first line in the file, and its cells
_COMMA_NUMBER = re.compile(r"\s*[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?\s*")


def from_csv(content: bytes, what: str, source: str) -> Raw:
    """A table of numbers [n, columns], whose first line may name the columns; blank lines are skipped."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{what}, line {line}: the text is not UTF-8; save the file as UTF-8.") from None
    delimiter = _delimiter(text)
    records = _records(text, delimiter, what)
    warnings = _decimal_commas(records, delimiter, what) if delimiter != "," else []
    header = bool(records) and _is_header(records, what)
    if len(records) == header:
        raise UsageError(f"{what} is empty: it has {'a header but ' * header}no rows; give at least one row.")
    first = [" ".join(cell.split()) if header else "" for cell in records[0][1]]
    columns = [name or f"x{j}" for j, name in enumerate(first)]
    x = _numbers(records[header:], columns, records[0][0], what)
    if header and x.shape[1] > 1 and first[0] in ("", "rownames") and _counts(x[:, 0]):
        warnings.append(f"the first column of {what} only numbers the rows, and was dropped.")
        x, columns = x[:, 1:], columns[1:]
    if not header and may_be_names(records[0][1], x):
        shown = ", ".join(c.strip() for c in records[0][1][:3]) + ", …" * (x.shape[1] > 3)
        warnings.append(
            f"{what}, line {records[0][0]} ({shown}) was read as data and may be a header. If these are names, add a letter to "
            "each (y2020)."
        )
    lines = np.array([line for line, _ in records[header:]])
    return _check_finite(Raw(x, what, source, tuple(columns), lines=lines, warnings=warnings))


_WHOLE_NUMBER = re.compile(r"\s*[+-]?\d+\s*")
_YEARS = (1500, 2200)


def may_be_names(cells: list[str], x: np.ndarray) -> bool:
    """Whether a first line of numbers looks like names: whole numbers that count up, unlike the rows below.

    `cells`: the first line as text; x [n, columns]: all lines. It is unlike the others where the rest of each column is
    mostly no whole numbers, or is further from it than the rest is wide; and it counts up where most others do not. 0, 1,
    2, …, as pandas numbers columns, is always told. Years over none serve for any table, other numbers for three columns
    and rows or more.
    """
    first, rest, columns = x[0], x[1:], x.shape[1]
    if not len(rest) or not all(_WHOLE_NUMBER.fullmatch(c) for c in cells) or (np.diff(first) <= 0).any():
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


def _counts(values: np.ndarray) -> bool:
    """Whether these are 1, 2, … (as R numbers rows) or 0, 1, … (as pandas does)."""
    return any(np.array_equal(values, np.arange(len(values)) + start) for start in (0, 1))


def _delimiter(text: str) -> str:
    """Of , ; and tab the one that divides the most of the first lines into equally many cells (over one)."""

    def agreement(delimiter: str) -> float:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        try:
            widths = [len(cells) for cells in islice(reader, 100) if cells]
        except csv.Error:
            return 0.0
        widths = widths[1:] or widths  # the first may be a header, and a name may hold anything
        wide = Counter(w for w in widths if w > 1)
        return max(wide.values(), default=0) / max(len(widths), 1)

    # Where all agree the comma comes last, for it may be a decimal comma: 1,5;2,5.
    return max(",;\t", key=lambda d: (agreement(d), d != "," and agreement(d) > 0))


def _records(text: str, delimiter: str, what: str) -> _Records:
    """The records that are not blank; but between others of a single cell, a blank line is an empty cell."""
    source = io.StringIO(text, newline="")
    reader = csv.reader(source, delimiter=delimiter, strict=True, skipinitialspace=True)
    records: _Records = []
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


def _decimal_commas(records: _Records, delimiter: str, what: str) -> list[str]:
    """Make decimal commas points, in place, in a table divided by semicolons; the warnings this gives."""
    comma = next(((i, c) for i, cells in records for c in cells if _COMMA_NUMBER.fullmatch(c)), None)
    if comma is None:
        return []
    # With points beside the commas, or in a table divided by tabs, a comma may as well divide thousands.
    if delimiter != ";" or any("." in c and _number(c) is not None for _, cells in records for c in cells):
        raise UsageError(f"{what}, line {comma[0]}: '{comma[1]}' has a comma; write a decimal point instead.")
    for _, cells in records:
        cells[:] = [c.replace(",", ".") if _COMMA_NUMBER.fullmatch(c) else c for c in cells]
    return [f"the decimal commas of {what} were read as decimal points."]


def _number(cell: str) -> float | None:
    """The number in a cell; NaN for a mark of a missing value; None for anything else."""
    cell = cell.strip()
    if cell in _MISSING:
        return float("nan")
    return None if "_" in cell else as_float(cell)  # Python reads 1_000 as a number; no other program does


def as_float(value: object) -> float | None:
    """`float(value)`, or None where it is not a number."""
    try:
        return float(value)  # type: ignore[arg-type]  # that is the question
    except (TypeError, ValueError, OverflowError):
        return None


def _shown(cell: str) -> str:
    """A cell as an error message quotes it: on one line, and not all of a long one."""
    return " ".join(cell.split())[:80]


def _is_header(records: _Records, what: str) -> bool:
    """Whether the first record names the columns: it holds words, or columns 0, 1, … after a nameless index.

    Words beside numbers are an error: a row of data with one bad cell would be lost as a header.
    """
    (line, cells), rest = records[0], records[1:]
    words = [j for j, c in enumerate(cells) if _number(c) is None]
    numbers = [c for c in cells if _number(c) is not None and c.strip() not in _MISSING]
    if words and numbers:
        bad = f"{what}, line {line}, column {words[0] + 1}: '{_shown(cells[words[0]])}' is not a number"
        raise UsageError(f"{bad}, though '{numbers[0]}' is. Give numbers alone, or a header of names alone.")
    counted = len(cells) > 1 and [c.strip() for c in cells] == ["", *map(str, range(len(cells) - 1))]
    return bool(words) or (counted and all(c[0].strip() == str(i) for i, (_, c) in enumerate(rest)))


def _numbers(body: _Records, columns: list[str], first: int, what: str) -> np.ndarray:
    """The cells as numbers [n, columns]."""
    x = np.empty((len(body), len(columns)))
    for i, (line, cells) in enumerate(body):
        if len(cells) != len(columns):
            found = f"{len(cells)} cells, but line {first} has {len(columns)}"
            raise UsageError(f"{what}, line {line}: {found}; leave a cell empty where nothing was observed.")
        try:
            x[i] = [float(cell.replace("_", "?")) for cell in cells]  # most rows; 1_000 is for _number to refuse
            continue
        except ValueError:
            pass
        for j, cell in enumerate(cells):
            if (value := _number(cell)) is None:
                bad = f"{what}, line {line}, column '{columns[j]}': '{_shown(cell)}' is not a number"
                remedy = "remove the column, or write an empty cell, NA, NaN or ? where nothing was observed"
                raise UsageError(f"{bad}; {remedy} (a comma, semicolon or tab divides cells).")
            x[i, j] = value
    return x


def near_files(path: Path) -> str:
    """What to do about a file that is not there."""
    try:
        files = [f.name for f in path.parent.iterdir() if f.suffix.lower() in SUFFIXES]
    except (OSError, ValueError):
        return f"there is no folder '{path.parent}' either."
    if near := difflib.get_close_matches(path.name, files, n=3):
        return f"did you mean {' or '.join(near)}?"
    named = f"the data set is called '{path.stem}', with no suffix."
    return named if path.stem in SETS else "give the path of a .csv, .npy or .npz file."
