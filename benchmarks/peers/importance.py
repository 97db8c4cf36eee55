"""Importance sampling, 5,000 draws for each of 1,000 images, against the same sum written by hand in PyTorch.

Both draw from the same amortized guide of the 784-200-200-50 Bernoulli model and take log p(x) of every image, in float32,
in chunks of the same size, alternating in one process. Ours goes through the program and the guide as `importance` does; k-hat
and effective sample sizes, which the other side does not have, are left out. Memory depends on the chunk, not on the samples.
"""

from __future__ import annotations

import math
import time
from typing import cast

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

import guides
from benchmarks._suite.documents import Document
from benchmarks.peers._turns import OURS, Side, turns
from inference._method.task import Task
from inference._run.cost import measured, versions
from inference._sampling import weights
from zoo._data import datasets
from zoo._options import Count
from zoo._program.describe import describe
from zoo._program.load import load

IMAGES, SAMPLES, LATENTS, HIDDEN = 1000, 5000, 50, (200, 200)
TARGET, PEER = 1.10, "by hand"
NOISE = 1.0  # nats an image, by which two estimates from different draws may differ


def measure(*, rounds: Count = 3, quick: bool = False) -> Document:
    """The document: times, their ratio, and log p(x) of all images as each side estimates it."""
    images, samples = (20, 200) if quick else (IMAGES, SAMPLES)
    x = torch.as_tensor(datasets.load("mnist5k", binarize=0.5, rows=images).x, dtype=torch.float32)
    program = load("deep_latent_gaussian", x, {"likelihood": "bernoulli", "latents": LATENTS, "hidden": HIDDEN})
    task = Task(program, describe(program, x), x, quiet=True)
    guide = guides.make("amortized", task.structure, x, hidden=HIDDEN)
    few, peak = Task(program, task.structure, x[:2], quiet=True), 0.0

    def ours() -> tuple[float, float]:
        nonlocal peak
        with measured() as cost:
            found = _ours(task, guide, samples)
        peak = max(peak, cost.peak_mb)
        return cost.seconds, float(found.sum())

    def peer() -> tuple[float, float]:
        began = time.perf_counter()
        found = _by_hand(task, guide, samples)
        return time.perf_counter() - began, float(found.sum())

    sides: dict[str, Side] = {OURS: ours, PEER: peer}
    with torch.no_grad(), pyro.validation_enabled(False):
        first = [lambda: _ours(few, guide, samples), lambda: _by_hand(few, guide, samples)]
        out = turns(sides, rounds, agree=lambda a, b: abs(a - b) < NOISE * images, warm_up=first)
    return {
        "benchmark": "peers/importance",
        "what": f"importance sampling, float32: images={images:,}, draws of each={samples:,}",
        "target": TARGET,
        **out,
        "peak_memory_mb": round(peak, 1),
        "images": images,
        "samples": samples,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _ours(task: Task, guide: PyroModule, samples: int) -> Tensor:
    out = []
    for rows in weights.chunks(task.x, samples):
        drawn = weights.draw(task.program, task.structure, task.x[rows], guides.at(guide, rows), samples)
        out.append(weights.log_mean(drawn.log_weights)[0])
    return torch.cat(out)


def _by_hand(task: Task, guide: PyroModule, samples: int) -> Tensor:
    assert task.program.module is not None
    encoder, head, center = guide.encoder, guide.heads["z"], guide.center
    decoder = cast(nn.Module, task.program.module.decoder)
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
