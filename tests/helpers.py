"""Small things that several test files need."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inference._exact.enumeration import Enumeration
from inference._method.fit import Fit
from inference._method.task import Task
from inference._run.cost import Cost
from inference._run.predictive import Predicted
from inference._run.prepare import refusal
from inference._run.request import Request
from inference._run.result import Run
from zoo._data.datasets import Dataset
from zoo._program.describe import describe
from zoo._program.load import load
from zoo._program.structure import ENUMERATION_LIMIT


def in_full(*values: Any) -> list[Any]:
    """These values of a parameter, tried in the full tests alone (`pytest -m full`)."""
    return [pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.full) for v in values]


def tensor(x: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(x), dtype=torch.float64)


def task_of(model: Any, x: Any, *, limit: int = ENUMERATION_LIMIT, **options: Any) -> Task:
    """A task for `model` on x [n, …], as the runner makes it."""
    x = tensor(x)
    program = load(model, x, options)
    return Task(program, describe(program, x, limit), x, quiet=True)


OF_DATA = {f.name for f in fields(Dataset)} | {"data"}
OF_FIT = {f.name for f in fields(Fit)}
PREDICTED = {"observed": "observed", "predictive": "simulated", "log_likelihood": "log_likelihood"}


def run_of(**given: Any) -> Run:
    """A run with these values, which are named as they can be asked of a run; all else as if nothing was there."""
    nothing = dict.fromkeys(("labels", "image_shape", "center", "scale", "truth"))
    about = {"x": np.zeros((0, 1)), "columns": (), "options": {}, "warnings": (), **nothing}
    about |= {k: v for k, v in given.items() if k in OF_DATA - {"data", "options", "warnings"}}
    asked = Request(given.get("model"), given.get("data"), given.get("method"), seed=given.get("seed", 0))
    return Run(
        request=asked,
        fit=Fit(**{"parameters": {}, "claimed": None, **{k: v for k, v in given.items() if k in OF_FIT}}),
        verified=given.get("verified"),
        cost=Cost(),
        dataset=Dataset(**{**about, "name": given.get("data", "")}),
        predicted=Predicted(**{name: given[k] for k, name in PREDICTED.items() if k in given}),
        **{k: given[k] for k in ("model", "options", "local_sites", "learned", "live") if k in given},
    )


def structure_of(model: Any, x: Any, **options: Any) -> Any:
    return task_of(model, x, **options).structure


def zoo_refusal(method: str, structure: Any) -> str:
    """Why a method cannot serve a program; "" where it can."""
    return refusal(method, structure) or ""


def exact_of(model: Any, x: Any, theta: dict[str, Any] | None = None, **options: Any) -> Enumeration:
    """The exact engine of `model` on x, at the parameters `theta`."""
    task = task_of(model, x, **options)
    task.program.assign({n: tensor(v) for n, v in (theta or {}).items()})
    return task.exact


def hide(x: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """x with a share of its entries NaN."""
    return np.where(np.random.default_rng(seed).random(x.shape) < share, np.nan, x)


def simulated(model: Any, x_like: Any, n: int, seed: int = 0, theta: dict[str, Any] | None = None) -> np.ndarray:
    """n data drawn from `model`, whose parameters are made for `x_like`."""
    program = task_of(model, x_like).program
    program.assign({k: tensor(v) for k, v in (theta or {}).items()})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return program(None, size=n).numpy()


def started(*arguments: str, before: Callable[[], object] | None = None) -> subprocess.CompletedProcess[str]:
    """`zoo` in a process of its own; `before` is called there first."""
    command = [sys.executable, "-m", "zoo", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environment, preexec_fn=before, capture_output=True, text=True, timeout=300, check=False
    )


SERVER = """
import contextlib, io, json, sys
from zoo.__main__ import app
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app(json.loads(line), prog_name="zoo")
        except SystemExit as end:
            status = end.code
    print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
"""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Callable[..., tuple[int, Any, str]]]:
    """The `zoo` command of a copy of the packages in `folder`, by one process: arguments → status, document, errors."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SERVER], cwd=folder, env=environment, **pipes) as process:

        def ask(*arguments: str) -> tuple[int, Any, str]:
            process.stdin.write(json.dumps([*arguments, "--json"]) + "\n")
            process.stdin.flush()
            status, out, err = json.loads(process.stdout.readline())
            return status, json.loads(out) if out else None, err

        yield ask
        process.stdin.close()
