"""What a cell of a selection does: fit the program, count its free parameters, and write down every criterion that holds.

    AIC = −2 log L + 2p
    BIC = −2 log L + p log n          n: rows with anything observed, by their weights
    ICL = BIC + 2 Σ_i H(z | x_i)      H: entropy of the posterior of the discrete latents, nats

Smaller is better, as in scikit-learn; mclust reports −BIC and −ICL. They need the maximum of an exact log-likelihood: where
log p(x) is a bound or an estimate, or is given the mode of parameters with priors, the cell says why it has none.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._select import free, labelled, labellings
from benchmarks._select.starts import Found, best_of
from benchmarks._select.trial import Trial, rows_of
from benchmarks._suite.folder import Results
from inference._method.fit import Evidence, weighed
from inference._run import folder as _store
from inference._run import runner
from inference._run.prepare import Prepared, find, method_module
from inference._run.result import Run
from zoo._data.datasets import Dataset
from zoo._errors import Refusal
from zoo._program.structure import Structure

Document = dict[str, Any]
MOST_ROWS = 100_000  # whose held-out log p(x_i) a result holds


def fit(cell: Trial, results: Results, work: Path) -> Document:
    """Fit the program to all rows: criteria, the starts, and what became of the fit."""
    prepared = program_on(cell, cell.data)
    content = cell.content
    found = best_of(prepared, _method(cell, prepared), content["method_options"], content["seed"], content["restarts"])
    run = found.run
    out: Document = {**_how(found), "n": _rows(cell.data), "seconds": run.seconds}
    out["log_evidence"] = None if run.claimed is None else run.claimed.to_json(run.n)
    best = run.verified or run.claimed
    out["verified_log_evidence"] = None if best is None else best.to_json(run.n)
    states = _states(run)
    out |= criteria(prepared, found, _rows(cell.data), states)
    out["evidence"] = labellings.evidence(run)
    out["factors"] = _factors(prepared.structure)
    if states is not None:
        out["rows_of_smallest"] = float(weighed(states.numpy().T, cell.data.weights).sum(1).min())
        if cell.data.labels is not None:
            out["labels"] = labelled.compared(cell.data.labels, states.argmax(1).numpy())
    return out


def heldout(cell: Trial, results: Results, work: Path) -> Document:
    """log p of one fold's rows at the θ that the other folds gave, holes scored as they are."""
    content = cell.content
    chosen = folds(len(cell.data.x), content["folds"], content["fold_seed"])[content["fold"]]
    rest = np.setdiff1d(np.arange(len(cell.data.x)), chosen)
    train, test = rows_of(cell.data, rest), rows_of(cell.data, chosen)
    prepared = program_on(cell, train)
    method = _method(cell, prepared)
    if prepared.structure.global_latents and method != "em":
        raise Refusal(
            "held-out log p(x) needs θ as a point, and the program's parameters have priors; take --by evidence, or method em "
            "(their posterior mode)."
        )
    found = best_of(prepared, method, content["method_options"], content["seed"], content["restarts"], verified=False)
    evidence = scored(cell, found.run, train, test, work)
    each = evidence.per_datum
    out: Document = {**_how(found), "evidence": evidence.to_json(len(chosen)), "rows": len(chosen)}
    if each is not None and len(cell.data.x) <= MOST_ROWS:
        out["each"] = weighed(each, test.weights).tolist()
    return out


def folds(n: int, count: int, seed: int) -> list[np.ndarray]:
    """The rows of each fold, in order: all rows, shuffled and dealt out."""
    order = np.random.default_rng([seed, 4]).permutation(n)
    return [np.sort(order[i::count]) for i in range(count)]


