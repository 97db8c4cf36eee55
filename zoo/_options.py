"""`--set key=value`: options are the keyword-only arguments of the thing they set, and their types are its annotations."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from zoo._errors import UsageError, unknown

LARGEST = 10**12  # of any whole number: nobody waits for as many steps


@dataclass(frozen=True)
class Limits:
    """The range of an option's number, in its annotation: `samples: Annotated[int, Limits(least=2)]`."""

    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None

    def check(self, name: str, value: float) -> None:
        """Raise `UsageError` unless `value` lies within the range."""
        words = {"above": "more than", "least": "at least", "below": "less than", "most": "at most"}
        given = {k: v for k, v in vars(self).items() if v is not None}
        fits: dict[str, Callable[[float], bool]] = {
            "above": lambda v: value > v,
            "least": lambda v: value >= v,
            "below": lambda v: value < v,
            "most": lambda v: value <= v,
        }
        if not all(fits[k](v) for k, v in given.items()):
            rule = " and ".join(f"{words[k]} {'zero' if v == 0 else format(v, 'g')}" for k, v in given.items())
            raise UsageError(f"{name} must be {rule}, got {value:g}.")

    def __str__(self) -> str:
        signs = {"above": ">", "least": "≥", "below": "<", "most": "≤"}
        return ", ".join(f"{signs[k]} {v:g}" for k, v in vars(self).items() if v is not None)


class Used:
    """Where an option has an effect: `components: Annotated[int, Used(net="mixture")]`.

    The name of another option, and the value or values of it; of several names one is enough.
    """

    def __init__(self, **where: Any) -> None:
        self.where = {k: v if isinstance(v, tuple) else (v,) for k, v in where.items()}

    def obstacle(self, values: Mapping[str, Any]) -> str:
        """What leaves the option without effect, "" where it has one; `values`: what every option is."""
        if any(str(values[name]).lower() in map(str.lower, map(str, right)) for name, right in self.where.items()):
            return ""
        name, right = next(iter(self.where.items()))
        return f"with {name}={values[name]}; it goes with {' or '.join(f'{name}={v}' for v in right)}"


Count = typing.Annotated[int, Limits(above=0)]
Positive = typing.Annotated[float, Limits(above=0)]
NotNegative = typing.Annotated[float, Limits(least=0)]


