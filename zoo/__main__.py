"""The `zoo` command. The composition root: it may import everything, and does so only when a command needs it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo import _command, _options, _registry
from zoo._command import Json, PlotCommand, Seed, no_clash, plainly, preparing, print_json, selecting, show_version
from zoo._commands import calibrate as _calibrate
from zoo._commands import check as _check
from zoo._commands import gap as _gap
from zoo._commands import loadings as _loadings
from zoo._commands import report as _page
from zoo._commands import rows as _rows
from zoo._errors import NotWritten, Refusal, UsageError, unknown

if TYPE_CHECKING:
    from inference._compare.comparison import Comparison
    from inference._run.record import Record
    from inference._run.request import Request

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Model = Annotated[str, typer.Argument(help="A name in the zoo, or path/to/file.py:callable.", show_default=False)]
Data = Annotated[
    str,
    typer.Option("--data", help="A data set's name, a file (CSV, Parquet, Excel, NumPy, …), or -.", show_default=False),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="key=value: an option of the model or the method.")]
Out = Annotated[Path | None, typer.Option("--out", help="The folder to write, a new one.", show_default=False)]
Limit = Annotated[int, typer.Option("--limit", min=1, help="The most joint values or table entries of latents.")]
Preparation = Mapping[str, Any]  # `preparing` puts its options in its place
NOTHING: Preparation = {}
ENUMERATION_LIMIT = 10_000  # as in zoo._program.structure, whose import takes seconds; a test holds them equal


@app.callback()
@plainly
def _zoo(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version, and exit.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """Fit a Pyro program by any inference method, and verify its log evidence. Log-densities are in nats."""
    _command.check_processes(context.invoked_subcommand)


@app.command("list")
@plainly
def list_(json: Json = False) -> None:
    """List the models, methods and data sets."""
    from zoo._data import catalogue

    groups = {"models": _registry.models(), "methods": _registry.methods(), "data": catalogue.names()}
    if json:
        print_json(groups)
        return
    from zoo import _show

    for title, entries in groups.items():
        _show.listing(title, entries)


@app.command("help")
@plainly
def help_(
    name: Annotated[str, typer.Argument(help="A model, a method, or path/to/file.py:callable.", show_default=False)],
    json: Json = False,
) -> None:
    """Show what a model or a method is, and its options: type, default, range, meaning."""
    _explain(name, json)


def _explain(name: str, json: bool) -> None:
    from inference._run import explain

    found = explain.explained(name)
    if json:
        print_json(found)
        return
    from zoo import _show

    print(f"{found['name']}: {found['text']}\n")
    _show.options(name, found["options"])


@app.command()
@plainly
@preparing()
def describe(
    model: Model,
    data: Annotated[
        str | None,
        typer.Option("--data", help="A data set's name, a file, or -. Without it: the options.", show_default=False),
    ] = None,
    settings: Set = None,
    preparation: Preparation = NOTHING,
    limit: Limit = ENUMERATION_LIMIT,
    seed: Seed = 0,
    graph: Annotated[
        Path | None,
        typer.Option("--graph", help="Draw what depends on what: an .svg, .png or .pdf.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Show a program's options; on data, its structure, and which methods can serve it, or why not."""
    if data is None and (settings or preparation or graph):
        raise UsageError("zoo describe with options needs --data; without it, it lists the model's options.")
    if data is None:
        _explain(model, json)
        return
    from zoo._reading.garbage import seldom_collected

    with seldom_collected():
        from inference._run import explain, prepare

    if graph is not None:
        from inference._pictures._views import graph as _graph

        _graph.check(graph)
    prepared = prepare.prepare(
        model,
        data,
        _options.parse(settings or []),
        [],
        seed=seed,
        limit=limit,
        **preparation,
    )
    serving, options = prepare.serving(prepared.structure), explain.options_of(prepared.target)
    if graph is not None:
        _graph.describe(prepared, graph)
    if json:
        methods = {m: why or "yes" for m, why in serving.items()}
        print_json({**prepared.structure.to_json(), "methods": methods, "options": options})
        return
    from zoo import _show

    _show.warnings([*prepared.data.warnings, *prepared.structure.warnings])
    _show.structure(prepared.structure, serving, f"{prepared.data.name}, {_shape(prepared.x.shape)}")
    _show.options(prepared.name, options)


