"""A guide by name, by `file.py:callable`, or the callable itself."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, cast

from torch import Tensor
from torch.distributions import Transform

from guides._heads import Derived, Rows
from zoo import _options, _registry
from zoo._errors import Refusal, UsageError, unknown
from zoo._program.load import read, resolve
from zoo._program.program import Program
from zoo._program.source import blame
from zoo._program.structure import Structure

T = TypeVar("T")


def refusal(guide: object, structure: Structure) -> str | None:
    """Why the guide that `guide` names cannot serve the program, or None."""
    if isinstance(guide, str) and not _from_file(guide):
        return _module(guide).refusal(structure)
    return None


def make(
    guide: str | Callable[..., object],
    structure: Structure,
    x: Tensor,
    globals: Mapping[str, Tensor] | None = None,
    bijections: Mapping[str, Transform] | None = None,
    **options: object,
) -> Any:
    """The guide that `guide` names: a file of `guides/`, `path/to/file.py:callable`, or the user's callable.

    - `globals`: global latent → a starting value; `bijections`: the maps from free numbers onto their supports.
    - `options`: what the zoo's own guides take; a guide ignores those that it does not have.

    Raises `UsageError` for an unknown name or a guide that does not draw the program's latents, `Refusal` for one that cannot
    serve the program.
    """
    if isinstance(guide, str) and not _from_file(guide):
        if (reason := _module(guide).refusal(structure)) is not None:
            raise Refusal(reason)
        known = _options.schema(_module(guide).Guide)
        chosen = {k: v for k, v in options.items() if k in known}
        made = _module(guide).Guide(structure, x, globals, bijections, **chosen)
        made.recipe = {"name": guide, "options": chosen | made.extras, "by_row": made.by_row}
        return made
    target, name = resolve(guide) if isinstance(guide, str) else (guide, getattr(guide, "__name__", "guide"))
    with blame(name):
        model = target() if isinstance(target, type) else target
    given = read(model, x, name)
    _check_latents(given, structure, x)
    given.recipe = {"name": name, "options": {}}
    return given


def at(guide: Callable[..., T], rows: Rows) -> Callable[..., T]:
    """The guide for the rows `rows` (a slice or indices) of its data, which a guide with a separate q per row has to know."""
    return functools.partial(guide, rows=rows) if getattr(guide, "by_row", False) else guide


def of_user(guide: object) -> bool:
    """Whether what `guide` names is the user's own, rather than a file of `guides/`."""
    return guide is not None and (not isinstance(guide, str) or _from_file(guide))


def _from_file(guide: str) -> bool:
    return ":" in guide or guide.endswith(".py")


class _GuideFile(Protocol):
    """What a file of this folder has."""

    Guide: Callable[..., Derived]

    def refusal(self, structure: Structure) -> str | None: ...


def _module(name: str) -> _GuideFile:
    if name not in _registry.guides():
        raise unknown("guide", name, _registry.guides())
    return cast(_GuideFile, importlib.import_module(f"guides.{name}"))


def _check_latents(guide: Program, structure: Structure, x: Tensor) -> None:
    with blame(guide.name):
        drawn = {n for n, node in guide.trace(x[:2]).nodes.items() if node["type"] == "sample" and n != "data"}
    wanted = {s.name for s in structure.sites if s.role == "latent"}
    if drawn != wanted:
        raise UsageError(
            f"the guide '{guide.name}' must draw the latents of '{structure.program}' ({', '.join(sorted(wanted))}), got "
            f"{', '.join(sorted(drawn)) or 'nothing'}."
        )
