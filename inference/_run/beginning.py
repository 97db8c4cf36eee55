"""`--init`: the values of θ and of the global latents at which learning begins, from a run's folder or from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inference._method.task import Task
from inference._run.result import load
from zoo._errors import UsageError

LEARNERS = ("em", "laplace", "svi")
Values = Mapping[str, np.ndarray]


def begin_at(task: Task, where: str, method: str, options: dict[str, Any]) -> dict[str, Any]:
    """Put a task's θ and global latents at the values in `where`; the options that the method is then given.

    Raises `UsageError` where it cannot begin there, or the names or shapes are others.
    """
    if method not in LEARNERS:
        raise UsageError(
            f"init says where learning begins, for {', '.join(LEARNERS)}; {method} does not begin at a point."
        )
    if method == "svi" and task.structure.global_latents:
        raise UsageError(
            "svi begins with its guide where there are global latents, so init cannot say where: take em or laplace."
        )
    if options.get("start", "auto") not in ("auto", "program"):
        raise UsageError(f"give init or start={options['start']}, not both.")
    found = _read(where)
    theta, globals = task.program.values(), task.global_start()
    _check(found, {n: v.detach() for n, v in {**theta, **globals}.items()}, where, task)
    values = {n: torch.as_tensor(v).to(task.x.dtype) for n, v in found.items()}
    supports = {**task.program.constraints, **task.global_supports}
    if outside := [n for n, v in values.items() if not bool(torch.as_tensor(supports[n].check(v)).all())]:
        raise UsageError(f"the values of '{outside[0]}' in {where} are outside its support, {supports[outside[0]]}.")
    task.program.assign({n: values[n] for n in theta})
    task.globals = {n: values[n] for n in globals}
    return options if method == "svi" else {**options, "start": "program"}


def _read(where: str) -> Values:
    path = Path(where)
    if (path / "run.json").is_file():
        return load(path).fit.parameters
    if path.suffix == ".npz" and path.is_file():
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    if path.suffix == ".json" and path.is_file():
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            return {str(n): np.asarray(v, dtype=float) for n, v in document.get("parameters", document).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise UsageError(f"Expected parameters by name, as lists of numbers, in {where}: {error}.") from error
    raise UsageError(f"Expected the folder of a run, a .npz file or a .json file for init, got '{where}'.")


def _check(found: Values, wanted: Mapping[str, torch.Tensor], where: str, task: Task) -> None:
    if found.keys() != wanted.keys():
        names = [", ".join(sorted(v)) or "none" for v in (wanted, found)]
        raise UsageError(f"Expected values of {names[0]} of '{task.program.name}' in {where}, got {names[1]}.")
    for name, value in wanted.items():
        if found[name].shape != tuple(value.shape):
            raise UsageError(
                f"Expected '{name}' of shape {tuple(value.shape)} in {where}, got {found[name].shape}: was it fitted with "
                "other options?"
            )
