"""The command for the gap between log p(x) and the ELBO of a run with a guide."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo._command import Changed, Json, Named, Trust, plainly, print_json

if TYPE_CHECKING:
    from inference._gap.gap import Gap

SHOWN = 10


def add(app: typer.Typer) -> None:
    """Make this a command of `zoo`."""
    app.command()(gap)


@plainly
def gap(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
    rows: Annotated[
        int | None, typer.Option("--rows", min=1, help="Take so many random rows apart.", show_default="200")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Of rows and draws.", show_default="the run's")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The picture: a .png, .svg or .pdf.", show_default="RUN/plots/gap.png"),
    ] = None,
    model: Named = None,
    trust: Trust = False,
    changed_program: Changed = False,
    json: Json = False,
) -> None:
    """Take log p(x) − ELBO of a run with a guide apart, row by row: amortization gap and family gap."""
    from inference._gap import picture
    from inference._gap.gap import gap as taken_apart
    from inference._run.result import load

    path = picture.place(out, folder)
    found = taken_apart(load(folder, model, trust, changed_program), rows, seed)
    picture.write(found, path)
    if json:
        print_json({"run": str(folder), **found.to_json(), "picture": str(path)})
    else:
        _show(found, path)


def _show(found: Gap, path: Path) -> None:
    from rich.table import Table

    from zoo import _show

    _show.warnings(found.warnings)
    out = _show.console()
    table = Table(title=f"{_show.escape(found.title)}; q: {_show.escape(found.family_of_q)}")
    for column in ("", "nats", "± se", "a row", "kind"):
        table.add_column(column, justify="right" if column in ("nats", "± se", "a row") else "left")
    for name, part in found.parts.items():
        error = f"{part.se:.3f}" if part.se else ""
        table.add_row(name, f"{part.value:.3f}", error, f"{part.value / found.count:.4f}", part.kind)
    out.print(table)
    table = Table(title="the rows with the largest KL(q‖p)")
    for column in ("row", *found.parts):
        table.add_column(column, justify="left" if column == "row" else "right")
    for i in found.worst[:SHOWN]:
        table.add_row(_show.escape(found.name(int(i))), *found.cells(int(i)))
    out.print(table)
    out.print(found.verdict, soft_wrap=True)
    out.print(f"[bold]{_show.escape(str(path))}[/]", soft_wrap=True)
