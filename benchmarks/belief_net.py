"""A sigmoid belief net of 200 causes on binarised MNIST, against neural variational inference (Mnih & Gregor 2014, table 1).

Learns θ and an amortized q(z | x) of independent bits on the 50,000 training images, by the ELBO with leave-one-out
baselines (`svi`) or by reweighted wake-sleep (`importance`). Then bounds log p(x) of the test images from below by draws of q:
the ELBO, and the importance-weighted bound, which is nearer. The published figure took far longer to train.
"""

from __future__ import annotations

import json as json_
import time
from pathlib import Path
from typing import Literal

import pyro
import torch

import guides
from benchmarks._images import estimates
from benchmarks._report import markdown
from benchmarks._suite import folder as _folder
from benchmarks._suite.documents import Document
from inference._method.task import Task
from inference._run.cost import versions
from inference._training import elbo
from inference._training.loop import Plan, train
from inference._training.wake_sleep import Phases
from zoo._data import datasets
from zoo._program.describe import describe
from zoo._program.load import load

PUBLISHED = 113.1
CAUSES, HIDDEN, BATCH, RATE, SEED = 200, (200, 200), 128, 0.002, 0
RESULTS = Path(__file__).parent / "results" / "published"
Method = Literal["svi", "importance"]


def main(
    json: bool = False, quick: bool = False, method: Method = "svi", epochs: int = 100, samples: int = 100
) -> Document:
    """Train for `epochs`, bound log p(x) of the test images by `samples` draws each, print a line (with `json` the document),
    and keep the result; returns it.

    `quick`: two epochs on few images, kept nowhere.
    """
    document = measure(method, 2, 10, 200) if quick else measure(method, epochs, samples, None)
    if not quick:
        text = json_.dumps(document, indent=1, ensure_ascii=False)
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"belief_net_{method}.json").write_text(text + "\n", encoding="utf-8")
    print(json_.dumps(document, indent=1) if json else _line(document))
    return document


def measure(method: Method, epochs: int, samples: int, rows: int | None) -> Document:
    """The document: bounds on the test images, nats an image, and what they cost."""
    pyro.set_rng_seed(SEED)
    task = _task(rows)
    guide = guides.make("amortized", task.structure, task.x, hidden=HIDDEN)
    began = time.process_time()
    objective = elbo.objective(task, guide, 1)
    if method == "importance":
        objective = Phases(task, guide, elbo.SCORE_DRAWS).objective
    plan = Plan(epochs, min(BATCH, len(task.x)), RATE, 1e-4, "cosine")
    with pyro.validation_enabled(False):
        train(task, {"program": task.program, "guide": guide}, objective, plan, step=lambda *_, **__: None)
    trained = time.process_time() - began
    test = Task(task.program, task.structure, _images("binarized_mnist:test", rows), learn=False, quiet=True)
    log_w = estimates.log_weights(test, guide, samples)
    bound, weighted = estimates.elbo(log_w.mT), estimates.point(log_w)
    return {
        "benchmark": "belief_net",
        "model": f"sigmoid_belief_net, {CAUSES} causes, one layer; amortized q, {HIDDEN}",
        "method": method,
        "epochs": epochs,
        "test_images": len(test.x),
        "elbo_nats": bound[0],
        "elbo_se": bound[1],  # of another draw of test images too
        "weighted_bound_nats": weighted["nats"],
        "weighted_bound_se": weighted["se"],
        "samples": samples,
        "published_nats": -PUBLISHED,
        "training_cpu_seconds": round(trained, 1),
        "threads": torch.get_num_threads(),
        "machine": _folder.machine(),
        "seed": SEED,
        "date": _folder.today(),
        "command": f"zoo bench belief_net --set method={method} --set epochs={epochs}",
        "versions": versions(),
    }


def _task(rows: int | None) -> Task:
    x = _images("binarized_mnist", rows)
    program = load("sigmoid_belief_net", x, {"causes": CAUSES})
    return Task(program, describe(program, x), x, seed=SEED, quiet=True)


def _images(name: str, rows: int | None) -> torch.Tensor:
    return torch.as_tensor(datasets.load(name, rows=rows, seed=SEED).x, dtype=torch.float32)


def table(*documents: Document) -> str:
    """Bounds on the test images beside what was published, as Markdown."""
    heads = ("trained by", "−log p(x) of a test image: by the ELBO", "by weighted draws", "published", "training")
    rows = []
    for d in documents:
        weighted = f"≤ {-d['weighted_bound_nats']:.1f} ({d['samples']} draws)"
        cost = f"{d['epochs']} epochs, {d['training_cpu_seconds'] / 60:.0f} minutes of one core"
        rows.append((f"`{d['method']}`", f"≤ {-d['elbo_nats']:.1f}", weighted, f"{-d['published_nats']:.1f}", cost))
    return markdown.table(heads, rows)


def _line(document: Document) -> str:
    cpu, bound = document["training_cpu_seconds"] / 60, document["weighted_bound_nats"]
    return (
        f"MNIST test log p(x) by {document['method']}, {document['epochs']} epochs ({cpu:.0f} minutes of one core): at least "
        f"{document['elbo_nats']:.2f} ± {document['elbo_se']:.2f} nats by the ELBO, {bound:.2f} by {document['samples']} "
        f"weighted draws; published {document['published_nats']}"
    )
