"""Fits of one program on one data set, side by side: a leaderboard, the charts that belong to it, refusals and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks._report import figures
from benchmarks._report import rank as _rank
from benchmarks._report.tables import (
    NOTHING,
    Column,
    Entry,
    Table,
    chosen,
    decimals_for,
    median,
    number,
    plain,
    seconds,
    share,
    words,
)
from benchmarks._suite import cells as _cells

KINDS = {"exact": ("=", "exact"), "estimate": ("≈", "estimate"), "lower bound": ("≥", "bound")}


@dataclass
class Row:
    """A method with its options: all seeds of it in one group."""

    name: str
    method: str
    options: str
    cells: list[dict[str, Any]]
    series: int = 0
    rank: int | None = None
    short: str = ""  # for charts: with options only where the method comes with several

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The results of those that ended well."""
        return [c["result"] for c in self.cells if c["status"] == "ok"]

    def standing(self, key: str) -> _rank.Standing | None:
        """Of all runs' `verified_log_evidence` or `log_evidence`."""
        return _rank.standing(r[key] or r["log_evidence"] for r in self.runs)

    def given(self, key: str) -> str:
        """What the evidence is conditional on besides θ."""
        return next(((r[key] or r["log_evidence"] or {}).get("given", "") for r in self.runs), "")

    def median(self, what: Callable[[dict[str, Any]], float | None]) -> float | None:
        """Of something that each run has."""
        return median([what(r) for r in self.runs])


@dataclass
class Group:
    """A program on data. `by` is the evidence that is ranked."""

    anchor: str
    model: str
    options: str
    data: str
    note: str
    by: str
    rows: list[Row]
    refusals: list[tuple[str, str]] = field(default_factory=list)
    troubles: list[tuple[str, str]] = field(default_factory=list)

    @property
    def title(self) -> str:
        """In one line."""
        return f"{self.model}{' ' * bool(self.options)}{self.options} on {self.data}"

    def tables(self) -> list[Table]:
        """A leaderboard; one for each condition where evidence is conditional on different things."""
        return [_leaderboard(self, given) for given in dict.fromkeys(r.given(self.by) for r in self.rows)]

    def charts(self) -> list[figures.Figure]:
        return figures.of_fits(self)

    def pictures(self) -> list[tuple[Row, dict[str, Any]]]:
        """Row and cell of each run that has pictures."""
        return [(r, c) for r in self.rows for c in r.cells if c["status"] == "ok" and c["result"].get("pictures")]


def groups(cells: Sequence[dict[str, Any]], series: Callable[[str], int]) -> list[Group]:
    """Fits, and methods at one θ, each with its likes. `series` gives a method's colour and shape, by its name."""
    found: dict[str, Group] = {}
    for cell in cells:
        content = cell["cell"]
        if content["kind"] not in ("fit", "infer"):
            continue
        key = json.dumps([content.get("theta"), content["model"], content["model_options"], content["data"]])
        if key not in found:
            found[key] = _group(content, f"g{len(found) + 1}")
        _place(found[key], cell, series)
    for group in found.values():
        _rank_rows(group)
    return list(found.values())


def _group(content: dict[str, Any], anchor: str) -> Group:
    about = (content["model"], chosen(content["model_options"]), _cells.data(content["data"]))
    if content["kind"] == "fit":
        return Group(
            anchor, *about, "θ learned by each method; ranked by verified log p(x; θ̂).", "verified_log_evidence", []
        )
    theta = content["theta"]
    by = _cells.spoken(theta["method"], theta["method_options"])
    note = f"One θ for all, by {by} with seed {theta['seed']}; ranked by what each method claims of it."
    return Group(anchor, *about, note, "log_evidence", [])


