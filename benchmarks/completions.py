"""Estimates of log p(seen pixels) by four proposals, the ELBOs of q from φ = ½ to an autoregressive one, and gradient noise.

The lecture's questions about missing pixels, on data that come with the package: 8 × 8 digits with 12 pixels missing, where
all 2^12 completions can be summed, and mnist5k with the top half missing, where the `reversed` order of the pixels gives
log p(x_obs) as a product of conditionals. MADE is trained on complete images; the images with holes are others.
Every estimate from S draws uses the first S of one long run of a q, or a particle filter of its own.
"""

from __future__ import annotations

import json as json_
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch

from benchmarks._images import completing, estimates
from benchmarks._images.estimates import GradientNoise, Guide, Point, Problem, Row
from benchmarks._report import markdown
from benchmarks._report.tables import NOTHING
from benchmarks._suite.documents import Document
from inference._method.task import Task
from inference._run.cost import versions
from inference._training.loop import Plan
from zoo._data import datasets

SEED = 0
MISSING = 12  # pixels of an 8 × 8 digit
RESULTS = Path(__file__).parent / "results"
TOL = 1e-9  # of plans with a number of epochs of their own


@dataclass(frozen=True)
class Sizes:
    """How much work to do."""

    samples: tuple[int, ...] = (1, 10, 100, 1000, 10_000, 100_000)
    images: int = 10  # of 8 × 8 pixels
    epochs: tuple[int, int] = (60, 30)  # of MADE, on 8 × 8 digits and on mnist5k
    hidden: tuple[int, int] = (40, 200)
    steps: tuple[int, int] = (300, 1500)  # of the factorised q
    guide_steps: tuple[int, int] = (300, 600)  # epochs of the autoregressive q
    half: int = 20  # steps, after which a factorised q is half-trained
    repeats: int = 200  # gradients
    rows: int | None = None  # of mnist5k
    holes: int = 200  # images that the autoregressive q of mnist5k learns on


QUICK = Sizes((1, 10, 100), 3, (5, 1), (20, 20), (60, 20), (60, 3), 5, 20, 300, 10)


def main(json: bool = False, quick: bool = False) -> Document:
    """Estimate, print tables (with `json` the document), and keep the result and its picture; returns it.

    `quick`: small nets and few draws, kept nowhere.
    """
    began, worked, sizes = time.perf_counter(), time.process_time(), QUICK if quick else Sizes()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        small, task = digits(sizes)
        document: Document = {
            "benchmark": "completions",
            "problems": [small, halves(sizes)],
            "gradients": gradients(task, sizes),
        }
    document |= {
        "seed": SEED,
        "date": date.today().isoformat(),
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - worked, 1),  # what it takes where nothing else runs
        "threads": torch.get_num_threads(),
        "command": "zoo bench completions",
        "versions": versions(),
    }
    text = json_.dumps(document, indent=1, ensure_ascii=False)
    if not quick:
        (RESULTS / "completions.json").write_text(text + "\n", encoding="utf-8")
        estimates.picture(RESULTS / "completions.png", document["problems"])
    print(text if json else text_of(document))
    return document


# ---- the two problems -------------------------------------------------------------------------------------------------


def digits(sizes: Sizes) -> tuple[Problem, Task]:
    """8 × 8 digits, pixels missing at random, and everything known by enumeration."""
    x = datasets.load("digits", binarize=8).x
    random = np.random.default_rng(SEED)
    x = x[random.permutation(len(x))]
    train, holes = x[: -sizes.images], x[-sizes.images :].copy()
    for image in holes:
        image[random.choice(x.shape[1], MISSING, replace=False)] = np.nan
    options = {"hidden": (sizes.hidden[0],)}
    theta = estimates.new_task(train, options)
    estimates.climb(theta, None, Plan(sizes.epochs[0], 100, 0.005, TOL, "cosine"))
    task = estimates.new_task(holes, options, theta.program)
    factorised, autoregressive = (estimates.fresh(task, g) for g in ("mean_field", "autoregressive"))
    estimates.climb(task, factorised, Plan(sizes.steps[0], len(holes), 0.1, TOL, "cosine"))
    estimates.climb(task, autoregressive, Plan(sizes.guide_steps[0], len(holes), 0.02, TOL, "cosine"))
    with torch.no_grad():
        exact = float(task.engine.per_datum({}, {}).double().mean())
    coins = estimates.fresh(task, "mean_field", on=0.5)
    elbos = [estimates.enumerated_elbo(task, q) for q in (coins, factorised, autoregressive)]
    rows = _rows(task, factorised, autoregressive, sizes.samples, elbos)
    title = f"8 × 8 digits, {MISSING} pixels missing, mean of {len(holes)} images"
    return {"name": "digits", "title": title, "images": len(holes), "exact_nats": exact, "rows": rows}, task


