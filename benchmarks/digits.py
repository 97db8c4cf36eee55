"""What a deep latent Gaussian model is for: digits made up, recognised, told from other images, and completed.

A variational autoencoder learns 4,000 images of mnist5k without their labels; all else is about the 1,000 that it has not seen:

- generation: E[x | z] for z from the prior, beside real digits;
- representation: nearest neighbours by the encoder's means, beside those by grey levels and by as many principal components;
- density: log p(x), and how well −log p(x) tells other images from digits (`anomalies`), where it fails too;
- completion: the bottom half from the top half, beside nearest neighbours and the mean of each pixel.

Latents, activation and epochs were chosen by log p(x) of 800 of the 4,000.
"""

from __future__ import annotations

import json as json_
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch

from benchmarks._images import anomalies, digits_picture
from benchmarks._images.digits_picture import Shown
from benchmarks._report import markdown
from benchmarks._suite import folder as _folder
from benchmarks._suite.documents import Document, Options
from inference import Run, infer, run
from inference._run.cost import versions
from zoo._data import datasets

SEED = 0
SHAPE = (28, 28)
NEIGHBOURS = 5  # that vote on a class
COPIED = (1, 10)  # nearest neighbours whose lower halves are averaged
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Sizes:
    """How much work to do."""

    train: int = 4000
    test: int = 1000
    latents: int = 20
    hidden: tuple[int, ...] = (200, 200)
    epochs: int = 200
    scored: int = 400  # held-out digits, and as many images of each other kind
    samples: int = 300  # of the importance weights, an image
    completed: int = 200  # of the digits scored
    completing: int = 2000  # samples an image with a hole


QUICK = Sizes(60, 40, 4, (10,), 2, 10, 10, 4, 10)


@dataclass(frozen=True)
class Images:
    """Grey images [n, D] in [0, 1] and their labels [n]."""

    x: np.ndarray
    labels: np.ndarray


def main(json: bool = False, quick: bool = False) -> Document:
    """Train, measure, print a table (with `json` the document), and keep the result and its picture; returns it.

    `quick`: few images and a few seconds, kept nowhere.
    """
    sizes = QUICK if quick else Sizes()
    with tempfile.TemporaryDirectory() as scratch:
        document, shown = measure(sizes, Path(scratch) / "train")
    if not quick:
        digits_picture.draw(RESULTS / "digits.png", document, shown, SHAPE)
        text = json_.dumps(document, indent=1, ensure_ascii=False)
        (RESULTS / "digits.json").write_text(text + "\n", encoding="utf-8")
    print(json_.dumps(document, indent=1, ensure_ascii=False) if json else text_of(document))
    return document


def measure(sizes: Sizes, folder: Path) -> tuple[Document, Shown]:
    """All four parts, with the run in `folder`: the document, and the images that the picture shows."""
    began = time.perf_counter()
    train, test = split(sizes.train, sizes.test)
    fit = _trained(train, folder, sizes)
    digits = anomalies.binarised(test.x[: sizes.scored], SEED, 0)
    odd = anomalies.others(test.x[sizes.scored : 2 * sizes.scored], SHAPE, SEED)
    density, log_p = anomalies.density(folder, digits, odd, sizes.samples, SEED)
    completion, completed = complete(
        folder, train, digits[: sizes.completed], log_p[: sizes.completed], sizes.completing
    )
    document = {
        "benchmark": "digits",
        "model": f"deep_latent_gaussian, {sizes.latents} latents, decoder {sizes.hidden}, Bernoulli, silu",
        "data": f"mnist5k: {sizes.train} to learn, {sizes.test} held out",
        "epochs": fit.notes["epochs"],
        "representation": represent(fit, train, test, sizes.latents),
        "density": density,
        "completion": completion,
        "training_seconds": round(fit.seconds, 1),
        "seconds": round(time.perf_counter() - began, 1),
        "threads": torch.get_num_threads(),
        "device": fit.options["device"],
        "machine": _folder.machine(),
        "seed": SEED,
        "date": _folder.today(),
        "command": "zoo bench digits",
        "versions": versions(),
    }
    groups = {"digits": digits, **odd}
    return document, Shown(test.x, made_up(fit, 60), groups, test.labels[: sizes.completed], completed)


