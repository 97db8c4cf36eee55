"""Are the claims sound? How often the truth lies within ±2 standard errors of an estimate, and on which side of a bound.

Four programs whose log p(x) is known without the project: a mixture (a sum), factors (a normal), a curve and a random
intercept (quadrature in one dimension). Each is drawn 200 times with 20 to 5,000 rows, θ at its own values, and every method
that gives an evidence is asked for it. Where a method warns, or calls its value a lower bound, that is counted and the run is
no longer one of the estimates that have to cover the truth: 90 to 99 % of the others must.
"""

from __future__ import annotations

import json as json_
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import special, stats
from torch import Tensor

from benchmarks._report import markdown
from benchmarks._report.tables import NOTHING
from benchmarks._suite import folder
from benchmarks._suite.documents import Machine, Options
from inference._run.cost import versions
from inference._run.prepare import prepare
from inference._run.runner import run_prepared
from zoo._errors import UsageError

RESULTS = Path(__file__).parent / "results"
ROWS = (20,) * 50 + (60,) * 30 + (200,) * 13 + (700,) * 5 + (2000, 5000)  # of one seed after the other
WIDTH = 2.0  # standard errors
BETWEEN = (0.90, 0.99)  # where the share of estimates that cover the truth has to lie
ROUNDING = 1e-8  # of the value
UNSURE = ("trust", "k-hat", "too low", "lower bound")  # of which a warning speaks that takes an estimate back


@dataclass(frozen=True)
class Sizes:
    """How much work to do."""

    seeds: int = 200
    jobs: int = os.cpu_count() or 1
    rows: int = max(ROWS)  # at the most


QUICK = Sizes(1, 1, 20)


# ---- the programs ----------------------------------------------------------------------------------------------------

MEANS = np.array([[-2.0, 0.0], [1.0, 1.5], [2.0, -2.0]])
SHARES = np.array([0.5, 0.25, 0.25])
LOADINGS = np.array([[1.0, 0.5, -1.0, 0.0], [0.0, 1.0, 0.5, -0.5]])
QUESTIONS = np.array([-1.0, -0.5, 0.0, 0.5, 1.0, 1.5])
NOISE, SPREAD = 0.75, 1.5


def mixture(x: Tensor | None = None, size: int | None = None) -> Tensor:
    """k ~ Categorical, x | k ~ N(μ_k, I): x [n, 2]."""
    means, shares = (torch.as_tensor(a, dtype=torch.get_default_dtype()) for a in (MEANS, SHARES))
    with _rows(x, size):
        k = pyro.sample("k", dist.Categorical(shares))
        return pyro.sample("x", dist.Normal(means[k], 1.0).to_event(1), obs=x)


def factors(x: Tensor | None = None, size: int | None = None) -> Tensor:
    """z ~ N(0, I), x | z ~ N(z W, ¾²): x [n, 4]."""
    loadings = torch.as_tensor(LOADINGS, dtype=torch.get_default_dtype())
    with _rows(x, size):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        return pyro.sample("x", dist.Normal(z @ loadings, NOISE).to_event(1), obs=x)


def curve(x: Tensor | None = None, size: int | None = None) -> Tensor:
    """z ~ N(0, 1), x | z ~ N((2 tanh z, ½ z²), ¾²): x [n, 2]."""
    with _rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        mean = torch.stack([2 * torch.tanh(z), 0.5 * z**2], -1)
        return pyro.sample("x", dist.Normal(mean, NOISE).to_event(1), obs=x)


def intercept(x: Tensor | None = None, size: int | None = None) -> Tensor:
    """b ~ N(0, 1.5), six yes-or-no answers x | b ~ Bernoulli(σ(b + question)): x [n, 6]."""
    questions = torch.as_tensor(QUESTIONS, dtype=torch.get_default_dtype())
    with _rows(x, size):
        b = pyro.sample("b", dist.Normal(0.0, SPREAD))
        return pyro.sample("x", dist.Bernoulli(logits=b.unsqueeze(-1) + questions).to_event(1), obs=x)


def _rows(x: Tensor | None, size: int | None) -> pyro.plate:
    return pyro.plate("data", size if x is None else len(x))


# ---- their data, and their truths --------------------------------------------------------------------------------------


def _mixture_data(rng: np.random.Generator, n: int) -> np.ndarray:
    return MEANS[rng.choice(3, n, p=SHARES)] + rng.normal(size=(n, 2))


