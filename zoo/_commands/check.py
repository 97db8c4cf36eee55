"""The command for references: whether a method's posterior is the one that is known."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo import _options
from zoo._command import Json, Seed, plainly, preparing, print_json
from zoo._errors import UsageError

Preparation = Mapping[str, Any]  # `preparing` puts its options in its place
NOTHING: Preparation = {}


def add(app: typer.Typer) -> None:
    """Make this a command of `zoo`."""
    app.command()(check)


@plainly
@preparing()
def check(
    model: Annotated[
        str | None,
        typer.Argument(help="A reference's name, a model (with --data), or a RUN folder.", show_default=False),
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="A data set's name or a file.", show_default=False)] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="An inference method (default: nuts; em without priors).")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value: an option of model or method.")
    ] = None,
    preparation: Preparation = NOTHING,
    reference: Annotated[
        list[Path] | None,
        typer.Option(
            "--reference", help="A reference of your own, or posteriordb's draws or summary statistics (.json)."
        ),
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--export", help="A folder for the draws and their summary, in posteriordb's format.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every bundled reference, as a table.")] = False,
    methods: Annotated[str, typer.Option("--methods", help="With --all: by these.")] = "nuts,laplace,importance",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Check a method's means and second moments against a reference posterior. Exit status 1 where they differ."""
    from benchmarks._references import command

    if everything:
        if model or data or method or settings or preparation or reference or export:
            raise UsageError("zoo check --all takes --methods, --seed and --json, and nothing else.")
        names = [m.strip() for m in methods.split(",") if m.strip()]
        found = command.everything(names, seed, lambda what: typer.echo(what, err=True))
        print_json({"checks": [f.to_json() for f in found]}) if json else command.show_all(found, names)
        return
    asked = command.Asked(model, data, method, _options.parse(settings or []), preparation, reference or (), seed)
    one, written = command.checked(asked, export)
    files = {"files": [str(p) for p in written]} if written else {}
    print_json({**one.to_json(), **files}) if json else command.show(one, written)
    if one.verdict == "differs":
        sys.exit(1)
