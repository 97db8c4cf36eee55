"""Costs as records: seconds and memory against one size at a time, and the power of the size that each grows with."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from benchmarks._report.fits import Series
from benchmarks._report.tables import chosen
from benchmarks._suite.documents import CellDocument, Content, FitResult, Options

Points = Mapping[float, Sequence[float]]  # a size → what it costs there, one a seed


@dataclass(frozen=True)
class Power:
    """Cost grows as size^exponent."""

    size: str
    exponent: float
    se: float


@dataclass(frozen=True)
class CostsRow:
    """A method on a program, one size of which is varied."""

    name: str  # program and method, without options
    model: str
    options: str  # those of the program that are not varied
    method: str
    method_options: str
    series: int
    size: str  # what is varied: n, d, or an option of the program
    times: Points  # seconds
    memory: Points  # MB beyond what the process held before
    time_power: Power | None
    memory_power: Power | None

    @property
    def model_named(self) -> str:
        """The program with its options."""
        return f"{self.model} {self.options}" if self.options else self.model

    @property
    def method_named(self) -> str:
        """The method with its options."""
        return f"{self.method} {self.method_options}" if self.method_options else self.method


def costs(cells: Sequence[CellDocument], series: Series) -> dict[str, list[CostsRow]]:
    """Cells of kind "scaling" that succeeded: what is varied → its rows."""
    found: dict[str, dict[str, list[CellDocument]]] = {}
    for cell in cells:
        if cell["status"] == "ok":
            c = cell["cell"]
            key = json.dumps([c["model"], _fixed(c), c["method"], c["method_options"]])
            found.setdefault(c["axis"], {}).setdefault(key, []).append(cell)
    return {size: [_row(size, alike, series) for alike in rows.values()] for size, rows in found.items()}


def _row(size: str, cells: list[CellDocument], series: Series) -> CostsRow:
    content = cells[0]["cell"]
    name = f"{content['model']}, {content['method']}"
    times, memory = _points(cells, "seconds"), _points(cells, "extra_memory_mb")
    return CostsRow(
        name,
        content["model"],
        chosen(_fixed(content)),
        content["method"],
        chosen(content["method_options"]),
        series(name),
        size,
        times,
        memory,
        _power(times, size),
        _power(memory, size),
    )


def _fixed(content: Content) -> Options:
    """The options that are not varied."""
    return {k: v for k, v in content["model_options"].items() if k != content["axis"]}


def _points(cells: list[CellDocument], key: Literal["seconds", "extra_memory_mb"]) -> Points:
    out: dict[float, list[float]] = {}
    for cell in cells:
        if (value := cast(FitResult, cell["result"]).get(key)) and value > 0:
            out.setdefault(cell["cell"]["at"], []).append(value)
    return out


def _power(points: Points, size: str) -> Power | None:
    found = exponent(points)
    return None if found is None else Power(size, *found)


def exponent(points: Points) -> tuple[float, float] | None:
    """The power of the size that the cost grows with, and its standard error: least squares on logarithms.

    On the larger half of the sizes, at least three, where the fixed cost of a fit weighs least.
    """
    sizes = sorted(points)
    sizes = sizes[-max(3, math.ceil(len(sizes) / 2)) :]
    data = [(math.log(s), math.log(v)) for s in sizes for v in points[s] if v > 0]
    if len({x for x, _ in data}) < 3:
        return None
    mx, my = (sum(v) / len(data) for v in zip(*data, strict=True))
    sxx = sum((x - mx) ** 2 for x, _ in data)
    slope = sum((x - mx) * (y - my) for x, y in data) / sxx
    left = sum((y - my - slope * (x - mx)) ** 2 for x, y in data)
    return slope, math.sqrt(left / max(1, len(data) - 2) / sxx)
