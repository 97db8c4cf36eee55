"""Tables of the page: columns that sort, numbers that line up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks._report.rank import Standing
from benchmarks._suite.cells import written
from benchmarks._suite.documents import Kind, Options

NOTHING = "–"
SIGNS: dict[Kind, str] = {"exact": "=", "estimate": "≈", "lower bound": "≥", "upper bound": "≤"}


@dataclass(frozen=True)
class Entry:
    """A cell of a table; `sort`: the value to sort by, where that is not its text."""

    text: str
    sort: float | str | None = None
    style: str = ""
    series: int | None = None  # of the charts, whose marker is shown
    code: bool = False
    small: str = ""  # a second line
    link: str = ""  # to a part of the page


@dataclass(frozen=True)
class Column:
    """A column's name, whether it holds numbers, and what it means."""

    name: str
    numeric: bool = True
    help: str = ""
    small: str = ""  # a second line
    key: bool = False  # stays in view when a narrow screen scrolls the rest


@dataclass
class Table:
    """Columns, and rows of as many entries."""

    columns: Sequence[Column]
    rows: list[list[Entry]] = field(default_factory=list)
    caption: str = ""

    def add(self, *entries: Entry) -> None:
        """One more row."""
        assert len(entries) == len(self.columns)
        self.rows.append(list(entries))

    def ordered(self, places: Sequence[int]) -> Table:
        """With its columns in another order."""
        return Table([self.columns[i] for i in places], [[row[i] for i in places] for row in self.rows], self.caption)

    def trimmed(self) -> Table:
        """Without the columns in which nothing stands."""
        if not self.rows:
            return self
        kept = [i for i in range(len(self.columns)) if any(row[i].text not in (NOTHING, "") for row in self.rows)]
        return self.ordered(kept)


def number(value: float | None, decimals: int, sign: bool = False, before: str = "") -> Entry:
    """A number with so many decimals and a true minus sign; digits before the point in threes from five on."""
    if value is None or not math.isfinite(value):
        return Entry(NOTHING)
    return Entry(before + plain(value, decimals, sign), value)


def evidence(standing: Standing | None, decimals: int) -> Entry:
    """A value with the sign of its kind: "= −1130.264"."""
    return (
        Entry(NOTHING) if standing is None else number(standing.value, decimals, before=f"{SIGNS[standing.kind]}\u2009")
    )


def plain(value: float, decimals: int, sign: bool = False) -> str:
    """The text of a number."""
    text = f"{abs(value):,.{decimals}f}" if abs(value) >= 1e4 else f"{abs(value):.{decimals}f}"
    nought = not any(c in "123456789" for c in text)
    minus = "" if nought else "−" if value < 0 else "+" if sign else ""
    return minus + text.replace(",", "\u202f")


def decimals_for(values: Sequence[float | None]) -> int:
    """So many that the largest of the values has about seven digits."""
    most = max((abs(v) for v in values if v is not None), default=0.0)
    return 3 if most < 1e4 else 2 if most < 1e5 else 1 if most < 1e6 else 0


def seconds(value: float | None) -> Entry:
    """A time with two or three digits."""
    if value is None:
        return Entry(NOTHING)
    return Entry(plain(value, 3 if value < 0.1 else 2 if value < 10 else 1 if value < 100 else 0), value)


def share(value: float | None) -> Entry:
    """A fraction, as a percentage."""
    return Entry(NOTHING) if value is None else Entry(f"{100 * value:.1f}%", value)


def words(text: str, style: str = "", series: int | None = None, code: bool = False) -> Entry:
    """Text."""
    return Entry(text, text, style, series, code)


def median(values: Sequence[float | None]) -> float | None:
    """The middle of the known values; the lower middle of an even number."""
    known = sorted(v for v in values if v is not None)
    return known[(len(known) - 1) // 2] if known else None


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the known values."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def chosen(options: Options) -> str:
    """Options in words: "epochs=100, samples=200"."""
    return ", ".join(f"{k}={written(v)}" for k, v in options.items())
