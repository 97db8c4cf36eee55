"""Results as text for a terminal: tables and the one-line verdict. Everything it shows comes from the JSON document."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import markup
from rich.console import Console
from rich.table import Table

from zoo._command import visible


def console(error: bool = False) -> Console:
    """A console that does not squeeze tables where there is no terminal to fit them to."""
    stream = sys.stderr if error else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 130, highlight=False)


def escape(text: str) -> str:
    """Text to be shown as it is: neither rich's markup nor what would steer the terminal."""
    return markup.escape(visible(text))


def warnings(sentences: Iterable[str]) -> None:
    """Warnings, on standard error."""
    for sentence in sentences:
        console(error=True).print(f"[yellow]warning:[/] {escape(sentence)}", soft_wrap=True)


def listing(title: str, entries: Mapping[str, str]) -> None:
    """Names with a line each."""
    table = _table("name", "what it is", title=title)
    for name, line in entries.items():
        table.add_row(f"[bold]{escape(name)}[/]", escape(line))
    console().print(table)


def structure(found: Any, serving: Mapping[str, str | None], data: str) -> None:
    """The sites, the verdict on exactness, and what each method says."""
    out = console()
    table = _table(
        "site", "role", "family", "event shape", "plates", "support", title=escape(f"{found.program} on {data}")
    )
    for p in found.parameters:
        table.add_row(escape(p.name), "parameter", "", _shape(p.shape), "", escape(p.constraint))
    for s in found.sites:
        role = s.role if s.role == "observed" else f"{s.scope} latent"
        plates = escape(", ".join(s.plates))
        table.add_row(escape(s.name), role, escape(s.family), _shape(s.event_shape), plates, escape(s.support))
    out.print(table)
    out.print(f"exact: [bold]{found.exact}[/], because {escape(found.reason)}.", soft_wrap=True)
    table = _table("method", "", "why")
    for name, why in serving.items():
        table.add_row(name, "[green]yes[/]" if why is None else "[red]no[/]", escape(why or ""))
    out.print(table)


def verdict(result: Mapping[str, Any], shape: str) -> None:
    """One fit: its evidence as claimed and verified, how it ended, and where it is."""
    out = console()
    n = result["n"]
    head = f"[bold]{escape(result['model'])}[/] on {escape(result['data'])} ({shape}) by [bold]{escape(result['method'])}[/]"
    out.print(f"{head}, seed {result['seed']}", soft_wrap=True)
    claimed, verified = result["log_evidence"], result["verified_log_evidence"]
    if claimed is None:
        out.print(f"log p(x): {result['method']} claims none", soft_wrap=True)
    else:
        each = f"({claimed['value'] / n:.4f} a datum)"
        out.print(f"log p(x) = {evidence(claimed)} nats, {_kind(claimed)} {each}", soft_wrap=True)
    if verified is not None:
        out.print(f"verified: {evidence(verified)} nats, {_kind(verified)}", soft_wrap=True)
    if result["khat"] is not None:
        bad = result["khat"]["frac_above_0.7"]
        out.print(f"k-hat: {_number(result['khat']['max'])} at most, above 0.7 for {bad:.1%} of the data")
    if said := _starts(result["notes"].get("starts") or {}):
        out.print(said, soft_wrap=True)
    unknown = result["notes"].get("ended", "θ kept")
    ended = {True: "converged", False: "not converged", None: unknown}[result["converged"]]
    cost = f"{result['seconds']:.2f} s, {result['peak_memory_mb']:.0f} MB at most"
    out.print(f"{ended}; {cost}" + (f"; [bold]{escape(result['run'])}[/]" if result["run"] else ""), soft_wrap=True)


def _starts(starts: Mapping[str, float | None]) -> str:
    """How far behind the best start the others were, after the few iterations they were tried for."""
    known = sorted(((v, k) for k, v in starts.items() if v is not None), reverse=True)
    if len(known) < 2:
        return ""
    (best, name), *others = known
    behind = ", ".join(f"{k} {best - v:.2f} nats behind" for v, k in others)
    return f"start: {name}, the best after a few iterations; {behind}"


def comparison(results: Sequence[Mapping[str, Any]]) -> None:
    """The methods side by side."""
    first = results[0]
    title = escape(f"{first['model']} on {first['data']}, n = {first['n']}: log p(x) in nats")
    names = ("method", "claimed", "kind", "verified", "kind", "gap", "max k-hat", "converged", "seconds", "MB")
    table = _table(*names, title=title)
    for r in results:
        if r["status"] == "refused":
            table.add_row(r["method"], "[red]refused[/]", *[""] * 8)
            continue
        claimed, verified, khat = r["log_evidence"], r["verified_log_evidence"], r["khat"]
        table.add_row(
            f"[bold]{r['method']}[/]",
            evidence(claimed) if claimed else "-",
            claimed["kind"] if claimed else "-",
            evidence(verified) if verified else "-",
            verified["kind"] if verified else "-",
            f"{claimed['value'] - verified['value']:+.3f}" if claimed and verified else "-",
            _number(khat["max"]) if khat else "-",
            {True: "yes", False: "no", None: "-"}[r["converged"]],
            f"{r['seconds']:.2f}",
            f"{r['peak_memory_mb']:.0f}",
        )
    out = console()
    out.print(table)
    for r in results:
        if r["status"] == "refused":
            out.print(f"{r['method']}: {escape(r['reason'])}", soft_wrap=True)
        else:
            given = (r["log_evidence"] or {}).get("given")
            if given:
                out.print(f"{r['method']}: log p(x) is given {escape(given)}.", soft_wrap=True)
            warnings(f"{r['method']}: {w}" for w in r["warnings"])
    runs = [r["run"] for r in results if r.get("run")]
    if runs:
        out.print(f"runs: {escape(', '.join(runs))}", soft_wrap=True)


def evidence(value: Mapping[str, Any]) -> str:
    """ "-1130.264 ± 0.112"."""
    if value["value"] is None:
        return "not a number"
    return f"{value['value']:.3f}" + (f" ± {value['se']:.3f}" if value["se"] else "")


def _kind(value: Mapping[str, Any]) -> str:
    return value["kind"] + (f" given {escape(value['given'])}" if value.get("given") else "")


def _number(value: float | None) -> str:
    return "inf" if value is None else f"{value:.2f}"


def _shape(shape: Iterable[int]) -> str:
    return " × ".join(str(s) for s in shape) or "-"


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table
