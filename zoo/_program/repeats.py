"""The sites of a program as a person reads them: those that repeat a pattern as one.

A chain of 226 steps is two lines: `z0 … z225`, each on the one before, and `x0 … x225`, each on its z.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEAST = 4  # sites in a family
MOST_NAMED = 3  # parents that are named

Document = Mapping[str, Any]  # a site's JSON


@dataclass(frozen=True)
class Line:
    """One site, or a family of them."""

    name: str
    count: int
    site: Document  # the first
    on: str  # what it depends on, in words
    members: tuple[Document, ...] = ()  # of a family, all


def lines(sites: Sequence[Document]) -> list[Line]:
    """The sites (of a structure's JSON) in order, each family of at least four at the place of its first."""
    families: dict[object, list[Document]] = {}
    for s in sites:
        prefix, number = split(s["name"])
        families.setdefault(s["name"] if number is None else (prefix, _kind(s)), []).append(s)
    out, done = list[Line](), set[int]()
    for s in sites:
        if id(s) in done:
            continue
        prefix, number = split(s["name"])
        family = [s] if number is None else families[prefix, _kind(s)]
        family = family if len(family) >= LEAST else [s]
        done |= {id(member) for member in family}
        if len(family) == 1:
            out.append(Line(s["name"], 1, s, _named(s["parents"])))
        else:
            out.append(Line(f"{s['name']} … {family[-1]['name']}", len(family), s, _pattern(family), tuple(family)))
    return out


def split(name: str) -> tuple[str, int | None]:
    """A name and the number that it ends with, if it does: z12 → z, 12."""
    found = re.fullmatch(r"(.*?)(\d+)", name)
    return (name, None) if found is None else (found[1], int(found[2]))


def _kind(s: Document) -> tuple[object, ...]:
    keys = ("role", "scope", "family", "event_shape", "plates", "support", "inner", "completes")
    return tuple(str(s.get(key)) for key in keys)


def _named(parents: Sequence[str]) -> str:
    if len(parents) <= MOST_NAMED:
        return ", ".join(parents)
    return f"{parents[0]} … {parents[-1]} ({len(parents)} sites)"


def _pattern(family: Sequence[Document]) -> str:
    """On what the members of a family depend, where it is the same for all but the first few."""
    most = max(len(s["parents"]) for s in family)
    if not most:
        return ""
    if regular(family) is None:
        return f"each on up to {most} other sites" if most > 1 else "each on at most one other site"
    own, usual = split(family[0]["name"])[0], _relative(family[-1])
    return "each on " + " and ".join(_in_words(*parent, own) for parent in sorted(usual, key=str, reverse=True))


def regular(family: Sequence[Document]) -> int | None:
    """How many steps back the members of a family reach, where they all depend on the same but for the first few."""
    patterns = [_relative(s) for s in family]
    usual = patterns[-1]
    first = max((-step for _, step in usual if step is not None), default=0)  # that have all of these
    return None if any(pattern != usual for pattern in patterns[max(0, first) :]) else max(0, first)


def _relative(s: Document) -> frozenset[tuple[str, int | None]]:
    """The parents of a site, those with a number as so many steps away from its own."""
    _, own = split(s["name"])
    out = set[tuple[str, int | None]]()
    for parent in s["parents"]:
        prefix, number = split(parent)
        out.add((parent, None) if number is None or own is None else (prefix, number - own))
    return frozenset(out)


def _in_words(prefix: str, step: int | None, own: str) -> str:
    if step is None:
        return prefix
    if step == 0:
        return f"its {prefix}"
    way = "before" if step < 0 else "after"
    far = way if abs(step) == 1 else f"{abs(step)} {way}"
    return f"the one {far}" if prefix == own else f"the {prefix} {far}"
