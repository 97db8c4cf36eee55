"""Results as text for a terminal: tables and the one-line verdict. Everything it shows comes from the JSON document."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import markup
from rich.console import Console
from rich.table import Table

from zoo._command import visible

if TYPE_CHECKING:
    import numpy as np

Document = Mapping[str, Any]  # the JSON of a run, as `--json` prints it


def console(error: bool = False) -> Console:
    """A console; without a terminal, tables are 130 characters wide."""
    stream = sys.stderr if error else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 130, highlight=False)


def escape(text: str) -> str:
    """Text to print literally, without rich's markup and without control characters."""
    return markup.escape(visible(text))


def warnings(sentences: Iterable[str]) -> None:
    """Warnings, on standard error."""
    for sentence in sentences:
        console(error=True).print(f"[yellow]warning:[/] {escape(sentence)}", soft_wrap=True)


def listing(title: str, entries: Mapping[str, str]) -> None:
    """A table of names, each with its one-line description."""
    table = new_table("name", "what it is", title=title)
    for name, line in entries.items():
        table.add_row(f"[bold]{escape(name)}[/]", escape(line))
    console().print(table)


def options(of: str, entries: Sequence[Document]) -> None:
    """A table of options, each with its type, default, range and meaning."""
    if not entries:
        console().print(f"{escape(of)} has no options.", soft_wrap=True)
        return
    table = new_table("option", "type", "default", "meaning", title=f"options of {escape(of)} (--set option=value)")
    for e in entries:
        kind = e["type"] + (f", {e['range']}" if e["range"] else "")
        meaning = e["meaning"] + (f" Only with {e['goes_with']}." if e["goes_with"] else "")
        table.add_row(f"[bold]{e['name']}[/]", escape(kind), escape(_as_set(e["default"])), escape(meaning))
    console().print(table)


