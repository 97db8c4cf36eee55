"""Where in the user's program an operation is carried out, by the frames of the call."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).parent
MACHINERY = str(HERE.parent / "_")  # what no user wrote: zoo/_program, zoo/_reading and the like
MINE = ("lines.py", "shadow.py", "reader.py", "density.py", "sites.py", "operations.py", "powers.py")
INNER = {"distributions", "utils"}  # parts of torch that cut gradients by themselves
HANDLERS = ("missing.py", "slots.py")  # which put a value in the place of what is missing
LIBRARIES = ("torch", "pyro", "numpy", "functorch", "opt_einsum")


def called_from(*files: str) -> bool:
    """Whether the nearest code that is not torch's or the reader's stands in one of those files of `_program`."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if not _library(path) and not (path.parent == HERE and path.name in MINE):
            return path.parent == HERE.parent / "_program" and path.name in files
        frame = frame.f_back  # type: ignore[assignment]
    return False


def line(innermost: bool = False) -> str:
    """Where in the user's program we are, "file.py:12"; "" inside the library's own handlers and checks.

    `innermost`: only where the user's own line called torch, rather than a library it called.
    """
    frame = sys._getframe(1)
    while frame is not None:
        path, function = Path(frame.f_code.co_filename), frame.f_code.co_name
        if path.parent == HERE and path.name in MINE:
            if function == "_counted":  # a density, worked out after the program has run
                return ""
        elif str(path).startswith(MACHINERY):
            return ""
        elif not (library := _library(path)):
            return f"{path.name}:{frame.f_lineno}"
        elif (innermost and (library != "torch" or not INNER.isdisjoint(path.parts[-3:-1]))) or _validates(
            path, function
        ):
            return ""
        frame = frame.f_back  # type: ignore[assignment]
    return "the program"


def _validates(path: Path, function: str) -> bool:
    """Whether a distribution looks at its parameters or its value there."""
    return function == "_validate_sample" or (function == "__init__" and path.name == "distribution.py")


def _library(path: Path) -> str:
    """Which of the libraries that programs are written in a file belongs to; "" for any other file."""
    for folder, inside in pairwise(path.parts):
        if folder in ("site-packages", "dist-packages"):
            return inside if inside in LIBRARIES else ""
    return "frozen" if str(path).startswith("<frozen") else ""