@app.command()
@plainly
@preparing()
def run(
    model: Annotated[
        str | None, typer.Argument(help="A name in the zoo, or path/to/file.py:callable.", show_default=False)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="A data set's name, a file (CSV, Parquet, Excel, NumPy, …), or -.", show_default=False
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="An inference method (default: em).", show_default=False)
    ] = None,
    settings: Set = None,
    preparation: Preparation = NOTHING,
    limit: Limit = ENUMERATION_LIMIT,
    dtype: _command.Dtype = "auto",
    device: _command.Device = "auto",
    seed: Seed = 0,
    out: Out = None,
    init: Annotated[
        Path | None,
        typer.Option(
            "--init", metavar="RUN", help="Begin at the θ of this run, or of a .npz or .json file.", show_default=False
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="RUN", help="Resume this run, which was stopped.", show_default=False),
    ] = None,
    trust: _command.Trust = False,
    checkpoint: Annotated[float, typer.Option("--checkpoint", min=0, help="Seconds between checkpoints.")] = 30.0,
    json: Json = False,
) -> None:
    """Fit a model to data by one method, and write a run folder."""
    from inference._run import runner
    from inference._run.checkpoint import after_interrupt
    from inference._run.request import Request

    options = _options.parse(settings or [])
    no_clash(options)
    if resume is None and (model is None or data is None):
        raise UsageError("zoo run expects a MODEL and --data, or --resume RUN.")
    folder = out
    if resume is None and out is None:
        folder = runner.free_folder(str(model), str(data), method or "em")
    start = None if init is None else str(init)
    asked = Request(model, data, method, options, preparation, seed, limit, dtype, device, init=start)

    def call() -> Record:
        try:
            return runner.run_request(asked, out=folder, resume=resume, trust=trust, checkpoint=checkpoint, quiet=False)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(after_interrupt(resume or folder or "", asked, trust)) from None

    _shown(call, (str(model), str(data)), asked, json)


def _shown(call: Callable[[], Record], names: tuple[str, str], asked: Request, json: bool) -> None:
    """Run the request and show its result, or the refusal; `names`: of the model and the data."""
    try:
        found = call()
    except Refusal as refusal:
        _refused(refusal, *names, asked.method or "em", asked.seed, json)
    except NotWritten as error:
        _report(error.result, json)
        raise
    else:
        _report(found, json)


@app.command()
@plainly
@preparing("standardize", "covariates", "categories", "covariance_of")
def infer(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
    method: Annotated[str, typer.Option("--method", help="An inference method.", show_default=False)],
    data: Annotated[
        str | None, typer.Option("--data", help="Other data (default: the run's own).", show_default=False)
    ] = None,
    settings: Set = None,
    preparation: Preparation = NOTHING,
    device: _command.Device = "auto",
    seed: Seed = 0,
    out: Out = None,
    model: _command.Named = None,
    trust: _command.Trust = False,
    changed_program: _command.Changed = False,
    json: Json = False,
) -> None:
    """Run another method with the θ of a run, on the same data or on other data. θ is kept."""
    from inference._run import folder as _store
    from inference._run import runner
    from inference._run.request import Request

    stored = _store.load(folder).json
    options = _options.parse(settings or [])
    no_clash(options)
    names = (stored["model"], data or stored["data"])
    place = out or runner.free_folder(*names, method)
    asked = Request(model, data, method, options, preparation, seed, device=device, of=str(folder))

    def call() -> Record:
        return runner.infer_request(asked, out=place, trust=trust, changed_program=changed_program, quiet=False)

    _shown(call, names, asked, json)


@app.command()
@plainly
@preparing()
def compare(
    model: Model,
    data: Data,
    methods: Annotated[str, typer.Option("--methods", help="Method names, separated by commas.")] = (
        "em,laplace,svi,importance"
    ),
    settings: Set = None,
    preparation: Preparation = NOTHING,
    limit: Limit = ENUMERATION_LIMIT,
    dtype: _command.Dtype = "auto",
    device: _command.Device = "auto",
    seed: Seed = 0,
    out: Out = None,
    json: Json = False,
) -> None:
    """Run several methods side by side: claimed and verified evidence, k-hat, time, memory."""
    from inference._compare.comparison import compare_request
    from inference._run import runner
    from inference._run.request import Request

    options = _options.parse(settings or [])
    no_clash(options)
    asked = Request(model, data, None, options, preparation, seed, limit, dtype, device)
    names = [m.strip() for m in methods.split(",") if m.strip()]
    folder = out or runner.free_folder(model, data, "compare")
    try:
        results = compare_request(asked, names, out=folder, quiet=False)
    except NotWritten as error:
        _compared(error.result, json)
        raise
    results.save(folder)
    _compared(results, json)