def _mixture_truth(x: np.ndarray) -> float:
    each = stats.norm.logpdf(x[:, None], MEANS, 1.0).sum(2) + np.log(SHARES)
    return float(special.logsumexp(each, axis=1).sum())


def _factors_data(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=(n, 2)) @ LOADINGS + NOISE * rng.normal(size=(n, 4))


def _factors_truth(x: np.ndarray) -> float:
    covariance = LOADINGS.T @ LOADINGS + NOISE**2 * np.eye(4)
    return float(stats.multivariate_normal(np.zeros(4), covariance).logpdf(x).sum())


def _curve_data(rng: np.random.Generator, n: int) -> np.ndarray:
    z = rng.normal(size=n)
    return np.stack([2 * np.tanh(z), 0.5 * z**2], 1) + NOISE * rng.normal(size=(n, 2))


def _curve_truth(x: np.ndarray) -> float:
    z = np.linspace(-9, 9, 1201)
    mean = np.stack([2 * np.tanh(z), 0.5 * z**2], 1)
    each = stats.norm.logpdf(x[:, None], mean, NOISE).sum(2) + stats.norm.logpdf(z)
    return float(special.logsumexp(each, axis=1).sum() + len(x) * np.log(z[1] - z[0]))


def _intercept_data(rng: np.random.Generator, n: int) -> np.ndarray:
    b = SPREAD * rng.normal(size=(n, 1))
    return (rng.random((n, 6)) < special.expit(b + QUESTIONS)) * 1.0


def _intercept_truth(x: np.ndarray) -> float:
    b = np.linspace(-9 * SPREAD, 9 * SPREAD, 1201)
    logits = b[:, None] + QUESTIONS
    each = x @ special.log_expit(logits).T + (1 - x) @ special.log_expit(-logits).T + stats.norm.logpdf(b, 0, SPREAD)
    return float(special.logsumexp(each, axis=1).sum() + len(x) * np.log(b[1] - b[0]))


@dataclass(frozen=True)
class Problem:
    """A program, its data from a generator and a number of rows, its truth, and the ways asked for it."""

    model: Callable[..., Tensor]
    data: Callable[[np.random.Generator, int], np.ndarray]
    truth: Callable[[np.ndarray], float]
    ways: tuple[str, ...]


SAMPLED = ("importance, prior", "importance, guide", "svi", "svi, 5 particles")
WALKED = ("importance, laplace", "ais", "laplace")
PROBLEMS = {
    "mixture": Problem(mixture, _mixture_data, _mixture_truth, ("em", *SAMPLED)),
    "factors": Problem(factors, _factors_data, _factors_truth, ("em", *SAMPLED, "importance, laplace", "ais")),
    "curve": Problem(curve, _curve_data, _curve_truth, (*SAMPLED, *WALKED)),
    "intercept": Problem(intercept, _intercept_data, _intercept_truth, (*SAMPLED, *WALKED)),
}
WAYS: dict[str, tuple[str, Options]] = {
    "em": ("em", {}),
    "importance, prior": ("importance", {"proposal": "prior", "samples": 1000, "epochs": 0}),
    "importance, guide": ("importance", {"samples": 1000, "epochs": 5, "particles": 5, "batch": 256}),
    "importance, laplace": ("importance", {"proposal": "laplace", "samples": 1000, "epochs": 0}),
    "ais": ("ais", {"temperatures": 30, "leapfrog": 2}),
    "svi": ("svi", {"epochs": 5, "batch": 256}),
    "svi, 5 particles": ("svi", {"epochs": 5, "batch": 256, "particles": 5}),
    "laplace": ("laplace", {}),
}


class Claim(TypedDict):
    """What a way says of one data set; a refusal has no value."""

    model: str
    method: str
    n: int
    truth: float
    claim: str  # claimed or verified
    kind: str
    unsure: NotRequired[bool]
    value: NotRequired[float]
    se: NotRequired[float | None]


class Counts(TypedDict):
    """How many claims of which kind, and which share of them is right; None of none."""

    runs: int
    refused: int
    without_se: int
    warned: int
    estimates: int
    within: float | None
    mean_z: float | None
    bounds: int
    below: float | None
    exact: int
    equal: float | None


