"""One simulation: latents from the prior, data from the program, a fit, and the rank of the truth among its draws.

Talts, Betancourt, Simpson, Vehtari & Gelman 2018. θ, the parameters without a prior, is the same in drawing and in fitting.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._calibration.quantities import values_of
from benchmarks._select.trial import Trial
from benchmarks._suite.folder import Results
from inference._method.check import checked
from inference._method.fit import Arrays, Fit
from inference._method.task import Task
from inference._numerics.threads import one_thread
from inference._run import runner
from inference._run.entrance import entrance, seeded
from inference._run.failures import in_words
from inference._run.predictive import simulate_jointly
from inference._run.prepare import Prepared, find, method_module
from zoo import _options
from zoo._errors import Refusal

STREAM = 7  # of the random numbers
HELD = 200  # draws that a fit holds; of chains it holds more
Document = dict[str, Any]


@entrance
def simulate(cell: Trial, results: Results, work: Path) -> Document:
    """The simulations of a cell: each with the ranks of its quantities, or why it has none."""
    first, count = cell.content["first"], cell.content["count"]
    source = prepared_task(cell, cell.data.x)
    return {"simulations": [_simulation(cell, source, index) for index in range(first, first + count)]}


def _simulation(cell: Trial, source: Task, index: int) -> Document:
    numbers = np.random.default_rng([cell.content["seed"], STREAM, index])
    x, truth = drawn(source, numbers)
    began = time.perf_counter()
    try:
        task, fit = fitted(cell, x, int(numbers.integers(2**31)))
    except Lost as lost:
        return {"failed": str(lost)}
    out: Document = {"seconds": time.perf_counter() - began, "converged": fit.converged}
    ranks = {}
    for name, (true, draws) in values_of(task, truth, fit, cell.content["draws"]).items():
        if not (np.isfinite(draws).all() and np.isfinite(true)):
            return {"failed": f"draws of {name} are not finite"}
        ranks[name] = rank(true, draws, numbers)
        out["draws"] = len(draws)
    return {**out, "worth": _worth(fit), "ranks": ranks}


class Lost(Exception):
    """A fit that failed on its data; the message says why."""


def drawn(source: Task, numbers: np.random.Generator) -> tuple[np.ndarray, Arrays]:
    """Data and latents from the program."""
    with seeded(int(numbers.integers(2**31))), in_words(source.program.name, "simulating"):
        return simulate_jointly(source)


def rank(true: float, draws: np.ndarray, numbers: np.random.Generator) -> float:
    """Where the truth stands among the draws, in [0, 1]; at random among equal ones, so that it is uniform for counts too."""
    below, equal = int((draws < true).sum()), int((draws == true).sum())
    return float((below + numbers.uniform() * (equal + 1)) / (len(draws) + 1))


def prepared_task(cell: Trial, x: np.ndarray, seed: int = 0) -> Task:
    """The program of the cell at its θ, on these data."""
    prepared = prepared_on(cell, x)
    program = prepared.program(cell.content["seed"])
    program.assign({n: torch.as_tensor(v).to(prepared.x.dtype) for n, v in (cell.theta or {}).items()})
    how: Document = {"learn": False, "draws": HELD, "quiet": True, "limit": prepared.limit}
    return Task(program, prepared.structure, prepared.x, seed=seed, **how)


def prepared_on(cell: Trial, x: np.ndarray) -> Prepared:
    """The program of the cell on these data, built on the cell's own."""
    data = replace(cell.data, x=x, labels=None, truth=None, warnings=())
    found = find(cell.model, 0)
    like = None if x is cell.data.x else cell.data.x
    return runner.prepare(found, data, cell.content["model_options"], [], seed=cell.content["seed"], like=like)


def fitted(cell: Trial, x: np.ndarray, seed: int) -> tuple[Task, Fit]:
    """The method's fit to simulated data, θ kept. Raises `Lost` where it fails."""
    name, given = cell.content["method"], cell.content["method_options"]
    try:
        task = prepared_task(cell, x, seed)
        fit = fit_of(task, name, given, seed)
    except Exception as error:  # on these data; the others go on
        said = str(error).strip() or "no message"
        raise Lost(said if isinstance(error, Refusal) else f"{type(error).__name__}: {said}") from error
    return task, fit


def fit_of(task: Task, method: str, given: Mapping[str, object], seed: int) -> Fit:
    """What a method finds at the task's θ."""
    module = method_module(method)
    chosen = _options.convert(_options.schema(module.fit), dict(given), f"option of {method}")
    with seeded(seed), one_thread(), in_words(task.program.name, method):
        return checked(module.fit(task, **chosen), task, method, task.x._version)


def _worth(fit: Fit) -> float | None:
    """How many independent draws a chain's are worth, of the worst latent; None where no chain was walked."""
    told = fit.notes.get("ess_bulk")
    return float(min(told.values())) if isinstance(told, Mapping) and told else None
