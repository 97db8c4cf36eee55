"""Leaderboards of the page, and its overviews: methods against programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from benchmarks._report.fits import Board, FitRow, Group
from benchmarks._report.rank import FIRM, Standing
from benchmarks._report.tables import (
    NOTHING,
    SIGNS,
    Column,
    Entry,
    Table,
    evidence,
    number,
    plain,
    seconds,
    share,
    words,
)

COLUMNS = (
    Column(
        "rank",
        help="Methods that share a rank cannot be told apart. Lower bounds come after exact values and estimates, "
        "upper bounds last.",
    ),
    Column("method", numeric=False, key=True),
    Column("log p(x)", help="Verified by the best evaluator for the program, at the method's θ. Nats."),
    Column("kind", numeric=False, help="Of the verified value: exact, an estimate, or a bound."),
    Column("interval", help="Covers the 95% intervals of all seeds."),
    Column("claimed", help="The method's own value, of its median seed. Nats."),
    Column("claim", numeric=False, help="Of the claimed value: exact, an estimate, or a bound."),
    Column("gap", help="Claimed minus verified. Nats."),
    Column("k-hat", help="The largest of all data points; above 0.7 the importance weights cannot be trusted."),
    Column("> 0.7", help="The share of data points whose k-hat is above 0.7."),
    Column("ESS", help="Effective sample size of a data point's weights: the median."),
    Column("seconds", help="Of the method alone, in a process that has run it before."),
    Column("MB", help="Peak memory of the process."),
    Column("seeds", help="How many runs succeeded."),
)


def leaderboards(group: Group) -> list[Table]:
    """A leaderboard; one for each condition where evidence is conditional on different things."""
    return [_leaderboard(board, group.by == "log_evidence") for board in group.boards]


def _leaderboard(board: Board, by_claim: bool) -> Table:
    table = Table(COLUMNS, caption=f"log p(x) given {board.given}" if board.given else "")
    decimals = board.decimals
    for row in board.rows:
        table.add(
            Entry(f"{row.rank}{'=' * row.tied}" if row.rank else NOTHING, row.rank),
            Entry(row.method, row.name, series=row.series, small=row.options),
            evidence(row.verified, decimals),
            words(kind(row.verified), "kind"),
            _interval(row.verified, decimals),
            evidence(row.claimed, decimals),
            words(kind(row.claimed), "kind"),
            number(row.gap, decimals, sign=True),
            khat(row.khat),
            share(row.khat_above),
            number(row.ess, 0),
            seconds(row.seconds),
            number(row.memory_mb, 0),
            Entry(str(len(row.runs)), len(row.runs)),
        )
    if by_claim:  # what is ranked comes first
        return table.ordered([0, 1, 5, 6, 7, 2, 3, 4, *range(8, len(COLUMNS))]).trimmed()
    return table.trimmed()


def kind(standing: Standing | None) -> str:
    """The kind of a statement, in one word."""
    return NOTHING if standing is None else standing.kind.removeprefix("lower ")


def khat(value: float | None) -> Entry:
    """A k-hat; an infinite one is sorted as the largest."""
    return Entry("∞", 1e9) if value == math.inf else number(value, 2)


def _interval(standing: Standing | None, decimals: int) -> Entry:
    """The interval, with as many decimals as its width justifies; empty where it has no width."""
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
        out.append(_overview(swaps, "One θ: claimed minus verified log p(x), nats", _distance))
    return out


def _overview(found: Sequence[Group], caption: str, entry: Callable[[Board, FitRow], Entry]) -> Table:
    names = list(dict.fromkeys(r.name for g in found for r in g.rows))
    names += [n for n in dict.fromkeys(n for g in found for n, _ in g.refusals) if n not in names]
    columns = [Column("program", numeric=False, key=True)]
    columns += [Column(n.partition(" ")[0], small=n.partition(" ")[2].replace(" ", ", ")) for n in names]
    table = Table(columns, caption=caption)
    for group in found:
        entries = {r.name: entry(board, r) for board in group.boards for r in board.rows}
        for name, _ in group.refusals:
            entries.setdefault(name, Entry("refused", style="dim"))
        for cell, _ in group.troubles:
            entries.setdefault(cell.rpartition(", seed")[0], Entry("failed", style="dim"))
        first = Entry(group.model, group.title, small=f"{group.options} on {group.data}", link=group.anchor)
        table.add(first, *(entries.get(name, Entry(NOTHING, style="dim")) for name in names))
    return table


def _below(board: Board, row: FitRow) -> Entry:
    """How far a row's verified evidence is below the best of what is exact or estimated."""
    best = max((s.value for r in board.rows if (s := r.verified) and s.kind in FIRM), default=None)
    if row.verified is None or best is None:
        return Entry(NOTHING)
    turned = {"≥": "≤", "≤": "≥"}  # a lower bound on log p(x) is an upper bound on the distance
    sign = turned.get(SIGNS[row.verified.kind], SIGNS[row.verified.kind])
    return number(best - row.verified.value, 2, before=f"{sign}\u2009")


def _distance(board: Board, row: FitRow) -> Entry:
    """How far a row's claim is from what was verified."""
    if row.claimed is None or row.gap is None:
        return Entry(NOTHING)
    return number(row.gap, 2, sign=True, before=f"{SIGNS[row.claimed.kind]}\u2009")
