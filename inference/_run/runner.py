"""Run a method on a program and data: check, seed, time, verify, save. The same names as on the command line."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inference._method.fit import Fit
from inference._method.task import Task
from inference._numerics.threads import one_thread
from inference._run import checkpoint as _checkpoint
from inference._run import folder as _store
from inference._run.cost import measured, versions
from inference._run.entrance import entrance, seeded
from inference._run.failures import in_words
from inference._run.impute import Imputation, impute
from inference._run.predictive import DRAW_NUMBERS, complete
from inference._run.prepare import Prepared, check_seed, device_of, method_module, plain, prepare, refusal, serving
from inference._run.reopen import other_data, reopen, restore, task_of
from inference._run.verify import verify
from zoo import _atomic, _options
from zoo._errors import NotWritten, Refusal, UsageError
from zoo._program.structure import ENUMERATION_LIMIT, Structure

DEFAULT_METHODS = ("em", "laplace", "svi", "importance")
CPU = torch.device("cpu")
SMALL_NUMBERS = 1_000_000  # data × assignments


@entrance
def run(
    model: Any = None,
    data: Any = None,
    method: str | None = None,
    *,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    rows: int | None = None,
    standardize: bool = False,
    binarize: str | float | None = None,
    missing: str | None = None,
    limit: int = ENUMERATION_LIMIT,
    dtype: str = "auto",
    device: str = "auto",
    resume: str | os.PathLike[str] | None = None,
    trust: bool = False,
    checkpoint: float = _checkpoint.INTERVAL,
    quiet: bool = True,
    **options: Any,
) -> Fit:
    """Fit `model` to `data` by `method` (`em` when None) and return the `Fit`, its evidence verified.

    - `model`: a name in the zoo, `"file.py:callable"`, or the callable; `data`: a name, a file, or an array [n, …].
    - `options`: the model's and the method's, as after `--set`; `rows`, `standardize`, `binarize`, `missing` prepare data.
    - `dtype`: `float64` or `float32`; `auto` takes float32 for data of over a million numbers under a program that is not
      exact, or that is a network and has no latents.
    - `device`: `cpu`, `cuda` or `auto` (a GPU where there is one): where networks are trained. All else runs on the CPU.
    - `out`: a folder to write the run to; None writes nothing. Training leaves a checkpoint beside it every `checkpoint`
      seconds.
    - `resume`: the folder of a run that was stopped: it goes on from its checkpoint, and ends with the same numbers as if it
      had not been. All the rest is known, but for a model or data that have no name. A model or guide in a Python file has to
      be named again, or `trust` says that whatever file is named there may be executed.

    Raises `UsageError` for whatever cannot be done as asked and `Refusal` when the method cannot serve the program.
    """
    request = {
        "model": model,
        "data": data,
        "method": method,
        "seed": plain(seed),
        "limit": plain(limit),
        "dtype": dtype,
        "device": device,
        "preparation": plain({"rows": rows, "standardize": standardize, "binarize": binarize, "missing": missing}),
        "options": plain(options),
    }
    if resume is not None:
        if out is not None:
            raise UsageError("a run that is gone on with keeps its folder: give resume or out, not both.")
        request, out = _checkpoint.resumed(resume, request, trust), _atomic.place(resume)
    if request["model"] is None or request["data"] is None:
        raise UsageError("a run needs a model and data.")
    return _asked(request, out, checkpoint, resume is not None, quiet)


def _asked(
    request: dict[str, Any], out: str | os.PathLike[str] | None, checkpoint: float, resume: bool, quiet: bool
) -> Fit:
    """The fit that was asked for."""
    method = "em" if request["method"] is None else request["method"]
    folder = None if out is None else _store.check_out(out)
    where = device_of(request["device"])
    prepared = prepare(
        request["model"],
        request["data"],
        request["options"],
        [method],
        seed=request["seed"],
        limit=request["limit"],
        dtype=request["dtype"],
        **request["preparation"],
    )
    kept = None
    if folder is not None:
        kept = _checkpoint.Checkpoints(
            folder, request | {"method": method, "program": prepared.source}, prepared.x, checkpoint, resume
        )
    fit = run_prepared(
        prepared,
        method,
        request["options"],
        seed=request["seed"],
        folder=folder,
        quiet=quiet,
        checkpoints=kept,
        device=where,
    )
    if kept is not None:
        kept.discard()
    return fit


@entrance
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
    dtype: str = "auto",
    device: str = "auto",
    quiet: bool = True,
    **options: Any,
) -> list[Fit | Refused]:
    """`run` for each of `methods` on the same data: a `Fit`, or a `Refused` with the reason, for each.

    With `out`, each run goes to a folder of its method's name in it.
    """
    if isinstance(methods, str) or not methods:
        raise UsageError(f"Expected a list of methods to compare, got {methods!r}.")
    folder = None if out is None else _store.check_out(out)
    preparation: dict[str, Any] = {
        "rows": rows,
        "standardize": standardize,
        "binarize": binarize,
        "missing": missing,
    }
    where, seed, options = device_of(device), plain(seed), plain(options)
    prepared = prepare(model, data, options, list(methods), seed=seed, limit=limit, dtype=dtype, **preparation)
    results: list[Fit | Refused] = []
    unwritten: str | None = None
    for method in methods:
        place = None if folder is None else folder / method
        try:
            results.append(run_prepared(prepared, method, options, seed=seed, folder=place, quiet=quiet, device=where))
        except Refusal as refusal:
            results.append(Refused(prepared.name, prepared.data.name, method, seed, len(prepared.x), str(refusal)))
        except NotWritten as error:
            results.append(error.result)
            unwritten = unwritten or str(error)
    if unwritten is not None:
        raise NotWritten(unwritten, results)
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


@entrance
def infer(
    run: str | os.PathLike[str],
    method: str,
    *,
    data: Any = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    rows: int | None = None,
    binarize: str | float | None = None,
    missing: str | None = None,
    device: str = "auto",
    model: Any = None,
    trust: bool = False,
    changed_program: bool = False,
    quiet: bool = True,
    **options: Any,
) -> Fit:
    """Another method on the θ (and the guide) of a saved run; θ stays as it is.

    `data`: other data than the run's own, prepared by `rows`, `binarize` and `missing`, and in the units that the run
    standardised its own to. `model`: the run's program, named again where it is in a Python file, unless `trust` says that
    whatever file the folder names may be executed; `changed_program`: also where its text is not what it was.
    """
    check_seed(seed := plain(seed))
    options = plain(options)
    folder = None if out is None else _store.check_out(out)
    stored = _store.load(run, model, trust, changed_program)
    preparation = {"rows": rows, "binarize": binarize, "missing": missing}
    if data is None and any(v is not None for v in preparation.values()):
        raise UsageError("the run's own data are prepared already; rows, binarize and missing go with other data.")
    other = None if data is None else other_data(stored, data, seed, preparation)
    where = device_of(device)
    prepared = reopen(stored, [method], options, other)
    return run_prepared(prepared, method, options, seed=seed, folder=folder, quiet=quiet, stored=stored, device=where)


@entrance
def run_prepared(
    prepared: Prepared,
    method: str,
    options: Mapping[str, Any],
    *,
    seed: int = 0,
    folder: Path | None = None,
    quiet: bool = True,
    stored: _store.Run | None = None,
    checkpoints: _checkpoint.Checkpoints | None = None,
    device: torch.device = CPU,
    verified: bool = True,
) -> Fit:
    """One method on a prepared program. With `stored`, θ and the guide come from there and θ is kept.

    Without `verified` the claim is not checked, and the fit holds nothing that its method did not find: for timing.
    """
    check_seed(seed)
    module, learn = method_module(method), stored is None
    if (reason := refusal(method, prepared.structure, learn)) is not None:
        able = [name for name, why in serving(prepared.structure, learn).items() if why is None]
        hint = f" Methods that can: {', '.join(able)}." if able else ""
        raise Refusal(f"{reason}.{hint or ('' if prepared.structure.obstacle else ' No method here can serve it.')}")
    schema = _options.schema(module.fit)
    chosen = _options.convert(schema, {k: v for k, v in options.items() if k in schema}, f"option of {method}")
    with seeded(seed), _threads(prepared), measured() as cost:
        task = Task(
            prepared.program(seed), prepared.structure, prepared.x, seed=seed, quiet=quiet, limit=prepared.limit
        )
        task.draws = max(1, min(200, DRAW_NUMBERS // (len(prepared.x) * _widest(prepared.structure))))
        task.intensities, task.checkpoints, task.device = prepared.intensities, checkpoints, device
        if stored is not None:
            restore(task, stored)
        with in_words(prepared.name, method):
            fit = module.fit(task, **chosen)
        fit.program = task.program
    if verified:
        with seeded(seed), _threads(prepared), in_words(prepared.name, "the check of its evidence"):
            fit.verified = verify(task, fit)
            complete(task, fit)
    fit.seconds, fit.peak_memory_mb = cost.seconds, cost.peak_mb
    fit.model, fit.data, fit.method, fit.seed = prepared.name, prepared.data.name, method, seed
    fit.options = {"model": prepared.options, "method": chosen, "data": prepared.data.options, "limit": prepared.limit}
    fit.options["dtype"], fit.options["device"] = str(prepared.x.dtype).removeprefix("torch."), device.type
    fit.x, fit.columns, fit.labels = prepared.x.numpy(), prepared.data.columns, prepared.data.labels
    fit.image_shape, fit.center, fit.scale = prepared.data.image_shape, prepared.data.center, prepared.data.scale
    fit.task, fit.learned = task, task.learn
    fit.local_sites = tuple(s.name for s in prepared.structure.local_latents)
    fit.warnings = [*prepared.data.warnings, *fit.warnings]
    fit.versions = versions()
    if folder is not None:
        _store.save(fit, folder)
    return fit


def _widest(structure: Structure) -> int:
    """Numbers in one draw of the largest local latent of one datum."""
    return max((s.inner * math.prod(s.event_shape) for s in structure.local_latents), default=1)


@entrance
def imputed(fit: Fit, draws: int, seed: int) -> Imputation:
    """The unobserved entries of a fit's data, in the data's own units. Raises `UsageError` when nothing is missing."""
    if fit.x is None or not np.isnan(fit.x).any():
        raise UsageError("nothing is missing in the data of this run: there is nothing to impute.")
    names = [s.name for s in fit.task.structure.global_latents]
    globals = {n: torch.as_tensor(fit.parameters[n]) for n in names}
    local = {k: v for k, v in fit.draws.items() if k in fit.local_sites}
    with seeded(seed), in_words(fit.model, "imputing"):
        return impute(fit.task, local, globals, draws, fit.probabilities).in_units(fit.center, fit.scale)


@entrance
def impute_run(
    run: str | os.PathLike[str],
    draws: int,
    seed: int,
    out: str | os.PathLike[str] | None = None,
    **trusting: Any,
) -> list[Path]:
    """Impute a saved run and write it to `out` (the run's folder `imputed`), in the file format of its data.

    `trusting`: `model`, `trust` and `changed_program`, as in `infer`.
    """
    check_seed(seed)
    if draws < 1:
        raise UsageError(f"draws must be at least 1; {draws} came.")
    stored = _store.load(run, **trusting)
    folder = _store.check_out(out or stored.folder / "imputed")
    prepared = reopen(stored)
    if not np.isnan(stored.x).any():
        raise UsageError(f"nothing is missing in the data of '{run}': there is nothing to impute.")
    with seeded(seed), in_words(prepared.name, "imputing"):
        task = task_of(prepared, stored)
        local = {s.name for s in task.structure.local_latents}
        drawn = stored.tree["posterior"].data_vars if "posterior" in stored.tree else {}
        latents = {k: v.values[0] for k, v in drawn.items() if k in local}
        found = impute(task, latents, task.globals, draws, stored.probabilities())
    center, scale = (None if stored.json[k] is None else np.asarray(stored.json[k]) for k in ("center", "scale"))
    source = str(stored.json["options"]["data"].get("source", ""))
    return _store.save_imputation(found.in_units(center, scale), folder, stored.json["columns"], source)


def _threads(prepared: Prepared) -> contextlib.AbstractContextManager[None]:
    """One thread for a small problem: in steps of a millisecond, threads wait for each other longer than they work."""
    small = prepared.x.numel() * prepared.structure.assignments < SMALL_NUMBERS
    return one_thread() if small else contextlib.nullcontext()


def free_folder(model: str, data: str, what: str) -> Path:
    """`runs/MODEL-DATA-WHAT-TIME`, not taken yet, with `_` for what a file name had better not hold."""
    words = (Path(model.split(":")[0]).stem, Path(data).stem, what, datetime.now().strftime("%Y%m%d-%H%M%S"))
    name = "-".join("".join(c if c.isalnum() or c == "-" else "_" for c in w)[:40] for w in words)
    return _store.free(Path("runs") / name)
