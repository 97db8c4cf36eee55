"""A program by name: of the zoo, of a Python file, or the callable itself, built for its data with its options."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from zoo import _options, _registry
from zoo._errors import UsageError, unknown
from zoo._program import source
from zoo._program.parameters import Collect, InDtype, localize, settings
from zoo._program.program import Program
from zoo._program.scalars import column_or_scalars
from zoo._program.source import blame
from zoo._reading.sites import observed_parents


def load(
    spec: object, x: Tensor, options: Mapping[str, object] | None = None, seed: int = 0, like: Tensor | None = None
) -> Program:
    """The program that `spec` names, built for the data `x` [n, ...] with the model's `options`; `seed`: for its own draws.

    - `spec`: a name in the zoo, `path/to/file.py:callable`, or the callable itself. A class is built as
      ``Class(x, **options)``, or ``Class(**options)`` when it takes no data; a function gets the options as keywords.
    - `like`: the data that a class is built on, where that is not x: those of the run whose θ it takes.

    A table of one column goes to the program as [n, 1], or as [n] where it can only observe scalars.

    Raises `UsageError` for an unknown name or option, a file that cannot be read, or a program that raises.
    """
    target, name = resolve(spec)
    program = build(target, name, x, options, seed, like)
    program.source = source.fingerprint(target)
    return program


def build(
    target: Callable[..., object],
    name: str,
    x: Tensor,
    options: Mapping[str, object] | None = None,
    seed: int = 0,
    like: Tensor | None = None,
) -> Program:
    """`load` for a callable."""
    chosen = _options.convert(option_schema(target), dict(options or {}), f"option of model '{name}'")

    def of(scalar: bool) -> Program:
        given = x if like is None else like
        with blame(name), settings(x.dtype), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _made(target, chosen, given.squeeze(-1) if scalar else given)
        with blame(name, x):
            return read(model, x, name, scalar)

    return column_or_scalars(of, x) if x.dim() == 2 and x.shape[1] == 1 else of(False)


def _made(target: Callable[..., object], chosen: Mapping[str, object], x: Tensor | None) -> Callable[..., object]:
    """The model with its options, built on x where it is a class that takes data."""
    if inspect.isclass(target):
        cls = cast(Callable[..., Callable[..., object]], target)
        return cls(x, **chosen) if _takes_data(target) else cls(**chosen)
    return functools.partial(target, **chosen) if chosen else target


@torch.no_grad()
def simulated(target: Callable[..., object], name: str, options: Mapping[str, object], n: int, seed: int = 0) -> Tensor:
    """n rows [n, …] that a program draws and returns when it is called without data, in float64.

    Raises `UsageError` where it has to be built on data, does not simulate, or returns no rows.
    """
    if inspect.isclass(target) and _takes_data(target):
        raise UsageError(f"'{name}' is built on data, which give it its shape and start values: name some with --data.")
    chosen = _options.convert(option_schema(target), dict(options), f"option of model '{name}'")
    with blame(name), settings(torch.float64), torch.random.fork_rng(devices=[]), InDtype(torch.float64):
        torch.manual_seed(seed)
        model = _made(target, chosen, None)
        if isinstance(model, nn.Module):
            localize(model := copy.deepcopy(model).double())
        with Collect(not isinstance(model, nn.Module)):
            found = model(None, size=n)
    if not isinstance(found, Tensor) or found.dim() == 0 or len(found) != n:
        raise UsageError(
            f"'{name}' returns no rows of x when it is called without data: let it return x, or name --data."
        )
    return found.detach().double()


def read(model: Callable[..., object], x: Tensor, name: str = "model", scalar: bool = False) -> Program:
    """The `Program` of a callable that takes the data themselves, with its operations read where x has missing entries."""
    return Program(model, x, name, scalar, observed_parents)


def resolve(spec: object) -> tuple[Callable[..., object], str]:
    """The callable that `spec` names, and the name to show for it."""
    if callable(spec):
        name = getattr(spec, "__name__", type(spec).__name__)
        return spec, f"{getattr(spec, '__module__', '')}.{name}" if name in _registry.models() else name
    text = str(spec)
    path, colon, attribute = text.rpartition(":")
    if colon and path.endswith(".py"):
        return _from_file(Path(path), attribute), text
    if text.endswith(".py"):
        raise UsageError(f"'{text}' is a file; name the callable in it too, as '{text}:callable'.")
    if text not in _registry.models():
        raise unknown("model", text, _registry.models())
    return importlib.import_module(f"zoo.{text}").Model, text


def _from_file(path: Path, attribute: str) -> Callable[..., object]:
    if not os.path.isfile(path):
        raise UsageError(f"there is no file '{path}' for the callable '{attribute}'; check the path.")
    module = source.execute(path)
    if not callable(getattr(module, attribute, None)):
        names = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
        raise unknown(f"callable of '{path}'", attribute, names)
    return getattr(module, attribute)


def option_schema(target: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """The options of a model: the keywords of its class or function, besides `x` and `size`."""
    if isinstance(target, nn.Module):
        return {}
    return {k: p for k, p in _options.schema(target).items() if k not in ("x", "size")}


def _takes_data(cls: type) -> bool:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(inspect.signature(cls).parameters.values())
    return bool(parameters) and parameters[0].kind in positional and parameters[0].default is inspect.Parameter.empty
