"""The picture of `zoo bench digits`: its four parts, one under the other."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from benchmarks._suite.documents import Document
from inference._pictures._views.images import few_images, montage, show
from inference._pictures._views.style import INK, OKABE_ITO, QUIET, styled, taller_figure


@dataclass(frozen=True)
class Shown:
    """The images of the picture: [n, D], but for draws [S, n, D]."""

    real: np.ndarray
    made: np.ndarray
    groups: dict[str, np.ndarray]  # kinds of images
    labels: np.ndarray  # of those completed
    completed: dict[str, np.ndarray]  # seen, truth, mean, draws


GREY = (0.0, 1.0)
ACROSS, DOWN = 12, 4  # digits of each half of the first part
COLORS = 128
SMALL = (5, 3)  # images across and down of each kind in the second


def draw(path: Path, document: Document, shown: Shown, shape: tuple[int, int]) -> None:
    """Write the picture of `digits.measure`'s two results."""
    title = "A deep latent Gaussian model of digits: what it makes up, what it makes of others, and what it fills in"
    figure = taller_figure(9.6, 7.1, title)
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(1.85, 1.5, 3.75))
    left, right = top.subplots(1, 2)
    count = ACROSS * DOWN
    show(left, montage(shown.real[:count], shape, ACROSS, GREY), "real digits, held out")
    show(right, montage(shown.made[:count], shape, ACROSS, GREY), "made up: E[x | z] for z from the prior")
    rows = document["density"]["rows"]
    for axes, row in zip(middle.subplots(1, len(rows)), rows, strict=True):
        images = shown.groups[row["images"]][: SMALL[0] * SMALL[1]]
        nats = f"{row['nats']:.0f} nats"
        said = f"−log p(x): {nats}" if row["auc"] is None else f"{nats}, AUC {row['auc']:.2f}"
        show(axes, montage(images, shape, SMALL[0], GREY), f"{row['images']}\n{said}")
    left, right = bottom.subplots(1, 2, width_ratios=(2.6, 1))
    _completions(left, shown, shape)
    _accuracies(right, document["representation"])
    _write(figure, path)


def _write(figure: Figure, path: Path) -> None:
    """As a PNG of few colours: a third of the bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    with Image.open(buffer) as picture:
        picture.convert("RGB").quantize(COLORS, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


def _completions(axes: Axes, shown: Shown, shape: tuple[int, int]) -> None:
    """A column for each image: what is seen, what was hidden, the mean, and draws."""
    found = shown.completed
    few = few_images(len(found["truth"]), shown.labels, 10)
    blocks = [found["seen"], found["truth"], found["mean"], *found["draws"]]
    names = ["seen", "truth", "mean", *(["a draw"] + ["another"] * (len(blocks) - 4))]
    picture = montage(np.concatenate([b[few] for b in blocks]), shape, len(few), GREY)
    show(axes, picture, "the bottom half, completed from the top half")
    at = (np.arange(len(blocks)) + 0.5) * (shape[0] + 1)
    axes.set_yticks(at, names, fontsize=9, color=INK)
    axes.tick_params(left=False)


def _accuracies(axes: Axes, found: Document) -> None:
    """Accuracies with two standard errors to either side."""
    styled(axes)
    rows = found["rows"][::-1]
    for k, row in enumerate(rows):
        color = OKABE_ITO[0] if row["by"] == "encoder" else QUIET
        axes.errorbar(100 * row["accuracy"], k, xerr=200 * row["se"], fmt="o", color=color, capsize=3)
    axes.set_yticks(range(len(rows)), [f"{r['by']}\n{r['dimensions']} numbers" for r in rows], fontsize=9)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    title = f"% right by {found['neighbours']} nearest neighbours,\n± 2 standard errors"
    axes.set_title(title, loc="left", fontsize=9, color=INK)
