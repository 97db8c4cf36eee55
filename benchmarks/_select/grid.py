"""A grid of options: what `--set components=1:8 --set covariance=full,tied` stands for, one value of each option at a time.

The type of an option says how its text is split, so that a list which is one value stays one:

    int, float      1:8 (both ends belong to it), 1:9:2, 1,2,5 and 1:3,6
    names, bools    full,tied
    lists           200,200 is one value; 200,200;100 are two

>>> import inspect
>>> values("components", "1:3,6", inspect.Parameter("components", inspect.Parameter.KEYWORD_ONLY, annotation=int))
[1, 2, 3, 6]
"""

from __future__ import annotations

import inspect
import itertools
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence

from zoo import _options
from zoo._errors import UsageError, unknown

MOST_CELLS = 10_000
MOST_VALUES = 1000  # of one range
Schema = Mapping[str, inspect.Parameter]
_RANGE = re.compile(r"\s*([+-]?[\d.]+)\s*:\s*([+-]?[\d.]+)\s*(?::\s*([+-]?[\d.]+)\s*)?")


def expand(given: Mapping[str, object], owners: Sequence[Schema], what: str) -> dict[str, list[object]]:
    """Option → its values, each converted to the option's type. Raises `UsageError` for what is unknown or does not fit.

    `owners`: the options of the model, and of the method; `what`: whose they are, in words.
    """
    out: dict[str, list[object]] = {}
    for name, value in given.items():
        schemas = [known for known in owners if name in known]
        if not schemas:
            raise unknown(what, name, {key for known in owners for key in known})
        out[name] = values(name, value, schemas[0][name])
    size = 1
    for found in out.values():
        size *= len(found)
    if size > MOST_CELLS:
        raise UsageError(f"the grid has {size:,} cells, and at most {MOST_CELLS:,} are possible; take fewer values.")
    return out


def values(name: str, value: object, parameter: inspect.Parameter) -> list[object]:
    """The values of one option, in order and without repeats."""
    kinds = _kinds(parameter.annotation)
    parts = _split(name, value, kinds) if isinstance(value, str) else _listed(value, kinds)
    if len(parts) > MOST_CELLS:
        raise UsageError(
            f"{name} has {len(parts):,} values, and at most {MOST_CELLS:,} cells are possible; take fewer."
        )
    out: list[object] = []
    for part in parts:
        found = _options.convert({name: parameter}, {name: part}, "option")[name]
        if not any(type(found) is type(known) and found == known for known in out):
            out.append(found)
    if not out:
        raise UsageError(f"{name} has no value; name at least one.")
    return out


def combinations(grid: Mapping[str, list[object]]) -> Iterator[dict[str, object]]:
    """{"a": [1, 2], "b": [3]} → {a: 1, b: 3}, {a: 2, b: 3}; the first option varies fastest."""
    names = list(grid)
    for chosen in itertools.product(*(grid[name] for name in reversed(names))):
        yield dict(zip(names, reversed(chosen), strict=True))


def _kinds(annotation: object) -> list[object]:
    """The plain types that an annotation allows: `Annotated[int | None, …]` → [int, None]."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _kinds(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [kind for each in typing.get_args(annotation) for kind in _kinds(each)]
    return [origin or annotation]


def _is_list(kinds: list[object]) -> bool:
    return any(kind in (tuple, list) for kind in kinds)


def _split(name: str, text: str, kinds: list[object]) -> list[str | float]:
    if _is_list(kinds):
        return [part.strip() for part in text.split(";") if part.strip()]
    out: list[str | float] = []
    numbers = any(kind in (int, float, inspect.Parameter.empty) for kind in kinds)
    for part in text.split(","):
        if numbers and ":" in part:
            out += _range(name, part)
        elif part.strip():
            out.append(part.strip())
    return out


def _range(name: str, text: str) -> list[str | float]:
    """ "1:8" → 1, …, 8; "1:9:2" → 1, 3, 5, 7, 9."""
    found = _RANGE.fullmatch(text)
    try:
        first, last, step = (float(part or 1) for part in found.groups()) if found else (0.0, 0.0, 0.0)
    except ValueError:
        step = 0.0
    if step <= 0 or last < first:
        raise UsageError(
            f"Expected a range such as 1:8 or 1:9:2 for {name}, first and last included, got '{text.strip()}'."
        )
    count = int((last - first) / step + 1e-9) + 1
    if count > MOST_VALUES:
        raise UsageError(f"{name}={text.strip()} has {count:,} values, and at most {MOST_VALUES:,} are possible.")
    steps = [round(first + i * step, 12) for i in range(count)]
    return [int(v) if v == int(v) else v for v in steps]


def _listed(value: object, kinds: list[object]) -> list[object]:
    """The values that Python code gives: of an option that is a list itself, a list of lists, or one of them."""
    if not isinstance(value, Iterable) or isinstance(value, Mapping | bytes):
        return [value]
    parts = list(value)
    if _is_list(kinds):
        several = parts and all(isinstance(p, Iterable) or p is None for p in parts)
        return parts if several else [parts]
    return parts