def _compared(found: Comparison, json: bool) -> None:
    document = found.to_json()
    if json:
        print_json(document)
        return
    from zoo import _show

    _show.comparison(document)


@app.command(cls=PlotCommand)
@plainly
def plot(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder to write (default: RUN/plots).", show_default=False)
    ] = None,
    format: Annotated[str, typer.Option("--format", help="png, pdf or svg.")] = "png",
    model: _command.Named = None,
    trust: _command.Trust = False,
    changed_program: _command.Changed = False,
    json: Json = False,
) -> None:
    """Draw the pictures of a run: all of the following that apply to it."""
    from inference._pictures import _draw

    if format not in ("png", "pdf", "svg"):
        raise unknown("format", format, ("png", "pdf", "svg"))
    with _command.heard() as said:
        found = _draw.plot(folder, out, format, model=model, trust=trust, changed_program=changed_program)  # type: ignore[arg-type]
        paths = [str(p) for p in found]
    if len(letters := [s for s in said if s.startswith("Glyph ")]) > 0:
        said = [s for s in said if s not in letters] + [
            "the pictures' font lacks letters of some names: they show as boxes."
        ]
    if said:
        from zoo import _show

        _show.warnings(said)
    if json:
        print_json({"run": str(folder), "plots": paths})
    else:
        print("\n".join(paths))


for commands in (_rows, _loadings, _check, _gap):
    commands.add(app)


@app.command()
@plainly
def bench(
    name: Annotated[
        str | None,
        typer.Argument(metavar="SUITE", help="A suite, a suite's .toml file, or a benchmark. Without it: a list."),
    ] = None,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A model or a RUN, where the benchmark takes one.")
    ] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Cells at once (default: one a processor).")] = None,
    backend: Annotated[
        str, typer.Option("--backend", help="A joblib backend: loky, dask, ray, sequential, …")
    ] = "loky",
    out: Annotated[Path | None, typer.Option("--out", help="The results folder (default: results/SUITE).")] = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="Re-run only cells whose id starts so.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Re-run the cells that failed or ran out of time.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Run a small version of a benchmark.")] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value: an option of a benchmark.")] = None,
    json: Json = False,
) -> None:
    """Run the missing cells of a benchmark suite in parallel. `zoo report` makes a page of the results."""
    from benchmarks._suite import names

    if name is None and (jobs or out or only or retry or quick or settings or backend != "loky"):
        raise UsageError("zoo bench with options needs the name of a SUITE; without any it lists them.")

    if name is None:
        names.show(json)
        return
    names.find(name)  # an unknown name is an error before torch is imported, which takes seconds
    from benchmarks._suite import bench as _bench

    own = _options.parse(settings or [])
    how: _bench.How = {"jobs": jobs, "backend": backend, "out": out, "only": only, "retry": retry}
    try:
        status = _bench.main(name, json=json, quick=quick, settings=own, model=model, **how)
    except KeyboardInterrupt:
        kept = "interrupted; no file was left half written. The same command runs the cells that are missing."
        raise KeyboardInterrupt(kept) from None
    if status:
        sys.exit(status)


@app.command()
@plainly
@preparing()
@selecting()
def select(
    model: Model,
    data: Data,
    settings: Set = None,
    selection: Preparation = NOTHING,
    preparation: Preparation = NOTHING,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", help="The results' folder; to resume, the same.")] = None,
    json: Json = False,
) -> None:
    """Choose options over a grid (--set components=1:8 --set covariance=full,tied): a table, a picture, the best."""
    from benchmarks._select import command

    command.main(model, data, _options.parse(settings or []), out=out, json=json, seed=seed, **selection, **preparation)


_calibrate.add(app)
_page.add(app)


def _refused(refusal: Refusal, model: str, data: str, method: str, seed: int, json: bool) -> None:
    if json:
        from inference._run.record import Refused

        print_json(Refused(model, data, method, seed, None, str(refusal)).to_json())
    raise refusal


def _report(fit: Record, json: bool) -> None:
    if json:
        print_json(fit.to_json())
        return
    from zoo import _show

    _show.warnings(fit.warnings)
    _show.parameters(fit.parameters, fit.columns, fit.column_axes(), fit.center is not None, fit.run)
    _show.verdict(fit.to_document(), _shape(fit.x.shape))


def _shape(shape: Iterable[int]) -> str:
    return " × ".join(str(s) for s in shape)


def main() -> None:
    """The console script."""
    _command.let_the_first_speak()
    app()


if __name__ == "__main__":
    main()
