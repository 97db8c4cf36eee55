"""`--set key=value`: options are the keyword-only arguments of the thing they set, and their types are its annotations."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from zoo._errors import UsageError, unknown


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
        kind, limits = typing.get_args(annotation)
        number = _value(name, value, kind)
        limits.check(name, number)
        return number
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
            parts = [p for p in value.split(",") if p]
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
        return int(number)
    if kind is float:
        number = _number(value)
        if number is None or isinstance(value, bool):
            raise UsageError(f"{name} must be a number, got '{value}'.")
        return number
    return value


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
