"""Importance sampling, 5,000 draws for each of 1,000 images, against the same sum written by hand in PyTorch.

Both draw from the same amortized guide of the 784-200-200-50 Bernoulli model and take log p(x) of every image, in float32,
in chunks of the same size, in turn in one process. Ours goes through the program and the guide as `importance` does; k-hat
and effective sample sizes, which the other side does not have, are left out. Memory is the chunk's, whatever the samples.
"""

from __future__ import annotations

import math
import statistics
import time
from json import dumps
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

import guides
from inference._method.task import Task
from inference._run.cost import measured, versions
from inference._sampling import weights
from zoo._data import datasets
from zoo._program.describe import describe
from zoo._program.load import load

IMAGES, SAMPLES, LATENTS, HIDDEN = 1000, 5000, 50, (200, 200)
TARGET = 1.10


def main(json: bool = False, rounds: int = 3, quick: bool = False) -> dict[str, Any]:
    """Time both sides in turn, `rounds` times; print a table, or with `json` the document that is returned.

    Raises `ArithmeticError` where the two sums differ by more than their noise.
    """
    images, samples = (20, 200) if quick else (IMAGES, SAMPLES)
    x = torch.as_tensor(datasets.load("mnist5k", binarize=0.5, rows=images).x, dtype=torch.float32)
    program = load("deep_latent_gaussian", x, {"likelihood": "bernoulli", "latents": LATENTS, "hidden": HIDDEN})
    task = Task(program, describe(program, x), x, quiet=True)
    guide = guides.make("amortized", task.structure, x, hidden=HIDDEN)
    times, peak = [], 0.0
    with torch.no_grad(), pyro.validation_enabled(False):
        for side in (_ours, _by_hand):  # what only the first call pays for is nobody's time
            side(Task(program, task.structure, x[:2], quiet=True), guide, samples)
        for _ in range(rounds):
            with measured() as cost:
                ours = _ours(task, guide, samples)
            began = time.perf_counter()
            peer = _by_hand(task, guide, samples)
            times.append((cost.seconds, time.perf_counter() - began))
            peak = max(peak, cost.peak_mb)
            if not abs(float((ours - peer).mean())) < 1.0:
                raise ArithmeticError(
                    f"the two sums differ: {float(ours.mean())} (ours) and {float(peer.mean())} a datum."
                )
    out = _document(times, images, samples, peak)
    print(dumps(out, indent=2) if json else _table(out))
    return out


def _ours(task: Task, guide: Any, samples: int) -> Tensor:
    out = []
    for rows in weights.chunks(task.x, samples):
        drawn = weights.draw(task.program, task.structure, task.x[rows], guides.at(guide, rows), samples)
        out.append(weights.log_mean(drawn.log_weights)[0])
    return torch.cat(out)


def _by_hand(task: Task, guide: Any, samples: int) -> Tensor:
    assert task.program.module is not None
    encoder, head, center = guide.encoder, guide.heads["z"], guide.center
    decoder: Any = task.program.module.decoder
    out = []
    for rows in weights.chunks(task.x, samples):
        x = task.x[rows]
        loc, free = head(encoder(x - center)).chunk(2, -1)
        scale = softplus(free) + 1e-6
        noise = torch.randn(samples, *loc.shape)
        z = loc + scale * noise
        log_q = (-0.5 * noise.square() - scale.log()).sum(-1)
        log_p = -0.5 * z.square().sum(-1)
        target = x.expand(samples, *x.shape)
        log_x = -binary_cross_entropy_with_logits(decoder(z), target, reduction="none").sum(-1)
        out.append((log_x + log_p - log_q).logsumexp(0) - math.log(samples))
    return torch.cat(out)


def _document(times: list[tuple[float, float]], images: int, samples: int, peak: float) -> dict[str, Any]:
    ratios = [ours / peer for ours, peer in times]
    return {
        "benchmark": "peers/importance",
        "what": f"importance sampling, float32: images={images:,}, draws of each={samples:,}",
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "target": TARGET,
        "ours_seconds": statistics.median(ours for ours, _ in times),
        "peer_seconds": statistics.median(peer for _, peer in times),
        "peak_memory_mb": round(peak, 1),
        "images": images,
        "samples": samples,
        "rounds": len(times),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _table(out: dict[str, Any]) -> str:
    return (
        f"importance sampling, {out['samples']:,} draws × {out['images']:,} images, float32, {out['threads']} threads\n\n"
        f"zoo      {out['ours_seconds']:>8.2f} s   (peak memory {out['peak_memory_mb']:.0f} MB)\n"
        f"by hand  {out['peer_seconds']:>8.2f} s\n"
        f"ratio    {out['ratio']:>8.3f}     ({out['ratio_min']:.3f} to {out['ratio_max']:.3f})"
    )
