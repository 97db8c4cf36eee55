"""The parts of the page that are not fits side by side: imputation, costs, peers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks._report import figures
from benchmarks._report import peers as _peers
from benchmarks._report.costs import CostsRow, Power, costs
from benchmarks._report.figures import Curve, Figure
from benchmarks._report.fits import Said, Series
from benchmarks._report.imputation import (
    PATTERNS,
    Hidden,
    Imputation,
    ImputationRow,
    imputations,
    result_of,
    share_of,
    way_of,
)
from benchmarks._report.peers import PeersRow
from benchmarks._report.tables import (
    NOTHING,
    Column,
    Entry,
    Table,
    number,
    plain,
    seconds,
    share,
    words,
)
from benchmarks._suite import cells as _cells
from benchmarks._suite.documents import CellDocument, ImputationResult

Cells = Sequence[CellDocument]


@dataclass
class Section:
    """A heading, tables and charts."""

    anchor: str
    title: str
    note: str = ""
    tables: list[Table] = field(default_factory=list)
    charts: list[Figure] = field(default_factory=list)
    legend: list[tuple[str, int]] = field(default_factory=list)
    refusals: list[Said] = field(default_factory=list)
    troubles: list[Said] = field(default_factory=list)


def sections(cells: Cells, series: Callable[[], Series]) -> list[Section]:
    """The sections of these cells; each numbers its own `series`."""
    parts = [*_imputations(of_kind(cells, "impute"), series()), *_costs(of_kind(cells, "scaling"), series())]
    return [*parts, *_compared(of_kind(cells, "benchmark"))]


def of_kind(cells: Cells, kind: str) -> list[CellDocument]:
    """The cells of a kind."""
    return [c for c in cells if c["cell"]["kind"] == kind]


def _section(anchor: str, title: str, note: str, cells: Cells) -> Section:
    """A section with the refusals and failures of its cells, each reason once."""
    refused: dict[Said, None] = {}
    others: dict[Said, None] = {}
    for cell in cells:
        c = {**cell["cell"], "seed": "any"} if "seed" in cell["cell"] else cell["cell"]
        name = _cells.title(c).removesuffix(", seed any")
        if cell["status"] == "refused":
            refused[(name, cell["reason"] or "")] = None
        elif cell["status"] != "ok":
            others[(name, f"{cell['status']}: {cell['reason'] or 'not run yet'}")] = None
    return Section(anchor, title, note, refusals=list(refused), troubles=list(others))


def _ok(cells: Cells) -> list[CellDocument]:
    return [c for c in cells if c["status"] == "ok"]


def _drawn(figures_: Iterable[Figure | None]) -> list[Figure]:
    return [f for f in figures_ if f is not None]


# ---- imputation ------------------------------------------------------------------------------------------------------

IMPUTATION = (
    Column("rank", help="By RMSE. Shared where 95% intervals, of differences seed by seed, overlap."),
    Column("way", numeric=False, key=True),
    Column("RMSE", help="Root of the mean squared error of hidden entries."),
    Column("± SE", help="Standard error over seeds."),
    Column("MAE", help="Mean absolute error of hidden entries."),
    Column("90% holds", help="The share of hidden entries within their 90% intervals; ideally 90%."),
    Column("width", help="Mean width of the 90% intervals."),
    Column("held-out log p", help="log p(hidden | observed) per hidden entry. Nats."),
    Column("kind", numeric=False, help="Of the held-out log p."),
    Column("seconds", help="Of the fit."),
    Column("seeds"),
)


def _imputations(cells: Cells, series: Series) -> list[Section]:
    out = []
    for n, found in enumerate(imputations(cells, series), 1):
        unit = "standard deviations" if found.standardized else "those of the data"
        note = f"Entries are hidden, imputed, and compared with their true values. Units: {unit}."
        section = _section(f"i{n}", f"Imputation: {found.data}", note, found.cells)
        section.tables = [_imputed(hidden) for hidden in found.patterns]
        for kind in dict.fromkeys(hidden.kind for hidden in found.patterns):
            section.charts += _by_share(kind, found, series)
        ways = dict.fromkeys(way_of(c["cell"]) for c in _ok(found.cells))
        section.legend = [(way, series(way)) for way in ways]
        out.append(section)
    return out


def _imputed(hidden: Hidden) -> Table:
    part = hidden.share
    what = f"the {hidden.kind} half of each image hidden" if part is None else f"{part:.0%} {PATTERNS[hidden.kind]}"
    table = Table(IMPUTATION, caption=what)
    for row in hidden.rows:
        table.add(*_imputation_entries(row))
    return table.trimmed()


def _imputation_entries(row: ImputationRow) -> list[Entry]:
    return [
        Entry(f"{row.rank}{'=' * row.tied}", row.rank),
        Entry(row.name, row.way, series=row.series, small=row.options),
        number(row.rmse, 4),
        number(row.rmse_se, 4),
        number(row.mae, 4),
        share(row.coverage),
        number(row.width, 3),
        number(row.held_out, 4),
        words(row.kind or "", "kind"),
        seconds(row.seconds),
        Entry(str(row.seeds), row.seeds),
    ]


def _held_out(result: ImputationResult) -> float | None:
    held = result.get("held_out")
    return held["per_entry"] if held else None


SCORES: tuple[tuple[str, Callable[[ImputationResult], float | None], float | None, str], ...] = (
    # label, score, a level to compare with, scale
    ("RMSE", lambda r: r["rmse"], None, "linear"),
    ("share within 90% interval", lambda r: r["coverage"], 0.9, "linear"),
    ("held-out log p, nats per entry", _held_out, None, "both"),
)


def _by_share(kind: str, found: Imputation, series: Series) -> list[Figure]:
    """Error, coverage and held-out log-likelihood against the share of entries that are hidden."""
    cells = [c for c in _ok(found.cells) if c["cell"]["hide"].startswith(kind)]
    if kind not in PATTERNS or len({c["cell"]["hide"] for c in cells}) < 2:
        return []
    out = []
    for label, pick, level, scale in SCORES:
        points: dict[str, dict[float, list[float]]] = {}
        for cell in cells:
            at, value = share_of(cell["cell"]["hide"]), pick(result_of(cell))
            if at is not None and value is not None:
                points.setdefault(way_of(cell["cell"]), {}).setdefault(at, []).append(value)
        lines = [Curve(way, series(way), seeds) for way, seeds in points.items()]
        caption = f"{label[0].upper()}{label[1:]}: {PATTERNS[kind]}. Whiskers span the seeds."
        title = f"{label}: {found.data}"
        out.append(figures.curves(lines, title, "share hidden", label, caption, y_scale=scale, level=level))
    return _drawn(out)


# ---- costs -----------------------------------------------------------------------------------------------------------

COSTS = (
    Column("program", numeric=False, key=True),
    Column("method", numeric=False),
    Column("size", numeric=False, help="What varies: n rows, d columns, or an option of the program."),
    Column("from"),
    Column("to"),
    Column("seconds at most"),
    Column("time grows as", numeric=False),
    Column("MB at most"),
    Column("memory grows as", numeric=False),
)


def _costs(cells: Cells, series: Series) -> list[Section]:
    if not cells:
        return []
    note = (
        "One size varies at a time. Costs grow as a power of the size, fitted by least squares on logarithms over the larger "
        "half of the sizes. Memory is what a fit takes beyond what its process held before."
    )
    section = _section("costs", "Costs", note, cells)
    table = Table(COSTS)
    for size, found in costs(cells, series).items():
        for row in found:
            table.add(*_costs_entries(row))
        times = [Curve(r.name, r.series, r.times) for r in found]
        memory = [Curve(r.name, r.series, r.memory) for r in found]
        for lines, label in ((times, "seconds"), (memory, "MB beyond the start")):
            caption = f"{label[0].upper()}{label[1:]} against {size}."
            section.charts += _drawn([figures.curves(lines, caption, size, label, caption, "log", "log")])
        section.legend = list(dict.fromkeys([*section.legend, *((c.name, c.series) for c in times)]))
    section.tables = [table.trimmed()]
    return [section]


def _costs_entries(row: CostsRow) -> list[Entry]:
    return [
        Entry(row.model, row.name, series=row.series, small=row.options),
        Entry(row.method, row.method_named, small=row.method_options),
        words(row.size),
        number(min(row.times), 0),
        number(max(row.times), 0),
        seconds(max(max(v) for v in row.times.values())),
        power(row.time_power),
        number(max((max(v) for v in row.memory.values()), default=None), 0),
        power(row.memory_power),
    ]


def power(found: Power | None) -> Entry:
    """How a cost grows: "n^1.02 ± 0.03"."""
    if found is None:
        return Entry(NOTHING)
    return Entry(f"{found.size}^{plain(found.exponent, 2)} ± {found.se:.2f}", found.exponent)


# ---- peers -----------------------------------------------------------------------------------------------------------


PEERS = (
    Column("what", numeric=False),
    Column("peer", numeric=False, key=True),
    Column("ratio", help="Our time over theirs: the median of all rounds."),
    Column("lowest"),
    Column("highest"),
    Column("ours", help="Seconds, median."),
    Column("theirs", help="Seconds, median."),
    Column("threads"),
    Column("log-likelihood"),
    Column("theirs"),
)


def _compared(cells: Cells) -> list[Section]:
    if not cells:
        return []
    note = "The same work from the same start, alternating in one process. Below 1, ours takes less time."
    section = _section("peers", "Peers", note, cells)
    section.troubles += _peers.skipped(cells)
    rows = [row for cell in cells for row in _peers.compared(cell)]
    if rows:
        table = Table(PEERS)
        for row in rows:
            table.add(*_peer_entries(row))
        section.tables.append(table.trimmed())
    section.tables += [_facts(cell) for cell in cells if _peers.facts(cell)]
    bars = [(f"{r.short}, {r.peer}", r.ratio, r.lowest or r.ratio, r.highest or r.ratio) for r in rows]
    section.charts = _drawn([figures.ratios(bars, "Our time over the peers'")])
    return [section]


def _peer_entries(row: PeersRow) -> list[Entry]:
    name, _, sizes = row.what.partition(": ")  # on a second line, for narrow screens
    return [
        Entry(name, row.what, small=sizes),
        words(row.peer),
        number(row.ratio, 3),
        number(row.lowest, 3),
        number(row.highest, 3),
        seconds(row.ours_seconds),
        seconds(row.peer_seconds),
        Entry(NOTHING if row.threads is None else str(row.threads), row.threads),
        number(row.our_log_likelihood, 3),
        number(row.peer_log_likelihood, 3),
    ]


def _facts(cell: CellDocument) -> Table:
    """The single numbers and words that a benchmark returned."""
    table = Table((Column("what", numeric=False), Column("value")), caption=_cells.title(cell["cell"]))
    for key, value in _peers.facts(cell).items():
        table.add(words(key), Entry(f"{value:.6g}" if isinstance(value, float) else str(value), str(value)))
    return table