def schema(target: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """Name → parameter for every option of `target`: keyword-only ones, or any with a default."""
    out = {}
    for name, p in inspect.signature(target, eval_str=True).parameters.items():
        if p.kind is p.KEYWORD_ONLY or (p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty):
            out[name] = p
    return out


def check_used(owners: Iterable[Mapping[str, inspect.Parameter]], given: Mapping[str, Any]) -> None:
    """Raise `UsageError` for an option that has no effect beside the others, in none of those that know it.

    `owners`: the options of the model and of each method; each given one is known and has a value that it can take.
    """
    owners = list(owners)
    for name in given:
        obstacles = [_obstacle(known, name, given) for known in owners if name in known]
        if obstacles and all(obstacles):
            raise UsageError(f"{name} has no effect {obstacles[0]}. Drop it, or change the other.")


def _obstacle(known: Mapping[str, inspect.Parameter], name: str, given: Mapping[str, Any]) -> str:
    marks = typing.get_args(known[name].annotation)[1:] if _is_marked(known[name].annotation) else ()
    values = {k: given.get(k, p.default) for k, p in known.items()}
    return next((why for m in marks if isinstance(m, Used) and (why := m.obstacle(values))), "")


def _is_marked(annotation: Any) -> bool:
    return typing.get_origin(annotation) is typing.Annotated


# ---- what help says of options


@dataclass(frozen=True)
class Described:
    """An option in words."""

    name: str
    type: str  # "whole number", "one of full, tied"
    default: object
    range: str  # "> 0", "" for any
    goes_with: str  # "net=mixture", "" where it always has an effect
    meaning: str  # "" where the docstring does not say


def described(known: Mapping[str, inspect.Parameter], docstring: str | None) -> list[Described]:
    """The options in words. Their meanings come from the docstring's list: "- `name`: what it is"."""
    told = meanings(docstring or "")
    out = []
    for name, p in known.items():
        kind, ranges, uses = _in_words(p.annotation)
        default = list(p.default) if isinstance(p.default, tuple) else p.default
        goes_with = " or ".join(f"{k}={v}" for use in uses for k, values in use.where.items() for v in values)
        out.append(Described(name, kind, default, ranges, goes_with, told.get(name, "")))
    return out


def meanings(docstring: str) -> dict[str, str]:
    """Name → what a docstring's list says of it. An item may name several, and go on in lines that are set in."""
    items = re.findall(
        r"^- ((?:`\w+`(?:, | and )?)+): (.*(?:\n +.*)*)", inspect.cleandoc(docstring), flags=re.MULTILINE
    )
    return {name: " ".join(text.split()) for listed, text in items for name in re.findall(r"`(\w+)`", listed)}


def _in_words(annotation: Any) -> tuple[str, str, list[Used]]:
    """A type in words, the range of its number, and what it has an effect with."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        kind, limits, uses = _in_words(parts[0])
        own = [str(m) for m in parts[1:] if isinstance(m, Limits)]
        return kind, ", ".join(filter(None, [limits, *own])), [*uses, *(m for m in parts[1:] if isinstance(m, Used))]
    if origin in (typing.Union, types.UnionType):
        each = [_in_words(part) for part in parts]
        kinds, limits = " or ".join(k for k, _, _ in each), ", ".join(filter(None, (r for _, r, _ in each)))
        return kinds, limits, [use for _, _, uses in each for use in uses]
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, parts))}", "", []
    if origin in (tuple, list):
        kind, limits, uses = _in_words(parts[0])
        return f"{kind}, or several with commas", limits, uses
    words = {bool: "true or false", int: "whole number", float: "number", str: "name", type(None): "none"}
    return words.get(annotation, "any"), "", []


def parse(settings: list[str]) -> dict[str, str]:
    """["key=value", …] → {key: value}; the last of a repeated key wins."""
    pairs = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set expects key=value, got '{setting}'.")
        if not value.strip():
            raise UsageError(f"--set {setting.strip()} has no value; write one after the '='.")
        pairs[key.strip().replace("-", "_")] = value.strip()
    return pairs


def convert(known: Mapping[str, inspect.Parameter], given: Mapping[str, object], what: str) -> dict[str, Any]:
    """The given options converted to their declared types; the command line gives strings.

    Raises `UsageError` for an unknown option, with the near matches, and for a value that an option cannot take.
    """
    out = {}
    for name, value in given.items():
        if name not in known:
            raise unknown(what, name, known)
        out[name] = _value(name, value, known[name].annotation)
    return out


def _value(name: str, value: object, annotation: Any) -> Any:
    if annotation is inspect.Parameter.empty:
        return _guess(value) if isinstance(value, str) else value
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        kind, *marks = typing.get_args(annotation)
        found = _value(name, value, kind)
        for limits in marks:
            if isinstance(limits, Limits):
                limits.check(name, found)
        return found
    if origin in (typing.Union, types.UnionType):
        kinds = list(typing.get_args(annotation))
        if type(None) in kinds and (value is None or (isinstance(value, str) and value.lower() == "none")):
            return None
        kinds = [k for k in kinds if k is not type(None)]
        return _first_that_fits(name, value, kinds)
    if origin is typing.Literal:
        choices = typing.get_args(annotation)
        for choice in choices:
            if str(value) == str(choice):  # on the command line a number is text
                return choice
        raise UsageError(f"{name} must be one of {', '.join(map(str, choices))}, got '{value}'.")
    if origin in (tuple, list):
        parts: list[object] = list(value) if isinstance(value, Iterable) else [value]  # hidden=8 is hidden=(8,)
        if isinstance(value, str):
            parts = list(value.split(","))
        return origin(_value(name, p, typing.get_args(annotation)[0]) for p in parts)
    return _scalar(name, value, annotation)


def _first_that_fits(name: str, value: object, kinds: list[Any]) -> Any:
    for kind in kinds[:-1]:
        try:
            return _value(name, value, kind)
        except UsageError:
            continue
    return _value(name, value, kinds[-1])


def _scalar(name: str, value: object, kind: object) -> object:
    if kind is bool:
        truth = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if str(value).lower() in truth:
            return truth[str(value).lower()]
        raise UsageError(f"{name} must be true or false, got '{value}'.")
    if kind is int:
        number = _number(value)
        if number is None or number != int(number) or isinstance(value, bool):
            raise UsageError(f"{name} must be a whole number, got '{value}'.")
        if abs(number) > LARGEST:
            raise UsageError(f"{name} must be at most {LARGEST:,}, got '{value}'.")
        return int(number)
    if kind is float:
        number = _number(value)
        if number is None or isinstance(value, bool):
            raise UsageError(f"{name} must be a number, got '{value}'.")
        return number
    if kind is str and not callable(value) and not (isinstance(value, str) and value.strip()):
        raise UsageError(f"Expected a name for {name}, got {value!r}.")
    return value


def flags(**given: object) -> None:
    """Raise `UsageError` for what is neither True nor False: "no" would count as true."""
    for name, value in given.items():
        if not (isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")):
            raise UsageError(f"Expected True or False for {name}, got {value!r}.")


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]  # whatever it is
    except (TypeError, ValueError):
        return None
    return number if abs(number) < float("inf") else None


def _guess(text: str) -> bool | int | float | str | None:
    number = _number(text)
    if number is None:
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)
    return int(number) if number == int(number) and not set(text.lower()) & {".", "e"} else number


def positive(name: str, value: float, *, zero: bool = False) -> None:
    """Raise `UsageError` unless `value` > 0 (or ≥ 0, with `zero`)."""
    if value < 0 or (value == 0 and not zero):
        raise UsageError(f"{name} must be {'zero or more' if zero else 'more than zero'}, got {value}.")
