"""Run a method on a program and data: check, seed, time, verify, save. The same names as on the command line."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import random
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from inference import _store
from inference._exact import one_thread
from inference._fit import Fit
from inference._impute import Imputation, impute
from inference._task import Task
from inference._verify import verify
from zoo import _datasets, _options, _program, _registry
from zoo._errors import Refusal, UsageError, unknown
from zoo._latents import for_program
from zoo._structure import ENUMERATION_LIMIT, Structure, describe

DEFAULT_METHODS = ("em", "laplace", "svi", "importance")
DRAW_NUMBERS = 4_000_000  # numbers in the draws of one site
DTYPE = torch.float64
SMALL_NUMBERS = 1_000_000  # data × assignments


@dataclass(frozen=True)
class Prepared:
    """A program on data, with its structure: what every method starts from."""

    model: Any
    name: str
    data: _datasets.Dataset
    x: torch.Tensor
    options: dict[str, Any]  # the model's, as given
    structure: Structure
    limit: int  # of enumeration

    def program(self) -> _program.Program:
        """A program of its own for each run, so that no two share a parameter."""
        return _program.load(self.model, self.x, self.options)


def run(
    model: Any,
    data: Any,
    method: str = "em",
    *,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    rows: int | None = None,
    standardize: bool = False,
    binarize: str | float | None = None,
    missing: str | None = None,
    limit: int = ENUMERATION_LIMIT,
    quiet: bool = True,
    **options: Any,
) -> Fit:
    """Fit `model` to `data` by `method` and return the `Fit`, its evidence verified.

    - `model`: a name in the zoo, `"file.py:callable"`, or the callable; `data`: a name, a file, or an array [n, …].
    - `options`: the model's and the method's, as after `--set`; `rows`, `standardize`, `binarize`, `missing` prepare data.
    - `out`: a folder to write the run to; None writes nothing.

    Raises `UsageError` for whatever cannot be done as asked and `Refusal` when the method cannot serve the program.
    """
    folder = None if out is None else _store.check_out(out)
    preparation = {"rows": rows, "standardize": standardize, "binarize": binarize, "missing": missing}
    prepared = prepare(model, data, options, [method], seed=seed, limit=limit, **preparation)
    return run_prepared(prepared, method, options, seed=seed, folder=folder, quiet=quiet)


def compare(
    model: Any,
    data: Any,
    methods: list[str] | tuple[str, ...] = DEFAULT_METHODS,
    *,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    rows: int | None = None,
    standardize: bool = False,
    binarize: str | float | None = None,
    missing: str | None = None,
    limit: int = ENUMERATION_LIMIT,
    quiet: bool = True,
    **options: Any,
) -> list[Fit | Refused]:
    """`run` for each of `methods` on the same data: a `Fit`, or a `Refused` with the reason, for each.

    With `out`, each run goes to a folder of its method's name in it.
    """
    folder = None if out is None else _store.check_out(out)
    preparation = {"rows": rows, "standardize": standardize, "binarize": binarize, "missing": missing}
    prepared = prepare(model, data, options, list(methods), seed=seed, limit=limit, **preparation)
    results: list[Fit | Refused] = []
    for method in methods:
        place = None if folder is None else folder / method
        try:
            results.append(run_prepared(prepared, method, options, seed=seed, folder=place, quiet=quiet))
        except Refusal as refusal:
            results.append(Refused(prepared.name, prepared.data.name, method, seed, len(prepared.x), str(refusal)))
    return results


@dataclass(frozen=True)
class Refused:
    """A method's refusal, in the shape of a result."""

    model: str
    data: str
    method: str
    seed: int
    n: int | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        """The fields of a fit's JSON, with null for what there is none of."""
        nothing = dict.fromkeys(
            ("log_evidence", "verified_log_evidence", "khat", "seconds", "peak_memory_mb", "run", "parameters")
        )
        return {**vars(self), "status": "refused", **nothing}


