"""`zoo select`: the table in a terminal, the sentences, and where the results are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from benchmarks._select.criteria import SPOKEN
from benchmarks._select.select import select
from benchmarks._select.selection import FILES, Selection
from benchmarks._suite.folder import RESULTS
from zoo import _show
from zoo._command import print_json

MOST_SHOWN = 60  # cells in a terminal; the others are in the file
HEADS = {
    "log_likelihood": "log L",
    "parameters": "p",
    "bic": "BIC",
    "icl": "ICL",
    "aic": "AIC",
    "heldout": "held-out log p",
    "evidence": "log evidence",
    "adjusted_rand": "adjusted Rand",
    "starts": "starts",
    "ended": "",
}


def main(
    model: str, data: str, settings: Mapping[str, str], *, out: Path | None = None, json: bool = False, **how: object
) -> None:
    """Select and print. `how`: the keywords of `select`."""
    words = [Path(model.rpartition(":")[0] or model).stem, Path(data).stem if data.endswith((".csv", ".npy")) else data]
    folder = out or RESULTS / re.sub(r"[^\w.-]+", "-", "-".join(["select", *words]))
    found = select(model, data, dict(settings), out=folder, quiet=False, **how)  # type: ignore[arg-type]
    if json:
        print_json(found.to_json())
    else:
        show(found)


def show(found: Selection) -> None:
    """Print a selection."""
    out = _show.console()
    out.print(_table(found))
    hidden = len(found.entries) - MOST_SHOWN
    if hidden > 0:
        out.print(f"{hidden} more cells are in table.csv.")
    for e in found.entries:
        if e.ended in ("failed", "refused", "timeout", "skipped"):
            _show.warnings([f"{e.name}: {e.ended}: {e.document['reason']}"])
    for reason in dict.fromkeys(
        r for e in found.entries if (r := e.reasons.get(found.by)) and e.document["status"] == "ok"
    ):
        _show.warnings([f"{reason}."])
    for sentence in found.sentences:
        out.print(_show.escape(sentence), soft_wrap=True)
    if (confusion := found.confusion()) is not None:
        out.print(_confusion(found, confusion.to_dict("split")))
    for choice in found.best:
        if choice.command:
            out.print(f"to fit it again: [bold]{_show.escape(choice.command)}[/]", soft_wrap=True)
    if found.folder is not None:
        files = ", ".join(f for f in FILES if (found.folder / f).exists())
        out.print(f"{_show.escape(str(found.folder))}: {files}", soft_wrap=True)


def _table(found: Selection) -> Table:
    rows = found.table.to_dict("records")
    options = [k for k in rows[0] if k in found.grid]
    heads = [h for h in HEADS if any(_known(r.get(h)) for r in rows)]
    shape = " × ".join(map(str, found.shape))
    title = _show.escape(f"{found.model} on {found.data}, {shape}; in nats, BIC = −2 log L + p log n")
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in options:
        table.add_column(_show.escape(name), overflow="fold")
    for head in heads:
        mark = " ←" if head == found.by else ""
        table.add_column(HEADS[head] + mark, justify="right" if head not in ("starts", "ended") else "left")
    winners = {e.name for e in found.winners}
    for row, e in list(zip(rows, found.entries, strict=True))[:MOST_SHOWN]:
        cells = [*(_show.escape(str(row[k])) for k in options), *(_cell(row, h) for h in heads)]
        table.add_row(*cells, style="bold green" if e.name in winners else "")
    return table


def _known(value: object) -> bool:
    return value is not None and value == value


def _cell(row: Mapping[object, object], head: str) -> str:
    value = row.get(head)
    if not _known(value):
        return ""
    if head == "ended":
        return "" if value == "ok" else _show.escape(str(value))
    if head == "parameters" and isinstance(value, int | float):
        return f"{int(value)}"
    if not isinstance(value, float):
        return _show.escape(str(value))
    error = row.get(f"{head}_se")
    digits = 3 if head in ("log_likelihood", "adjusted_rand") else 2
    said = f"{value:.{digits}f}" + (f" ± {error:.2g}" if isinstance(error, float) and error > 0 else "")
    kind = row.get(f"{head}_kind")
    return said + (f" ({kind})" if head in SPOKEN and kind == "lower bound" else "")


def _confusion(found: Selection, split: Mapping[str, list[object]]) -> Table:
    """The winner's states against the labels."""
    rand = found.winners[0].result["labels"]["adjusted_rand"]
    table = Table(title=f"labels by most probable state; adjusted Rand index {rand:.3f}", title_justify="left")
    table.add_column("label")
    for state in split["columns"]:
        table.add_column(str(state), justify="right")
    for name, counts in zip(split["index"], split["data"], strict=True):
        assert isinstance(counts, list)
        table.add_row(_show.escape(str(name)), *map(str, counts))
    return table
