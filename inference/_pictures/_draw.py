"""The pictures of a run: clusters, components, loadings, latents, traces, k-hat, missing entries.

Which of them a run gets follows from its program's structure and its data, never from a model's name.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from inference._pictures._checks import khat_by_datum, trace, worst_khat
from inference._pictures._components import images, profiles
from inference._pictures._deep import decoder_grid, interpolation, latent_plane, reconstructions
from inference._pictures._linear import latents, loadings, reconstruction
from inference._pictures._missing import missing_entries
from inference._pictures._mixture import clusters, histogram, pairs
from inference._pictures._scene import Scene, scene_of
from inference._pictures._simulated import images_beside, samples, simulated_images
from inference._run.result import Run, load
from zoo import _atomic
from zoo._errors import UsageError

Format = Literal["png", "pdf", "svg"]
Draw = Callable[[Scene], Figure]

MOST_PAIRED = 5  # columns of a grid of pairs


def plot(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    format: Format = "png",
    dpi: float = 150,
    **trusting: Any,
) -> list[Path]:
    """Draw the pictures that belong to a saved run, into `out` (its own folder `plots` when None); returns their paths.

    - `clusters`: the data coloured by p(z | x), with the density's regions; `pairs`: the same for 3 to 5 columns
    - `components`: each component's mean, as an image or as a row of a heat map
    - `loadings`, `latents`, `reconstruction`: the factors of a linear-Gaussian program, and what they say of the data
    - `samples`, `reconstructions`, `latent_plane`: what a program whose posterior is not exact draws from its prior, and what
      its continuous latents say of the data; of images also `interpolation` between two, and `decoder_grid` over two latents
    - `trace`: what was climbed, by iteration; `khat`: the weights' quality by datum; `worst_khat`: the images where it is
      worst; `missing`: what was unobserved

    `trusting`: `model`, `trust` and `changed_program`, as for `infer`; without them, of a program in a Python file only that is
    drawn which the folder itself holds.

    Raises `UsageError` when `run` is not a run, nothing can be drawn of it, or `out` cannot be written.
    """
    return write(load(run, **trusting), out, format, dpi)


def figure(run: Run, name: str) -> Figure:
    """The picture of that name of a run, saved or not. Raises `UsageError` where it does not belong to the run."""
    scene = scene_of(run)
    pictures = _belonging(scene)
    if name not in pictures:
        why = f" {scene.obstacle}" if scene.obstacle else ""
        raise UsageError(f"'{name}' is no picture of this run; those that are: {', '.join(pictures)}.{why}")
    return pictures[name](scene)


def write(run: Run, out: str | os.PathLike[str] | None = None, format: Format = "png", dpi: float = 150) -> list[Path]:
    """`plot`, for a run that is at hand, saved or not."""
    if format not in ("png", "pdf", "svg"):
        raise UsageError(f"format is '{format}'; known: png, pdf, svg.")
    if out is None and run.folder is None:
        raise UsageError("the run is not saved: name a folder for its pictures (out=…), or save it first.")
    if not 10 <= dpi <= 2400:
        raise UsageError(f"dpi is {dpi:g}; give a number from 10 to 2400.")
    scene = scene_of(run)
    folder = _atomic.place(out or scene.folder / "plots")
    if out is None and folder.is_symlink():
        raise UsageError(f"'{folder}' is a link to elsewhere; name a folder with --out.")
    _atomic.sweep(folder)
    # all are drawn before the first is written: a failure leaves no half set
    figures = [(name, draw(scene)) for name, draw in _belonging(scene).items()]
    paths = [_write(figure, folder, f"{name}.{format}", dpi) for name, figure in figures]
    if scene.obstacle:
        warnings.warn(f"no pictures of the model itself: {scene.obstacle}", stacklevel=2)
    return paths


def _belonging(scene: Scene) -> dict[str, Draw]:
    """Name → how to draw it, for each picture that the run has something to show in."""
    pictures: dict[str, Draw] = {}
    if scene.oracle is not None:
        pictures |= _of_components(scene)
    if scene.factors is not None:
        pictures |= {"loadings": loadings, "reconstruction": reconstruction}
        if scene.factors.A == 1:
            pictures["latents"] = latents
    if scene.decoder is not None:
        pictures |= _of_latents(scene)
    if scene.decoder is None and scene.image_shape is not None and simulated_images(scene) is not None:
        pictures["samples"] = images_beside
    if any(len(values) for name, values in scene.trace.items() if name != "lr"):
        pictures["trace"] = trace
    if "khat" in scene.stats:
        pictures["khat"] = khat_by_datum
        if scene.image_shape is not None and len(scene.x) > 1:
            pictures["worst_khat"] = worst_khat
    if np.isnan(scene.x).any():
        pictures["missing"] = missing_entries
    if not pictures:
        why = (
            f"no picture of its model: {scene.obstacle[:-1]}"
            if scene.obstacle
            else "no exact posterior, no continuous latent"
        )
        rest = "nothing was iterated, no k-hat was taken and no entry is missing"
        raise UsageError(f"there is nothing to draw of '{scene.folder}': {why}; {rest}.")
    return pictures


def _of_components(scene: Scene) -> dict[str, Draw]:
    pictures: dict[str, Draw] = {}
    oracle, image = scene.oracle, scene.image_shape
    assert oracle is not None
    several = oracle.A > 1
    if scene.is_table and image is None:
        columns = scene.columns
        if len(columns) == 1:
            pictures["clusters"] = histogram
        elif len(columns) > 1 and not all(map(oracle.is_binary, columns)):
            pictures["clusters"] = clusters  # of two binary columns there are four points to see, and no clusters
        if 3 <= scene.x.shape[1] <= MOST_PAIRED and "clusters" in pictures:
            pictures["pairs"] = pairs
    wide = scene.x[0].size > MOST_PAIRED
    if image is not None:
        pictures["components"] = images
    elif several and scene.is_table and len(scene.columns) > 1 and (wide or not oracle.gaussian):
        pictures["components"] = profiles
    return pictures


def _of_latents(scene: Scene) -> dict[str, Draw]:
    pictures: dict[str, Draw] = {}
    decoder = scene.decoder
    assert decoder is not None
    if decoder.simulated(2) is not None:
        pictures["samples"] = samples
    makes = decoder.reconstructed(decoder.rows[:2]) is not None
    if makes:
        pictures["reconstructions"] = reconstructions
    if decoder.plane is not None:
        pictures["latent_plane"] = latent_plane
    if makes and scene.decodes_images and (~np.isnan(decoder.x)).any(1).sum() > 1:
        pictures["interpolation"] = interpolation
    if scene.decodes_images and decoder.over_prior(np.array([0.5])) is not None:
        pictures["decoder_grid"] = decoder_grid
    return pictures


def _write(figure: Figure, folder: Path, name: str, dpi: float) -> Path:
    """Written whole or not at all: a reader never sees half a picture."""
    path = folder / name
    kind = path.suffix[1:]
    undated = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=dpi, facecolor="white", metadata=undated)
    return _atomic.write(path, content.getvalue())
