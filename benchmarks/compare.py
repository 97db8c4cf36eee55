"""Which method to take, on the five models: `zoo compare` on bundled data, all methods, and the time that it takes in all."""

from __future__ import annotations

import json as json_
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks._report import markdown
from benchmarks._suite import folder as _folder
from benchmarks._suite.documents import Document, Options
from inference import Comparison, compare
from inference._compare.comparison import DEFAULT_METHODS
from inference._run.cost import versions
from zoo import _show

RESULTS = Path(__file__).parent / "results"


class Case(NamedTuple):
    """A model on data, its options, and how the data are prepared."""

    model: str
    data: str
    options: Options
    preparation: Options
    words: str
    methods: tuple[str, ...] = DEFAULT_METHODS


CASES = (
    Case("gmm", "faithful", {}, {}, "two Gaussians, Old Faithful"),
    Case("ppca", "wine", {"latents": 3}, {"standardize": True}, "3 latents, wine"),
    Case("factor_analysis", "wine", {"latents": 3}, {"standardize": True}, "3 latents, wine"),
    Case(
        "deep_latent_gaussian",
        "digits",
        {
            "likelihood": "bernoulli",
            "latents": 2,
            "decoder": "linear",
            "lr": 0.02,
            "epochs": 1000,
            "guide": "mean_field",
        }
        | {"guide_covariance": "full", "defensive": 0.5},
        {"rows": 300, "binarize": 8},
        "2 latents, a linear decoder of binary pixels, 300 digits",
    ),
    Case(
        "missing_pixels",
        "digits",
        {"net": "logistic", "lr": 0.1, "epochs": 1000},
        {"rows": 500, "binarize": 8, "missing": "top"},
        "a belief net, top half missing, 500 digits",
    ),
)
QUICK = {"rows": 30}


def main(json: bool = False, quick: bool = False) -> Document:
    """Compare, keep and write the README's tables; with `quick` only the first model, on few rows, and nothing is kept."""
    document = measure(CASES[:1] if quick else CASES, QUICK if quick else {})
    if not quick:
        (RESULTS / "compare.json").write_text(
            json_.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    print(
        json_.dumps(document, indent=1, ensure_ascii=False) if json else f"{table(document)}\n\n{recommended(document)}"
    )
    return document


def measure(cases: tuple[Case, ...] = CASES, changed: Options | None = None) -> Document:
    """The comparison of each case, and the seconds of all."""
    began, found = time.perf_counter(), []
    for case in cases:
        preparation = {**case.preparation, **(changed or {})}
        one: Comparison = compare(case.model, case.data, case.methods, **preparation, **case.options)
        found.append({"model": case.model, "data": case.data, "words": case.words, **one.to_json()})
    return {
        "benchmark": "compare",
        "command": "zoo bench compare",
        "date": _folder.today(),
        "machine": _folder.machine(),
        "versions": versions(),
        "seconds": time.perf_counter() - began,
        "comparisons": found,
    }


def table(document: Document) -> str:
    """The methods on Old Faithful."""
    columns = ("method", "claimed log p(x), nats", "kind", "verified, nats", "gap a row", "labels", "in words")
    return markdown.table(columns, [_line(r) for r in document["comparisons"][0]["runs"]])


def _line(r: Document) -> tuple[str, ...]:
    claimed, verified, far = r["log_evidence"], r["verified_log_evidence"], r["distance"] or {}
    said = _show.evidence(claimed), claimed["kind"], _show.evidence(verified), f"{r['gap_per_row']:+.4f}"
    return f"`{r['method']}`", *said, "" if far.get("labels") is None else f"{far['labels']:.2g}", r["verdict"]


def recommended(document: Document) -> str:
    """The method to take on each model."""
    lines = []
    for c in document["comparisons"]:
        told = c["recommendation"]
        lines.append((f"`{c['model']}`", c["words"], f"`{told['method']}`" if told["method"] else "none", told["why"]))
    return markdown.table(("model", "data", "take", "why"), lines)
