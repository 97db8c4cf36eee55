"""A saved run, reopened: its program, its data (or others), its θ and its guide."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import guides
from inference._method.task import Task
from inference._numerics.coordinates import bijection
from inference._run import folder
from inference._run.prepare import Prepared, counted, find, method_module, prepare
from zoo import _options, _registry
from zoo._data import datasets
from zoo._data.roles import Roles
from zoo._errors import UsageError
from zoo._program import source

LEARNERS = ("em", "laplace", "svi")
Values = Mapping[str, np.ndarray]
OF_A_MATRIX = (
    "the run's data are a covariance matrix: its θ serves rows in the units of that matrix (of correlations: divided by their "
    "standard deviations), with their means subtracted."
)


def other_data(
    own: datasets.Dataset, data: object, seed: int, preparation: Mapping[str, Any], partial: bool = False
) -> datasets.Dataset:
    """Other data for the θ of a run: its columns, found by name and in its order, in the units it standardised to.

    Its labels, names of rows, weights and categories are found by name too, where they are there; columns that it did not have
    are told, and not used. `own`: the run's data; `partial`: columns that the other data lack are unobserved. Raises
    `UsageError` where columns are missing, or rows have another shape.
    """
    roles = Roles.stored(own.columns, own.options)
    given = {"na": roles.na or None, **preparation}
    try:
        loaded = datasets.load(data, seed=seed, like=roles, **given)
    except UsageError:
        if not partial or not own.columns or roles.levels:
            raise
        loaded = datasets.load(data, seed=seed, **given)
        if not set(loaded.columns) < set(own.columns):
            raise
        loaded = _with_all(loaded, own.columns)
    series = bool(own.options.get("series"))  # of which new ones may have another length
    if (rows := loaded.x.shape[1:])[series:] != (wanted := own.x.shape[1:])[series:]:
        columns = len(wanted) == len(rows) == 1
        said = f"{wanted[0]} columns, got {rows[0]}" if columns else f"rows of shape {wanted}, got {rows}"
        raise UsageError(f"Expected {said}: those of the run are {own.name}'s.")
    if not own.has_rows:
        loaded = replace(loaded, warnings=(*loaded.warnings, OF_A_MATRIX))
    if own.center is None or own.scale is None:
        return loaded
    center, scale = (np.broadcast_to(v[:1], rows) if series else v for v in (own.center, own.scale))
    return replace(loaded, x=(loaded.x - center) / scale, center=center, scale=scale)


def _with_all(data: datasets.Dataset, known: tuple[str, ...]) -> datasets.Dataset:
    """A table with the columns that it lacks, unobserved."""
    x = np.full((len(data.x), len(known)), np.nan)
    x[:, [known.index(name) for name in data.columns]] = data.x
    return replace(data, x=x, columns=known, truth=None)


def reopen(
    stored: folder.Stored,
    methods: list[str] | None = None,
    options: Mapping[str, object] | None = None,
    other: datasets.Dataset | None = None,
    seed: int = 0,
) -> Prepared:
    """The program and data of a saved run, or `other` data; `options` are checked against `methods`.

    `seed`: for what a user's file draws when it is executed.
    """
    chosen, spec = stored.json["options"], stored.spec()
    if isinstance(spec, str) and spec not in _registry.models() and not source.is_file(spec):
        raise UsageError(
            f"the model of '{stored.folder}' was the callable '{spec}', which cannot be found by its name; give the "
            "callable itself (in Python model=…)."
        )
    found = find(spec, seed)
    stored.check_program(found.target)
    # an option that model and method both have is the method's here
    theirs = {key for name in methods or [] for key in _options.schema(method_module(name).fit)}
    others = {k: v for k, v in (options or {}).items() if k not in theirs}
    given = {**chosen["model"], **others}
    how = {
        "limit": chosen["limit"],
        "dtype": chosen.get("dtype", "float64"),
        "like": None if other is None else _built_on(stored),
    }
    prepared = prepare(found, other or _own_data(stored), given, methods or [], **how)
    if changed := {k: v for k, v in prepared.options.items() if k in others}:
        raise UsageError(f"the run's θ holds for the model's own options; {', '.join(changed)} cannot be changed here.")
    return prepared


def data_of(stored: folder.Stored) -> datasets.Dataset:
    """The data of a saved run, as its method saw them."""
    json, x = stored.json, stored.x
    image_shape, center, scale = json.get("image_shape"), json.get("center"), json.get("scale")
    return datasets.Dataset(
        x=x,
        name=json["data"],
        columns=tuple(json["columns"]),
        labels=stored.labels(),
        options=json["options"].get("data", {}),
        image_shape=None if image_shape is None else (image_shape[0], image_shape[1]),
        center=None if center is None else np.asarray(center),
        scale=None if scale is None else np.asarray(scale),
        truth=None,
        weights=stored.weights(),
        warnings=(),
        row_names=stored.row_names(),
    )


def _own_data(stored: folder.Stored) -> datasets.Dataset:
    return replace(data_of(stored), x=datasets.load(stored.x).x)


def _built_on(stored: folder.Stored) -> np.ndarray:
    """The data that the run's model was built on."""
    weights = stored.weights()
    return stored.x if weights is None else counted(torch.as_tensor(stored.x), torch.as_tensor(weights)).numpy()