def split(train: int, test: int) -> tuple[Images, Images]:
    """Images to learn from and others to be tested on, as many of each class, in random order."""
    from sklearn.model_selection import train_test_split

    data = datasets.load("mnist5k")
    assert data.labels is not None
    how: Options = {"train_size": train, "test_size": test, "stratify": data.labels, "random_state": SEED}
    x, others, labels, their = train_test_split(data.x, data.labels, **how)
    return Images(x, labels), Images(others, their)


def _trained(train: Images, folder: Path, sizes: Sizes) -> Run:
    return run(
        "deep_latent_gaussian",
        train.x,
        "svi",
        seed=SEED,
        out=folder,
        binarize="dynamic",
        likelihood="bernoulli",
        latents=sizes.latents,
        hidden=sizes.hidden,
        activation="silu",
        epochs=sizes.epochs,
        schedule="cosine",
    )


# ---- generation and representation -----------------------------------------------------------------------------------


@torch.no_grad()
def made_up(fit: Run, count: int) -> np.ndarray:
    """E[x | z] [count, D] for z drawn from the prior."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        trace: Any = fit.program.trace(None, size=count)
        return trace.nodes["x"]["fn"].mean.numpy()


@torch.no_grad()
def encoded(fit: Run, x: np.ndarray) -> np.ndarray:
    """The encoder's means of z [n, L]: the guide is a Pyro program, and is read by tracing it."""
    handler: Any = pyro.poutine.trace
    trace = handler(fit.guide).get_trace(torch.as_tensor(x, dtype=fit.task.x.dtype))
    return trace.nodes["z"]["fn"].mean.numpy()


def represent(fit: Run, train: Images, test: Images, latents: int) -> Document:
    """The share of test images whose nearest training images say the right class, by three representations."""
    from sklearn.decomposition import PCA

    pca = PCA(latents, random_state=SEED).fit(train.x)
    spaces = {
        "encoder": (encoded(fit, train.x), encoded(fit, test.x)),
        "PCA": (pca.transform(train.x), pca.transform(test.x)),
        "grey levels": (train.x, test.x),
    }
    rows, right = [], {}
    for name, (known, new) in spaces.items():
        right[name] = recognised(known, train.labels, new, test.labels)
        rows.append({"by": name, "dimensions": known.shape[1], **share(right[name])})
    more = {name: difference(right["encoder"], right[name]) for name in ("PCA", "grey levels")}
    return {"neighbours": NEIGHBOURS, "rows": rows, "encoder_less": more}


