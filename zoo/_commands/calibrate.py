"""The command that asks whether a method's posteriors, or its evidence, can be believed: calibrate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo import _options
from zoo._command import Json, Seed, plainly, preparing
from zoo._errors import UsageError

Preparation = Mapping[str, Any]  # `preparing` puts its options in its place
NOTHING: Preparation = {}


def add(app: typer.Typer) -> None:
    """Make this a command of `zoo`."""
    app.command()(calibrate)


@plainly
@preparing("labels", "rows_by", "weights", "covariance_of")
def calibrate(
    model: Annotated[
        str | None, typer.Argument(help="A name in the zoo, or path/to/file.py:callable.", show_default=False)
    ] = None,
    method: Annotated[str, typer.Option("--method", help="An inference method.")] = "em",
    models: Annotated[
        str | None,
        typer.Option("--models", help="Calibrate the evidence over these models instead: A,B.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="What the model is built on: shape, start values, covariates, holes.", show_default=False
        ),
    ] = None,
    theta: Annotated[
        Path | None, typer.Option("--theta", metavar="RUN", help="The run whose θ is held fixed.", show_default=False)
    ] = None,
    simulations: Annotated[int, typer.Option("--simulations", min=2, help="How many data sets to simulate.")] = 200,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value: an option of the model or the method.")
    ] = None,
    preparation: Preparation = NOTHING,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Cells at once (default: one a processor).")] = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", help="The results' folder; to resume, the same.")] = None,
    json: Json = False,
) -> None:
    """Simulate data whose latents are known: does the method's posterior hold them as often as it says?

    --rows: how many rows each data set has (default: as the data, or 50). With --models: draw a model, then data from it;
    are the models' posterior probabilities right?
    """
    if (model is None) == (models is None):
        raise UsageError("zoo calibrate expects a MODEL, or --models A,B.")
    if models is not None and theta is not None:
        raise UsageError("--theta is for one MODEL; models have a θ each, which stays at its start values.")
    from benchmarks._calibration import command

    names = [model] if model is not None else [m.strip() for m in str(models).split(",") if m.strip()]
    how: dict[str, Any] = {"data": data, "simulations": simulations, "jobs": jobs, "seed": seed, **preparation}
    how |= {} if theta is None else {"theta": theta}
    own = _options.parse(settings or [])
    try:
        command.main(names, method, own, of_evidence=models is not None, out=out, json=json, **how)
    except KeyboardInterrupt:
        kept = "interrupted; no file was left half written. The same command runs the simulations that are missing."
        raise KeyboardInterrupt(kept) from None