def _place(group: Group, cell: dict[str, Any], series: Callable[[str], int]) -> None:
    content = cell["cell"]
    name = _cells.spoken(content["method"], content["method_options"])
    if cell["status"] == "refused":
        if (name, cell["reason"]) not in group.refusals:
            group.refusals.append((name, cell["reason"]))
        return
    if cell["status"] != "ok":
        group.troubles.append(
            (f"{name}, seed {content['seed']}", f"{cell['status']}: {cell['reason'] or 'not run yet'}")
        )
        return
    row = next((r for r in group.rows if r.name == name), None)
    if row is None:
        row = Row(name, content["method"], chosen(content["method_options"]), [], series(name))
        group.rows.append(row)
    row.cells.append(cell)


def _rank_rows(group: Group) -> None:
    """What is conditional on different things is not compared: each condition has ranks of its own."""
    for given in {r.given(group.by) for r in group.rows}:
        alike = [r for r in group.rows if r.given(group.by) == given]
        for row, rank in zip(alike, _rank.ranks([r.standing(group.by) for r in alike]), strict=True):
            row.rank = rank
    methods = [r.method for r in group.rows]
    for row in group.rows:
        row.short = row.method if methods.count(row.method) == 1 else _clipped(row.name)
    group.rows.sort(key=lambda r: (r.given(group.by), r.rank or 10**6, -(r.median(lambda x: -x["seconds"]) or 0.0)))


def _clipped(text: str, most: int = 27) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


# ---- the leaderboard -------------------------------------------------------------------------------------------------

COLUMNS = (
    Column("rank", help="Equal numbers cannot be told apart. Bounds stand after all that is exact or estimated."),
    Column("method", numeric=False, key=True),
    Column("log p(x)", help="Verified: by the best evaluator there is for the program, at the method's θ. Nats."),
    Column("kind", numeric=False, help="What the number says: exactly this, about this, at least this."),
    Column("interval", help="Holds the 95% interval of every seed."),
    Column("claimed", help="What the method itself says, by its median seed."),
    Column("claim", numeric=False, help="The kind of statement that the method makes."),
    Column("gap", help="Claimed less verified, nats."),
    Column("k-hat", help="The worst over all data; above 0.7 the weights cannot be trusted."),
    Column("> 0.7", help="The share of the data whose k-hat is above 0.7."),
    Column("ESS", help="Effective sample size of a datum's weights, median."),
    Column("seconds", help="Of the method itself, in a process that has run it before."),
    Column("MB", help="The most that the process held."),
    Column("seeds", help="Runs that ended well."),
)


def _leaderboard(group: Group, given: str) -> Table:
    table = Table(COLUMNS, caption=f"log p(x) given {given}" if given else "")
    rows = [r for r in group.rows if r.given(group.by) == given]
    ranks = [r.rank for r in rows]
    values = [s.value for r in rows for k in ("verified_log_evidence", "log_evidence") if (s := r.standing(k))]
    decimals = decimals_for(values)
    for row in rows:
        verified, claimed = row.standing("verified_log_evidence"), row.standing("log_evidence")
        tie = "=" if row.rank is not None and ranks.count(row.rank) > 1 else ""
        table.add(
            Entry(f"{row.rank}{tie}" if row.rank else NOTHING, row.rank),
            Entry(row.method, row.name, series=row.series, small=row.options),
            _value(verified, decimals),
            words(KINDS[verified.kind][1] if verified else NOTHING, "kind"),
            _interval(verified, decimals),
            _value(claimed, decimals),
            words(KINDS[claimed.kind][1] if claimed else NOTHING, "kind"),
            number(row.median(_gap), decimals, sign=True),
            _worst(row),
            share(row.median(lambda r: r["khat"]["frac_above_0.7"] if r["khat"] else None)),
            number(row.median(lambda r: r["ess_quantiles"][3] if "ess_quantiles" in r else None), 0),
            seconds(row.median(lambda r: r["seconds"])),
            number(row.median(lambda r: r["peak_memory_mb"]), 0),
            Entry(str(len(row.runs)), len(row.runs)),
        )
    if group.by == "log_evidence":  # what is ranked comes first
        return table.ordered([0, 1, 5, 6, 7, 2, 3, 4, *range(8, len(COLUMNS))]).trimmed()
    return table.trimmed()


