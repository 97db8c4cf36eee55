"""A program's source text: executing a user's file, a fingerprint that shows changes, and where an error was raised."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from zoo._errors import UsageError

PACKAGES = ("zoo", "guides", "inference", "benchmarks")
_modules: dict[Path, ModuleType] | None = None  # within `once`: what it has executed
_executed: set[tuple[str, str]] = set()  # (file, digest of its text): what this process has executed already


def execute(path: Path) -> ModuleType:
    """The module of a user's file, executed again unless within `once` it was already. The text that is executed is the
    text that is hashed, and no cache is written."""
    place = path.resolve()
    if _modules is not None and place in _modules:
        return _modules[place]
    text = _read(path)
    name = f"_zoo_user_{path.stem}_{hashlib.sha256(os.fsencode(place)).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__zoo_text__"] = text
    sys.modules[name] = module  # dataclasses and annotations look their module up there
    _executed.add((str(place), _digest(text)))
    with blame(str(path)):
        exec(compile(text, str(path), "exec"), module.__dict__)
    if _modules is not None:
        _modules[place] = module
    return module


@contextlib.contextmanager
def once() -> Iterator[None]:
    """In this context a user's file is executed once, the first time that it is named."""
    global _modules
    before, _modules = _modules, {}
    try:
        yield
    finally:
        _modules = before


def was_executed(spec: str) -> bool:
    """Whether this process has executed the file of `file.py:callable` already, as it is now: again is no new risk."""
    path = Path(spec.rpartition(":")[0] or spec)
    try:
        return (str(path.resolve()), _digest(path.read_bytes())) in _executed
    except OSError:
        return False


def is_file(spec: Any) -> bool:
    """Whether a model or guide is named by a Python file, which naming it executes."""
    return isinstance(spec, str) and (".py:" in spec or spec.endswith(".py"))


def fingerprint(target: Any) -> dict[str, str] | None:
    """The callable's name and the SHA-256 of its file, with the files beside the libraries that it takes names from.

    None where there is no text to be had, as in some notebooks.
    """
    while isinstance(target, functools.partial):
        target = target.func
    named: Any = getattr(target, "__self__", target) if inspect.ismethod(target) else target
    named = named if hasattr(named, "__qualname__") else type(named)
    texts = _texts(sys.modules.get(getattr(named, "__module__", None) or ""))
    if not texts:
        try:
            texts = {"": inspect.getsource(named).encode()}
        except (OSError, TypeError):
            return None
    whole = hashlib.sha256()
    for name, text in sorted(texts.items()):
        whole.update(f"{name}\0{_digest(text)}\n".encode())
    return {"name": getattr(target, "__qualname__", named.__qualname__), "sha256": whole.hexdigest()}


def _texts(first: ModuleType | None) -> dict[str, bytes]:
    """File name → text, of a module and of those that it takes names from, as far as they are no library's."""
    out: dict[str, bytes] = {}
    todo, seen = [first], set()
    while todo:
        module = todo.pop()
        file = getattr(module, "__file__", None)
        if module is None or file is None or module.__name__ in seen or (module is not first and _of_a_library(file)):
            continue
        seen.add(module.__name__)
        try:
            out[Path(file).name] = getattr(module, "__zoo_text__", None) or Path(file).read_bytes()
        except OSError:
            continue
        for value in list(vars(module).values()):
            name = value.__name__ if inspect.ismodule(value) else _module_name(value)
            todo.append(sys.modules.get(name))
    return out


def _module_name(value: Any) -> str:
    try:
        name = value.__module__
    except Exception:  # an attribute of a user's object may raise anything
        return ""
    return name if isinstance(name, str) else ""


@functools.cache
def _of_a_library(file: str) -> bool:
    ours = Path(__file__).parent.parent.parent
    roots = [sysconfig.get_path("stdlib"), *(str(ours / p) for p in PACKAGES)]
    return any(part in file for part in ("site-packages", "dist-packages")) or any(
        os.path.realpath(file).startswith(os.path.realpath(root) + os.sep) for root in roots
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read '{path}': {error.strerror or error}.") from error


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


@contextlib.contextmanager
def blame(name: str, x: Tensor | None = None) -> Iterator[None]:
    """Turn an error of the user's program into a `UsageError` that says where it was raised.

    `x`: the data that it is run on, whose missing entries may be the cause.
    """
    try:
        yield
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        libraries = ("site-packages", str(Path(__file__).parent.parent / "_"), sysconfig.get_path("stdlib"), "<frozen ")
        mine = [f for f in frames if not any(part in f.filename for part in libraries)]
        where = f" at {Path(mine[-1].filename).name}:{mine[-1].lineno}" if mine else ""
        first = str(error).strip().splitlines()[0].rstrip(":") if str(error).strip() else ""
        said = f"the program '{name}' raised {type(error).__name__}{where}: {first}"
        if x is not None and bool(x.isnan().any()):
            said += ". Does it compute with an entry of x that is missing? Only what a site observes may be missing."
        raise UsageError(said) from error
