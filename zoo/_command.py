"""What the commands of `zoo` share: how they end, their JSON, their help. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from inspect import Parameter
from typing import Annotated, Any, ParamSpec

import typer
from typer.core import TyperCommand

from zoo import _registry
from zoo._errors import NotWritten, UsageError

P = ParamSpec("P")
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


Some = list[str] | None


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """The warnings that users of Python would see, as sentences, once this has ended."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield said
    said += dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning))


def _option(kind: Any, name: str, help: str) -> Any:
    return Annotated[kind, typer.Option(name, help=help, show_default=False)]


Seed = Annotated[int, typer.Option("--seed", min=0, help="Same seed, same machine: the same numbers.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")]
Dtype = Annotated[
    str, typer.Option("--dtype", help="float64 or float32; auto: float32 for large data that are not exact.")
]
Named = Annotated[
    str | None,
    typer.Option(
        "--model", help="The run's program, if it is in a Python file: path/to/file.py:callable.", show_default=False
    ),
]
Trust = Annotated[bool, typer.Option("--trust", help="Execute the Python files that the run names.")]
Changed = Annotated[bool, typer.Option("--changed-program", help="Use the program although it changed since the run.")]
Device = Annotated[
    str, typer.Option("--device", help="Where networks are trained: cpu, cuda, or auto (a GPU if there is one).")
]
PREPARING = {  # the options that prepare data, as `inference.run` has them
    "columns": (_option(Some, "--columns", "Fit these columns, in this order: a,b,c."), None),
    "drop": (_option(Some, "--drop", "Leave these columns out: id,name."), None),
    "labels": (_option(str | None, "--labels", "A column of class labels: kept, and never fitted."), None),
    "rows_by": (
        _option(str | None, "--rows-by", "A column that names the rows; the names come back in results."),
        None,
    ),
    "na": (_option(Some, "--na", "What else stands for a missing value: 999, or a word. Repeatable."), None),
    "weights": (_option(str | None, "--weights", "A column that says how many times each row counts."), None),
    "covariates": (_option(Some, "--covariates", "Columns that the model is conditioned on: a,b."), None),
    "categories": (_option(Some, "--categories", "Columns whose values become 0, 1, …, in order: a,b."), None),
    "rows": (_option(int | None, "--rows", "Keep a random subset of this many rows."), None),
    "standardize": (
        Annotated[
            bool, typer.Option("--standardize", help="Subtract means, divide by population standard deviations.")
        ],
        False,
    ),
    "binarize": (_option(str | None, "--binarize", "fixed, dynamic, or a threshold."), None),
    "missing": (
        _option(str | None, "--missing", "Hide entries: top, bottom, left, right, random:P, or a mask.npy."),
        None,
    ),
    "series": (Annotated[bool, typer.Option("--series", help="The table's rows are the steps of one series.")], False),
    "series_by": (
        _option(str | None, "--series-by", "One series for each value of this column; rows are steps."),
        None,
    ),
    "covariance_of": (
        _option(int | None, "--covariance-of", "The data are a covariance or correlation matrix of this many rows."),
        None,
    ),
}


SELECTING = {  # the options that a selection has besides
    "by": (Annotated[str, typer.Option("--by", help="bic, icl, aic, heldout, evidence, parallel or ard.")], "bic"),
    "method": (_option(str | None, "--method", "An inference method (default: em; laplace with priors)."), None),
    "folds": (_option(int | None, "--folds", "Hold rows out, in so many parts (by heldout: 5)."), None),
    "restarts": (_option(int | None, "--restarts", "How many starts each fit has (default: by its kind)."), None),
    "bootstrap": (_option(int | None, "--bootstrap", "Test each K against the next by so many simulated data."), None),
    "jobs": (_option(int | None, "--jobs", "Cells at once (default: one a processor)."), None),
}
Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def preparing(*left_out: str) -> Decorator:
    """A command whose argument `preparation` becomes the options of `PREPARING`, but for those left out."""
    return _taking("preparation", {k: v for k, v in PREPARING.items() if k not in left_out})


def selecting() -> Decorator:
    """A command whose argument `selection` becomes the options of `SELECTING`."""
    return _taking("selection", SELECTING)


