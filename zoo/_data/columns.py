"""Names of columns, and columns matched by name between two tables."""

from __future__ import annotations

from collections.abc import Sequence

from zoo._errors import UsageError

MOST_SHOWN = 20  # names in a message


def default_names(count: int) -> tuple[str, ...]:
    """x0, x1, …: the names of columns that have none."""
    return tuple(f"x{j}" for j in range(count))


def match(known: Sequence[str], given: Sequence[str]) -> list[int]:
    """For each known column its place among the given ones: by name, or by position where either table has no names.

    By name, there may be others beside them. Raises `UsageError` that lists the missing columns, and those that are there in
    their place, or says how many were expected.
    """
    known, given = list(known), list(given)
    if known == given:
        return list(range(len(known)))
    for names in (known, given):
        if len(set(names)) < len(names) and sorted(known) == sorted(given):
            raise UsageError(
                f"the column name '{_repeated(names)}' is used twice, so the columns cannot be matched by name; "
                "give each column its own name."
            )
    if sorted(known) == sorted(given):
        return [given.index(name) for name in known]
    nameless = [tuple(names) == default_names(len(names)) for names in (known, given)]
    if any(nameless):
        if len(known) == len(given):
            return list(range(len(known)))
        named = "" if nameless[0] else f" ({_listed(known)})"
        raise UsageError(
            f"Expected {_count(known)}{named}, got {len(given)}{'' if nameless[1] else f' ({_listed(given)})'}."
        )
    missing = [name for name in known if name not in given]
    extra = [name for name in given if name not in known]
    if not missing and all(known.count(name) == given.count(name) == 1 for name in known):
        return [given.index(name) for name in known]
    found = [f"missing: {_listed(missing)}"] * bool(missing) + [f"unknown: {_listed(extra)}"] * bool(missing and extra)
    if not found:  # all names are there, some of them more than once
        found = [f"twice: {_repeated([n for n in given if n in known] if len(given) > len(known) else known)}"]
    told = "; ".join(found)
    advice = " (add what is missing, with empty cells where nothing was observed)" if missing else ""
    raise UsageError(f"Expected the columns {_listed(known)}. {told[0].upper()}{told[1:]}{advice}.")


def _repeated(names: list[str]) -> str:
    return next((name for name in names if names.count(name) > 1), "")


def _count(names: list[str]) -> str:
    return f"{len(names)} column{'s' * (len(names) != 1)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" if "," in name else name for name in names[:MOST_SHOWN]) + ", …" * (
        len(names) > MOST_SHOWN
    )
