"""The density of one or two columns on a grid, and its highest-density regions.

Those are the smallest regions that hold a given share of the probability (Hyndman 1996, "Computing and graphing highest
density regions").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from torch.distributions.constraints import Constraint

from inference._pictures._views.oracle import Oracle
from zoo._errors import UsageError

SHADES = ("#F1F1F1", "#E3E3E3", "#D2D2D2", "#BEBEBE")  # outermost region first
SHARES = (0.25, 0.5, 0.75, 0.95)  # of the probability, in the density's regions


def hdr_levels(
    log_density: np.ndarray, cell: np.ndarray | float, shares: Sequence[float] = SHARES
) -> dict[float, float]:
    """Share → the log density on the border of the smallest region that holds that share of the probability.

    `log_density` on a grid, with the size of each grid point's `cell`. A share that the grid does not hold is left out.
    """
    flat = log_density.ravel()
    order = np.argsort(-flat)
    mass = np.cumsum(np.exp(flat[order]) * np.broadcast_to(cell, log_density.shape).ravel()[order])
    return {q: float(np.interp(q, mass, flat[order])) for q in shares if q < mass[-1]}


def cells(axis: np.ndarray) -> np.ndarray:
    """The width that each point of an ascending axis stands for (the trapezoid rule)."""
    gaps = np.diff(axis)
    return np.concatenate([gaps[:1], gaps[:-1] + gaps[1:], gaps[-1:]]) / 2


@dataclass
class Density:
    """log p(x, a) over one or two columns, the others unobserved."""

    axes: list[np.ndarray]
    joint: np.ndarray  # [points of the axes …, A], nats
    cell: np.ndarray  # [points of the axes …]
    whole: bool  # on whole numbers

    @property
    def log_density(self) -> np.ndarray:
        return np.logaddexp.reduce(self.joint, axis=-1)


def density_of(oracle: Oracle, columns: Sequence[int], count: int) -> Density | None:
    """The density over these columns, or None where the program gives none that could be drawn."""
    made = [_axis(oracle, c, count) for c in columns]
    axes = [axis for axis, _ in made]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(columns))
    try:
        joint = oracle.marginal(points, columns).reshape(*map(len, axes), oracle.A)
    except UsageError:  # a family of which nothing can be left out
        return None
    cell = np.ones(())
    for axis, whole in made:
        cell = np.multiply.outer(cell, np.ones_like(axis) if whole else cells(axis))
    density = Density(axes, joint, cell, any(whole for _, whole in made))
    with np.errstate(over="ignore", invalid="ignore"):
        mass = (np.exp(density.log_density) * cell).sum()
    # what does not come to one is no density of these columns: one given others, or too sharp for the grid
    return density if 0.5 < mass < 1.05 else None


def _axis(oracle: Oracle, column: int, count: int) -> tuple[np.ndarray, bool]:
    """Values of a column to evaluate the density at, ascending, within its support; and whether they are whole numbers."""
    values = oracle.x[:, column]
    low, high = np.nanmin(values), np.nanmax(values)
    support = oracle.support(column)
    whole = oracle.is_whole(column)
    span = (high - low) or max(1.0, abs(low))
    if whole:
        axis = np.arange(math.floor(low - 0.3 * span), math.ceil(high + 0.3 * span) + 1, dtype=float)
    else:  # fine where it is seen; coarse beyond, where the rest of the probability is
        beyond = np.linspace(0.36, 1.5, 14) * span
        parts = [low - beyond, np.linspace(low - 0.33 * span, high + 0.33 * span, count), high + beyond]
        covariance = oracle.covariance([column])
        if covariance is not None:  # a component narrower than the steps would slip through, a wide one reach further
            scale, step = np.sqrt(covariance[:, 0, 0]), parts[1][1] - parts[1][0]
            odd = [a for a in oracle.order if scale[a] < 3 * step or scale[a] > 0.3 * span][:6]
            parts += [oracle.means[a, column] + scale[a] * np.linspace(-4, 4, 33) for a in odd]
        axis = np.unique(np.concatenate(parts))
    return (axis if support is None else _within(axis, support, whole)), whole


def _within(axis: np.ndarray, support: Constraint, whole: bool) -> np.ndarray:
    """The points of an axis inside a support, and more of them towards its borders, where densities may be steep."""
    inside = torch.as_tensor(support.check(torch.as_tensor(axis))).numpy()
    if inside.shape != axis.shape or inside.sum() < 2:
        return axis
    kept = axis[inside]
    more = [kept]
    for first, step in ((kept[0], kept[0] - kept[1]), (kept[-1], kept[-1] - kept[-2])):
        if not whole and not inside[0 if step < 0 else -1]:
            shares = np.linspace(0, 1, 2**12, endpoint=False)  # of a step towards the border
            reached = torch.as_tensor(support.check(torch.as_tensor(first + shares * step))).numpy()
            border = first + shares[reached].max() * step
            more.append(border + (first - border) * 0.6 ** np.arange(16))
    return np.unique(np.concatenate(more))


def shade_regions(axes: Axes, density: Density | None, line: float = 0.6) -> list[Patch]:
    """Shade the highest-density regions; returns their legend."""
    if density is None or (density.whole and min(map(len, density.axes)) < 8):
        return []  # on a few whole numbers there are no contours
    log_density = density.log_density
    levels = hdr_levels(log_density, density.cell)
    shares = sorted(levels, reverse=True)
    heights = [levels[q] for q in shares]
    if not shares or (np.diff(heights) <= 0).any():
        return []
    floor = heights[0] - 50
    field = np.where(np.isfinite(log_density), np.maximum(log_density, floor), floor).T
    shades = SHADES[-len(shares) :]
    top = max(float(field.max()), heights[-1]) + 1
    axes.contourf(*density.axes, field, levels=[*heights, top], colors=shades, zorder=0)
    axes.contour(*density.axes, field, levels=heights, colors="#A0A0A0", linewidths=line, linestyles="solid", zorder=1)
    return [
        Patch(facecolor=s, edgecolor="#A0A0A0", linewidth=0.6, label=f"{q:.0%}".replace("%", " %"))
        for q, s in zip(shares, shades, strict=True)
    ][::-1]
