"""The errors that users see, each in one or two sentences. Exit status 2; `NotWritten` 1."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class UsageError(ValueError):
    """A wrong request: an unknown name, a bad option, unusable data, a program that breaks the contract."""


class Refusal(UsageError):
    """A method cannot serve this program; the message says why, and which methods can."""


class NotWritten(OSError):
    """A result could not be written, on a full disk for example. `result`: the result itself, where it is known."""

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message)
        self.result = result


def unknown(kind: str, name: object, known: Iterable[str]) -> UsageError:
    """An error for an unknown name, with the near matches and all known names.

    `kind`: what was named ("model", "option of em": the name stands after "option"); `known`: the valid names.
    """
    known, name = sorted(known), str(name)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else ""
    listed = f"known: {', '.join(known)}." if known else "there are none."
    return UsageError(f"unknown {called(kind, name)}; {hint + ' ' if hint else ''}{listed}")


def called(kind: str, name: object) -> str:
    """ "option of em" and a name → "option 'NAME' of em"."""
    noun, of, whose = kind.partition(" of ")
    return f"{noun} '{name}'{of}{whose}"
