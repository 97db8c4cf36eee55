"""Autoregressive models of binarised digits: test −log p(x) beside the published figures, and the top half filled in.

Trains a mixture of Bernoullis, a fully visible belief net and MADE on complete images of fixed binarised MNIST (Salakhutdinov
& Murray 2008; `--set data=mnist5k` needs no download), and takes −log p(x) of the test images; the published figures are those
of Germain et al. 2015, table 6. Then the top half of some test images is hidden: log p(x_top | x_bottom) of what was there,
and the error of the posterior mean, beside nearest-neighbour completion and the mean of each pixel. Under the `reversed` order
of the pixels both halves are exact; under `raster` an autoregressive guide, asleep, learns to complete.
"""

from __future__ import annotations

import json as json_
import math
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
import torch

from benchmarks._images import completing
from benchmarks._report import markdown
from benchmarks._report.tables import NOTHING
from benchmarks._suite.documents import Document, Options
from inference import infer, run
from inference._method.task import Task
from inference._run.cost import versions
from zoo._data import datasets
from zoo._program.describe import describe
from zoo._program.load import load

PUBLISHED = {"mixture": 137.64, "logistic": 97.45, "made": 88.40}
SEED = 0
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Sizes:
    """How much work to do."""

    components: int = 500
    iterations: int = 40  # of EM
    hidden: int = 500
    epochs: tuple[int, int] = (20, 40)  # of the belief net and of MADE
    completed: int = 200  # test images whose top half is filled in
    samples: int = 200  # a completed image
    guide_epochs: int = 5000
    pictured: int = 8


class NetResult(TypedDict):
    """A net on complete images."""

    net: str
    test_nats: float
    test_nats_se_images: float
    published_nats: float
    smoothing: str
    seconds: float


QUICK = Sizes(5, 3, 10, (4, 4), 4, 20, 3, 3)
SMALL = Sizes(components=100, epochs=(30, 60), completed=200, guide_epochs=600)


def main(
    json: bool = False,
    quick: bool = False,
    data: Literal["binarized_mnist", "mnist5k"] = "binarized_mnist",
    out: str | None = None,
) -> Document:
    """Train, evaluate and complete; print a table (with `json` the document), and keep the result; returns it.

    `quick`: a few images of mnist5k, kept nowhere. `out`: a folder for the runs; those that are there already are not done
    again.
    """
    sizes = QUICK if quick else Sizes() if data == "binarized_mnist" else SMALL
    train, test = _halves("mnist5k" if quick else data, 100 if quick else None)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(out or scratch)
        document = {
            "benchmark": "missing_pixels",
            "data": "mnist5k" if quick else data,
            "images": {"train": len(train), "test": len(test)},
            "models": [_model(net, train, test, folder, sizes) for net in PUBLISHED],
            "completion": _completion(train, test, folder, sizes, None if quick else RESULTS / _name(data, "png")),
            "seed": SEED,
            "date": date.today().isoformat(),
            "threads": torch.get_num_threads(),
            "command": "zoo bench missing_pixels" + ("" if data == "binarized_mnist" else f" --set data={data}"),
            "versions": versions(),
        }
    if not quick:
        path = RESULTS / _name(data, "json")
        path.write_text(json_.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json_.dumps(document, indent=1, ensure_ascii=False) if json else text_of(document))
    return document


def _name(data: str, kind: str) -> str:
    return f"missing_pixels.{kind}" if data == "binarized_mnist" else f"missing_pixels_{data}.{kind}"


