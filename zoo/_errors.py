"""The ways to say no, each in one or two plain sentences: status 2, and status 1 for what could not be written."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class UsageError(ValueError):
    """What was asked for cannot be: an unknown name, a bad option, unusable data, a program that breaks the contract."""


class Refusal(UsageError):
    """A method cannot serve this program; the message says what stands in the way and which methods can."""


class NotWritten(OSError):
    """A result could not be written, on a full disk say. `result` is what should have been, where it is known."""

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message)
        self.result = result


def unknown(kind: str, name: object, known: Iterable[str]) -> UsageError:
    """An error for a name that is not known: gives the near matches, or else all that is known.

    Parameters: ``kind`` is what the name was meant to be ("model", "option of em"), ``known`` all that it could be.
    """
    known, name = sorted(known), str(name)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else ""
    listed = f"known: {', '.join(known)}." if known else "there are none."
    return UsageError(f"unknown {kind} '{name}'; {hint + ' ' if hint else ''}{listed}")