def infer(
    run: str | os.PathLike[str],
    method: str,
    *,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    quiet: bool = True,
    **options: Any,
) -> Fit:
    """Another method on the θ (and the guide) of a saved run; θ stays as it is."""
    folder = None if out is None else _store.check_out(out)
    stored = _store.load(run)
    prepared = reopen(stored, [method], options)
    return run_prepared(prepared, method, options, seed=seed, folder=folder, quiet=quiet, stored=stored)


def reopen(stored: _store.Run, methods: list[str] | None = None, options: Mapping[str, Any] | None = None) -> Prepared:
    """The program and data of a saved run; `options` are checked against `methods`."""
    spec, chosen = stored.json["model"], stored.json["options"]
    if spec not in _registry.models() and ":" not in spec:
        raise UsageError(
            f"the model of '{stored.folder}' was the callable '{spec}', which its name does not find again."
        )
    columns = tuple(stored.json["columns"])
    raw = _datasets.load(stored.x)
    image_shape = stored.json.get("image_shape")
    data = replace(
        raw,
        name=stored.json["data"],
        options=chosen["data"],
        columns=columns,
        image_shape=None if image_shape is None else tuple(image_shape),
        labels=stored.labels(),
        warnings=(),
    )
    prepared = prepare(spec, data, {**chosen["model"], **(options or {})}, methods or [], limit=chosen["limit"])
    if changed := {k: v for k, v in prepared.options.items() if k in (options or {})}:
        raise UsageError(
            f"the run's θ belongs to the model's own options; {', '.join(changed)} cannot be changed here."
        )
    return prepared


def task_of(prepared: Prepared, stored: _store.Run) -> Task:
    """A task that holds the θ, globals and guide of a saved run, and keeps its θ."""
    task = Task(prepared.program(), prepared.structure, prepared.x)
    _resume(task, stored)
    return task


def prepare(
    model: Any,
    data: Any,
    options: Mapping[str, Any],
    methods: list[str],
    *,
    seed: int = 0,
    limit: int = ENUMERATION_LIMIT,
    **preparation: Any,
) -> Prepared:
    """Check everything that can be checked before any work: names, options, the data, the program's contract."""
    if seed < 0:
        raise UsageError(f"seed must be zero or more; {seed} came.")
    modules = [method_module(name) for name in methods]
    target, name = _program.resolve(model)
    mine = _split(options, _program.option_schema(target), modules, methods, name)
    loaded = data if isinstance(data, _datasets.Dataset) else _datasets.load(data, seed=seed, **preparation)
    x = torch.as_tensor(loaded.x, dtype=DTYPE).clone()  # in memory that torch aligned: else the last bits may differ
    structure = describe(_program.load(model, x, mine), x, limit)
    return Prepared(model, name, loaded, x, mine, structure, limit)


def _split(
    options: Mapping[str, Any], schema: Mapping[str, Any], modules: list[ModuleType], methods: list[str], name: str
) -> dict[str, Any]:
    """The model's share of the options. Raises `UsageError` for one that neither it nor any of the methods knows."""
    of_methods: dict[str, Any] = {}
    for module in modules:
        of_methods |= _options.schema(module.fit)
    for key, value in options.items():
        if key not in schema and key not in of_methods:
            what = f"option of model '{name}'" + (f" or method {', '.join(map(repr, methods))}" if methods else "")
            raise unknown(what, key, {*schema, *of_methods})
        if key in of_methods:
            _options.convert(of_methods, {key: value}, "option")
    return {k: v for k, v in options.items() if k in schema}


def method_module(name: str) -> ModuleType:
    """The module of a method. Raises `UsageError` for an unknown name."""
    if name not in _registry.methods():
        raise unknown("method", name, _registry.methods())
    return importlib.import_module(f"inference.{name}")


def serving(structure: Structure) -> dict[str, str | None]:
    """For each method: None when it can serve the program, or why not."""
    return {name: method_module(name).refusal(structure) for name in _registry.methods()}


