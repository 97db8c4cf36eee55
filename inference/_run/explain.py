"""What a model or a method is, and its options, in words: from its docstrings and its annotations."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from inference._run.prepare import find, method_module
from zoo import _options, _registry
from zoo._errors import unknown
from zoo._program import source
from zoo._program.load import option_schema


def explained(name: str) -> dict[str, Any]:
    """The name, kind, text and options of a model, a method, or a file's callable. Raises `UsageError` for another name."""
    if name in _registry.methods():
        module = method_module(name)
        options = _options.described(_options.schema(module.fit), module.fit.__doc__)
        return {"name": name, "kind": "method", "text": _text(module), "options": [asdict(o) for o in options]}
    if not source.is_file(name) and name not in _registry.models():
        raise unknown("model or method", name, {*_registry.models(), *_registry.methods()})
    target = find(name).target
    of = sys.modules.get(target.__module__) if name in _registry.models() else target
    return {"name": name, "kind": "model", "text": _text(of), "options": options_of(target)}


def options_of(target: Callable[..., object]) -> list[dict[str, object]]:
    """The options of a model in words."""
    return [asdict(o) for o in _options.described(option_schema(target), target.__doc__)]


def _text(of: object) -> str:
    return inspect.getdoc(of) or "it has no docstring."