class Cell(Counts):
    """Those of a model by a method."""

    model: str
    method: str
    claim: str


class Study(TypedDict):
    """What `soundness.json` holds."""

    benchmark: str
    seeds: int
    rows: list[int]
    standard_errors: float
    between: list[float]
    cells: list[Cell]
    seconds: float
    machine: Machine
    date: str
    command: str
    versions: dict[str, str]


# ---- the study -------------------------------------------------------------------------------------------------------


def main(json: bool = False, quick: bool = False) -> Study:
    """Run the study, print its table (with `json` the document), and keep the result; returns it.

    `quick`: one seed of twenty rows, kept nowhere.
    """
    document = measure(QUICK if quick else Sizes())
    text = json_.dumps(document, indent=1, ensure_ascii=False)
    if not quick:
        (RESULTS / "soundness.json").write_text(text + "\n", encoding="utf-8")
    print(text if json else text_of(document))
    return document


def measure(sizes: Sizes) -> Study:
    """Every problem at every seed, in `sizes.jobs` processes: the document."""
    began = time.perf_counter()
    tasks = [(name, seed, min(sizes.rows, ROWS[seed % len(ROWS)])) for seed in range(sizes.seeds) for name in PROBLEMS]
    tasks.sort(key=lambda task: -task[2])  # the long ones first
    if sizes.jobs > 1:
        with ProcessPoolExecutor(
            sizes.jobs, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            found = [one for part in pool.map(_claims, tasks, chunksize=1) for one in part]
    else:
        found = [one for task in tasks for one in _claims(task)]
    return {
        "benchmark": "soundness",
        "seeds": sizes.seeds,
        "rows": sorted({rows for _, _, rows in tasks}),
        "standard_errors": WIDTH,
        "between": list(BETWEEN),
        "cells": cells(found),
        "seconds": round(time.perf_counter() - began, 1),
        "machine": folder.machine(),
        "date": folder.today(),
        "command": "zoo bench soundness",
        "versions": versions(),
    }


def _claims(task: tuple[str, int, int]) -> list[Claim]:
    """What every way says of one data set: a record for each claim, and for each refusal."""
    name, seed, rows = task
    problem = PROBLEMS[name]
    x = problem.data(np.random.default_rng([seed, len(name)]), rows)
    truth, out = problem.truth(x), list[Claim]()
    prepared = prepare(problem.model, x, {}, sorted({WAYS[way][0] for way in problem.ways}))
    for way in problem.ways:
        method, options = WAYS[way]
        about: Claim = {"model": name, "method": way, "n": rows, "truth": truth, "claim": "claimed", "kind": "refused"}
        try:
            fit = run_prepared(prepared, method, options, seed=seed)
        except UsageError:
            out.append(about)
            continue
        unsure = any(word in warning for warning in fit.warnings for word in UNSURE)
        for claim, evidence in (("claimed", fit.claimed), ("verified", fit.verified)):
            if evidence is not None:
                said: Claim = {**about, "claim": claim, "kind": evidence.kind, "unsure": unsure}
                out.append({**said, "value": evidence.value, "se": evidence.se})
    return out


def cells(found: list[Claim]) -> list[Cell]:
    """Records by model, method and claim, in the order of `PROBLEMS` and `WAYS`."""
    groups: dict[tuple[str, str, str], list[Claim]] = {}
    for record in found:
        groups.setdefault((record["model"], record["method"], record["claim"]), []).append(record)
    places = list(PROBLEMS), list(WAYS), ["claimed", "verified"]
    order = sorted(groups, key=lambda g: [place.index(part) for part, place in zip(g, places, strict=True)])
    return [{"model": g[0], "method": g[1], "claim": g[2], **_cell(groups[g])} for g in order]


def _cell(records: list[Claim]) -> Counts:
    """How many claims of which kind, and how many of each are right."""
    estimates = [r for r in records if r["kind"] == "estimate" and r["se"] is not None]
    trusted = [r for r in estimates if not r["unsure"]]
    bounds = [r for r in records if r["kind"] == "lower bound"]
    exact = [r for r in records if r["kind"] == "exact"]
    z = [(r["value"] - r["truth"]) / se for r in trusted if (se := r["se"])]
    return {
        "runs": len(records),
        "refused": sum(r["kind"] == "refused" for r in records),
        "without_se": sum(r["kind"] == "estimate" and r["se"] is None for r in records),
        "warned": len(estimates) - len(trusted),
        "estimates": len(trusted),
        "within": _share(trusted, lambda away, se: abs(away) <= WIDTH * se),
        "mean_z": float(np.mean(z)) if z else None,
        "bounds": len(bounds),
        "below": _share(bounds, lambda away, se: away <= 2 * WIDTH * se),
        "exact": len(exact),
        "equal": _share(exact, lambda away, se: abs(away) <= 0),
    }


def _share(records: list[Claim], right: Callable[[float, float], bool]) -> float | None:
    """The share of records whose value less the truth is right, but for rounding; None of none."""
    if not records:
        return None
    ok = [
        right(np.sign(away) * max(0.0, abs(away) - ROUNDING * abs(r["truth"])), r["se"] or 0.0)
        for r in records
        for away in [r["value"] - r["truth"]]
    ]
    return float(np.mean(ok))


# ---- text ------------------------------------------------------------------------------------------------------------


def outside(document: Study) -> list[Cell]:
    """The cells whose estimates cover the truth too seldom or too often, or with a bound or an exact value that is wrong.

    A share is held to the two limits with what chance allows on so few runs: three of its binomial standard errors less.
    """
    low, high = document["between"]

    def off(cell: Cell) -> bool:
        share, count = cell["within"], cell["estimates"]
        few = share is not None and share < low - (0 if count >= 100 else 3 * (low * (1 - low) / count) ** 0.5)
        many = share is not None and count >= 100 and share > high
        return few or many or any(right is not None and right < 1 for right in (cell["below"], cell["equal"]))

    return [c for c in document["cells"] if off(c)]


def rows_of(document: Study) -> list[tuple[str, str, str]]:
    """Three lines: estimates, bounds and exact values, over all models and methods."""
    cells = document["cells"]

    def total(
        count: Literal["estimates", "bounds", "exact"], share: Literal["within", "below", "equal"]
    ) -> tuple[int, float]:
        n = sum(c[count] for c in cells)
        return n, sum(c[count] * (c[share] or 0.0) for c in cells if c[count]) / max(1, n)

    known = [w for c in cells if c["estimates"] >= 20 and (w := c["within"]) is not None]
    span = f"{min(known):.0%} to {max(known):.0%} by model and method" if known else NOTHING
    warned = sum(c["warned"] for c in cells)
    n, share = total("estimates", "within")
    out = [
        ("estimate ± se, no warning", f"{n:,}", f"{share:.1%} within ±2 se ({span}); {warned:,} more with a warning")
    ]
    n, share = total("bounds", "below")
    out.append(("lower bound", f"{n:,}", f"{share:.1%} below the truth (but for 4 se)"))
    n, share = total("exact", "equal")
    return [*out, ("exact", f"{n:,}", f"{share:.1%} equal to the truth to eight digits")]


COLUMNS = ("claim", "runs", "what is true of them")


def table(document: Study) -> str:
    """Three lines as a Markdown table, for the README."""
    return markdown.table(COLUMNS, rows_of(document))


def text_of(document: Study) -> str:
    """A line a cell, then the three lines."""
    lines = [
        f"{document['seeds']} seeds, {min(document['rows'])} to {max(document['rows']):,} rows; {document['seconds']} s",
        "",
    ]
    for c in document["cells"]:
        within = (
            ""
            if c["within"] is None
            else f"{c['within']:.1%} of {c['estimates']} within ±2 se, z {c['mean_z'] or 0:+.2f}"
        )
        sides = "" if c["below"] is None else f"{c['below']:.1%} of {c['bounds']} bounds below"
        equal = "" if c["equal"] is None else f"{c['equal']:.1%} of {c['exact']} exact values equal"
        rest = [f"{c[k]} {k.replace('_', ' ')}" for k in ("warned", "refused", "without_se") if c[k]]
        said = "; ".join(part for part in (within, sides, equal, *rest) if part)
        lines.append(f"{c['model']:10} {c['method']:20} {c['claim']:9} {said}")
    off = [f"{c['model']}, {c['method']} ({c['claim']})" for c in outside(document)]
    lines += ["", *(f"{a:26} {b:>7}  {c}" for a, b, c in rows_of(document))]
    return "\n".join([*lines, "", f"not as they should be: {'; '.join(off) or 'none'}"])