def run_prepared(
    prepared: Prepared,
    method: str,
    options: Mapping[str, Any],
    *,
    seed: int = 0,
    folder: Path | None = None,
    quiet: bool = True,
    stored: _store.Run | None = None,
) -> Fit:
    """One method on a prepared program. With `stored`, θ and the guide come from there and θ is kept."""
    module = method_module(method)
    if (reason := module.refusal(prepared.structure)) is not None:
        able = [name for name, why in serving(prepared.structure).items() if why is None]
        hint = f"Methods that can: {', '.join(able)}." if able else "No method here can serve it."
        raise Refusal(f"{reason}. {hint}")
    schema = _options.schema(module.fit)
    chosen = _options.convert(schema, {k: v for k, v in options.items() if k in schema}, f"option of {method}")
    with _seeded(seed), _threads(prepared), _measured() as cost:
        task = Task(prepared.program(), prepared.structure, prepared.x, seed=seed, quiet=quiet)
        task.draws = max(1, min(200, DRAW_NUMBERS // len(prepared.x)))
        if stored is not None:
            _resume(task, stored)
        fit = module.fit(task, **chosen)
        fit.program = task.program
    with _seeded(seed), _threads(prepared):
        fit.verified = verify(task, fit)
        _complete(task, fit)
    fit.seconds, fit.peak_memory_mb = cost.seconds, cost.peak_mb
    fit.model, fit.data, fit.method, fit.seed = prepared.name, prepared.data.name, method, seed
    fit.options = {"model": prepared.options, "method": chosen, "data": prepared.data.options, "limit": prepared.limit}
    fit.x, fit.columns, fit.labels = prepared.x.numpy(), prepared.data.columns, prepared.data.labels
    fit.image_shape, fit.center, fit.scale = prepared.data.image_shape, prepared.data.center, prepared.data.scale
    fit.task = task
    fit.local_sites = tuple(s.name for s in prepared.structure.local_latents)
    fit.warnings = [*prepared.data.warnings, *fit.warnings]
    fit.versions = versions()
    if folder is not None:
        _store.save(fit, folder)
    return fit


def imputed(fit: Fit, draws: int, seed: int) -> Imputation:
    """The unobserved entries of a fit's data, in the data's own units. Raises `UsageError` when nothing is missing."""
    if fit.x is None or not np.isnan(fit.x).any():
        raise UsageError("nothing is missing in the data of this run: there is nothing to impute.")
    names = [s.name for s in fit.task.structure.global_latents]
    globals = {n: torch.as_tensor(fit.parameters[n]) for n in names}
    local = {k: v for k, v in fit.draws.items() if k in fit.local_sites}
    with _seeded(seed):
        return impute(fit.task, local, globals, draws).in_units(fit.center, fit.scale)


def impute_run(
    run: str | os.PathLike[str], draws: int, seed: int, out: str | os.PathLike[str] | None = None
) -> list[Path]:
    """Impute a saved run and write it to `out` (the run's folder `imputed`), in the file format of its data."""
    stored = _store.load(run)
    folder = _store.check_out(out or stored.folder / "imputed")
    prepared = reopen(stored)
    with _seeded(seed):
        task = task_of(prepared, stored)
        local = {s.name for s in task.structure.local_latents}
        latents = {k: v.values[0] for k, v in stored.tree["posterior"].data_vars.items() if k in local}
        if not np.isnan(stored.x).any():
            raise UsageError(f"nothing is missing in the data of '{run}': there is nothing to impute.")
        found = impute(task, latents, task.globals, draws)
    center, scale = (None if stored.json[k] is None else np.asarray(stored.json[k]) for k in ("center", "scale"))
    source = str(stored.json["options"]["data"].get("source", ""))
    return _store.save_imputation(found.in_units(center, scale), folder, stored.json["columns"], source)


def _resume(task: Task, stored: _store.Run) -> None:
    task.learn = False
    _store.restore(task.program, stored.state, "program.")
    known = stored.parameters()
    names = [s.name for s in task.structure.global_latents]
    task.globals = {n: torch.as_tensor(known[n.replace("/", ".")]) for n in names if n.replace("/", ".") in known}
    if stored.json.get("guide"):
        from guides import amortized
        from inference._coordinates import bijection

        bijections = {n: bijection(s) for n, s in task.global_supports.items()}
        hidden = tuple(stored.json["guide"]["hidden"])
        task.guide = amortized.Guide(task.structure, task.x, task.global_start(), bijections, hidden=hidden)
        _store.restore(task.guide, stored.state, "guide.")


@torch.no_grad()
def _complete(task: Task, fit: Fit) -> None:
    """Add what ArviZ wants: the pointwise log-likelihood of each draw, and simulated data."""
    local = {s.name: s for s in task.structure.local_latents}
    draws = {k: torch.as_tensor(v) for k, v in fit.draws.items()}
    theta = [k for k in draws if k in task.program.constraints]
    globals = [s.name for s in task.structure.global_latents]
    count = len(next(iter(draws.values()))) if draws else 0

    def of(names: list[str], d: int) -> dict[str, torch.Tensor]:
        point = {k: torch.as_tensor(fit.parameters[k]) for k in names if k not in draws}
        return point | {k: draws[k][d] for k in names if k in draws}

    evidence = fit.verified or fit.claimed
    if task.structure.exact != "no" and (theta or any(g in draws for g in globals)):
        try:
            rows = [task.exact.per_datum(of(theta, d), of(globals, d)).numpy() for d in range(count)]
            fit.log_likelihood = np.stack(rows)
        except (ValueError, torch.linalg.LinAlgError):
            fit.warnings.append(
                "some draws of θ lie where the program has no density: the data hardly identify it, and its standard "
                "errors mean little. No pointwise log-likelihood and no posterior predictive data are given."
            )
            return
    elif evidence.per_datum is not None and count:
        fit.log_likelihood = np.broadcast_to(evidence.per_datum, (count, len(task.x))).copy()
    some = max(1, min(count, 50, DRAW_NUMBERS // max(1, task.x.numel())))
    observed = task.structure.observed[0].name
    try:
        with _program.blame(fit.model):
            simulated = []
            for d in range(some if count else 0):
                given = of(globals, d) | {
                    k: for_program(draws[k][d], s, task.structure) for k, s in local.items() if k in draws
                }
                trace = task.program.trace(None, size=len(task.x), parameters=of(theta, d), latents=given)
                simulated.append(torch.as_tensor(trace.nodes[observed]["value"]).numpy())
        fit.predictive = np.stack(simulated) if simulated else None
    except UsageError as error:
        fit.warnings.append(f"no posterior predictive data: model(None, size=n) does not simulate ({error}).")


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """All random state set from `seed` inside, and as it was before afterwards."""
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - Pyro seeds this one
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)  # noqa: NPY002


def _threads(prepared: Prepared) -> contextlib.AbstractContextManager[None]:
    """One thread for a small problem: in steps of a millisecond, threads wait for each other longer than they work."""
    small = prepared.x.numel() * prepared.structure.assignments < SMALL_NUMBERS
    return one_thread() if small else contextlib.nullcontext()


@dataclass
class _Cost:
    seconds: float = 0.0
    peak_mb: float = 0.0


@contextlib.contextmanager
def _measured() -> Iterator[_Cost]:
    """Wall-clock seconds, and the most memory the process held meanwhile (since its start, where that is all there is)."""
    cost, began = _Cost(), time.perf_counter()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: begin the high-water mark anew
    yield cost
    cost.seconds = time.perf_counter() - began
    cost.peak_mb = _high_water()


def _high_water() -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    scale = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    out = {"python": platform.python_version()}
    for package in ("latent-zoo", "pyro-ppl", "torch", "numpy", "arviz-stats", "scikit-learn"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            out[package] = importlib.metadata.version(package)
    return out


def free_folder(model: str, data: str, what: str) -> Path:
    """`runs/MODEL-DATA-WHAT-TIME`, not taken yet, with `_` for what a file name had better not hold."""
    words = (Path(model.split(":")[0]).stem, Path(data).stem, what, datetime.now().strftime("%Y%m%d-%H%M%S"))
    name = "-".join("".join(c if c.isalnum() or c == "-" else "_" for c in w) for w in words)
    return _store.free(Path("runs") / name)
