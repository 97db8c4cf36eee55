"""A suite's results as one small Markdown table, for the site and the README: the same records as the page's tables."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks._report import fits, leaderboard, sections
from benchmarks._report.costs import costs
from benchmarks._report.imputation import Hidden, imputations
from benchmarks._report.peers import PeersRow, compared
from benchmarks._report.tables import NOTHING, evidence, number, share
from benchmarks._suite.documents import SuiteDocument


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join([_line(columns), f"|{' --- |' * len(columns)}", *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _alike(name: str) -> int:
    """Colours are the page's."""
    return 0


def methods(document: SuiteDocument) -> str:
    """What each method claims at one θ, and how far that is from what was verified."""
    rows = []
    for group in fits.groups(document["cells"], _alike):
        for board in group.boards if group.by == "log_evidence" else ():
            for row in board.rows:
                if row.claimed is not None:  # Gibbs sampling claims nothing
                    claimed, gap = evidence(row.claimed, board.decimals), number(row.gap, board.decimals, sign=True)
                    said = (claimed.text, leaderboard.kind(row.claimed), gap.text, leaderboard.khat(row.khat).text)
                    rows.append((group.title, f"`{' '.join(filter(None, (row.method, row.options)))}`", *said))
    return table(
        ("at one θ", "method", "claimed log p(x), nats", "kind", "claimed less verified", "largest k-hat"), rows
    )


def missing(document: SuiteDocument) -> str:
    """Each way's error, and how many of its 90% intervals hold the truth, as more and more entries are hidden."""
    found: dict[tuple[str, str], dict[str, str]] = {}  # data and way → what is hidden → what is said
    for imputation in imputations(sections.of_kind(document["cells"], "impute"), _alike):
        for hidden in imputation.patterns:
            for row in hidden.rows:
                said = f"{row.rmse:.3f}" + ("" if row.coverage is None else f" ({share(row.coverage).text})")
                way = " ".join(filter(None, (row.name, row.options)))
                found.setdefault((imputation.data, way), {})[_hidden(hidden)] = said
    columns = list(dict.fromkeys(column for row in found.values() for column in row))
    rows = [(*key, *(row.get(column, NOTHING) for column in columns)) for key, row in found.items()]
    return table(("data, entries hidden", "filled in by", *columns), rows)


def _hidden(hidden: Hidden) -> str:
    if hidden.share is None:
        return f"the {hidden.kind} half"
    return f"{hidden.share:.0%} {'at random' if hidden.kind == 'random' else 'not at random'}"


def scaling(document: SuiteDocument) -> str:
    """The powers that costs grow with."""
    rows = []
    for size, found in costs(sections.of_kind(document["cells"], "scaling"), _alike).items():
        for row in found:
            ends = (number(end(row.times), 0).text for end in (min, max))
            grows = (sections.power(p).text for p in (row.time_power, row.memory_power))
            rows.append((f"`{row.model_named}`", f"`{row.method_named}`", size, *ends, *grows))
    return table(("program", "method", "size", "from", "to", "time grows as", "memory grows as"), rows)


def peers(document: SuiteDocument) -> str:
    """Our time over theirs."""
    return _ratios(_compared(document))


def slowest(document: SuiteDocument) -> str:
    """The same for a glance: where ours is slowest first, once where a line is there in both precisions; at most eight."""
    rows = _compared(document)
    double = {(row.what, row.peer) for row in rows}
    twins = [
        row for row in rows if (row.what.replace("float32", "float64"), row.peer) in double - {(row.what, row.peer)}
    ]
    return _ratios(sorted((row for row in rows if row not in twins), key=lambda row: -row.ratio)[:8])


def _compared(document: SuiteDocument) -> list[PeersRow]:
    return [row for cell in sections.of_kind(document["cells"], "benchmark") for row in compared(cell)]


def _ratios(compared: Sequence[PeersRow]) -> str:
    rows = []
    for row in compared:
        ratio, low, high = (number(v, 3).text for v in (row.ratio, row.lowest, row.highest))
        rows.append((row.what.replace(": ", " ", 1), row.peer, ratio, f"{low} to {high}"))
    return table(("the same work", "beside", "our time over theirs", "over the rounds"), rows)
