"""A suite's results as one small Markdown table, for the README."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks._report import leaderboard, sections
from benchmarks._report.tables import NOTHING, Table

Document = dict[str, Any]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def methods(document: Document) -> str:
    """What each method claims at one θ, and how far that is from what was verified."""
    rows = []
    for group in leaderboard.groups(document["cells"], lambda name: 0):
        for table in group.tables() if group.by == "log_evidence" else ():
            for method, claimed, kind, gap, worst in _picked(table, ("method", "claimed", "claim", "gap", "k-hat")):
                if claimed != NOTHING:  # Gibbs sampling claims nothing
                    rows.append((group.title, f"`{method}`", claimed, kind, gap, worst))
    return markdown(
        ("at one θ", "method", "claimed log p(x), nats", "kind", "claimed less verified", "largest k-hat"), rows
    )


def missing(document: Document) -> str:
    """Each way's error, and how many of its 90% intervals hold the truth, as more and more entries are hidden."""
    found: dict[tuple[str, str], dict[str, str]] = {}  # data and way → share → what is said
    for section in sections.sections(document["cells"], lambda: lambda name: 0):
        for table in section.tables if section.anchor.startswith("i") else ():
            share, _, how = table.caption.partition(" hidden ")
            column = f"{share} {'not at random' if how.startswith('not') else 'at random'}"
            for way, error, holds in _picked(table, ("way", "RMSE", "90% holds")):
                said = f"{float(error):.3f}" + (f" ({holds})" if holds != NOTHING else "")
                found.setdefault((section.title.removeprefix("Imputation: "), way), {})[column] = said
    columns = list(dict.fromkeys(column for row in found.values() for column in row))
    rows = [(*key, *(row.get(column, NOTHING) for column in columns)) for key, row in found.items()]
    return markdown(("data, entries hidden", "filled in by", *columns), rows)


def scaling(document: Document) -> str:
    """The powers that costs grow with."""
    rows = []
    for section in sections.sections(document["cells"], lambda: lambda name: 0):
        for table in section.tables if section.anchor == "costs" else ():
            names = ("program", "method", "size", "from", "to", "time grows as", "memory grows as")
            rows += [(f"`{a}`", f"`{b}`", *rest) for a, b, *rest in _picked(table, names)]
    return markdown(("program", "method", "size", "from", "to", "time grows as", "memory grows as"), rows)


def peers(document: Document) -> str:
    """Our time over theirs."""
    rows = []
    for section in sections.sections(document["cells"], lambda: lambda name: 0):
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


def missing_pixels(*documents: Document) -> str:
    """Complete images beside what was published, then what was hidden; a document is a data set."""
    whole, hidden = [], []
    for d in documents:
        published = d["data"] == "binarized_mnist"  # the figures are for this split of these images
        for m in d["models"]:
            nats = f"{m['test_nats']:.2f} ± {m['test_nats_se_images']:.2f}"
            whole.append((d["data"], f"`net={m['net']}`", nats, f"{m['published_nats']:.2f}" if published else NOTHING))
        for r in d["completion"]["rows"]:
            bits = NOTHING if r["nats"] is None else f"{r['nats']:.1f} ({r['bits_per_pixel']:.3f} bits a pixel)"
            share = (r.get("khat") or {}).get("frac_above_0.7")
            kind = r["kind"] if share is None else f"{r['kind']}, k-hat above 0.7 for {share:.0%}"
            hidden.append((d["data"], r["name"], bits, kind or NOTHING, f"{r['error']:.4f}", f"{r['wrong']:.1%}"))
    first = markdown(("images", "model", "test −log p(x), nats", "published"), whole)
    names = ("images", "top half filled in by", "−log p(hidden \\| seen), nats", "kind", "square error", "pixels wrong")
    return f"{first}\n\n{markdown(names, hidden)}"


def completions(document: Document) -> str:
    """What each q makes of the missing pixels, then the noise of the ELBO's gradient."""
    rows = []
    for problem in document["problems"]:
        for r in problem["rows"]:
            last = r["points"][-1] if r["points"] else None
            bound = NOTHING if r["elbo_nats"] is None else f"{r['elbo_nats']:.2f}"
            found = (NOTHING, NOTHING) if last is None else (estimated(last), f"{last['khat_above_0.7']:.0%}")
            rows.append((problem["title"], r["label"], bound, *found, f"{problem['exact_nats']:.2f}"))
    most = max(
        (p["samples"] for problem in document["problems"] for r in problem["rows"] for p in r["points"]), default=0
    )
    names = (
        "problem",
        "q",
        "ELBO, nats an image",
        f"estimate from {most:,} draws",
        "k-hat above 0.7",
        "exact log p(seen)",
    )
    noise = [(r["estimator"], f"{r['untrained']:.3g}", f"{r['half_trained']:.3g}") for r in document["gradients"]]
    columns = ("total variance of the ELBO's gradient, 8 draws", "q untrained", "half-trained")
    return f"{markdown(names, rows)}\n\n{markdown(columns, noise)}"


def estimated(point: dict[str, Any]) -> str:
    """An estimate with its standard error, which 0 and None are not."""
    digits = 3 if point["se"] and point["se"] < 0.05 else 2
    return f"{point['nats']:.{digits}f}" + (f" ± {point['se']:.{digits}f}" if point["se"] else "")


def digits(document: Document) -> str:
    """What a deep latent Gaussian model of digits is good for."""
    from benchmarks import digits as bench  # which makes its tables by this file

    return bench.table(document)


def soundness(document: Document) -> str:
    """How often the claims are true, in three lines."""
    from benchmarks import soundness as bench  # which makes its table by this file

    return bench.table(document)


TABLES: dict[str, Callable[..., str]] = {
    "methods": methods,
    "missing": missing,
    "scaling": scaling,
    "peers": peers,
    "mnist": mnist,
    "missing_pixels": missing_pixels,
    "completions": completions,
    "digits": digits,
    "soundness": soundness,
}
SOURCES = {
    "mnist": "mnist_dlg*.json",
    "missing_pixels": "missing_pixels*.json",
}  # of those that are not called like their suite
