"""Which entries are unobserved, and the imputed values below."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch

from inference._answers.impute import Imputation, impute
from inference._pictures._views.images import draw_image_rows, few_images
from inference._pictures._views.scene import Scene
from inference._pictures._views.style import (
    INK,
    OKABE_ITO,
    QUIET,
    Look,
    color_bar,
    counted,
    is_binary,
    new_figure,
    percent,
    side_by_side,
    styled,
    wrapped,
)
from zoo._errors import UsageError

MOST_IMPUTED = 400  # rows that are imputed for a picture
IMAGE_DRAWS = 3  # joint draws of each image
MOST_COLUMNS = 6  # whose imputed values are drawn


def subject(run: Scene) -> np.ndarray | None:
    """Which entries are unobserved [n, D]."""
    missing = np.isnan(run.x.reshape(len(run.x), -1))
    return missing if missing.any() else None


def draw(run: Scene, missing: np.ndarray) -> Figure:
    order, bands = _bands(missing)
    n, D = missing.shape
    share = (
        f"{percent(missing.mean())} of {counted(n)} × {counted(D)} entries unobserved, {counted(len(bands))} pattern"
    )
    share += "s" * (len(bands) != 1)
    rows, found = _imputed(run)
    image = run.image_shape
    if found is None:
        figure = new_figure(7.2, 5.0, run.title(share))
        top: Figure | SubFigure = figure
    else:
        tall = 3.8 if image is None else (3 + len(found.draws)) * (0.76 * image[0] / image[1] + 0.06)
        figure = new_figure(8.4, 4.4 + tall, run.title(share))
        top, below = figure.subfigures(2, 1, height_ratios=(4.4, tall))
        if image is None:
            _imputed_columns(below, run, rows, found)
        else:
            _imputed_images(below, run, found)
    panels = top.subplots(1, 2, width_ratios=(1.3, 1)) if image else [top.add_subplot()]
    _pattern(top, styled(panels[0]), run, missing[order])
    _count_bands(panels[0], bands, n, D - 0.5)
    if image:
        _missing_map(top, panels[1], missing.mean(0).reshape(image))
    return figure


def _pattern(figure: Figure | SubFigure, axes: Axes, run: Scene, missing: np.ndarray) -> None:
    """Rows × columns of what was unobserved, with how much of each column."""
    n, D = missing.shape
    few = np.linspace(0, n - 1, min(n, 2000)).round().astype(int)
    two = colors.ListedColormap(["#CFE0EC", OKABE_ITO[1]])
    look: Look = {"cmap": two, "vmin": 0, "vmax": 1, "aspect": "auto", "interpolation": "nearest"}
    axes.imshow(missing[few], extent=(-0.5, D - 0.5, n, 0), **look)
    axes.set_ylabel("rows, sorted by pattern")
    if D <= 30:
        for d in range(D - 1):
            axes.axvline(d + 0.5, color="white", linewidth=1.5)
        shares = [percent(missing[:, d].mean()) for d in range(D)]
        names, look = side_by_side([run.name(d) for d in range(D)], 7.0, shares)
        axes.set_xticks(range(D), names, **look)
    else:
        axes.set_xlabel(f"{D} columns, in their order")
    handles = [Patch(color=two(i), label=w) for i, w in enumerate(("observed", "unobserved"))]
    look = {"frameon": False, "fontsize": 8, "labelcolor": QUIET, "handlelength": 1.0}
    figure.legend(handles=handles, loc="outside lower right", ncols=2, **look)


# ---- what was imputed ------------------------------------------------------------------------------------


def _imputed(run: Scene) -> tuple[np.ndarray, Imputation | None]:
    """The rows that are drawn, and their imputation in the data's own units; None where they cannot be imputed."""
    task = run.task
    if task is None:
        return np.zeros(0, dtype=int), None
    seen = ~np.isnan(run.x.reshape(len(run.x), -1))
    rows = np.flatnonzero(~seen.all(1) & seen.any(1))
    if run.image_shape is None:
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST_IMPUTED)).round().astype(int)]
    else:
        rows = rows[few_images(len(rows), run.labels_of(rows))]
    draws = _posterior(run, rows)
    if not len(rows) or draws is None:
        return rows, None
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found = impute(task.some(torch.as_tensor(rows)), draws, task.global_start(), IMAGE_DRAWS)
    except UsageError:  # a family whose entries cannot be imputed
        return rows, None
    center, scale = (None if run.json.get(k) is None else np.asarray(run.json[k]) for k in ("center", "scale"))
    return rows, found.in_units(center, scale)


def _posterior(run: Scene, rows: np.ndarray) -> dict[str, np.ndarray] | None:
    """Draws of every local latent of some rows, site → [draws, rows, …], or None where there are none."""
    assert run.task is not None
    local = {s.name.replace("/", "."): s.name for s in run.task.structure.local_latents}
    if run.decoder is not None and {s.name for s in run.decoder.sites} == set(local.values()):
        drawn = run.decoder.draws(rows)
        return None if drawn is None else {k: v.numpy() for k, v in drawn.items()}
    draws = {local[k]: v[0][:, rows] for k, v in run.draws.items() if k in local}
    return draws if len(draws) == len(local) else None


