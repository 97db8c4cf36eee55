"""A suite's results as one small Markdown table, for the README."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import _groups, _sections
from benchmarks._tables import NOTHING, Table

Document = dict[str, Any]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def methods(document: Document) -> str:
    """What each method claims at one θ, and how far that is from what was verified."""
    rows = []
    for group in _groups.groups(document["cells"], lambda name: 0):
        for table in group.tables() if group.by == "log_evidence" else ():
            for method, claimed, kind, gap, worst in _picked(table, ("method", "claimed", "claim", "gap", "k-hat")):
                rows.append((group.title, f"`{method}`", claimed, kind, gap, worst))
    return markdown(
        ("at one θ", "method", "claimed log p(x), nats", "kind", "claimed less verified", "largest k-hat"), rows
    )


def missing(document: Document) -> str:
    """Errors at each pattern; the ways in the order of their mean error."""
    blocks = []
    for section in _sections.sections(document["cells"], lambda: lambda name: 0):
        for table in section.tables:
            if table.caption.startswith(("30%", "50%")):
                names = ("rank", "way", "RMSE", "90% holds", "held-out log p")
                where = f"{section.title.removeprefix('Imputation: ')}, {table.caption}"
                blocks += [(where, *row) for row in _picked(table, names)]
    return markdown(
        ("data", "rank", "way", "RMSE", "90% intervals hold", "log p(hidden \\| seen), nats an entry"), blocks
    )


def scaling(document: Document) -> str:
    """The powers that costs grow with."""
    rows = []
    for section in _sections.sections(document["cells"], lambda: lambda name: 0):
        for table in section.tables if section.anchor == "costs" else ():
            names = ("program", "method", "size", "from", "to", "time grows as", "memory grows as")
            rows += [(f"`{a}`", f"`{b}`", *rest) for a, b, *rest in _picked(table, names)]
    return markdown(("program", "method", "size", "from", "to", "time grows as", "memory grows as"), rows)


def peers(document: Document) -> str:
    """Our time over theirs."""
    rows = []
    for section in _sections.sections(document["cells"], lambda: lambda name: 0):
        for table in section.tables if section.anchor == "peers" else ():
            if table.columns[0].name == "what" and len(table.columns) > 2:
                for what, peer, ratio, low, high in _picked(table, ("what", "peer", "ratio", "lowest", "highest")):
                    rows.append((what, peer, ratio, f"{low} to {high}"))
    return markdown(("the same work", "beside", "our time over theirs", "over the rounds"), rows)


def _picked(table: Table, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Texts of some columns."""
    titles = [c.name for c in table.columns]
    places = [titles.index(n) if n in titles else None for n in names]
    return [tuple(_said(row[p].text, row[p].small) if p is not None else NOTHING for p in places) for row in table.rows]


def _said(text: str, small: str) -> str:
    return (f"{text} {small}" if small else text).replace("|", "\\|")


def mnist(*documents: Document) -> str:
    """The deep latent Gaussian model on the test images, beside what was published."""
    rows = []
    for d in sorted(documents, key=lambda d: d["particles"]):
        bound = "ELBO" if d["particles"] == 1 else f"importance-weighted, {d['particles']} particles"
        published = NOTHING if d["published_nats"] is None else f"{d['published_nats']:.2f}"
        cost = f"{d['epochs']:,} epochs, {d['training_seconds'] / 3600:.1f} h"
        rows.append((bound, f"{d['test_nats']:.3f} ± {d['test_nats_se']:.3f}", published, cost))
    return markdown(("trained by", "−log p(x) of the test images, nats", "published", "training"), rows)


TABLES: dict[str, Callable[..., str]] = {
    "methods": methods,
    "missing": missing,
    "scaling": scaling,
    "peers": peers,
    "mnist": mnist,
}
SOURCES = {"mnist": "mnist_dlg*.json"}  # of those that are not called like their suite
