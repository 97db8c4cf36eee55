"""What the commands of `zoo` share: how they end, their JSON, their help. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import sys
from collections.abc import Callable
from typing import ParamSpec

import typer
from typer.core import TyperCommand

from zoo import _registry
from zoo._errors import NotWritten, UsageError

P = ParamSpec("P")
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Text with its control characters escaped: the names and cells of users may hold any."""
    return _UNSEEN.sub(lambda m: m[0].encode("unicode_escape").decode(), text)


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
        except (KeyboardInterrupt, BrokenPipeError):
            fail("interrupted; no file was left half written.", 130)
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
    if isinstance(error, OSError | MemoryError) or type(error) is ArithmeticError:  # ours, or the machine's
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
