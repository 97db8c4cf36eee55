"""The picture of `zoo bench divergences`: each target with the normals that each divergence prefers, and Laplace's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from benchmarks._suite.documents import Document
from inference._pictures._views.style import INK, OKABE_ITO, plain, styled, taller_figure

Pair = tuple[np.ndarray, np.ndarray]
Drawn = tuple[Pair, np.ndarray, Document]  # axes, log p on their grid, the answers
KINDS = (
    ("kl_q_p", "smallest KL(q‖p)", OKABE_ITO[1]),
    ("kl_p_q", "smallest KL(p‖q)", OKABE_ITO[0]),
    ("laplace", "Laplace: at each mode", OKABE_ITO[2]),
)
SHADES = LinearSegmentedColormap.from_list("density", ["#FFFFFF", "#B8B8B8", "#6E6E6E"])


def draw(path: Path, targets: list[Drawn]) -> None:
    """Write the picture: a line of panels for each target."""
    names = ", ".join(t[2]["target"] for t in targets)
    title = (
        f"The best normal q for a target p: {plain(names, 90)}\nellipses: one and two standard deviations of q; grey: p"
    )
    figure = taller_figure(9.6, 3.3 * len(targets), title)
    grid = figure.subplots(len(targets), len(KINDS), squeeze=False)
    for line, (axes_of, values, found) in zip(grid, targets, strict=True):
        for axes, (kind, said, color) in zip(line, KINDS, strict=True):
            _panel(styled(axes), axes_of, values, found[kind], said, color)
    figure.savefig(path, dpi=110, facecolor="white")


def _panel(axes: Axes, of: Pair, values: np.ndarray, found: list[Document], said: str, color: str) -> None:
    density = np.exp(values - values.max())
    axes.contourf(*of, density, levels=np.linspace(0.01, 1.0, 24), cmap=SHADES)
    axes.contour(
        *of,
        values - values.max(),
        levels=[-4.5, -2.0, -0.5],
        colors=[INK],
        linewidths=0.5,
        linestyles="solid",
        alpha=0.5,
    )
    for i, answer in enumerate(found):
        style = ("-", "--", ":")[i % 3]
        for width in (1.0, 2.0):
            axes.plot(*_ellipse(answer, width), color=color, linewidth=2.4 - 0.8 * width, linestyle=style)
        axes.plot(*answer["mean"], marker="+", color=color, markersize=7)
    nats = ", ".join(f"{a['nats']:.2f}" for a in found[:4] if "nats" in a)
    count = f"{len(found)} optima: " if len(found) > 1 and nats else ""
    axes.set_title(f"{said}\n{count}{nats} nats" if nats else f"{said}\n", fontsize=9, color=INK)
    axes.set_aspect("equal")
    inside = density > 1e-4
    for limits, at, used in ((axes.set_xlim, of[0], inside.any(0)), (axes.set_ylim, of[1], inside.any(1))):
        limits(at[used][0], at[used][-1])


def _ellipse(answer: Document, width: float) -> np.ndarray:
    """[2, points] `width` standard deviations from the mean."""
    turn = np.linspace(0, 2 * np.pi, 200)
    tril = np.linalg.cholesky(np.array(answer["covariance"]))
    points: np.ndarray = np.array(answer["mean"])[:, None] + width * tril @ np.stack([np.cos(turn), np.sin(turn)])
    return points
