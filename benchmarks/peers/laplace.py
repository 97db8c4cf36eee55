"""Laplace for 5,000 images at once, against a loop over the images: the same code, one call or one call an image.

A Bernoulli decoder 10-200-200-784 that was trained for a few epochs, float32, one thread. Newton's method climbs to every
image's mode together, each with its own step; a datum that has arrived drops out. The loop is timed on 20 images.
"""

from __future__ import annotations

import statistics
import time
from json import dumps
from typing import Any

from inference import run
from inference._density import newton
from inference._density.local import LocalDensity
from inference._numerics.threads import one_thread
from inference._run.cost import versions

IMAGES, LOOP, LATENTS = 5000, 20, 10
TARGET = 20.0
LOOPED = "one at a time"
TOLERANCE = 1e-6


def main(json: bool = False, rounds: int = 3, quick: bool = False) -> dict[str, Any]:
    """Time both sides in turn, `rounds` times; print a table, or with `json` the document that is returned."""
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
    times, found = [], None
    with one_thread():
        newton.modes(density.rows(slice(0, 10)), tol=TOLERANCE)  # what only the first call pays for is nobody's time
        for _ in range(rounds):
            began = time.perf_counter()
            found = newton.modes(density, tol=TOLERANCE)
            batched = time.perf_counter() - began
            began = time.perf_counter()
            for i in range(0, images, max(1, images // LOOP)):
                newton.modes(density.rows(slice(i, i + 1)), tol=TOLERANCE)
            times.append((batched, (time.perf_counter() - began) / LOOP * images))
    assert found is not None
    out = _document(times, images, float(found.converged.double().mean()))
    print(dumps(out, indent=2) if json else _table(out))
    return out


def _document(times: list[tuple[float, float]], images: int, converged: float) -> dict[str, Any]:
    faster = [loop / batched for batched, loop in times]
    batched, loop = (statistics.median(seconds) for seconds in zip(*times, strict=True))
    return {
        "benchmark": "peers/laplace",
        "what": f"Laplace, float32: images={images:,}, latents={LATENTS}",
        "times_faster": statistics.median(faster),
        "times_faster_min": min(faster),
        "times_faster_max": max(faster),
        "ratios": {LOOPED: {"median": 1 / statistics.median(faster), "min": 1 / max(faster), "max": 1 / min(faster)}},
        "seconds": {"zoo": batched, LOOPED: loop},
        "target": TARGET,
        "batched_seconds": batched,
        "loop_seconds": loop,
        "converged": converged,
        "images": images,
        "latents": LATENTS,
        "rounds": len(times),
        "threads": 1,
        "versions": versions(),
    }


def _table(out: dict[str, Any]) -> str:
    return (
        f"Laplace, {out['images']:,} images, L={LATENTS}, float32, one thread; {out['converged']:.1%} reached their mode\n\n"
        f"all at once   {out['batched_seconds']:>8.2f} s\n"
        f"one by one    {out['loop_seconds']:>8.2f} s   (from {LOOP} of them)\n"
        f"times faster  {out['times_faster']:>8.1f}     ({out['times_faster_min']:.1f} to {out['times_faster_max']:.1f})"
    )
