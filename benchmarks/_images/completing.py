"""Half of each image hidden and filled in: how well, beside what needs no model, and a picture of it."""

from __future__ import annotations

from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from benchmarks._suite.documents import KHat
from inference import Run
from inference._answers.impute import Imputation
from inference._pictures._views.style import FAINT, INK, UNSEEN, taller_figure


class Row(TypedDict):
    """A way of filling in the hidden half; `nats` is −log p(hidden | seen) an image, None where a way has none."""

    name: str
    kind: str
    nats: float | None
    nats_se: NotRequired[float]  # of the Monte Carlo estimate
    nats_se_images: float | None  # for another draw of images
    bits_per_pixel: float | None
    error: float
    wrong: float
    khat: NotRequired[KHat | None]


SIDE = 28
BLOCK = 100  # images compared with all others at once


def without_top(images: np.ndarray) -> np.ndarray:
    """Images [n, D] with their first half, row by row, not observed."""
    out = images.astype(float).copy()
    out[:, : out.shape[1] // 2] = np.nan
    return out


def baselines(train: np.ndarray, holes: np.ndarray, truth: np.ndarray) -> list[Row]:
    """The nearest neighbour by what is seen, and each pixel's mean (as a Bernoulli of its own)."""
    hidden = np.isnan(holes)
    nearest = np.where(hidden, train[_nearest(train, holes)], truth)
    share = (train.sum(0) + 0.5) / (len(train) + 1)
    log_p = np.where(hidden, truth * np.log(share) + (1 - truth) * np.log1p(-share), 0.0).sum(1)
    mean = np.where(hidden, share, truth)
    return [
        _row("nearest neighbour", None, nearest, truth, hidden),
        _row("mean of each pixel", log_p, mean, truth, hidden, "exact"),
    ]


def _nearest(train: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """For each image [n], which training image differs from it in the fewest of the pixels seen."""
    seen = ~np.isnan(holes)
    known = np.nan_to_num(holes)
    out = []
    for start in range(0, len(holes), BLOCK):
        s, k = seen[start : start + BLOCK].astype(np.float32), known[start : start + BLOCK].astype(np.float32)
        differing = (k * s).sum(1)[:, None] + s @ train.T.astype(np.float32) - 2 * (k * s) @ train.T.astype(np.float32)
        out.append(differing.argmin(1))
    return np.concatenate(out)


def row(name: str, fit: Run, complete: np.ndarray, truth: np.ndarray, exact: bool) -> Row:
    """A model's completions: log p(hidden | seen) = log p(x) − log p(seen), whose last term is `fit`'s."""
    assert (
        fit.claimed is not None
        and fit.claimed.per_datum is not None
        and fit.claimed.se is not None
        and fit.x is not None
    )
    log_p = complete - fit.claimed.per_datum
    found = _row(name, log_p, fit.impute(draws=1).mean, truth, np.isnan(fit.x), "exact" if exact else "estimate")
    found["nats_se"] = 0.0 if exact else float(fit.claimed.se / len(truth))
    found["khat"] = None if exact else fit.to_json()["khat"]
    return found


def _row(
    name: str, log_p: np.ndarray | None, mean: np.ndarray, truth: np.ndarray, hidden: np.ndarray, kind: str = ""
) -> Row:
    count = int(hidden[0].sum())
    return {
        "name": name,
        "kind": kind,
        "nats": None if log_p is None else float(-log_p.mean()),
        "nats_se_images": None if log_p is None else float(log_p.std() / len(log_p) ** 0.5),
        "bits_per_pixel": None if log_p is None else float(-log_p.mean() / count / np.log(2)),
        "error": float(np.square(mean - truth)[hidden].mean()),
        "wrong": float(((mean > 0.5) != (truth > 0.5))[hidden].mean()),
    }


def picture(path: Path, holes: np.ndarray, truth: np.ndarray, found: dict[str, Imputation], count: int) -> None:
    """For each image and each order of the pixels: what is seen, the truth, the posterior mean, eight joint draws."""
    titles = ["seen", "truth", "mean", *["draws"], *[""] * 7]
    down = count * len(found)
    figure = taller_figure(8.8, 0.8 * down, "The top half of test digits filled in: " + ", then ".join(found))
    grid = figure.subplots(down, len(titles), squeeze=False)
    for block, imputation in enumerate(found.values()):
        for i in range(count):
            images = [holes[i], truth[i], imputation.mean[i], *imputation.draws[:8, i]]
            for axes, image in zip(grid[block * count + i], images, strict=True):
                axes.set_facecolor(UNSEEN)
                axes.imshow(image.reshape(SIDE, SIDE), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
                axes.set_xticks([])
                axes.set_yticks([])
                axes.spines[:].set_color(FAINT)
        grid[block * count, 0].set_ylabel(list(found)[block], fontsize=9, color=INK)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=9, color=INK)
    figure.savefig(path, dpi=100)
