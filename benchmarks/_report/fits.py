"""Fits of one program on one data set as records, for leaderboards, charts and the README."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from benchmarks._report import rank as _rank
from benchmarks._report.rank import Standing
from benchmarks._report.tables import chosen, decimals_for, median
from benchmarks._suite import cells as _cells
from benchmarks._suite.documents import CellDocument, Content, FitResult

Ranked = Literal["log_evidence", "verified_log_evidence"]  # the evidence by which fits are ranked
Series = Callable[[str], int]  # a name → its colour and shape
Said = tuple[str, str]  # a cell in words, and why it has no result


@dataclass(frozen=True)
class FitRow:
    """A method with its options, over all seeds. Where seeds differ, numbers are the median seed's."""

    name: str  # the method with its options
    method: str
    options: str
    series: int
    given: str  # what the ranked evidence is conditional on besides θ
    verified: Standing | None
    claimed: Standing | None
    gap: float | None  # claimed less verified, nats
    khat: float | None  # the largest of all data and seeds; infinite where one is
    khat_above: float | None  # the share of the data whose k-hat is above 0.7
    ess: float | None  # of a data point's weights, median
    seconds: float | None
    memory_mb: float | None
    runs: tuple[FitResult, ...]  # one a seed
    cells: tuple[CellDocument, ...]  # those runs'
    short: str = ""  # for charts: with options only where the method comes with several
    rank: int | None = None
    tied: bool = False

    def standing(self, by: Ranked) -> Standing | None:
        """The evidence that is ranked, or the claimed one where a run has no other."""
        return self.verified if by == "verified_log_evidence" else self.claimed


@dataclass(frozen=True)
class Board:
    """Rows whose evidence is conditional on the same things: θ, and what `given` names."""

    given: str
    rows: tuple[FitRow, ...]

    @property
    def decimals(self) -> int:
        """So many that the largest value has about seven digits."""
        return decimals_for([s.value for r in self.rows for s in (r.verified, r.claimed) if s])


@dataclass(frozen=True)
class Group:
    """A program on data, and every method there."""

    anchor: str
    model: str
    options: str
    data: str
    note: str
    by: Ranked
    boards: tuple[Board, ...]
    refusals: tuple[Said, ...]
    troubles: tuple[Said, ...]

    @property
    def title(self) -> str:
        """In one line."""
        return f"{self.model}{' ' * bool(self.options)}{self.options} on {self.data}"

    @property
    def rows(self) -> tuple[FitRow, ...]:
        """Those of all boards."""
        return tuple(row for board in self.boards for row in board.rows)

    def pictures(self) -> list[tuple[FitRow, CellDocument]]:
        """Row and cell of each run that has pictures."""
        return [(r, c) for r in self.rows for c in r.cells if (c.get("result") or {}).get("pictures")]


def groups(cells: Sequence[CellDocument], series: Series) -> list[Group]:
    """Fits, and methods at one θ, each with its likes. `series` gives a method's colour and shape, by its name."""
    found: dict[str, list[CellDocument]] = {}
    for cell in cells:
        c = cell["cell"]
        if c["kind"] in ("fit", "infer"):
            key = json.dumps([c.get("theta"), c["model"], c["model_options"], c["data"]])
            found.setdefault(key, []).append(cell)
    return [_group(alike, f"g{n}", series) for n, alike in enumerate(found.values(), 1)]


def _group(cells: list[CellDocument], anchor: str, series: Series) -> Group:
    content = cells[0]["cell"]
    about = (content["model"], chosen(content["model_options"]), _cells.data(content["data"]))
    note, by = _note(content)
    rows: dict[str, list[CellDocument]] = {}
    refusals: dict[Said, None] = {}
    troubles: list[Said] = []
    for cell in cells:
        name = _cells.spoken(cell["cell"]["method"], cell["cell"]["method_options"])
        if cell["status"] == "refused":
            refusals[(name, cell["reason"] or "")] = None
        elif cell["status"] != "ok":
            why = f"{cell['status']}: {cell['reason'] or 'not run yet'}"
            troubles.append((f"{name}, seed {cell['cell']['seed']}", why))
        else:
            rows.setdefault(name, []).append(cell)
    boards = _boards([row(name, alike, by, series(name)) for name, alike in rows.items()], by)
    return Group(anchor, *about, note, by, boards, tuple(refusals), tuple(troubles))


def _note(content: Content) -> tuple[str, Ranked]:
    if content["kind"] == "fit":
        return "θ learned by each method; ranked by verified log p(x; θ̂).", "verified_log_evidence"
    theta = content["theta"]
    by = _cells.spoken(theta["method"], theta["method_options"])
    note = f"One θ for all, fitted by {by} with seed {theta['seed']}; ranked by claimed log p(x)."
    return note, "log_evidence"


def row(name: str, cells: Sequence[CellDocument], by: Ranked, series: int) -> FitRow:
    """The record of a method's runs, all successful; not ranked yet."""
    content, runs = cells[0]["cell"], tuple(cast(FitResult, c["result"]) for c in cells)
    ranked = [r[by] or r["log_evidence"] for r in runs]
    khats = [r["khat"]["max"] for r in runs if r["khat"]]
    return FitRow(
        name,
        content["method"],
        chosen(content["method_options"]),
        series,
        next((e.get("given", "") if e else "" for e in ranked), ""),
        _rank.standing(r["verified_log_evidence"] or r["log_evidence"] for r in runs),
        _rank.standing(r["log_evidence"] for r in runs),
        median([_gap(r) for r in runs]),
        max((math.inf if k is None else k for k in khats), default=None),
        median([r["khat"]["frac_above_0.7"] if r["khat"] else None for r in runs]),
        median([r["ess_quantiles"][3] if "ess_quantiles" in r else None for r in runs]),
        median([r["seconds"] for r in runs]),
        median([r["peak_memory_mb"] for r in runs]),
        runs,
        tuple(cells),
    )


def _gap(run: FitResult) -> float | None:
    claimed, verified = run["log_evidence"], run["verified_log_evidence"]
    if claimed is None or verified is None or claimed["value"] is None or verified["value"] is None:
        return None
    return claimed["value"] - verified["value"]


def _boards(rows: list[FitRow], by: Ranked) -> tuple[Board, ...]:
    """One board for each condition: evidence that is conditional on different things is not compared."""
    methods = Counter(r.method for r in rows)
    boards = []
    for given in sorted({r.given for r in rows}):
        alike = [r for r in rows if r.given == given]
        ranks = _rank.ranks([r.standing(by) for r in alike])
        ranked = [
            replace(
                r,
                rank=rank,
                tied=rank is not None and ranks.count(rank) > 1,
                short=r.method if methods[r.method] == 1 else _clipped(r.name),
            )
            for r, rank in zip(alike, ranks, strict=True)
        ]
        ranked.sort(key=lambda r: (r.rank or 10**6, r.seconds or 0.0))
        boards.append(Board(given, tuple(ranked)))
    return tuple(boards)


def _clipped(text: str, most: int = 27) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
