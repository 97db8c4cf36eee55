"""The deep latent Gaussian model on MNIST, 784-200-200-50, dynamic binarisation, against Burda et al. 2016, table 1.

Trains on the 60,000 training images and takes −log p(x) of the 10,000 test images (binarised once, by seed 0) from 5,000
importance samples each. `--set`-like arguments: `particles` (1 is the VAE; 50 the importance-weighted autoencoder) and
`epochs`; the published figures took 3,280 epochs of batches of 20.
"""

from __future__ import annotations

import json as json_
import tempfile
from datetime import date
from pathlib import Path

import torch

from benchmarks._report import markdown
from benchmarks._report.tables import NOTHING
from benchmarks._suite.documents import Document
from inference import Run, infer, run
from inference._run.cost import versions

PUBLISHED = {1: 86.76, 50: 84.78}
EPOCHS, SAMPLES, SEED = 400, 5000, 0
RESULTS = Path(__file__).parent / "results"


def main(
    json: bool = False, quick: bool = False, particles: int = 1, epochs: int = EPOCHS, out: str | None = None
) -> Document:
    """Train, evaluate on the test images, print a line (with `json` the document), and keep the result; returns it.

    `quick`: two epochs and few images and samples, kept nowhere. `out`: a folder for the two runs; a training that is there
    already is not done again.
    """
    epochs, samples, rows = (2, 100, 200) if quick else (epochs, SAMPLES, None)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(out or scratch)
        if not (folder / "train" / "run.json").is_file():
            _train(folder / "train", epochs, particles, quick)
        trained = json_.loads((folder / "train" / "run.json").read_text(encoding="utf-8"))
        test = infer(
            folder / "train",
            "importance",
            data="mnist:test",
            binarize="fixed",
            seed=SEED,
            rows=rows,
            quiet=False,
            samples=samples,
            out=folder / "test",
        )
    document = _document(trained, test, samples)
    if not quick:
        name = "mnist_dlg.json" if particles == 1 else f"mnist_dlg_{particles}.json"
        (RESULTS / name).write_text(json_.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json_.dumps(document, indent=1) if json else _line(document))
    return document


def _train(folder: Path, epochs: int, particles: int, quick: bool) -> None:
    run(
        "deep_latent_gaussian",
        "mnist",
        "svi",
        seed=SEED,
        out=folder,
        binarize="dynamic",
        rows=2000 if quick else None,
        quiet=False,
        likelihood="bernoulli",
        latents=50,
        hidden=(200, 200),
        activation="tanh",
        epochs=epochs,
        batch=128,
        lr=0.002,
        schedule="cosine",
        particles=particles,
    )


def _document(trained: Document, test: Run, samples: int) -> Document:
    evidence, particles = test.claimed, trained["notes"]["particles"]
    assert evidence is not None and evidence.se is not None and evidence.per_datum is not None
    return {
        "benchmark": "mnist_dlg",
        "model": "deep_latent_gaussian 784-200-200-50, Bernoulli, dynamic binarisation",
        "particles": particles,
        "epochs": trained["notes"]["epochs"],
        "test_nats": -evidence.value / test.n,
        "test_nats_se": evidence.se / test.n,  # of the Monte Carlo estimate, on these images
        "test_nats_se_images": float((-evidence.per_datum).std() / test.n**0.5),  # for another draw of test images
        "samples": samples,
        "khat": test.to_json()["khat"],
        "published_nats": PUBLISHED.get(particles),
        "training_elbo_nats": -trained["log_evidence"]["per_datum_mean"],
        "training_seconds": round(trained["seconds"], 1),
        "evaluation_seconds": round(test.seconds, 1),
        "threads": torch.get_num_threads(),
        "device": trained["options"].get("device", "cpu"),
        "seed": SEED,
        "date": date.today().isoformat(),
        "command": "zoo bench mnist_dlg",
        "versions": versions(),
    }


def _line(document: Document) -> str:
    khat = document["khat"] or {}
    return (
        f"MNIST test −log p(x): {document['test_nats']:.2f} ± {document['test_nats_se']:.3f} nats "
        f"(published {document['published_nats']}), particles={document['particles']}, {document['epochs']} epochs in "
        f"{document['training_seconds'] / 60:.1f} minutes; k-hat above 0.7 for {khat.get('frac_above_0.7', 0):.1%} of images"
    )


def table(*documents: Document) -> str:
    """The deep latent Gaussian model on the test images, beside what was published, as Markdown for the README."""
    rows = []
    for d in sorted(documents, key=lambda d: d["particles"]):
        bound = "ELBO" if d["particles"] == 1 else f"importance-weighted, {d['particles']} particles"
        published = NOTHING if d["published_nats"] is None else f"{d['published_nats']:.2f}"
        cost = f"{d['epochs']:,} epochs, {d['training_seconds'] / 3600:.1f} h"
        rows.append((bound, f"{d['test_nats']:.3f} ± {d['test_nats_se']:.3f}", published, cost))
    return markdown.table(("trained by", "−log p(x) of the test images, nats", "published", "training"), rows)
