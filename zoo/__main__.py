"""The `zoo` command. The composition root: it may import everything, and does so only when a command needs it."""

from __future__ import annotations

import functools
import importlib
import json as json_
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo import _options, _registry
from zoo._errors import Refusal, UsageError, unknown

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="One Pyro program, every inference method, evidence you can trust. Log-densities are in nats.",
)

Model = Annotated[str, typer.Argument(help="A name in the zoo, or path/to/file.py:callable.", show_default=False)]
Data = Annotated[
    str, typer.Option("--data", help="A data set's name, or a .csv, .npy or .npz file.", show_default=False)
]
Set = Annotated[list[str] | None, typer.Option("--set", help="key=value: an option of the model or the method.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Same seed, same machine: the same numbers.")]
Out = Annotated[
    Path | None, typer.Option("--out", help="The folder to write; it must not exist yet.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, and nothing else there.")]
Rows = Annotated[int | None, typer.Option("--rows", help="Take this many rows at random.", show_default=False)]
Standardize = Annotated[
    bool, typer.Option("--standardize", help="Subtract means, divide by population standard deviations.")
]
Binarize = Annotated[str | None, typer.Option("--binarize", help="fixed, dynamic, or a threshold.", show_default=False)]
Missing = Annotated[str | None, typer.Option("--missing", help="Hide entries: top, bottom, left, right or random:P.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="The most joint values of discrete latents to enumerate.")]
ENUMERATION_LIMIT = 10_000  # zoo._structure's own, which costs torch to look up; a test holds them equal


def _plainly(command: Callable[..., None]) -> Callable[..., None]:
    """Errors in one or two sentences, never a traceback; exit status 2 for a misuse or refusal, 1 for a failure."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except UsageError as error:
            _fail(str(error), 2)
        except (KeyboardInterrupt, BrokenPipeError):
            _fail("interrupted; nothing was half written.", 130)
        except Exception as error:
            if os.environ.get("ZOO_DEBUG"):
                raise
            what = str(error).strip() or type(error).__name__
            named = what if isinstance(error, ArithmeticError | OSError) else f"{type(error).__name__}: {what}"
            _fail(f"{named}\nThis should not happen; ZOO_DEBUG=1 shows where it did.", 1)

    return wrapped


def _fail(message: str, status: int) -> None:
    print(f"zoo: {message}", file=sys.stderr)
    raise typer.Exit(status)


@app.command("list")
@_plainly
def list_(json: Json = False) -> None:
    """Models, methods and data sets."""
    from zoo import _catalogue

    groups = {"models": _registry.models(), "methods": _registry.methods(), "data": _catalogue.names()}
    if json:
        _print_json(groups)
        return
    from zoo import _show

    for title, entries in groups.items():
        _show.listing(title, entries)


@app.command()
@_plainly
def describe(
    model: Model,
    data: Data,
    settings: Set = None,
    rows: Rows = None,
    standardize: Standardize = False,
    binarize: Binarize = None,
    missing: Missing = None,
    limit: Limit = ENUMERATION_LIMIT,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """A program's structure, and for each method: yes, or why not."""
    from inference import _runner

    prepared = _runner.prepare(
        model,
        data,
        _options.parse(settings or []),
        [],
        seed=seed,
        limit=limit,
        rows=rows,
        standardize=standardize,
        binarize=binarize,
        missing=missing,
    )
    serving = _runner.serving(prepared.structure)
    if json:
        _print_json({**prepared.structure.to_json(), "methods": {m: why or "yes" for m, why in serving.items()}})
        return
    from zoo import _show

    _show.warnings(prepared.data.warnings)
    _show.structure(prepared.structure, serving, f"{prepared.data.name}, {_shape(prepared.x.shape)}")


@app.command()
@_plainly
def run(
    model: Model,
    data: Data,
    method: Annotated[str, typer.Option("--method", help="An inference method.")] = "em",
    settings: Set = None,
    rows: Rows = None,
    standardize: Standardize = False,
    binarize: Binarize = None,
    missing: Missing = None,
    limit: Limit = ENUMERATION_LIMIT,
    seed: Seed = 0,
    out: Out = None,
    json: Json = False,
) -> None:
    """One fit: a progress bar, a run folder, a verdict."""
    import inference
    from inference import _runner

    options = _options.parse(settings or [])
    _no_clash(options)
    folder = out or _runner.free_folder(model, data, method)
    try:
        fit = inference.run(
            model,
            data,
            method,
            seed=seed,
            out=folder,
            rows=rows,
            standardize=standardize,
            binarize=binarize,
            missing=missing,
            limit=limit,
            quiet=False,
            **options,
        )
    except Refusal as refusal:
        _refused(refusal, model, data, method, seed, json)
    else:
        _report(fit, json)


@app.command()
@_plainly
def infer(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
    method: Annotated[str, typer.Option("--method", help="An inference method.", show_default=False)],
    settings: Set = None,
    seed: Seed = 0,
    out: Out = None,
    json: Json = False,
) -> None:
    """Another method on the θ of a run, which stays as it is."""
    import inference
    from inference import _runner, _store

    stored = _store.load(folder).json
    options = _options.parse(settings or [])
    _no_clash(options)
    place = out or _runner.free_folder(stored["model"], stored["data"], method)
    try:
        fit = inference.infer(folder, method, seed=seed, out=place, quiet=False, **options)
    except Refusal as refusal:
        _refused(refusal, stored["model"], stored["data"], method, seed, json)
    else:
        _report(fit, json)


@app.command()
@_plainly
def compare(
    model: Model,
    data: Data,
    methods: Annotated[str, typer.Option("--methods", help="Method names with commas between.")] = (
        "em,laplace,svi,importance"
    ),
    settings: Set = None,
    rows: Rows = None,
    standardize: Standardize = False,
    binarize: Binarize = None,
    missing: Missing = None,
    limit: Limit = ENUMERATION_LIMIT,
    seed: Seed = 0,
    out: Out = None,
    json: Json = False,
) -> None:
    """The methods side by side: claimed, verified, gap, k-hat, time, memory."""
    import inference
    from inference import _runner

    options = _options.parse(settings or [])
    _no_clash(options)
    results = inference.compare(
        model,
        data,
        [m.strip() for m in methods.split(",") if m.strip()],
        seed=seed,
        out=out or _runner.free_folder(model, data, "compare"),
        rows=rows,
        standardize=standardize,
        binarize=binarize,
        missing=missing,
        limit=limit,
        quiet=False,
        **options,
    )
    documents = [r.to_json() for r in results]
    if json:
        _print_json({"runs": documents})
        return
    from zoo import _show

    _show.comparison(documents)


@app.command()
@_plainly
def plot(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to; RUN/plots if not said.", show_default=False)
    ] = None,
    format: Annotated[str, typer.Option("--format", help="png, pdf or svg.")] = "png",
    json: Json = False,
) -> None:
    """The pictures that belong to a run."""
    from inference import _pictures

    if format not in ("png", "pdf", "svg"):
        raise unknown("format", format, ("png", "pdf", "svg"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        paths = [str(p) for p in _pictures.plot(folder, out, format)]  # type: ignore[arg-type]
    if caught:
        from zoo import _show

        _show.warnings(str(w.message) for w in caught)
    if json:
        _print_json({"run": str(folder), "plots": paths})
    else:
        print("\n".join(paths))


@app.command()
@_plainly
def impute(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
    draws: Annotated[int, typer.Option("--draws", min=1, help="Joint draws to write.")] = 20,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to; RUN/imputed if not said.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """What the unobserved entries of a run's data were: mean, standard deviation, joint draws."""
    from inference import _runner

    paths = [str(p) for p in _runner.impute_run(folder, draws, seed, out)]
    if json:
        _print_json({"run": str(folder), "files": paths})
    else:
        print("\n".join(paths))


@app.command()
@_plainly
def bench(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A benchmark, such as peers/em.", show_default=False)],
    quick: Annotated[bool, typer.Option("--quick", help="A small version, to see that it works.")] = False,
    json: Json = False,
) -> None:
    """A benchmark."""
    if name not in _registry.benchmarks():
        raise unknown("benchmark", name, _registry.benchmarks())
    importlib.import_module("benchmarks." + name.replace("/", ".")).main(json=json, quick=quick)


def _no_clash(options: dict[str, str]) -> None:
    taken = {"seed", "out", "rows", "standardize", "binarize", "missing", "limit", "quiet", "model", "data", "method"}
    for key in sorted(taken & set(options)):
        raise UsageError(f"'{key}' is not set with --set; it is the option --{key}.")


def _refused(refusal: Refusal, model: str, data: str, method: str, seed: int, json: bool) -> None:
    if json:
        from inference._runner import Refused

        _print_json(Refused(model, data, method, seed, None, str(refusal)).to_json())
    raise refusal


def _report(fit: Any, json: bool) -> None:
    if json:
        _print_json(fit.to_json())
        return
    from zoo import _show

    _show.warnings(fit.warnings)
    _show.verdict(fit.to_json(), _shape(fit.x.shape))


def _shape(shape: Any) -> str:
    return " × ".join(str(s) for s in shape)


def _print_json(document: Any) -> None:
    print(json_.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