def _halves(data: str, rows: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Images to learn from and to be tested on, [n, 784] of 0 and 1, in random order."""
    if data == "binarized_mnist":
        train, test = (datasets.load(f"{data}{part}").x for part in ("", ":test"))
    else:
        x = datasets.load(data, binarize="fixed", seed=SEED, rows=rows).x
        x = x[np.random.default_rng(SEED).permutation(len(x))]
        train, test = x[: len(x) * 4 // 5], x[len(x) * 4 // 5 :]
    return train, test[np.random.default_rng(SEED).permutation(len(test))]


# ---- complete images --------------------------------------------------------------------------------------------------


def _model(net: str, train: np.ndarray, test: np.ndarray, folder: Path, sizes: Sizes) -> NetResult:
    """Train one net on complete images, and −log p(x) of the test images under it."""
    began = time.perf_counter()
    if net == "mixture":
        per_image, smoothing = _mixture(train, test, folder, sizes)
    else:
        place = trained(net, "raster", train, folder, sizes)
        per_image, smoothing = log_p(place, test), ""
    return {
        "net": net,
        "test_nats": -float(per_image.mean()),
        "test_nats_se_images": float(per_image.std() / math.sqrt(len(per_image))),
        "published_nats": PUBLISHED[net],
        "smoothing": smoothing,
        "seconds": round(time.perf_counter() - began, 1),
    }


def trained(net: str, order: str, train: np.ndarray, folder: Path, sizes: Sizes) -> Path:
    """The run folder of an autoregressive net, trained by maximum likelihood unless it is there already."""
    place = folder / f"{net}-{order}"
    if not (place / "run.json").is_file():
        made = net == "made"
        run(
            "missing_pixels",
            train,
            "svi",
            seed=SEED,
            out=place,
            quiet=False,
            net=net,
            order=order,
            hidden=(sizes.hidden,),
            epochs=sizes.epochs[made],
            batch=100,
            lr=0.001 if made else 0.002,
            schedule="cosine",
        )
    return place


def log_p(place: Path, images: np.ndarray) -> np.ndarray:
    """log p(x) [n] of complete images under a trained net, nats."""
    claimed = infer(place, "svi", data=images, epochs=1).claimed  # nothing is latent: no bound, but log p(x) itself
    assert claimed is not None and claimed.per_datum is not None
    return claimed.per_datum


def _mixture(train: np.ndarray, test: np.ndarray, folder: Path, sizes: Sizes) -> tuple[np.ndarray, str]:
    """log p(x) of the test images under a mixture by exact EM.

    A pixel that was never on in a component would make a test image impossible: each component is taken to have seen one
    more image, half on everywhere (Krichevsky & Trofimov 1981).
    """
    options: Options = {"net": "mixture", "components": sizes.components}
    kept = folder / "mixture.npz"
    if not kept.is_file():
        fit = run("missing_pixels", train, "em", seed=SEED, quiet=False, max_iter=sizes.iterations, **options)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(kept, weights=fit.parameters["weights"], probs=fit.parameters["probs"])
    with np.load(kept) as found:
        weights, probs = (torch.as_tensor(found[k]) for k in ("weights", "probs"))
    x = torch.as_tensor(test, dtype=torch.float64)
    program = load("missing_pixels", x, options)
    seen = weights.unsqueeze(1) * len(train)
    program.assign({"weights": weights, "probs": (probs * seen + 0.5) / (seen + 1)})
    with torch.no_grad():
        per_image = Task(program, describe(program, x), x, quiet=True).engine.per_datum({}, {}).numpy()
    return per_image, "each component has seen one more image, half on"


# ---- the top half -----------------------------------------------------------------------------------------------------


def _completion(train: np.ndarray, test: np.ndarray, folder: Path, sizes: Sizes, picture: Path | None) -> Document:
    """How well the hidden top halves of some test images are known from the bottom halves."""
    truth = test[: sizes.completed]
    holes = completing.without_top(truth)
    rows, shown = completing.baselines(train, holes, truth), {}
    for order in ("reversed", "raster"):
        place = trained("made", order, train, folder, sizes)
        exact = order == "reversed"
        how: Document = (
            {"proposal": "sequential", "filters": 2}
            if exact
            else {"guide": "autoregressive", "insomnia": 0.0, "epochs": sizes.guide_epochs, "hidden": (sizes.hidden,)}
        )
        if not exact:
            how |= {"lr": 0.001, "batch": min(100, len(holes)), "schedule": "cosine", "defensive": 0.0}
        fit = infer(place, "importance", data=holes, seed=SEED, quiet=False, samples=sizes.samples, **how)
        rows.append(completing.row(f"MADE, {order}", fit, log_p(place, truth), truth, exact))
        shown[order] = fit.impute(draws=8, seed=SEED)
    if picture is not None:
        completing.picture(picture, holes, truth, shown, sizes.pictured)
    return {"hidden": "the top half", "images": len(truth), "rows": rows}


def text_of(document: Document) -> str:
    """The figures as text."""
    lines = [f"{document['data']}, complete images: test −log p(x), nats", ""]
    for row in document["models"]:
        published = f"(published {row['published_nats']})" if document["data"] == "binarized_mnist" else ""
        lines.append(f"{row['net']:10}{row['test_nats']:>9.2f} ± {row['test_nats_se_images']:.2f}  {published}")
    found = document["completion"]
    lines += ["", f"{found['hidden']} of {found['images']} test images: −log p(hidden | seen), error of the mean", ""]
    for row in found["rows"]:
        nats = "" if row["nats"] is None else f"{row['nats']:.1f} nats, {row['bits_per_pixel']:.3f} bits a pixel"
        kind = f" ({row['kind']})" if row["kind"] else ""
        lines.append(f"{row['name']:22}{nats:34}{row['error']:.4f} square, {row['wrong']:.1%} of pixels wrong{kind}")
    return "\n".join(lines)


def table(*documents: Document) -> str:
    """Complete images beside what was published, then what was hidden; a document is a data set; as Markdown for the README."""
    whole, hidden = [], []
    for d in documents:
        published = d["data"] == "binarized_mnist"  # the figures are for this split of these images
        for m in d["models"]:
            nats = f"{m['test_nats']:.2f} ± {m['test_nats_se_images']:.2f}"
            whole.append((d["data"], f"`net={m['net']}`", nats, f"{m['published_nats']:.2f}" if published else NOTHING))
        for r in d["completion"]["rows"]:
            bits = NOTHING if r["nats"] is None else f"{r['nats']:.1f} ({r['bits_per_pixel']:.3f} bits a pixel)"
            share = (r.get("khat") or {}).get("frac_above_0.7")
            kind = r["kind"] if share is None else f"{r['kind']}, k-hat above 0.7 for {share:.0%}"
            hidden.append((d["data"], r["name"], bits, kind or NOTHING, f"{r['error']:.4f}", f"{r['wrong']:.1%}"))
    first = markdown.table(("images", "model", "test −log p(x), nats", "published"), whole)
    names = ("images", "top half filled in by", "−log p(hidden | seen), nats", "kind", "square error", "pixels wrong")
    return f"{first}\n\n{markdown.table(names, hidden)}"
