"""Commands for new rows at the θ of a run: predict, score, sample, impute."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo._command import Changed, Json, Named, Seed, Trust, heard, plainly, preparing, print_json

if TYPE_CHECKING:
    from inference._new_rows.answers import Written

Preparation = Mapping[str, Any]  # `preparing` puts its options in its place
NOTHING: Preparation = {}
NewData = Annotated[
    str | None,
    typer.Option(
        "--data", help="New rows: a data set's name or a file (default: the run's own rows).", show_default=False
    ),
]
NewFile = Annotated[
    Path | None, typer.Option("--out", help="The CSV file to write (default: a new one in RUN).", show_default=False)
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)]


def add(app: typer.Typer) -> None:
    """Make these commands of `zoo`."""
    for command in (predict, score, sample, impute):
        app.command()(command)


@plainly
@preparing("standardize")
def predict(
    folder: RunFolder,
    data: NewData = None,
    preparation: Preparation = NOTHING,
    ahead: Annotated[
        int | None,
        typer.Option(
            "--ahead", min=1, help="Of series: write the next so many steps, a row for each.", show_default=False
        ),
    ] = None,
    by_step: Annotated[bool, typer.Option("--by-step", help="Of series: write a row for each step.")] = False,
    out: NewFile = None,
    model: Named = None,
    trust: Trust = False,
    changed_program: Changed = False,
    json: Json = False,
) -> None:
    """Write what a run says of new rows: log p(x), most probable states, probabilities, latent means."""
    from inference._new_rows import answers
    from inference._run import result

    run = result.load(folder, model, trust, changed_program)
    if by_step or ahead is not None:
        _written(answers.write_steps(run, ahead, by_step, data, preparation, out), folder, json)
        return
    _written(answers.write_predictions(run, data, preparation, out), folder, json)


@plainly
@preparing("standardize")
def score(
    folder: RunFolder,
    data: NewData = None,
    preparation: Preparation = NOTHING,
    out: NewFile = None,
    model: Named = None,
    trust: Trust = False,
    changed_program: Changed = False,
    json: Json = False,
) -> None:
    """Write log p(x) of each new row, and show the total with its kind."""
    from inference._new_rows import answers
    from inference._run import result

    run = result.load(folder, model, trust, changed_program)
    _written(answers.write_predictions(run, data, preparation, out, only_log_p=True), folder, json)


@plainly
def sample(
    folder: RunFolder,
    size: Annotated[
        int | None,
        typer.Option("--size", min=1, help="How many rows; with --given, draws of each row.", show_default="100; 1"),
    ] = None,
    given: Annotated[
        str | None,
        typer.Option("--given", help="Rows of which some entries are known: draw the others.", show_default=False),
    ] = None,
    seed: Seed = 0,
    out: NewFile = None,
    model: Named = None,
    trust: Trust = False,
    changed_program: Changed = False,
    json: Json = False,
) -> None:
    """Write new rows from a run's program, in the data's own names and units."""
    from inference._new_rows import answers
    from inference._run import result

    run = result.load(folder, model, trust, changed_program)
    _written(answers.write_sample(run, size, given, seed, {}, out), folder, json)


def _written(found: Written, folder: Path, json: bool) -> None:
    """Show what was written for rows."""
    if json:
        print_json(found.to_json(folder))
        return
    from zoo import _show

    _show.written(found.to_json(folder))


@plainly
@preparing("standardize")
def impute(
    folder: RunFolder,
    data: NewData = None,
    preparation: Preparation = NOTHING,
    draws: Annotated[int, typer.Option("--draws", min=1, help="How many joint draws to write.")] = 20,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder to write (default: RUN/imputed).", show_default=False)
    ] = None,
    model: Named = None,
    trust: Trust = False,
    changed_program: Changed = False,
    json: Json = False,
) -> None:
    """Impute the missing entries of a run's data, or of new rows: mean, standard deviation, joint draws."""
    from inference._new_rows import answers

    with heard() as said:
        found = answers.impute_run(folder, draws, seed, out, model, trust, changed_program, data, preparation)
    paths = [str(p) for p in found]
    if said:
        from zoo import _show

        _show.warnings(said)
    if json:
        print_json({"run": str(folder), "files": paths})
    else:
        print("\n".join(paths))
