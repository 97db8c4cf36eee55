"""The folder is the registry: a public file in `zoo/`, `guides/` or `inference/` is a name on the command line.

Reads names and first docstring lines without importing anything, so `zoo list` takes no time.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

_ROOT = Path(__file__).parent.parent


def models() -> dict[str, str]:
    """Name → one line, for every model in the zoo."""
    return _public("zoo")


def methods() -> dict[str, str]:
    """Name → one line, for every inference method."""
    return _public("inference")


def guides() -> dict[str, str]:
    """Name → one line, for every guide."""
    return _public("guides")


def pictures() -> dict[str, str]:
    """Name → one line, for every picture of a run."""
    return _public("inference/_pictures")


def benchmarks() -> dict[str, str]:
    """Name → one line, for every benchmark: `peers/em` and so on."""
    root = _ROOT / "benchmarks"
    paths = [p for p in sorted(root.rglob("[!_]*.py")) if not any(part.startswith("_") for part in p.parts[-2:])]
    return {p.relative_to(root).with_suffix("").as_posix(): _summary(p) for p in paths}


def _public(folder: str) -> dict[str, str]:
    return {p.stem: _summary(p) for p in sorted((_ROOT / folder).glob("[!_]*.py"))}


def _summary(path: Path) -> str:
    return _first_line(path, path.stat().st_mtime_ns)


@functools.cache
def _first_line(path: Path, changed: int) -> str:
    """Cached by the file's time of change: every run asks for all methods, and parsing takes longer than a small fit."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n")[0].rstrip(".")