def halves(sizes: Sizes) -> Problem:
    """One image of mnist5k without its top half; the autoregressive q learns asleep, on the halves of others."""
    x = datasets.load("mnist5k", binarize="fixed", seed=SEED, rows=sizes.rows).x
    x = x[np.random.default_rng(SEED).permutation(len(x))]
    train, holes = x[: len(x) * 4 // 5], completing.without_top(x[len(x) * 4 // 5 :])
    options = {"hidden": (sizes.hidden[1],), "order": "reversed"}
    theta = estimates.new_task(train, options)
    estimates.climb(theta, None, Plan(sizes.epochs[1], 100, 0.003, TOL, "cosine"))
    task, many = (estimates.new_task(holes[:n], options, theta.program) for n in (1, sizes.holes))
    share = torch.as_tensor((train.sum(0) + 0.5) / (len(train) + 1))[np.isnan(holes[0])]
    factorised = estimates.fresh(task, "mean_field", on=share)
    estimates.climb(task, factorised, Plan(sizes.steps[1], 1, 0.03, TOL, "cosine"))
    autoregressive = estimates.fresh(many, "autoregressive", hidden=(64,))
    plan = Plan(sizes.guide_steps[1], min(100, len(many.x)), 0.002, TOL, "cosine")
    estimates.climb(many, autoregressive, plan, dreaming=True)
    exact = estimates.point(estimates.filtered(task, 4)[0])["nats"]  # all that is seen comes first: no draw enters it
    rows = _rows(task, factorised, autoregressive, sizes.samples)
    title = "mnist5k, top half missing, one image"
    return {"name": "mnist5k", "title": title, "images": 1, "exact_nats": exact, "rows": rows}


def _rows(
    task: Task, factorised: Guide, autoregressive: Guide, samples: tuple[int, ...], elbos: list[float] | None = None
) -> list[Row]:
    """What each q makes of the missing pixels; its ELBO, unless it is known, is the mean of its log-weights."""
    proposals = (("fair coins, φ = ½", None), ("factorised, φ learned", factorised), ("autoregressive", autoregressive))
    rows: list[Row] = []
    for place, (label, guide) in enumerate(proposals):
        log_w = estimates.log_weights(task, guide, max(samples))
        nats, se = (elbos[place], 0.0) if elbos else estimates.elbo(log_w)
        points = [estimates.point(log_w[:size]) for size in samples]
        rows.append({"label": label, "elbo_nats": nats, "elbo_se": se, "points": points})
    rows.insert(1, {"label": "all on, φ = 1", "elbo_nats": estimates.all_on(task), "elbo_se": 0.0, "points": []})
    walked = [estimates.point(*estimates.filtered(task, size)) for size in samples]
    return [*rows, {"label": "particle filter", "elbo_nats": None, "elbo_se": None, "points": walked}]


def gradients(task: Task, sizes: Sizes) -> list[GradientNoise]:
    """The total variance of each estimator's gradient, in φ of a factorised q that is new and one that is half-trained."""
    new, half = (estimates.fresh(task, "mean_field") for _ in range(2))
    estimates.climb(task, half, Plan(sizes.half, len(task.x), 0.1, TOL, "constant"))
    out: list[GradientNoise] = []
    for how in estimates.ESTIMATORS:
        repeats = 3 if how == "enumeration" else sizes.repeats  # it draws nothing
        noise = [estimates.Noise(task, q).total_variance(how, repeats) for q in (new, half)]
        out.append({"estimator": how, "untrained": noise[0], "half_trained": noise[1], "repeats": repeats})
    return out


# ---- as text ----------------------------------------------------------------------------------------------------------


def text_of(document: Document) -> str:
    """The figures as text."""
    lines = []
    for problem in document["problems"]:
        lines += [f"{problem['title']}: log p(seen) = {problem['exact_nats']:.2f} nats (exact)", ""]
        for row in problem["rows"]:
            last = row["points"][-1] if row["points"] else None
            elbo = "" if row["elbo_nats"] is None else f"ELBO {row['elbo_nats']:.2f}"
            found = (
                ""
                if last is None
                else f"{_estimated(last)} from {last['samples']:,}, k-hat > 0.7: {last['khat_above_0.7']:.0%}"
            )
            lines.append(f"{row['label']:24}{elbo:16}{found}")
        lines.append("")
    lines += ["Total variance of the ELBO's gradient in φ, 8 draws an image: untrained, half-trained", ""]
    for row in document["gradients"]:
        lines.append(f"{row['estimator']:42}{row['untrained']:>9.3g}{row['half_trained']:>9.3g}")
    return "\n".join(lines)


def table(document: Document) -> str:
    """What each q makes of the missing pixels, then the noise of the ELBO's gradient, as Markdown for the README."""
    rows = []
    for problem in document["problems"]:
        for r in problem["rows"]:
            last = r["points"][-1] if r["points"] else None
            bound = NOTHING if r["elbo_nats"] is None else f"{r['elbo_nats']:.2f}"
            found = (NOTHING, NOTHING) if last is None else (_estimated(last), f"{last['khat_above_0.7']:.0%}")
            rows.append((problem["title"], r["label"], bound, *found, f"{problem['exact_nats']:.2f}"))
    most = max(
        (p["samples"] for problem in document["problems"] for r in problem["rows"] for p in r["points"]), default=0
    )
    names = (
        "problem",
        "q",
        "ELBO, nats an image",
        f"estimate from {most:,} draws",
        "k-hat above 0.7",
        "exact log p(seen)",
    )
    noise = [(r["estimator"], f"{r['untrained']:.3g}", f"{r['half_trained']:.3g}") for r in document["gradients"]]
    columns = ("total variance of the ELBO's gradient, 8 draws", "q untrained", "half-trained")
    return f"{markdown.table(names, rows)}\n\n{markdown.table(columns, noise)}"


def _estimated(point: Point) -> str:
    """An estimate with its standard error, which 0 and None are not."""
    digits = 3 if point["se"] and point["se"] < 0.05 else 2
    return f"{point['nats']:.{digits}f}" + (f" ± {point['se']:.{digits}f}" if point["se"] else "")