def recognised(known: np.ndarray, labels: np.ndarray, new: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """For each new point [n] whether most of its nearest known points have its label."""
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(NEIGHBOURS).fit(known, labels).predict(new) == truth


def share(right: np.ndarray) -> dict[str, float]:
    """How many of [n] are right, with the binomial standard error."""
    p = float(right.mean())
    return {"accuracy": p, "se": float(np.sqrt(p * (1 - p) / len(right)))}


def difference(right: np.ndarray, beside: np.ndarray) -> dict[str, float]:
    """Of two accuracies on the same images, with the standard error of pairs."""
    apart = right.astype(float) - beside
    return {"accuracy": float(apart.mean()), "se": float(apart.std(ddof=1) / np.sqrt(len(apart)))}


# ---- completion ------------------------------------------------------------------------------------------------------


def complete(
    folder: Path, train: Images, truth: np.ndarray, log_p: np.ndarray, samples: int
) -> tuple[Document, dict[str, np.ndarray]]:
    """The bottom halves of images [n, D] of 0 and 1, given the top halves and log p(x) [n] of the whole: scores, and images.

    The encoder was trained on whole images and knows nothing of holes. So the posterior given the top half comes from
    importance sampling around each image's own mode.
    """
    hidden = np.arange(truth.shape[1]) >= truth.shape[1] // 2
    holes = np.where(hidden, np.nan, truth)
    fit = infer(folder, "importance", data=holes, proposal="laplace", samples=samples, seed=SEED)
    assert fit.claimed is not None and fit.claimed.per_datum is not None and fit.khat is not None
    found = fit.impute(draws=3, seed=SEED)
    mean = np.asarray(found.mean, dtype=float)[:, hidden]
    nats = fit.claimed.per_datum - log_p  # −log p(hidden | seen)
    rows = [completion_row("model", truth[:, hidden], mean, mean, nats)]
    pixels = (train.x[:, hidden].sum(0) + 0.5) / (len(train.x) + 1)  # as if one more image were half on
    for k in COPIED:
        total = nearest(train.x[:, ~hidden], truth[:, ~hidden], k, train.x[:, hidden])
        name = f"{k} nearest" if k > 1 else "nearest"
        rows.append(completion_row(name, truth[:, hidden], total / k, (total + pixels) / (k + 1)))
    pixels = np.broadcast_to(pixels, mean.shape)
    rows.append(completion_row("mean of each pixel", truth[:, hidden], pixels, pixels))
    document = {"images": len(truth), "hidden_pixels": int(hidden.sum()), "samples": samples, "proposal": "laplace"}
    document |= {"khat_above_0.7": float((~(fit.khat <= 0.7)).mean()), "rows": rows}
    return document, {"seen": holes, "truth": truth, "mean": found.mean, "draws": found.draws}


def nearest(known: np.ndarray, seen: np.ndarray, k: int, wanted: np.ndarray) -> np.ndarray:
    """The sum of what is wanted of the k known images that are nearest to each by what is seen of it."""
    from sklearn.neighbors import NearestNeighbors

    return wanted[NearestNeighbors(n_neighbors=k).fit(known).kneighbors(seen, return_distance=False)].sum(1)


def completion_row(
    name: str, truth: np.ndarray, guess: np.ndarray, chance: np.ndarray, nats: np.ndarray | None = None
) -> Document:
    """Errors a hidden pixel, with standard errors over images: of a guess, and of the chance that each pixel is on [n, M].

    `nats`: −log p [n] of all hidden pixels of an image at once; when None, the way takes them to be independent.
    """
    chance = np.clip(chance, 1e-6, 1 - 1e-6)
    alone = -np.where(truth == 1, np.log2(chance), np.log2(1 - chance)).mean(1)
    joint = alone if nats is None else nats / truth.shape[1] / np.log(2)
    out: Document = {"by": name}
    for key, values in (("mse", np.square(guess - truth).mean(1)), ("bits_alone", alone), ("bits_joint", joint)):
        out |= {key: float(values.mean()), f"{key}_se": float(values.std(ddof=1) / np.sqrt(len(values)))}
    return out


# ---- text ------------------------------------------------------------------------------------------------------------

COLUMNS = ("what for", "figure", "the model", "beside it")


def rows_of(document: Document) -> list[tuple[str, str, str, str]]:
    """The figures as words, a line each."""
    seen, density, filled = (document[k] for k in ("representation", "density", "completion"))
    accuracy = [f"{100 * r['accuracy']:.1f} ± {100 * r['se']:.1f} %" for r in seen["rows"]]
    names = [f"{r['by']} ({r['dimensions']}) " for r in seen["rows"]]
    beside = ", ".join(n + a for n, a in zip(names[1:], accuracy[1:], strict=True))
    out = [("representation", f"right by {seen['neighbours']} nearest neighbours", accuracy[0], beside)]
    digits, *odd = density["rows"]
    out.append(
        ("density", "−log p(x) of a held-out digit, nats", f"{digits['nats']:.1f} ± {digits['nats_se']:.1f}", "")
    )
    for r in odd:
        area, nats = f"{r['auc']:.3f} ± {r['auc_se']:.3f}", f"−log p(x) {r['nats']:.1f} ± {r['nats_se']:.1f} nats"
        out.append(("anomalies", f"AUC of −log p(x): {r['images']}", area, nats))
    figures = (("mse", "square error a hidden pixel"), ("bits_alone", "bits a hidden pixel, each by itself"))
    for key, title in (*figures, ("bits_joint", "bits a hidden pixel, all at once")):
        said = [f"{r[key]:.3f} ± {r[key + '_se']:.3f}" for r in filled["rows"]]
        others = ", ".join(f"{r['by']} {s}" for r, s in zip(filled["rows"][1:], said[1:], strict=True))
        out.append(("completion", title, said[0], others))
    return out


def text_of(document: Document) -> str:
    """The figures as a plain table."""
    rows = [COLUMNS, *rows_of(document)]
    wide = [max(len(r[k]) for r in rows) for k in range(3)]
    lines = ["  ".join((*(c.ljust(w) for c, w in zip(r, wide, strict=False)), r[3])).rstrip() for r in rows]
    return "\n".join([f"{document['model']}; {document['data']}; {document['seconds']:.0f} s", "", *lines])


def table(document: Document) -> str:
    """The figures as a Markdown table, for the README."""
    return markdown.table(COLUMNS, rows_of(document))