def scored(cell: Trial, run: Run, train: Dataset, test: Dataset, work: Path) -> Evidence:
    """log p(test; θ) of a fit to `train`: exact where it can be, else an estimate or a bound, as its kind says."""
    run.save(work / "fit")
    stored = _store.load(work / "fit", cell.model)
    model = find(cell.model, 0)
    prepared = runner.prepare(model, test, cell.content["model_options"], [], like=train.x)
    able = [m for m in ("em", "importance") if method_module(m).refusal(prepared.structure) is None]
    if not able:
        raise Refusal("held-out log p(x) needs a program that em or importance can serve.")
    found = runner.run_prepared(prepared, able[0], {}, seed=run.seed, stored=stored)
    evidence = found.verified or found.claimed
    assert evidence is not None
    return evidence


def program_on(cell: Trial, data: Dataset) -> Prepared:
    """The program of a cell on these data."""
    model = find(cell.model, 0)
    options = cell.content["model_options"]
    return runner.prepare(model, data, options, [], seed=cell.content["seed"])


def _method(cell: Trial, prepared: Prepared) -> str:
    """The cell's method: where none was asked for, em, or laplace where parameters have priors."""
    asked = cell.content["method"]
    if asked == "auto":
        return "laplace" if prepared.structure.global_latents else "em"
    return str(asked)


def _how(found: Found) -> Document:
    run = found.run
    start = {k: v for k, v in found.options.items() if k == "start"}
    return {
        "ended": found.ended,
        "collapsed": list(found.collapsed),
        "method": run.method,
        "seed": found.seed,
        **start,
        "hits": found.hits,
        "tried": found.tried,
        "warnings": [w for w in found.warnings if w not in run.dataset.warnings],
    }


def _factors(structure: Structure) -> int | None:
    """How many continuous latents a row has; None of a mixture."""
    sites = structure.continuous_locals
    return None if structure.discrete_locals or not sites else sum(s.inner * math.prod(s.event_shape) for s in sites)


def _rows(data: Dataset) -> float:
    """How many rows count: those with anything observed, each by its weight."""
    seen = ~np.isnan(data.x.reshape(len(data.x), -1)).all(1)
    return float(seen.sum() if data.weights is None else data.weights[seen].sum())


def _states(run: Run) -> torch.Tensor | None:
    """p(z | x_i) [N, A] over the joint values of the discrete latents; None where there are none to list."""
    task = run.task
    if task.exact is None or task.structure.assignments < 2 or any(s.completes for s in task.structure.discrete_locals):
        return None
    point = {s.name: torch.as_tensor(run.parameters[s.name]) for s in task.structure.global_latents}
    return task.engine.responsibilities(None, point)


def criteria(prepared: Prepared, found: Found, n: float, states: torch.Tensor | None) -> Document:
    """BIC, AIC and ICL of a fit, or why it has none; the number of free parameters in any case."""
    run, structure = found.run, prepared.structure
    counted = free.free_parameters(run.task, prepared.program(found.seed).values())
    out: Document = {"free": counted.count, "free_is_sure": counted.sure, "log_likelihood": None, "refused": None}
    if structure.global_latents:
        out["refused"] = "BIC, AIC and ICL need the maximum of the likelihood, and the program's parameters have priors"
    elif run.claimed is None or run.claimed.kind != "exact" or run.claimed.given:
        kind = "no claim" if run.claimed is None else f"{run.claimed.kind}"
        article = "" if run.claimed is None else "an " if kind[0] in "ae" else "a "
        out["refused"] = (
            f"BIC, AIC and ICL need the maximum of an exact log-likelihood, and the evidence of {run.method} is {article}{kind}"
        )
    if out["refused"] is not None:
        return out
    assert run.claimed is not None
    value = (run.verified or run.claimed).value
    p = counted.count
    bic = -2 * value + p * math.log(n)
    out |= {"log_likelihood": value, "aic": -2 * value + 2 * p, "bic": bic, "icl": None}
    if states is not None:
        entropy = float(weighed(torch.special.entr(states).sum(1).numpy(), run.dataset.weights).sum())
        out |= {"entropy": entropy, "icl": bic + 2 * entropy}
    elif structure.assignments == 1 and not structure.continuous_locals:
        out |= {"entropy": 0.0, "icl": bic}  # one component
    return out