def _as_set(value: object) -> str:
    """A default as `--set` takes it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def structure(of: Any, serving: Mapping[str, str | None], data: str) -> None:
    """The sites of a `Structure`, whether the program is exact, and which methods can serve it."""
    found, lines = of.to_json(), of.lines
    out = console()
    table = new_table(
        "site",
        "role",
        "family",
        "event shape",
        "plates",
        "support",
        "depends on",
        title=escape(f"{found['model']} on {data}"),
    )
    for p in found["parameters"]:
        table.add_row(escape(p["name"]), "parameter", "", _shape(p["shape"]), "", escape(p["constraint"]), "")
    for line in lines:
        s = line.site
        role = "observed" if s["role"] == "observed" else f"{s['scope']} latent"
        family = s["family"] if line.count == 1 else f"{line.count:,} {s['family']}"
        texts = (line.name, role, family, _shape(s["event_shape"]), ", ".join(s["plates"]), s["support"], line.on)
        table.add_row(*map(escape, texts))
    out.print(table)
    out.print(f"exact: [bold]{found['exact']}[/], because {escape(found['reason'])}.", soft_wrap=True)
    table = new_table("method", "", "why")
    for name, why in serving.items():
        table.add_row(name, "[green]yes[/]" if why is None else "[red]no[/]", escape(why or ""))
    out.print(table)


def verdict(result: Document, shape: str) -> None:
    """One run: its evidence as claimed and verified, how it ended, and its folder. `result`: `Run.to_document()`."""
    out = console()
    head = f"[bold]{escape(result['model'])}[/] on {escape(result['data'])} ({shape}) by [bold]{escape(result['method'])}[/]"
    out.print(f"{head}, seed {result['seed']}", soft_wrap=True)
    claimed, verified = result["log_evidence"], result["verified_log_evidence"]
    if claimed is None:
        out.print(f"log p(x): {result['method']} claims none", soft_wrap=True)
    else:
        mean = claimed["per_datum_mean"]  # of weighted rows over the sum of their weights
        each = "" if mean is None else f"({mean:.4f} per row)"
        out.print(f"log p(x) = {evidence(claimed)} nats, {_kind(claimed)} {each}", soft_wrap=True)
    if verified is not None:
        out.print(f"verified: {evidence(verified)} nats, {_kind(verified)}", soft_wrap=True)
    if result["khat"] is not None:
        bad = result["khat"]["frac_above_0.7"]
        out.print(f"k-hat: {_number(result['khat']['max'])} at most, above 0.7 for {bad:.1%} of the rows")
    if said := _starts(result["notes"].get("starts") or {}):
        out.print(said, soft_wrap=True)
    out.print("; ".join([*_ended(result), _cost(result)]), soft_wrap=True)


MOST_LINES, MOST_COLUMNS = 24, 8  # of the parameters that a run shows
MOST_NAMES = 12


def parameters(
    values: Mapping[str, np.ndarray],
    columns: Sequence[str],
    axes: Mapping[str, tuple[int, ...]],
    standardized: bool,
    folder: str | None,
) -> None:
    """The parameters that fit on a screen: a few numbers on a line, of more a table. `axes`: those that belong to `columns`."""
    out, left, hidden = console(), MOST_LINES, list[str]()
    for name, value in sorted(values.items(), key=lambda item: item[1].ndim):
        own, lines = axes.get(name, ()), 1 if value.ndim < 2 else len(value) + 4
        if value.ndim > 2 or value.size == 0 or value.shape[-1:] > (MOST_COLUMNS,) or lines > left:
            hidden.append(name)
            continue
        left -= lines
        labels = [columns if k in own else [str(i) for i in range(size)] for k, size in enumerate(value.shape)]
        if value.ndim < 2:
            each = [f"{v:.4g}" for v in value.ravel()]
            names = labels[0] if own else [""] * len(each)
            said = "  ".join(f"{escape(n)} {v}".strip() for n, v in zip(names, each, strict=True))
            out.print(f"[bold]{escape(name)}[/]  {said}", soft_wrap=True)
            continue
        table = new_table("", *map(escape, labels[1]), title=escape(name))
        for label, row in zip(labels[0], value, strict=True):
            table.add_row(escape(label), *(f"{v:.4g}" for v in row))
        out.print(table)
    if values and standardized:
        out.print("in the units of the standardized data")
    if hidden:
        more = f"; all are in {escape(folder)}/parameters.csv" if folder else ""
        names = ", ".join(hidden[:MOST_NAMES]) + ", …" * (len(hidden) > MOST_NAMES)
        out.print(f"not shown: {escape(names)}{more}", soft_wrap=True)


def written(found: Document) -> None:
    """A file of rows, and what it holds: `Written.to_json()`."""
    out, told = console(), found.get("log_p")
    warnings(found["warnings"])
    if told is not None:
        each = "" if told["per_datum_mean"] is None else f" ({told['per_datum_mean']:.4f} per row)"
        out.print(f"log p(x) = {evidence(told)} nats, {_kind(told)}{each}", soft_wrap=True)
    if "posterior" in found:
        out.print(f"posterior: {escape(found['posterior'])}", soft_wrap=True)
    if found["standardized"]:
        out.print("log p(x) and latents are of the standardized data")
    columns = found["columns"]
    names = ", ".join(columns[:MOST_NAMES]) + ", …" * (len(columns) > MOST_NAMES)
    out.print(f"{found['rows']:,} rows: {escape(names)}", soft_wrap=True)
    out.print(f"[bold]{escape(found['file'])}[/]", soft_wrap=True)


def _ended(result: Document) -> list[str]:
    """What is known of how a run ended: whether it kept θ, and whether it converged."""
    said = {True: "converged", False: "not converged", None: result["notes"].get("ended")}[result["converged"]]
    return ["θ kept"] * (result.get("learned") is False) + ([said] if said else [])


def _cost(result: Document) -> str:
    cost = f"{result['seconds']:.2f} s, {result['peak_memory_mb']:.0f} MB at most"
    return cost + (f"; [bold]{escape(result['run'])}[/]" if result["run"] else "")


def _starts(starts: Mapping[str, float | None]) -> str:
    """How far the other starts were behind the best, after the few iterations in which all were tried."""
    known = sorted(((v, k) for k, v in starts.items() if v is not None), reverse=True)
    if len(known) < 2:
        return ""
    (best, name), *others = known
    behind = ", ".join(f"{k} {best - v:.2f} nats behind" for v, k in others)
    return f"start: {name}, the best after a few iterations; {behind}"


def comparison(found: Document) -> None:
    """The methods side by side: `Comparison.to_json()`."""
    results = found["runs"]
    first = results[0]
    title = escape(f"{first['model']} on {first['data']}, n = {first['n']}: log p(x) in nats")
    names = ("method", "claimed", "verified", "gap a row", "means", "sds", "labels", "k-hat", "seconds", "MB", "")
    table = new_table(*names, title=title)
    for r in results:
        if r["status"] == "refused":
            table.add_row(r["method"], "[red]refused[/]", *[""] * 9)
            continue
        far = r["distance"] or {}
        table.add_row(
            f"[bold]{r['method']}[/]",
            *(
                f"{evidence(e)} {MARKS.get(e['kind'], e['kind'])}" if e else "-"
                for e in (_of(r, ""), _of(r, "verified_"))
            ),
            "-" if r["gap_per_row"] is None else f"{r['gap_per_row']:+.3f}",
            *("-" if far.get(k) is None else text.format(far[k]) for k, text in FAR.items()),
            _number(r["khat"]["max"]) if r["khat"] else "-",
            f"{r['seconds']:.2f}",
            f"{r['peak_memory_mb']:.0f}",
            {True: "[green]good[/]", False: "[red]no[/]", None: "?"}[r["good_enough"]],
        )
    out = console()
    out.print(table)
    out.print("means, sds: errors in sds of the reference's posterior, and relative; labels: total variation.")
    for r in results:
        if r["status"] == "refused":
            out.print(f"{r['method']}: {escape(r['reason'])}", soft_wrap=True)
            continue
        held = f" (against {r['reference']}, at its own θ)" if r["distance"] else ""
        out.print(f"[bold]{r['method']}[/]: {escape(r['verdict'])}{held}", soft_wrap=True)
        if given := (_of(r, "") or {}).get("given"):
            out.print(f"{r['method']}: log p(x) is given {escape(given)}.", soft_wrap=True)
        warnings(f"{r['method']}: {w}" for w in r["warnings"])
    _recommended(found)
    runs = [r["run"] for r in results if r.get("run")]
    if runs:
        out.print(f"runs: {escape(', '.join(runs))}", soft_wrap=True)


MARKS = {"exact": "exact", "lower bound": "bound", "upper bound": "upper b.", "estimate": "est."}
FAR = {"mean": "{:.2g}", "sd": "{:.0%}", "labels": "{:.2g}"}


def _of(result: Document, which: str) -> Any:
    return result[f"{which}log_evidence"]


def _recommended(found: Document) -> None:
    out, told = console(), found["recommendation"]
    head = f"take {told['method']}" if told["method"] else "no recommendation"
    out.print(f"[bold]{escape(head)}[/]: {escape(told['why'])}", soft_wrap=True)
    out.print(escape(found["good_enough"]), soft_wrap=True)


def evidence(value: Document) -> str:
    """ "-1130.264 ± 0.112"."""
    if value["value"] is None:
        return "not a number"
    return f"{value['value']:.3f}" + (f" ± {value['se']:.3f}" if value["se"] else "")


def _kind(value: Document) -> str:
    return value["kind"] + (f" given {escape(value['given'])}" if value.get("given") else "")


def _number(value: float | None) -> str:
    return "inf" if value is None else f"{value:.2f}"


def _shape(shape: Iterable[int]) -> str:
    return " × ".join(str(s) for s in shape) or "-"


def new_table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table
