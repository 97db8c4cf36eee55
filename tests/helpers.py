"""Small things that several test files need."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from inference._exact.enumeration import Enumeration
from inference._method.task import Task
from inference._run.prepare import refusal
from zoo._program.describe import describe
from zoo._program.load import load
from zoo._program.structure import ENUMERATION_LIMIT


def tensor(x: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(x), dtype=torch.float64)


def task_of(model: Any, x: Any, *, limit: int = ENUMERATION_LIMIT, **options: Any) -> Task:
    """A task for `model` on x [n, …], as the runner makes it."""
    x = tensor(x)
    program = load(model, x, options)
    return Task(program, describe(program, x, limit), x, quiet=True)


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
