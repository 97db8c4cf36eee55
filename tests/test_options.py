"""`--set key=value`: options are the keywords of what they set, in the types that are declared."""

from __future__ import annotations

import contextlib
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo import _options
from zoo._errors import UsageError, unknown


def target(
    x,
    *,
    count: int = 2,
    rate: float = 0.1,
    flag: bool = False,
    kind: Literal["full", "tied"] = "full",
    widths: tuple[int, ...] = (64, 64),
    limit: int | None = None,
    threshold: float | str = "fixed",
    steps: _options.Count = 10,
    share: Annotated[float, _options.Limits(least=0, below=1)] = 0.5,
    free=None,
) -> None: ...


def value(key: str, text):
    return _options.convert(_options.schema(target), {key: text}, "option of target")[key]


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("count", "3", 3),
        ("count", "1e3", 1000),
        ("count", 4, 4),
        ("rate", "2", 2.0),
        ("rate", "-1e-3", -1e-3),
        ("flag", "true", True),
        ("flag", "No", False),
        ("flag", True, True),
        ("kind", "tied", "tied"),
        ("widths", "8,16", (8, 16)),
        ("widths", "8", (8,)),
        ("widths", [3, 4], (3, 4)),
        ("limit", "none", None),
        ("limit", "5", 5),
        ("threshold", "0.5", 0.5),
        ("threshold", "dynamic", "dynamic"),
        ("steps", "7", 7),
        ("share", "0", 0.0),
        ("free", "3", 3),
        ("free", "3.0", 3.0),
        ("free", "true", True),
        ("free", "word", "word"),
    ],
)
def test_values_are_read_in_their_types(key, text, expected):
    got = value(key, text)
    assert got == expected and type(got) is type(expected)


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("count", "2.5", "count must be a whole number, got '2.5'"),
        ("count", "x", "count must be a whole number"),
        ("count", True, "count must be a whole number"),
        ("count", "inf", "count must be a whole number"),
        ("rate", "fast", "rate must be a number, got 'fast'"),
        ("rate", "nan", "rate must be a number"),
        ("flag", "maybe", "flag must be true or false"),
        ("kind", "diag", "kind must be one of full, tied, got 'diag'"),
        ("widths", "8,x", "widths must be a whole number, got 'x'"),
        ("steps", "0", "steps must be more than zero, got 0"),
        ("steps", "-3", "steps must be more than zero, got -3"),
        ("steps", "1.5", "steps must be a whole number"),
        ("share", "1", "share must be at least zero and less than 1, got 1"),
        ("chount", "1", "did you mean count?"),
    ],
)
def test_values_that_cannot_be_taken(key, text, says):
    with pytest.raises(UsageError) as caught:
        value(key, text)
    assert says in str(caught.value)


def test_options_are_keywords_and_whatever_has_a_default():
    assert "x" not in _options.schema(target) and "count" in _options.schema(target)

    def function(x=None, size=None, components=3): ...

    assert list(_options.schema(function)) == ["x", "size", "components"]


def test_parsing_pairs():
    assert _options.parse(["a=1", "max-iter= 5 ", "formula=y=2"]) == {"a": "1", "max_iter": "5", "formula": "y=2"}
    for bad in ("a", "=1", " =2"):
        with pytest.raises(UsageError, match="--set expects key=value"):
            _options.parse([bad])


def test_unknown_names():
    assert str(unknown("model", "gmn", ["gmm", "ppca"])) == "unknown model 'gmn'; did you mean gmm? known: gmm, ppca."
    assert str(unknown("model", "zzz", ["gmm"])) == "unknown model 'zzz'; known: gmm."
    assert "there are none" in str(unknown("model", "x", []))


@given(st.integers(-(10**9), 10**9))
def test_every_whole_number_is_read_as_itself(number):
    assert value("count", str(number)) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_is_read_as_itself(number):
    assert value("rate", repr(number)) == number


@given(st.text(max_size=20))
def test_any_text_is_a_value_or_a_usage_error(text):
    for key in _options.schema(target):
        with contextlib.suppress(UsageError):
            value(key, text)
