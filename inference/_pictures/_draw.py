"""The pictures of a run, each a file of this folder.

Which of them a run gets follows from its program's structure and its data, never from a model's name.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
import warnings
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from matplotlib.figure import Figure

from inference._pictures._views.scene import Scene, scene_of
from inference._run.result import Run, load
from zoo import _atomic, _registry
from zoo._errors import UsageError

Format = Literal["png", "pdf", "svg"]
WITHOUT_ROWS = ("loadings", "trace")  # pictures of a run whose rows are made from a covariance matrix


class Picture(Protocol):
    """A public file of this folder: a picture of that name, and its first line says of what."""

    def subject(self, run: Scene, /) -> object | None:
        """What it draws of a run; None where the run has no such thing."""

    def draw(self, run: Scene, subject: Any, /) -> Figure:
        """The picture of what `subject` returned."""


@functools.cache
def pictures() -> dict[str, Picture]:
    """Name → the picture, for each file of this folder."""
    return {name: cast(Picture, importlib.import_module(f"{__package__}.{name}")) for name in _registry.pictures()}


def plot(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    format: Format = "png",
    dpi: float = 150,
    **trusting: Any,
) -> list[Path]:
    """Draw the pictures that belong to a saved run, into `out` (its own folder `plots` when None); returns their paths.

    Which pictures there are, this folder says: each is a file, and its first line what it shows.

    `trusting`: `model`, `trust` and `changed_program`, as for `infer`; without them, of a program in a Python file only that is
    drawn which the folder itself holds.

    Raises `UsageError` when `run` is not a run, nothing can be drawn of it, or `out` cannot be written.
    """
    return write(load(run, **trusting), out, format, dpi)


def figure(run: Run, name: str) -> Figure:
    """The picture of that name of a run, saved or not. Raises `UsageError` where it does not belong to the run."""
    scene = scene_of(run)
    found = subjects(scene)
    if name not in found:
        why = f" {scene.obstacle}" if scene.obstacle else ""
        raise UsageError(f"Expected a picture of this run ({', '.join(found)}), got '{name}'.{why}")
    return pictures()[name].draw(scene, found[name])


def write(run: Run, out: str | os.PathLike[str] | None = None, format: Format = "png", dpi: float = 150) -> list[Path]:
    """`plot`, for a run that is at hand, saved or not."""
    if format not in ("png", "pdf", "svg"):
        raise UsageError(f"Expected png, pdf or svg for format, got '{format}'.")
    if out is None and run.folder is None:
        raise UsageError("the run is not saved: name a folder for its pictures (out=…), or save it first.")
    if not 10 <= dpi <= 2400:
        raise UsageError(f"Expected a number from 10 to 2400 for dpi, got {dpi:g}.")
    if out is None and run.folder is not None and not run.folder.is_dir():
        raise UsageError(f"the folder of the run, '{run.folder}', is not there any more: name another one (out=…).")
    scene = scene_of(run)
    folder = _atomic.place(out or scene.folder / "plots")
    if out is None and folder.is_symlink():
        raise UsageError(f"'{folder}' is a link to elsewhere; name a folder with --out.")
    _atomic.sweep(folder)
    # all are drawn before the first is written: a failure leaves no half set
    figures = {name: pictures()[name].draw(scene, subject) for name, subject in subjects(scene).items()}
    paths = [_write(drawn, folder, f"{name}.{format}", dpi) for name, drawn in figures.items()]
    if scene.obstacle:
        warnings.warn(f"no pictures of the model itself: {scene.obstacle}", stacklevel=3)
    return paths


def subjects(scene: Scene) -> dict[str, object]:
    """Name → what it draws, for each picture that the run has something to show in."""
    able = {n: p for n, p in pictures().items() if scene.has_rows or n in WITHOUT_ROWS}
    found = {name: picture.subject(scene) for name, picture in able.items()}
    out = {name: subject for name, subject in found.items() if subject is not None}
    if not out:
        why = (
            f"no picture of its model: {scene.obstacle[:-1]}"
            if scene.obstacle
            else "no exact posterior, no continuous latent"
        )
        rest = "nothing was iterated, no k-hat was taken and no entry is missing"
        raise UsageError(f"there is nothing to draw of '{scene.folder}': {why}; {rest}.")
    return out


def _write(figure: Figure, folder: Path, name: str, dpi: float) -> Path:
    """Written whole or not at all: a reader never sees half a picture."""
    path = folder / name
    kind = path.suffix[1:]
    undated = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=dpi, facecolor="white", metadata=undated)
    return _atomic.write(path, content.getvalue())