def task_of(prepared: Prepared, stored: folder.Stored) -> Task:
    """A task that holds the θ, globals and guide of a saved run, and keeps its θ."""
    task = Task(prepared.program(), prepared.structure, prepared.x, weights=prepared.weights, limit=prepared.limit)
    restore(task, stored)
    return task


def task_at(run_task: Task, guide: torch.nn.Module | None, prepared: Prepared, point: dict[str, torch.Tensor]) -> Task:
    """The same for a run that is at hand: other data, and the program, globals and guide of its own task.

    The guide serves other data if it has no q of its own for each row, and the latents are the same.
    """
    task = Task(prepared.program(), prepared.structure, prepared.x, learn=False, quiet=True, limit=prepared.limit)
    task.program.load_state_dict(run_task.program.state_dict())
    task.globals = point
    own, other = ([(s.name, s.event_shape, s.inner_dims) for s in t.structure.local_latents] for t in (run_task, task))
    if guide is not None and not getattr(guide, "by_row", False) and own == other:
        task.guide = guide
    return task


def restore(task: Task, stored: folder.Stored) -> None:
    """Put the θ, globals and guide of a saved run into a task. Raises `UsageError` where they are another program's."""
    task.learn = False
    if misfits := _misfits(task.program, stored, "program."):
        raise UsageError(
            f"the θ of '{stored.folder}' does not fit the model '{stored.json['model']}' as it is now: they differ in "
            f"{', '.join(map(repr, misfits[:3]))}. Was its file changed? Run it again."
        )
    folder.restore(task.program, stored.state, "program.")
    known = stored.parameters()
    names = [s.name for s in task.structure.global_latents]
    task.globals = {n: torch.as_tensor(known[n.replace("/", ".")]) for n in names if n.replace("/", ".") in known}
    settings = stored.json.get("guide")
    if not settings or (settings.get("by_row") and not _own_rows(task, stored)):
        return
    stored.permit(settings["name"], "guide", "run the method again with it")
    bijections = {n: bijection(s) for n, s in task.global_supports.items()}
    structure = task.structure if guides.of_user(settings["name"]) else task.structure.summed
    guide = guides.make(settings["name"], structure, task.x, task.global_start(), bijections, **settings["options"])
    if not (misfits := _misfits(guide, stored, "guide.")):
        folder.restore(guide, stored.state, "guide.")
        task.guide = guide
    elif np.array_equal(task.x.isnan().numpy(), np.isnan(stored.x)):
        raise UsageError(
            f"the guide of '{stored.folder}' does not fit '{settings['name']}' as it is now: they differ in "
            f"{', '.join(map(repr, misfits[:3]))}. Was its file changed? Run it again."
        )
    # else other data have other latents (nothing is missing in them, say), for which the run's guide does not serve


def _own_rows(task: Task, stored: folder.Stored) -> bool:
    """Whether the rows are those of the run, whose q a guide with one for each row holds."""
    own = torch.as_tensor(stored.x).to(task.x)
    return own.shape == task.x.shape and torch.equal(own.nan_to_num(math.inf), task.x.nan_to_num(math.inf))


def _misfits(module: torch.nn.Module, stored: folder.Stored, prefix: str) -> list[str]:
    """Names of tensors that the module has and the run has not, or the other way round, or in another shape."""
    own = {k: v.shape for k, v in module.state_dict().items()}
    theirs = {k.removeprefix(prefix): v.shape for k, v in stored.state.items() if k.startswith(prefix)}
    return sorted(k for k in own.keys() | theirs.keys() if own.get(k) != theirs.get(k))


# ------------------------------------------------------------------------------------- where learning begins, `--init`


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
        return folder.load(path).parameters()
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
