"""Laplace for 5,000 images at once, against a loop over the images: the same code, one call or one call an image.

A Bernoulli decoder 10-200-200-784 that was trained for a few epochs, float32, one thread. Newton's method climbs to every
image's mode together, each with its own step; an image whose mode is reached drops out. The loop is timed on 20 images.
"""

from __future__ import annotations

from benchmarks._suite.documents import Document
from benchmarks.peers._turns import OURS, Side, timed, turns
from inference import run
from inference._density import newton
from inference._density.local import LocalDensity
from inference._numerics.threads import one_thread
from inference._run.cost import versions
from zoo._options import Count

IMAGES, LOOP, LATENTS = 5000, 20, 10
TARGET = 20.0
LOOPED = "one at a time"
TOLERANCE = 1e-6


def measure(*, rounds: Count = 3, quick: bool = False) -> Document:
    """The document: times, their ratio, and the share of images whose mode was reached."""
    images = 100 if quick else IMAGES
    fit = run(
        "deep_latent_gaussian",
        "mnist5k",
        "svi",
        rows=images,
        binarize="fixed",
        dtype="float32",
        likelihood="bernoulli",
        latents=LATENTS,
        epochs=2 if quick else 20,
        schedule="cosine",
    )
    density = LocalDensity(fit.task.program, fit.task.structure, fit.task.x)
    arrived: list[float] = []

    def together() -> None:
        arrived.append(float(newton.modes(density, tol=TOLERANCE).converged.double().mean()))

    def one_by_one() -> None:
        for i in range(0, images, max(1, images // LOOP)):
            newton.modes(density.rows(slice(i, i + 1)), tol=TOLERANCE)

    sides: dict[str, Side] = {
        OURS: lambda: (timed(together), None),
        LOOPED: lambda: (timed(one_by_one) / LOOP * images, None),  # from LOOP of them
    }
    with one_thread():
        out = turns(sides, rounds, warm_up=[lambda: newton.modes(density.rows(slice(0, 10)), tol=TOLERANCE)])
    ratio = out["ratios"][LOOPED]
    return {
        "benchmark": "peers/laplace",
        "what": f"Laplace, float32: images={images:,}, latents={LATENTS}",
        "times_faster": 1 / ratio["median"],
        "times_faster_min": 1 / ratio["max"],
        "times_faster_max": 1 / ratio["min"],
        "target": TARGET,
        "batched_seconds": out["seconds"][OURS],
        "loop_seconds": out["seconds"][LOOPED],
        **out,
        "converged": arrived[-1],
        "images": images,
        "latents": LATENTS,
        "threads": 1,
        "versions": versions(),
    }
