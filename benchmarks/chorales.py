"""A deep Markov model of Bach's chorales, nats a step, beside published bounds (Krishnan et al. 2017; Pyro's own example).

Learns θ and the smoothing guide by the ELBO of windows of 24 steps, which cover the 229 training pieces: whole pieces would
be padded to the longest. Of the whole test pieces it takes the ELBO, the importance-weighted bound, and what a particle filter
says of log p(x); each in total over all steps, divided by their number.
"""

from __future__ import annotations

import json as json_
import time
from pathlib import Path

import numpy as np
import pyro
import torch
from torch import Tensor, nn

import guides
from benchmarks._images import estimates
from benchmarks._report import markdown
from benchmarks._report.tables import NOTHING
from benchmarks._suite import folder as _folder
from benchmarks._suite.documents import Document
from inference._method.estimates import Estimates
from inference._method.task import Task
from inference._run.cost import versions
from inference._sampling import sequential, weights
from inference._training.loop import Plan
from zoo._data import datasets
from zoo._program.describe import describe
from zoo._program.load import load
from zoo._program.trace import log_prob, node_of

PUBLISHED = {"Pyro's example": -6.9, "Krishnan et al. 2017": -6.4}  # bounds, nats a step
BESIDE = "; published bounds −6.9 (Pyro's example) and −6.4 (Krishnan et al. 2017)"
SIZES = {"latents": 24, "hidden": 100, "emission": 100}
HIDDEN, WINDOW, BATCH, RATE, SEED = (128, 100), 24, 64, 0.003, 0
PARTICLES, FILTERS = 400, 10
RESULTS = Path(__file__).parent / "results" / "published"


def main(json: bool = False, quick: bool = False, epochs: int = 200, samples: int = 100) -> Document:
    """Train for `epochs`, evaluate the test pieces by `samples` draws each, print a line (with `json` the document), and keep
    the result; returns it.

    `quick`: two epochs on chords that are made up, kept nowhere.
    """
    if quick:
        x = datasets.load("chords").x
        document = measure(windows(x[:80], 8), x[80:], 2, 10)
    else:
        train, test = (datasets.load(name).x for name in ("jsb_chorales", "jsb_chorales:test"))
        document = measure(windows(train, WINDOW), test, epochs, samples)
        text = json_.dumps(document, indent=1, ensure_ascii=False)
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "chorales.json").write_text(text + "\n", encoding="utf-8")
    print(json_.dumps(document, indent=1, ensure_ascii=False) if json else _line(document) + ("" if quick else BESIDE))
    return document


def measure(train: np.ndarray, test: np.ndarray, epochs: int, samples: int) -> Document:
    """The document: log p(x) of the test series, nats a step, and what it cost."""
    pyro.set_rng_seed(SEED)
    task = _task(train)
    guide = guides.make("smoothing", task.structure, task.x, hidden=HIDDEN)
    began = time.process_time()
    estimates.climb(task, guide, Plan(epochs, BATCH, RATE, 1e-4, "cosine", clip=20.0))
    trained = time.process_time() - began
    return {
        "benchmark": "chorales",
        "model": f"deep_markov, {SIZES}; smoothing guide, {HIDDEN}",
        "epochs": epochs,
        "test": _evaluated(_task(test, task), guide, samples),
        "samples": samples,
        "published_nats_per_step": PUBLISHED,
        "training_cpu_seconds": round(trained, 1),
        "threads": torch.get_num_threads(),
        "machine": _folder.machine(),
        "seed": SEED,
        "date": _folder.today(),
        "command": f"zoo bench chorales --set epochs={epochs}",
        "versions": versions(),
    }


def windows(x: np.ndarray, size: int) -> np.ndarray:
    """Series [n, T, D] cut into windows [m, size, D] that cover them; the last of a series ends where it does."""
    out = []
    for series, length in zip(x, _lengths(x), strict=True):
        out += [series[t : t + size] for t in (*range(0, length - size, size), length - size)]
    return np.stack(out)


def _lengths(x: np.ndarray) -> np.ndarray:
    return (~np.isnan(x).all(2)).sum(1)


@torch.no_grad()
def _evaluated(test: Task, trained: nn.Module, samples: int) -> Document:
    """Nats a step of all test series together: two bounds by draws of the guide, and a particle filter's evidence."""
    guide = guides.make("smoothing", test.structure, test.x, hidden=HIDDEN, sees_mask=False)
    guide.load_state_dict(trained.state_dict())
    log_w = torch.cat([_log_weights(test, guide) for _ in range(samples)]).double()
    filtered = sequential.draw(test.program, test.structure, test.x, PARTICLES, FILTERS)
    evidence = Estimates.of(filtered.log_weights, FILTERS).evidence()
    steps = int(_lengths(test.x.numpy()).sum())
    return {
        "series": len(test.x),
        "steps": steps,
        "elbo": float(log_w.mean(0).sum()) / steps,
        "weighted_bound": float(weights.log_mean(log_w)[0].sum()) / steps,
        "particle_filter": evidence.value / steps,
        "particle_filter_se": None if evidence.se is None else evidence.se / steps,
        "particle_filter_kind": evidence.kind,
    }


def _log_weights(test: Task, guide: nn.Module) -> Tensor:
    """log p(x, z) − log q(z | x) [1, n] of a draw of the states up to each series' end; no bits depend on those after it."""
    q = pyro.poutine.trace(guide).get_trace(test.x)
    states = {s.name: node_of(q, s.name)["value"] for s in test.structure.local_latents}
    p, total = test.program.joint_trace(test.x, latents=states), torch.zeros(len(test.x))
    ended = test.x.isnan().all(-1)
    for t, (latent, seen) in enumerate(zip(test.structure.local_latents, test.structure.observed, strict=True)):
        ratio = log_prob(node_of(p, latent.name)) - log_prob(node_of(q, latent.name))
        total += ratio.masked_fill(ended[:, t], 0.0) + log_prob(node_of(p, seen.name))
    return total.unsqueeze(0)


def _task(x: np.ndarray, learned: Task | None = None) -> Task:
    """The model on series; at the parameters that were learned, which then stay."""
    data = torch.as_tensor(x, dtype=torch.float32)
    program = load("deep_markov", data, SIZES)
    if learned is not None:
        program.load_state_dict(learned.program.state_dict())
    return Task(program, describe(program, data), data, seed=SEED, learn=learned is None, quiet=True)


def table(document: Document) -> str:
    """Bounds on the test pieces beside what was published, as Markdown."""
    test, samples = document["test"], document["samples"]
    cost = f"{document['epochs']} epochs, {document['training_cpu_seconds'] / 60:.0f} minutes of one core"
    heads = ("−log p(x), nats a step", "by the ELBO", "by weighted draws", "training")
    rows = [
        (
            "`deep_markov`, `guide=smoothing`",
            f"≤ {-test['elbo']:.2f}",
            f"≤ {-test['weighted_bound']:.2f} ({samples} draws)",
            cost,
        )
    ]
    rows += [(name, f"≤ {-bound:.1f}", NOTHING, NOTHING) for name, bound in document["published_nats_per_step"].items()]
    return markdown.table(heads, rows)


def _line(document: Document) -> str:
    test = document["test"]
    return (
        f"log p(x) of {test['series']} test series, nats a step, after {document['epochs']} epochs "
        f"({document['training_cpu_seconds'] / 60:.0f} minutes of one core): ELBO {test['elbo']:.2f}, "
        f"{document['samples']} weighted draws {test['weighted_bound']:.2f}, a particle filter {test['particle_filter']:.2f} "
        f"({test['particle_filter_kind']})"
    )