def _taking(argument: str, options: dict[str, tuple[Any, Any]]) -> Decorator:
    """A command one of whose arguments becomes these options.

    It gets a dictionary of those that were given. Typer reads a command's options off its signature, so they are put there.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        more = [Parameter(k, Parameter.KEYWORD_ONLY, default=d, annotation=a) for k, (a, d) in options.items()]
        kept = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in own.parameters.values()]
        at = next(i for i, p in enumerate(kept) if p.name == argument)

        @functools.wraps(command)
        def wrapped(**given: object) -> None:
            taken = {k: given.pop(k) for k in options}
            command(**given, **{argument: {k: v for k, v in taken.items() if v is not None and v is not False}})

        parameters = [*kept[:at], *more, *kept[at + 1 :]]
        wrapped.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapped

    return decorate


def visible(text: str) -> str:
    """Text with its control characters escaped: the names and cells of users may hold any."""
    return _UNSEEN.sub(lambda m: m[0].encode("unicode_escape").decode(), text)


def let_the_first_speak() -> None:
    """Of several processes of one run, which torchrun starts, the others say nothing."""
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0":
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends


def check_processes(command: str | None) -> None:
    """Raise `UsageError` where torchrun started several processes of a command that does not share the work among them."""
    count = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if count > 1 and command != "run":
        raise UsageError(
            f"Expected one process for zoo {command}, got {count}: zoo run alone takes several. Start it without torchrun."
        )


def plainly(command: Callable[P, None]) -> Callable[P, None]:
    """Errors as one or two sentences without a traceback; exit status 2 for a wrong use or a refusal, 1 for a failure."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except UsageError as error:
            fail(str(error), 2)
        except NotWritten as error:
            fail(str(error), 1)
        except (KeyboardInterrupt, BrokenPipeError) as error:
            said = str(error) if isinstance(error, KeyboardInterrupt) else ""
            fail(said or "interrupted; no file was left half written.", 130)
        except Exception as error:
            if os.environ.get("ZOO_DEBUG"):
                raise
            fail(_said(error), 2 if getattr(error, "errno", None) == errno.ENAMETOOLONG else 1)

    return wrapped


def _said(error: Exception) -> str:
    """A failure in plain words; an unexpected one names its exception."""
    what = str(error).strip() or type(error).__name__
    bare = type(error) is not MemoryError or not error.args  # ours says what ran out
    if bare and (isinstance(error, MemoryError) or re.search("can't allocate|out of memory|Unable to allocate", what)):
        return "out of memory: take fewer rows (--rows), fewer draws or smaller options, or a machine with more."
    if isinstance(error, OSError) and error.errno is not None:
        where = f": '{error.filename}'" if error.filename else ""
        return f"{error.strerror or what}{where}."
    ours = type(error).__name__ in ("ArithmeticError", "Disagreement")
    if ours or isinstance(error, OSError | MemoryError):  # the second: the machine's
        return what
    return f"{type(error).__name__}: {what}\nThis should not happen; ZOO_DEBUG=1 shows where it did."


class PlotCommand(TyperCommand):
    """A command whose help ends with the list of pictures, read only where the help is asked for."""

    def format_help(self, ctx: typer.Context, formatter: object) -> None:  # type: ignore[override]
        """Print the help."""
        listed = "\n".join(f"[bold]{name}[/]: {line}." for name, line in _registry.pictures().items())
        self.help = f"{self.help}\n\n\b\n{listed}"
        super().format_help(ctx, formatter)  # type: ignore[arg-type]


def fail(message: str, status: int) -> None:
    """Print the message on standard error, and exit with `status`."""
    with contextlib.suppress(OSError):  # standard error is closed, or on the disk that is full
        print(f"zoo: {visible(message)}", file=sys.stderr)
    raise typer.Exit(status)


def print_json(document: object) -> None:
    """Print one JSON document on standard output, with control characters escaped."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    print(re.sub("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]", lambda m: f"\\u{ord(m[0]):04x}", text))


def show_version(asked: bool) -> None:
    """`--version`: print it, and end."""
    if asked:
        try:
            print(f"latent-zoo {version('latent-zoo')}")
        except PackageNotFoundError:
            print("latent-zoo, not installed")
        raise typer.Exit


def no_clash(options: dict[str, str]) -> None:
    """Raise `UsageError` for a name after `--set` that is an option of the command."""
    words = "seed out limit dtype device resume trust checkpoint quiet model data method"
    taken = {*words.split(), *PREPARING} - {"covariates"}  # their number is an option of the model
    for key in sorted(taken & set(options)):
        raise UsageError(f"'{key}' cannot be set with --set; use the option --{key.replace('_', '-')}.")
