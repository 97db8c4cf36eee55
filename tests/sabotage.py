"""Breaks one line of the project in memory, for a test to see which public check notices."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Sabotage:
    """What is broken, in which file, the text and what stands in its place, and the check that has to notice."""

    what: str
    file: str
    old: str
    new: str
    check: str  # its name in `sabotage_checks.CHECKS`

    @property
    def name(self) -> str:
        return self.what.replace(" ", "-")

    def apply(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Give each function that the text is in the code that the changed text would have.

        The function objects stay, so whoever has imported one calls the broken code. Line numbers stay as well, so that
        code that differs is code that was changed.
        """
        text = (ROOT / self.file).read_text(encoding="utf-8")
        assert text.count(self.old) == 1, f"{self.file} has {text.count(self.old)} times: {self.old}"
        assert self.old.count("\n") == self.new.count("\n")
        module = importlib.import_module(self.file.removesuffix(".py").replace("/", "."))
        before, after = (_functions(_compiled(t, self.file)) for t in (text, text.replace(self.old, self.new)))
        changed = [name for name, code in after.items() if code != before[name]]
        assert changed, f"no function of {self.file} is another one"
        for name in changed:
            monkeypatch.setattr(_function(module, name), "__code__", after[name])


def _compiled(text: str, file: str) -> CodeType:
    return compile(text, str(ROOT / file), "exec", dont_inherit=True)


def _functions(code: CodeType, of: str = "") -> dict[str, CodeType]:
    """The functions of a module and of its classes, by their names with dots; those inside another belong to it."""
    return dict(_walk(code, of))


def _walk(code: CodeType, of: str) -> Iterator[tuple[str, CodeType]]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType) and not inner.co_name.startswith("<"):
            name = of + inner.co_name
            if inner.co_flags & inspect.CO_NEWLOCALS:
                yield name, inner
            else:  # a class
                yield from _walk(inner, f"{name}.")


def _function(module: Any, name: str) -> FunctionType:
    *classes, last = name.split(".")
    owner = module
    for part in classes:
        owner = getattr(owner, part)
    found = inspect.getattr_static(owner, last)
    for inner in ("__func__", "fget", "func"):  # of a class method, a property, a cached one
        found = getattr(found, inner, found)
    function = inspect.unwrap(found)
    assert isinstance(function, FunctionType)
    return function
