"""A saved run, taken up again: its program, its data (or others), its θ and its guide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import guides
from inference import _store
from inference._coordinates import bijection
from inference._prepare import Prepared, method_module, prepare
from inference._task import Task
from zoo import _datasets, _options, _program, _registry, _source
from zoo._errors import UsageError


def other_data(stored: _store.Run, data: Any, seed: int, preparation: Mapping[str, Any]) -> _datasets.Dataset:
    loaded = _datasets.load(data, seed=seed, **preparation)
    if loaded.x.shape[1:] != stored.x.shape[1:]:
        raise UsageError(
            f"the run's rows have the shape {stored.x.shape[1:]}, and those of '{data}' {loaded.x.shape[1:]}."
        )
    if stored.json["center"] is None:
        return loaded
    center, scale = np.asarray(stored.json["center"]), np.asarray(stored.json["scale"])
    return replace(loaded, x=(loaded.x - center) / scale, center=center, scale=scale)


def reopen(
    stored: _store.Run,
    methods: list[str] | None = None,
    options: Mapping[str, Any] | None = None,
    other: _datasets.Dataset | None = None,
) -> Prepared:
    """The program and data of a saved run, or `other` data; `options` are checked against `methods`."""
    chosen, spec = stored.json["options"], stored.spec()
    if isinstance(spec, str) and spec not in _registry.models() and not _source.is_file(spec):
        raise UsageError(
            f"the model of '{stored.folder}' was the callable '{spec}', which its name does not find again; give the "
            "callable itself (in Python model=…)."
        )
    stored.check_program(_program.resolve(spec)[0])
    # an option that model and method both have is the method's here
    theirs = {key for name in methods or [] for key in _options.schema(method_module(name).fit)}
    others = {k: v for k, v in (options or {}).items() if k not in theirs}
    given = {**chosen["model"], **others}
    how = {"limit": chosen["limit"], "dtype": chosen.get("dtype", "float64")}
    prepared = prepare(spec, other or _own_data(stored), given, methods or [], **how)
    if changed := {k: v for k, v in prepared.options.items() if k in others}:
        raise UsageError(
            f"the run's θ belongs to the model's own options; {', '.join(changed)} cannot be changed here."
        )
    return prepared


def _own_data(stored: _store.Run) -> _datasets.Dataset:
    image_shape = stored.json.get("image_shape")
    return replace(
        _datasets.load(stored.x),
        name=stored.json["data"],
        options=stored.json["options"]["data"],
        columns=tuple(stored.json["columns"]),
        image_shape=None if image_shape is None else tuple(image_shape),
        labels=stored.labels(),
        warnings=(),
    )


def task_of(prepared: Prepared, stored: _store.Run) -> Task:
    """A task that holds the θ, globals and guide of a saved run, and keeps its θ."""
    task = Task(prepared.program(), prepared.structure, prepared.x, limit=prepared.limit)
    restore(task, stored)
    return task


def restore(task: Task, stored: _store.Run) -> None:
    task.learn = False
    _load(task.program, stored, "program.")
    known = stored.parameters()
    names = [s.name for s in task.structure.global_latents]
    task.globals = {n: torch.as_tensor(known[n.replace("/", ".")]) for n in names if n.replace("/", ".") in known}
    settings = stored.json.get("guide")
    if not settings or (settings.get("by_row") and len(task.x) != len(stored.x)):
        return
    stored.permit(settings["name"], "guide", "run the method again with it")
    bijections = {n: bijection(s) for n, s in task.global_supports.items()}
    task.guide = guides.make(
        settings["name"], task.structure, task.x, task.global_start(), bijections, **settings["options"]
    )
    _load(task.guide, stored, "guide.")


def _load(module: torch.nn.Module, stored: _store.Run, prefix: str) -> None:
    try:
        _store.restore(module, stored.state, prefix)
    except RuntimeError as error:
        raise UsageError(
            f"the parameters in '{stored.folder}' are not those of the {prefix[:-1]}, which is another one by now."
        ) from error
