"""Columns against what latents make of them, and how much of their variance that is."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from inference._pictures._views.scene import Scene
from inference._pictures._views.style import (
    INK,
    OKABE_ITO,
    Look,
    bold,
    counted,
    is_binary,
    styled,
    taller_figure,
    wrapped,
)

MOST_PANELS = 16  # columns in one picture


def explained(x: np.ndarray, made: np.ndarray) -> np.ndarray:
    """R² [D]: 1 − Σ (x − made)² / Σ (x − its mean)² over the observed entries; NaN where a column does not vary."""
    seen = ~np.isnan(x)
    center = np.where(seen, x, 0.0).sum(0) / np.maximum(seen.sum(0), 1)
    total = np.where(seen, x - center, 0.0)
    left = np.where(seen, x - made, 0.0)
    spread = np.square(total).sum(0)
    return np.where(spread > 0, 1 - np.square(left).sum(0) / np.where(spread > 0, spread, 1.0), np.nan)


def fits(scene: Scene, x: np.ndarray, made: np.ndarray, columns: np.ndarray, title: str) -> Figure:
    """x [n, columns] against what was made of it, a panel a column."""
    r2 = explained(x, made)
    shown, note = np.arange(len(columns)), ""
    if len(columns) > MOST_PANELS:
        ranked = [k for k in np.argsort(-r2, kind="stable") if np.isfinite(r2[k])]
        half = MOST_PANELS // 2
        shown = np.array(ranked[:half] + ranked[half:][-half:] or range(MOST_PANELS), dtype=int)
        note = f"; of {counted(len(columns))} columns the {half} with the largest and the {half} with the smallest R²"
    across = min(len(shown), 4 if len(shown) <= 8 else 5)
    down = -(-len(shown) // across)
    title = scene.title(f"{title}{note}")
    figure = taller_figure(max(5.0, 1.9 * across), 1.75 * down + 0.3, title)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    n = len(x)
    look: Look = {"s": float(np.clip(1500 / n, 1.5, 12)), "linewidths": 0, "rasterized": n > 1000}
    look["alpha"] = float(np.clip((400 / n) ** 0.5, 0.1, 0.7))
    for axes, k in zip(grid, shown, strict=False):
        styled(axes).set_title(wrapped(scene.name(columns[k]), 1.5, 2), loc="left", fontsize=9, color=INK)
        axes.scatter(made[:, k], x[:, k], color=OKABE_ITO[0], **look)
        low, high = np.nanmin([made[:, k], x[:, k]]), np.nanmax([made[:, k], x[:, k]])
        axes.plot([low, high], [low, high], color=OKABE_ITO[1], linewidth=0.9, zorder=0)
        binary = is_binary(x[:, k])
        if binary:
            axes.set(xlim=(-0.05, 1.05), ylim=(-0.08, 1.08), xticks=[0, 0.5, 1], yticks=[0, 1])
        else:
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.yaxis.set_major_locator(MaxNLocator(3))
        text = "does not vary" if np.isnan(r2[k]) else f"R² = {r2[k]:.2f}".replace("-", "−")
        axes.text(
            0.03,
            0.75 if binary else 0.97,
            text,
            transform=axes.transAxes,
            va="top",
            **bold(np.full(3, 0.2)) | {"fontsize": 8},
        )
    figure.supxlabel("reconstructed", fontsize=10, color=INK)
    figure.supylabel("observed", fontsize=10, color=INK)
    return figure
