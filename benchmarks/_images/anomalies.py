"""Images of other kinds than a model has learned, and whether −log p(x) tells them from its own.

The negative log-density is high for what is strange and low for what is simple, whether learned or not: to a model of digits
an image with hardly any ink is likelier than any digit (Nalisnick et al. 2019 found it of natural images). So the kinds
here are some that the score finds and some that it must fail at.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import numpy as np

from inference import infer

# −log p(x) of a kind of image in nats, and how well it tells them from digits, of which there is none to tell
DensityRow = TypedDict(
    "DensityRow",
    {
        "images": str,
        "count": int,
        "auc": float | None,
        "auc_se": float | None,
        "nats": float,
        "nats_se": float,
        "khat_above_0.7": float,
    },
)


class Density(TypedDict):
    """Digits first, then each other kind."""

    samples: int
    proposal: str
    rows: list[DensityRow]


Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # grey images [n, height, width] to others


def _shuffled(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The pixels of all images in one and the same random order: each pixel's ink stays, nothing else does."""
    flat = images.reshape(len(images), -1)
    return flat[:, rng.permutation(flat.shape[1])].reshape(images.shape)


def _thinner(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Grey erosion: the least of each 2 × 2 pixels."""
    beside = np.minimum(images, np.roll(images, 1, 2))  # the frame of a digit is blank: nothing comes round
    return np.minimum(beside, np.roll(beside, 1, 1))


KINDS: dict[str, Change] = {
    "pixels shuffled": _shuffled,
    "turned by 90°": lambda images, rng: np.rot90(images, 1, (1, 2)),
    "strokes thinned": _thinner,
    "a tenth of the ink": lambda images, rng: images / 10,
}


def binarised(images: np.ndarray, seed: int, purpose: int) -> np.ndarray:
    """0 and 1 [n, D], drawn once from grey levels in [0, 1]."""
    return (np.random.default_rng([seed, purpose]).random(images.shape) < images).astype(float)


def others(images: np.ndarray, shape: tuple[int, int], seed: int) -> dict[str, np.ndarray]:
    """Kind → images [n, D] of 0 and 1 made of the grey images [n, D]: all changes come before the binarisation."""
    out = {}
    for k, (name, change) in enumerate(KINDS.items()):
        changed = change(images.reshape(-1, *shape), np.random.default_rng([seed, 100 + k]))
        out[name] = binarised(changed.reshape(images.shape), seed, 200 + k)
    return out


def auc(normal: np.ndarray, odd: np.ndarray) -> tuple[float, float]:
    """The area under the ROC curve of a score, and its standard error; scores [n] and [m] of independent images.

    It is the chance that an odd image scores higher than a normal one, ties counted half; the error is that of DeLong,
    DeLong & Clarke-Pearson 1988.
    """
    higher = (odd[:, None] > normal) + 0.5 * (odd[:, None] == normal)  # [m, n]
    variance = higher.mean(1).var(ddof=1) / len(odd) + higher.mean(0).var(ddof=1) / len(normal)
    return float(higher.mean()), float(np.sqrt(variance))


def density(
    folder: Path, digits: np.ndarray, odd: dict[str, np.ndarray], samples: int, seed: int
) -> tuple[Density, np.ndarray]:
    """What log p(x) of a trained run is for digits and for other images, and log p(x) [n] of the digits, nats.

    The proposal is each image's own Laplace Gaussian: an encoder that has seen only digits proposes so badly for other
    images that their log p(x) would come out hundreds of nats too low, and the score look better than it is.
    """
    groups = {"digits": digits, **odd}
    images = np.concatenate(list(groups.values()))
    fit = infer(folder, "importance", data=images, proposal="laplace", samples=samples, seed=seed)
    assert fit.claimed is not None and fit.claimed.per_datum is not None and fit.khat is not None
    ends = np.cumsum([len(g) for g in groups.values()])[:-1]
    log_p = dict(zip(groups, np.split(fit.claimed.per_datum, ends), strict=True))
    khat = dict(zip(groups, np.split(fit.khat, ends), strict=True))
    rows: list[DensityRow] = []
    for name, found in log_p.items():
        area, se = (None, None) if name == "digits" else auc(-log_p["digits"], -found)
        rows.append(
            {
                "images": name,
                "count": len(found),
                "auc": area,
                "auc_se": se,
                "nats": -float(found.mean()),
                "nats_se": float(found.std(ddof=1) / np.sqrt(len(found))),
                "khat_above_0.7": float((~(khat[name] <= 0.7)).mean()),
            }
        )
    return {"samples": samples, "proposal": "laplace", "rows": rows}, log_p["digits"]