def _worst(row: Row) -> Entry:
    """The largest k-hat of all runs."""
    found = [r["khat"]["max"] for r in row.runs if r["khat"]]
    if found and None in found:
        return Entry("∞", 1e9)
    return number(max(found, default=None), 2)


def _gap(run: dict[str, Any]) -> float | None:
    claimed, verified = run["log_evidence"], run["verified_log_evidence"]
    if claimed is None or verified is None or claimed["value"] is None or verified["value"] is None:
        return None
    return claimed["value"] - verified["value"]


def _value(standing: _rank.Standing | None, decimals: int) -> Entry:
    if standing is None:
        return Entry(NOTHING)
    return number(standing.value, decimals, before=f"{KINDS[standing.kind][0]}\u2009")


def _interval(standing: _rank.Standing | None, decimals: int) -> Entry:
    """Empty where there is nothing to be unsure of; no more decimals than its width gives reason for."""
    if standing is None or standing.high - standing.low < 10.0**-decimals:
        return Entry("")
    width = standing.high - standing.low
    decimals = min(decimals, 1 if width >= 5 else 2 if width >= 0.5 else 3)
    return Entry(f"{plain(standing.low, decimals)} … {plain(standing.high, decimals)}", width)


# ---- all groups at once ----------------------------------------------------------------------------------------------


def overviews(found: Sequence[Group]) -> list[Table]:
    """Methods against programs: how far each is from the best, and how far its claim is from what was verified."""
    fits = [g for g in found if g.by == "verified_log_evidence"]
    swaps = [g for g in found if g.by == "log_evidence"]
    out = []
    if len(fits) > 1:
        out.append(_overview(fits, "θ learned by each method: verified log p(x) below the best, nats", _below))
    if len(swaps) > 1:
        out.append(_overview(swaps, "One θ: claimed less verified log p(x), nats", _distance))
    return out


def _overview(found: Sequence[Group], caption: str, entry: Callable[[Group, Row], Entry]) -> Table:
    names = list(dict.fromkeys(r.name for g in found for r in g.rows))
    names += [n for n in dict.fromkeys(n for g in found for n, _ in g.refusals) if n not in names]
    columns = [Column("program", numeric=False, key=True)]
    columns += [Column(n.partition(" ")[0], small=n.partition(" ")[2].replace(" ", ", ")) for n in names]
    table = Table(columns, caption=caption)
    for group in found:
        rows = {r.name: r for r in group.rows}
        refused, troubled = {n for n, _ in group.refusals}, {n.rpartition(", seed")[0] for n, _ in group.troubles}
        line = [Entry(group.model, group.title, small=f"{group.options} on {group.data}", link=group.anchor)]
        for name in names:
            if name in rows and rows[name].runs:
                line.append(entry(group, rows[name]))
            else:
                line.append(
                    Entry("refused" if name in refused else "failed" if name in troubled else NOTHING, style="dim")
                )
        table.add(*line)
    return table


def _below(group: Group, row: Row) -> Entry:
    alike = [r for r in group.rows if r.given(group.by) == row.given(group.by)]
    every = [s for r in alike if (s := r.standing(group.by)) and s.kind != "lower bound"]
    mine = row.standing(group.by)
    if mine is None or not every:
        return Entry(NOTHING)
    sign = KINDS[mine.kind][0].replace("≥", "≤")  # at least so good is at most so far below
    return number(max(s.value for s in every) - mine.value, 2, before=f"{sign}\u2009")


def _distance(group: Group, row: Row) -> Entry:
    claimed, gap = row.standing("log_evidence"), row.median(_gap)
    if claimed is None or gap is None:
        return Entry(NOTHING)
    return number(gap, 2, sign=True, before=f"{KINDS[claimed.kind][0]}\u2009")
