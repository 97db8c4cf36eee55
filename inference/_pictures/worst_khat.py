"""The images with the largest k-hat, and those with the smallest; below each what the latents keep of it."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from inference._pictures._views.images import grey_range, montage, show
from inference._pictures._views.scene import Scene
from inference._pictures._views.style import INK, taller_figure

MOST_IMAGES = 10  # with the worst k-hat, and as many with the best


def subject(run: Scene) -> np.ndarray | None:
    """k-hat [n] of images."""
    return run.stats.get("khat") if run.image_shape is not None and len(run.x) > 1 else None


def draw(run: Scene, khat: np.ndarray) -> Figure:
    shape = run.image_shape
    assert shape is not None  # `subject` said so
    order = np.argsort(np.where(np.isnan(khat), np.inf, khat), kind="stable")
    count = min(MOST_IMAGES, len(khat) // 2)
    x = run.x.reshape(len(run.x), -1)
    grey = grey_range(run, x[np.concatenate([order[:count], order[-count:]])])
    what = f"the images with the worst and the best k-hat of their importance weights{run.tint}"
    figure = taller_figure(8.8, 0.0, run.title(what))
    parts, blocks = [], (("worst", order[::-1][:count].copy()), ("best", order[:count]))
    for name, rows in blocks:
        lines = [x[rows]]
        made = run.decoder.reconstructed(rows) if run.decodes_images and run.decoder is not None else None
        lines += [] if made is None else [run.tinted(made)]
        parts.append((name, rows, montage(np.concatenate(lines), shape, count, grey)))
    lines_each = (parts[0][2].shape[0] - 1) // (shape[0] + 1)
    tall = 2 * (lines_each * 0.8 * shape[0] / shape[1] + 0.38)
    figure.set_size_inches(8.8, figure.get_figheight() + tall)
    for axes, (name, rows, picture) in zip(figure.subplots(2, 1), parts, strict=True):
        show(axes, picture)
        axes.set_anchor("W")
        at = np.arange(count) * (shape[1] + 1) + (shape[1] + 1) / 2
        axes.set_xticks(at, [f"row {row}\n{_khat_text(khat[row])}" for row in rows.tolist()], fontsize=8, color=INK)
        axes.tick_params(labelbottom=False, labeltop=True, length=0)
        labels = [name, "mean of x"][:lines_each]
        axes.set_yticks((np.arange(lines_each) + 0.5) * (shape[0] + 1), labels, fontsize=9, color=INK)
    return figure


def _khat_text(khat: float) -> str:
    return f"{khat:.2f}".replace("-", "−") if np.isfinite(khat) else "∞"
