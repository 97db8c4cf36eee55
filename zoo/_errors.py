"""The two ways to say no. Both end a command with exit status 2 and one or two plain sentences."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """What was asked for cannot be: an unknown name, a bad option, unusable data, a program that breaks the contract."""


class Refusal(UsageError):
    """A method cannot serve this program; the message says what stands in the way and which methods can."""


def unknown(kind: str, name: object, known: Iterable[str]) -> UsageError:
    """An error for a name that is not known: gives the near matches, or else all that is known.

    Parameters: ``kind`` is what the name was meant to be ("model", "option of em"), ``known`` all that it could be.
    """
    known, name = sorted(known), str(name)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else ""
    listed = f"known: {', '.join(known)}." if known else "there are none."
    return UsageError(f"unknown {kind} '{name}'; {hint + ' ' if hint else ''}{listed}")
