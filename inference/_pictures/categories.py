"""The probability of each category, column by column, in each component."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inference._pictures._views.mixture import left_out
from inference._pictures._views.oracle import Oracle
from inference._pictures._views.scene import Scene
from inference._pictures._views.style import INK, new_figure, percent, plain, styled
from zoo._errors import UsageError

MOST_CATEGORIES = 10  # in a column: more are counts
MOST_COMPONENTS = 8
MOST_COLUMNS = 24
READABLE = 0.12  # a share in which its category can be written


@dataclass(frozen=True)
class Shares:
    """p(category | component) of each column of categories."""

    oracle: Oracle
    components: list[int]
    values: dict[int, np.ndarray]  # column → its categories [C], as x has them
    shares: dict[int, np.ndarray]  # column → [components, C]


def subject(run: Scene) -> Shares | None:
    oracle = run.oracle
    if oracle is None or oracle.A < 2 or not run.is_table or run.image_shape is not None:
        return None
    components = [int(a) for a in oracle.order if oracle.weights[a] > 0][:MOST_COMPONENTS]
    values = {c: found for c in run.columns if (found := _categories(oracle.x[:, c])) is not None}
    values = dict(list(values.items())[:MOST_COLUMNS])
    try:
        shares = _shares(oracle, values)
    except UsageError:
        return None
    # where some values are not among those seen, or the density is not of categories, the shares do not add up to 1
    shares = {c: s[components] for c, s in shares.items() if np.allclose(s[components].sum(1), 1, atol=1e-6)}
    return Shares(oracle, components, values, shares) if shares else None


def _categories(column: np.ndarray) -> np.ndarray | None:
    values = np.unique(column[~np.isnan(column)])
    return values if 2 <= len(values) <= MOST_CATEGORIES and np.array_equal(values, values.round()) else None


def _shares(oracle: Oracle, values: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Column → p(x_c = v | a) [A, C]: the joint of rows in which nothing else is observed, over p(a)."""
    if not values:
        return {}
    counts = [len(v) for v in values.values()]
    rows = np.full((sum(counts), oracle.x.shape[1]), np.nan)
    rows[np.arange(len(rows)), np.repeat(list(values), counts)] = np.concatenate(list(values.values()))
    joint = np.exp(oracle.joint(rows)) / np.maximum(oracle.weights, 1e-300)
    return dict(zip(values, (part.T for part in np.split(joint, np.cumsum(counts)[:-1])), strict=True))


def draw(run: Scene, found: Shares) -> Figure:
    columns, K = list(found.shares), len(found.components)
    note = left_out(found.oracle) if K == MOST_COMPONENTS else ""
    width = float(np.clip(1.6 + 0.24 * len(columns) * (K + 1), 5.0, 14.0))
    figure = new_figure(width, 3.9, run.title(note))
    axes = styled(figure.add_subplot())
    for j, column in enumerate(columns):
        for k in range(K):
            _bar(axes, j * (K + 1) + k, found.shares[column][k], found.values[column])
    axes.set_xlim(-1, len(columns) * (K + 1) - 1)
    axes.set_ylim(0, 1)
    axes.set_ylabel("probability of each category")
    middles = [j * (K + 1) + (K - 1) / 2 for j in range(len(columns))]
    axes.set_xticks(middles, [plain(run.name(c), 16) for c in columns])
    axes.tick_params(axis="x", length=0)
    bars = ", ".join(f"{found.oracle.label(a)} ({percent(found.oracle.weights[a])})" for a in found.components)
    axes.set_xlabel(textwrap.fill(f"bars of a column, from the left: {bars}", int(13 * width)), fontsize=8)
    return figure


def _bar(axes: Axes, place: float, shares: np.ndarray, values: np.ndarray) -> None:
    """Stacked shares of the categories, light to dark in their order, each with its name where there is room."""
    shades = colormaps["Blues"](np.linspace(0.15, 0.85, len(values)))
    for share, low, value, shade in zip(shares, np.cumsum(shares) - shares, values, shades, strict=True):
        axes.bar(place, share, bottom=low, width=0.9, color=shade, edgecolor="white", linewidth=0.6)
        if share > READABLE:
            dark = shade[:3].mean() < 0.55
            axes.text(
                place,
                low + share / 2,
                f"{value:g}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if dark else INK,
            )
