"""The command for factors: the loadings of a run, rotated, and scores of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo._command import Changed, Json, Named, Trust, plainly, print_json


def add(app: typer.Typer) -> None:
    """Make this a command of `zoo`."""
    app.command()(loadings)


@plainly
def loadings(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
    rotation: Annotated[
        str, typer.Option("--rotation", help="varimax, quartimax, oblimin, promax, none, or own: as in the program.")
    ] = "varimax",
    scores: Annotated[str | None, typer.Option("--scores", help="Score rows: regression or bartlett.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Other rows to score (default: the run's own).")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Columns in their own units, not of variance 1.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="A .csv file to write, of loadings or scores.")] = None,
    model: Named = None,
    trust: Trust = False,
    changed_program: Changed = False,
    json: Json = False,
) -> None:
    """Show the factor loadings of a linear-Gaussian run, rotated, or score rows by them."""
    from inference._loadings.written import written
    from inference._run.result import load

    found = load(folder, model, trust, changed_program).loadings(rotation, standardized=not raw)
    text, document = written(found, scores, data, out)
    print_json({"run": str(folder), **document}) if json else print(text)
