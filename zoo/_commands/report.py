"""The command that writes the page of a suite's results."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import Annotated

import typer

from zoo._command import Json, plainly


def add(app: typer.Typer) -> None:
    """Make this a command of `zoo`."""
    app.command()(report)


@plainly
def report(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="A suite's results (default: the latest in results/).")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The page to write (default: DIR/report.html).")] = None,
    json: Json = False,
) -> None:
    """Write one self-contained HTML page of a suite's results."""
    from benchmarks._report import page

    path = str(page.write(folder, out))
    print(json_.dumps({"page": path}) if json else path)
