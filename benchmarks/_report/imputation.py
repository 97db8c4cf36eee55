"""Imputation as records: how well each way fills in what was hidden, for each data set and pattern of hidden entries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from benchmarks._report import rank as _rank
from benchmarks._report.fits import Series
from benchmarks._report.tables import chosen, mean
from benchmarks._suite import cells as _cells
from benchmarks._suite.documents import CellDocument, Content, ImputationResult, Kind

PATTERNS = {"random": "hidden completely at random", "high": "hidden not at random, large values more often"}
Seeds = Sequence[tuple[int, ImputationResult]]  # a way's results, each with its seed


@dataclass(frozen=True)
class ImputationRow:
    """A way of filling in: means over its seeds."""

    way: str  # with its options
    name: str
    options: str
    series: int
    rank: int | None  # by error; equal where 95% intervals overlap, taken of differences seed by seed
    tied: bool
    rmse: float
    rmse_se: float | None  # over seeds; None of one
    mae: float | None
    coverage: float | None  # the share of hidden entries within their 90% intervals
    width: float | None
    held_out: float | None  # log p(hidden | seen), nats an entry
    kind: Kind | None  # of that
    seconds: float | None
    seeds: int


@dataclass(frozen=True)
class Hidden:
    """A pattern of hidden entries, and how each way does on it, best first."""

    pattern: str  # as a suite says it: "random:0.3", "top"
    rows: tuple[ImputationRow, ...]

    @property
    def share(self) -> float | None:
        """How much is hidden; None of halves of images."""
        return share_of(self.pattern)

    @property
    def kind(self) -> str:
        """How it is chosen: "random", "high", "top", …"""
        return self.pattern.partition(":")[0]


@dataclass(frozen=True)
class Imputation:
    """A data set, and what was hidden of it."""

    data: str
    standardized: bool
    patterns: tuple[Hidden, ...]
    cells: tuple[CellDocument, ...]


def imputations(cells: Sequence[CellDocument], series: Series) -> list[Imputation]:
    """Cells of kind "impute", by data set."""
    found: dict[str, list[CellDocument]] = {}
    for cell in cells:
        found.setdefault(json.dumps(cell["cell"]["data"]), []).append(cell)
    return [_imputation(alike, series) for alike in found.values()]


def _imputation(cells: list[CellDocument], series: Series) -> Imputation:
    data = cells[0]["cell"]["data"]
    patterns: dict[str, list[CellDocument]] = {}
    for cell in cells:
        patterns.setdefault(cell["cell"]["hide"], []).append(cell)
    hidden = tuple(Hidden(pattern, _rows(alike, series)) for pattern, alike in patterns.items())
    return Imputation(_cells.data(data), bool(data.get("standardize")), hidden, tuple(cells))


def way_of(content: Content) -> str:
    """A way's name with its options."""
    method = _cells.spoken(content["method"], content["method_options"])
    return (
        method if content.get("baseline") else f"{_cells.spoken(content['model'], content['model_options'])}, {method}"
    )


def share_of(pattern: str) -> float | None:
    """The share of entries that a pattern hides."""
    part = pattern.partition(":")[2]
    return float(part) if part else None


def result_of(cell: CellDocument) -> ImputationResult:
    """Of a cell that succeeded."""
    return cast(ImputationResult, cell["result"])


def _rows(cells: list[CellDocument], series: Series) -> tuple[ImputationRow, ...]:
    contents: dict[str, Content] = {}
    ways: dict[str, list[tuple[int, ImputationResult]]] = {}
    for cell in cells:
        if cell["status"] == "ok":
            way = way_of(cell["cell"])
            contents.setdefault(way, cell["cell"])
            ways.setdefault(way, []).append((cell["cell"]["seed"], result_of(cell)))
    ranks = _rank.ranks([_rank.Standing(-m, -m - se, -m + se, "estimate") for m, se in _paired(list(ways.values()))])
    order = sorted(zip(ways, ranks, strict=True), key=lambda p: (p[1] or 0, _rmse(ways[p[0]])[0]))
    return tuple(_row(way, contents[way], ways[way], series(way), rank, ranks.count(rank) > 1) for way, rank in order)


def _row(way: str, content: Content, seeds: Seeds, series: int, rank: int | None, tied: bool) -> ImputationRow:
    results = [r for _, r in seeds]
    options = [chosen(content.get("model_options", {})), chosen(content["method_options"])]
    held = [h for r in results if (h := r.get("held_out"))]
    rmse, se = _rmse(seeds)
    return ImputationRow(
        way,
        content["method"] if content.get("baseline") else f"{content['model']}, {content['method']}",
        "; ".join(filter(None, options)),
        series,
        rank,
        tied,
        rmse,
        se,
        mean([r["mae"] for r in results]),
        mean([r["coverage"] for r in results]),
        mean([r["width"] for r in results]),
        mean([h["per_entry"] for h in held]),
        max((h["kind"] for h in held), key=_rank.ORDER.index, default=None),
        mean([r["seconds"] for r in results]),
        len(results),
    )


def _paired(ways: Sequence[Seeds]) -> list[tuple[float, float]]:
    """Mean error of each way, and half a 95% interval of it without what a seed does to all ways alike.

    With one seed it is the error over the entries that were hidden, which is larger.
    """
    several = [results for results in ways if len(results) > 1]
    seeds = set.intersection(*({s for s, _ in results} for results in several)) if several else set()
    level = {s: sum(r["rmse"] for rs in several for seed, r in rs if seed == s) / len(several) for s in seeds}
    out = []
    for results in ways:
        middle, _ = _rmse(results)
        _, se = _mean_se([r["rmse"] - level[s] for s, r in results if s in seeds] or [0.0])
        out.append((middle, _rank.Z95 * results[0][1]["rmse_se"] if se is None else _t95(len(seeds) - 1) * se))
    return out


def _t95(freedom: int) -> float:
    """Student's: with few seeds an interval is wide."""
    from scipy.special import stdtrit

    return float(stdtrit(max(1, freedom), 0.975))


def _rmse(results: Seeds) -> tuple[float, float | None]:
    return _mean_se([r["rmse"] for _, r in results])


def _mean_se(values: Sequence[float]) -> tuple[float, float | None]:
    middle = sum(values) / len(values)
    if len(values) < 2:
        return middle, None
    return middle, (sum((v - middle) ** 2 for v in values) / (len(values) - 1) / len(values)) ** 0.5