def _imputed_columns(figure: Figure | SubFigure, run: Scene, rows: np.ndarray, found: Imputation) -> None:
    """The most-missing columns: the observed values beside what was imputed, each with its standard deviation."""
    missing = found.missing.mean(0)
    share = np.isnan(run.x).mean(0)
    columns = [int(d) for d in np.argsort(-share, kind="stable") if missing[d] > 0 and share[d] < 1][:MOST_COLUMNS]
    if not columns:
        return
    random = np.random.default_rng(0)
    center, scale = (np.asarray(run.json.get(k) or v) for k, v in (("center", 0.0), ("scale", 1.0)))
    whole = run.x * scale + center
    for axes, d in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns, strict=True):
        styled(axes).set_title(wrapped(run.name(d), 8.4 / len(columns) - 0.4), loc="left", fontsize=9, color=INK)
        values = whole[~np.isnan(whole[:, d]), d]
        values = random.choice(values, min(len(values), 400), replace=False)
        look: Look = {"color": QUIET, "s": 6, "alpha": 0.5, "linewidths": 0, "zorder": 1}
        axes.scatter(random.uniform(-0.3, 0.3, len(values)), values, **look)
        gone = np.flatnonzero(found.missing[:, d])
        gone = gone[np.linspace(0, len(gone) - 1, min(len(gone), 20)).round().astype(int)]
        gone = gone[np.argsort(found.mean[gone, d], kind="stable")]
        bars: Look = {"fmt": ".", "color": OKABE_ITO[1], "markersize": 4, "linewidth": 0.8, "alpha": 0.9}
        binary = is_binary(values)  # the mean says all
        spread = None if binary else found.sd[gone, d]
        axes.errorbar(np.linspace(0.7, 1.6, len(gone)), found.mean[gone, d], yerr=spread, **bars)
        if binary:
            axes.set(ylim=(-0.08, 1.08), yticks=[0, 0.5, 1])
        axes.set_xticks([0, 1.15], ["observed", "imputed"], fontsize=8)
        axes.set_xlim(-0.45, 1.75)
    note = (
        "imputed: posterior mean ± standard deviation given what was observed of the same row, in the data's own units"
    )
    if any(is_binary(whole[:, d]) for d in columns):
        note += "; of 0 and 1: the probability of 1"
    if np.isnan(found.sd).any():
        note += "; of categories the most probable"
    figure.supxlabel(note, fontsize=8, color=QUIET)


def _imputed_images(figure: Figure | SubFigure, run: Scene, found: Imputation) -> None:
    """Ten images with their holes, filled in, and how sure that is: standard deviations and joint draws."""
    mean, sd, missing = (part.reshape(len(part), -1) for part in (found.mean, found.sd, found.missing))
    named = [("observed", np.where(missing, np.nan, mean)), ("mean", mean), ("sd", sd)]
    named += [(f"draw {k + 1}", draw.reshape(len(draw), -1)) for k, draw in enumerate(found.draws)]
    draw_image_rows(figure, run, [(name, run.tinted(images)) for name, images in named])


def _count_bands(axes: Axes, bands: list[tuple[int, int]], n: int, right: float) -> None:
    """Set the patterns apart, and write beside the common ones how many rows they have."""
    if len(bands) == n > 1:
        return  # every row has a pattern of its own
    for start, stop in bands:
        if start > 0 and len(bands) <= 60:
            axes.axhline(start, color="white", linewidth=0.8)
        if stop - start >= 0.035 * n:
            text = f"  {counted(stop - start)} row" + "s" * (stop - start > 1)
            axes.text(right, (start + stop) / 2, text, va="center", fontsize=8, color=INK, clip_on=False)


def _bands(missing: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The rows [n] in order of their pattern, the commonest first, and where each pattern starts and stops in it."""
    packed = np.packbits(missing, axis=1)
    _, first, inverse, counts = np.unique(packed, axis=0, return_index=True, return_inverse=True, return_counts=True)
    inverse = inverse.ravel()
    amount = np.bincount(inverse, missing.sum(1))
    place = np.empty(len(counts), dtype=int)
    ranked = np.lexsort((first, amount / counts, -counts))
    place[ranked] = np.arange(len(counts))
    stops = np.cumsum(counts[ranked])
    bands = list(zip((stops - counts[ranked]).tolist(), stops.tolist(), strict=True))
    return np.argsort(place[inverse], kind="stable"), bands


def _missing_map(figure: Figure | SubFigure, axes: Axes, share: np.ndarray) -> None:
    """The share of the images that miss each pixel."""
    image = axes.imshow(share, cmap="Oranges", vmin=0, vmax=min(1.0, 2 * float(share.max())), interpolation="nearest")
    axes.set_axis_off()
    axes.set_title("share unobserved, by pixel", fontsize=9, color=INK)
    color_bar(figure, image, axes, shrink=0.6, pad=0.02)
