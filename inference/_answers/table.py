"""Tables of answers: columns with names, as CSV text a block of rows at a time, or as a data frame.

Formatting floats is what writing a table costs. So a block of rows is one `%` operation on one long format string, which
takes a third of the time of a call for each number.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inference._numerics.slices import slices

if TYPE_CHECKING:
    import pandas as pd

LINES = 16_384  # that are formatted at once
DIGITS = "%.10g"


@dataclass(frozen=True)
class Table:
    """Columns of numbers or text, all of one length.

    >>> table = Table({"row": np.array(["a", "b"], dtype=object), "log_p": np.array([-1.5, np.nan])})
    >>> print("".join(table.text()), end="")
    row,log_p
    a,-1.5
    b,
    """

    columns: dict[str, np.ndarray]
    full: bool = False  # numbers in all their digits, rather than ten

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def frame(self, index: str | None = None) -> pd.DataFrame:
        """As a data frame; the column `index` becomes its index."""
        import pandas as pd

        found = pd.DataFrame({name: values for name, values in self.columns.items() if name != index}, copy=False)
        if index is not None:
            found.index = pd.Index(self.columns[index], name=index)
        return found

    def text(self, header: bool = True) -> Iterator[str]:
        """CSV, some rows at a time. What is not known (NaN) is an empty field."""
        if header:
            yield ",".join(_field(name) for name in self.columns) + "\n"
        for rows in slices(len(self), LINES):
            yield _lines([values[rows] for values in self.columns.values()], "%r" if self.full else DIGITS)


def joined(tables: Sequence[Table]) -> Table:
    """Tables of the same columns, one under the other."""
    if len(tables) == 1:
        return tables[0]
    return Table({name: np.concatenate([t.columns[name] for t in tables]) for name in tables[0].columns})


def write(path: Path, tables: Iterable[Table]) -> int:
    """Write tables of the same columns, one under the other, as one CSV file; how many rows that were."""
    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        for number, table in enumerate(tables):
            file.writelines(table.text(header=number == 0))
            count += len(table)
    return count


def _lines(columns: list[np.ndarray], digits: str) -> str:
    parts, formats = [], []
    for values in columns:
        form, cells = _cells(values, digits)
        formats.append(form)
        parts.append(cells)
    line = ",".join(formats) + "\n"
    return (line * len(parts[0])) % tuple(itertools.chain.from_iterable(zip(*parts, strict=True)))


def _cells(values: np.ndarray, digits: str) -> tuple[str, list[object]]:
    """How to format a column's values, and the values."""
    if values.dtype.kind in "iub":
        return "%d", values.tolist()
    if values.dtype.kind == "f":
        if not np.isnan(values).any():
            return digits, values.tolist()
        return "%s", ["" if v != v else digits % v for v in values.tolist()]
    return "%s", [_field(v) for v in values.tolist()]


def _field(value: object) -> str:
    """A field of text as CSV has it: quoted where it has to be, and nothing that a spreadsheet takes for a formula."""
    text = str(value)
    if text.startswith(("=", "+", "-", "@", "\t", "\r")) and not _is_number(text):
        text = f"'{text}"
    if not any(c in text for c in ',"\r\n') and text == text.strip():
        return text
    line = io.StringIO()
    csv.writer(line, quoting=csv.QUOTE_ALL, lineterminator="").writerow([text])
    return line.getvalue()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
