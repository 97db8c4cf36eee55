"""Run a method on a program and data: check, seed, time, verify, save. The same names as on the command line."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from inference._method.check import checked
from inference._method.fit import Fit
from inference._method.task import Task
from inference._numerics import ranks
from inference._numerics.threads import one_thread
from inference._run import checkpoint as _checkpoint
from inference._run import folder as _store
from inference._run import result as _result
from inference._run.cost import Cost, measured, versions
from inference._run.entrance import entrance, seeded
from inference._run.failures import in_words
from inference._run.predictive import DRAW_NUMBERS, Predicted, predict
from inference._run.prepare import Prepared, check_seed, check_serves, device_of, method_module, plain, prepare, serving
from inference._run.reopen import begin_at, data_of, other_data, reopen, restore
from inference._run.request import Request
from inference._run.result import Run
from inference._run.verify import verify
from zoo import _atomic, _options
from zoo._data.options import PREPARATIONS, given
from zoo._errors import UsageError
from zoo._program.structure import ENUMERATION_LIMIT, Structure

__all__ = ["infer", "prepare", "run", "run_prepared", "serving"]

Names = str | Sequence[str] | None  # of columns: text in which commas part them, or a list
Marks = float | str | Sequence[float | str] | None  # of missing values
CPU = torch.device("cpu")
SMALL_NUMBERS = 1_000_000  # data × assignments


@entrance
def run(
    model: object = None,
    data: object = None,
    method: str | None = None,
    *,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    columns: Names = None,
    drop: Names = None,
    labels: str | None = None,
    rows_by: str | None = None,
    na: Marks = None,
    weights: str | None = None,
    covariates: Names | int = None,
    categories: Names = None,
    rows: int | None = None,
    standardize: bool = False,
    binarize: str | float | None = None,
    missing: str | None = None,
    covariance_of: int | None = None,
    series: bool = False,
    series_by: str | None = None,
    limit: int = ENUMERATION_LIMIT,
    dtype: str = "auto",
    device: str = "auto",
    init_from: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    trust: bool = False,
    checkpoint: float = _checkpoint.INTERVAL,
    quiet: bool = True,
    **options: object,
) -> Run:
    """Fit `model` to `data` by `method` (`em` when None) and return the `Run`, its evidence verified.

        >>> from latent_zoo import run
        >>> run("gmm", data="faithful", method="em", components=3).claimed.kind
        'exact'

    - `model`: a name in the zoo, `"file.py:callable"`, or the callable; `data`: a name, a file, or an array [n, …].
    - `options`: the model's and the method's, as after `--set`; `rows`, `standardize`, `binarize`, `missing` prepare data.
    - `columns`: those that are fitted, in this order; `drop`: those that are not. `labels`, `rows_by` and `weights` name a
      column of class labels (never fitted), of names of the rows, and of how many times each row counts. `covariates` name the
      columns that are conditioned on, `categories` those whose values become 0, 1, …; `na`: numbers and words that stand for a
      missing value.
    - `covariance_of`: `data` is the covariance (divisor n) or correlation matrix of this many rows, for Gaussian programs.
    - `series`: the rows of the table are the steps of one series, x [1, T, D], or [1, T] of one column. `series_by`: there is a
      series for each value of that column, and shorter ones end in missing steps.
    - `dtype`: `float64` or `float32`; `auto` takes float32 for data of over a million numbers under a program that is not
      exact, or that is a network and has no latents.
    - `device`: `cpu`, `cuda` or `auto` (a GPU where there is one): where networks are trained. All else runs on the CPU.
    - `out`: a folder to write the run to; None writes nothing. Training leaves a checkpoint beside it every `checkpoint`
      seconds.
    - `init_from`: the folder of a run, or a .npz or .json file of parameters by name, at which em, laplace or svi begin.
    - `resume`: the folder of a run that was stopped: it resumes from its checkpoint and ends with the same numbers. Nothing
      else needs to be given, except a model or data that have no name. A model or guide in a Python file has to be named
      again, unless `trust` allows the file that the folder names to be executed.

    Raises `UsageError` for a request that cannot be carried out, `Refusal` when the method cannot serve the program.
    """
    preparation = {k: v for k, v in locals().items() if k in PREPARATIONS}
    _options.flags(standardize=standardize, series=series)
    request = request_of(model, data, method, options, seed, limit, dtype, device, preparation)
    request = replace(request, init=None if init_from is None else os.fspath(init_from))
    return run_request(request, out=out, resume=resume, trust=trust, checkpoint=checkpoint, quiet=quiet)


def request_of(
    model: object,
    data: object,
    method: str | None,
    options: Mapping[str, object],
    seed: int,
    limit: int,
    dtype: str,
    device: str,
    preparation: Mapping[str, object],
) -> Request:
    """The request of the keywords that `run` and `compare` take. A number of covariates is an option of the model."""
    if isinstance(count := plain(preparation["covariates"]), int):
        options, preparation = {**options, "covariates": count}, {**preparation, "covariates": None}
    return Request(
        model, data, method, plain(options), given(plain(preparation)), plain(seed), plain(limit), dtype, device
    )


@entrance
def run_request(
    request: Request,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    trust: bool = False,
    checkpoint: float = _checkpoint.INTERVAL,
    quiet: bool = True,
) -> Run:
    """`run`, for a request."""
    _options.flags(trust=trust, quiet=quiet)
    _checkpoint.check_interval(checkpoint)
    if resume is not None and ranks.started() > 1:
        raise UsageError(f"Expected one process to resume a run, got {ranks.size()}. Start it without torchrun.")
    if ranks.started() > 1 and not ranks.is_first():  # which does the same, and leaves it to the first one to tell
        out, quiet = None, True
    if resume is not None:
        if out is not None:
            raise UsageError("a resumed run keeps its folder: give resume or out, not both.")
        request, out = _checkpoint.resumed(resume, request, trust), _atomic.place(resume)
    if request.model is None or request.data is None:
        raise UsageError("a run needs a model and data.")
    request = replace(request, method="em" if request.method is None else request.method)
    folder = None if out is None else _store.check_out(out)
    where = device_of(request.device)
    prepared = prepared_for(request, [_method(request)])
    kept = None
    if folder is not None:
        kept = _checkpoint.Checkpoints(folder, request, prepared.source, prepared.x, checkpoint, resume is not None)
    found = run_prepared(
        prepared,
        _method(request),
        request.options,
        seed=request.seed,
        folder=folder,
        quiet=quiet,
        checkpoints=kept,
        device=where,
        request=request,
    )
    if kept is not None:
        kept.discard()
    return found


def _method(request: Request) -> str:
    assert request.method is not None
    return request.method


def prepared_for(request: Request, methods: list[str]) -> Prepared:
    preparation: dict[str, Any] = dict(request.preparation)
    how: dict[str, Any] = {"seed": request.seed, "limit": request.limit, "dtype": request.dtype}
    return prepare(request.model, request.data, request.options, methods, **how, **preparation)


@entrance
def infer(
    run: str | os.PathLike[str] | Run,
    method: str,
    *,
    data: object = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    columns: Names = None,
    drop: Names = None,
    labels: str | None = None,
    rows_by: str | None = None,
    na: Marks = None,
    weights: str | None = None,
    rows: int | None = None,
    binarize: str | float | None = None,
    missing: str | None = None,
    device: str = "auto",
    model: object = None,
    trust: bool = False,
    changed_program: bool = False,
    quiet: bool = True,
    **options: object,
) -> Run:
    """Another method on the θ (and the guide) of a saved run; θ stays as it is.

        >>> from latent_zoo import infer, run
        >>> _ = run("gmm", "faithful", rows=200, out="fitted")
        >>> infer("fitted", "em", data="faithful", rows=50, seed=1).claimed.kind  # log p of 50 rows at that θ
        'exact'

    - `data`: other data than the run's own, prepared by `columns`, `drop`, `labels`, `rows_by`, `na`, `weights`, `rows`,
      `binarize` and `missing`, and put in the units of the run. Of a table the run's columns are found by name, and so are its
      labels, names and weights, where there are any; others are not used.
    - `model`: the run's program, named again if it is in a Python file; or `trust` allows the file that the folder names to be
      executed. `changed_program`: also where the text of that file has changed.

    Raises `UsageError` for a request that cannot be carried out, `Refusal` when the method cannot serve the program.
    """
    preparation = given(plain({k: v for k, v in locals().items() if k in PREPARATIONS}))
    request = Request(model, data, method, plain(options), preparation, plain(seed), device=device, of=_folder_of(run))
    return infer_request(request, out=out, trust=trust, changed_program=changed_program, quiet=quiet)


@entrance
def infer_request(
    request: Request,
    *,
    out: str | os.PathLike[str] | None = None,
    trust: bool = False,
    changed_program: bool = False,
    quiet: bool = True,
) -> Run:
    """`infer`, for a request that says whose θ is kept; its model is None, or the run's program named again."""
    assert request.of is not None
    check_seed(request.seed)
    _options.flags(trust=trust, changed_program=changed_program, quiet=quiet)
    folder, method = None if out is None else _store.check_out(out), _method(request)
    stored = _store.load(request.of, request.model, trust, changed_program)
    if request.data is None and request.preparation:
        raise UsageError(
            f"the run's own data are prepared already; give {', '.join(request.preparation)} only with other data."
        )
    other = None
    if request.data is not None:
        other = other_data(data_of(stored), request.data, request.seed, request.preparation)
    where = device_of(request.device)
    prepared = reopen(stored, [method], request.options, other, request.seed)
    request = replace(request, model=stored.json["model"] if request.model is None else request.model)
    how: dict[str, Any] = {"folder": folder, "quiet": quiet, "stored": stored, "device": where, "request": request}
    return run_prepared(prepared, method, request.options, seed=request.seed, **how)


def _folder_of(run: str | os.PathLike[str] | Run) -> str:
    """The folder of a run that is named, or at hand."""
    if not isinstance(run, Run):
        return os.fspath(run)
    if run.run is None:
        raise UsageError("Expected a saved run, got one that is not saved: call run.save(folder) first.")
    return run.run


@entrance
def run_prepared(
    prepared: Prepared,
    method: str,
    options: Mapping[str, object],
    *,
    seed: int = 0,
    folder: Path | None = None,
    quiet: bool = True,
    stored: _store.Stored | None = None,
    checkpoints: _checkpoint.Checkpoints | None = None,
    device: torch.device = CPU,
    verified: bool = True,
    simulated: bool = True,
    draws: int = 200,
    request: Request | None = None,
) -> Run:
    """One method on a prepared program. With `stored`, θ and the guide come from there and θ is kept.

    Without `verified` the claim is not checked, and the run holds nothing that its method did not find: for timing.
    Without `simulated` it holds no data simulated at its draws. `draws`: of the posterior, how many it holds at most.
    `request`: what was asked for, where the program and the data came by their names.
    """
    check_seed(seed)
    module, learn = method_module(method), stored is None
    check_serves(prepared, method, learn, options)
    chosen = _chosen(method, options, folder is not None)
    with seeded(seed), _threads(prepared), measured() as cost:
        task = _task(prepared, seed, quiet, checkpoints, device, draws)
        if stored is not None:
            restore(task, stored)
        if request is not None and request.init is not None:
            chosen = begin_at(task, request.init, method, chosen)
        ranks.check_alike(task.x, *(() if task.weights is None else (task.weights,)), *task.theta().values())
        with in_words(prepared.name, method):
            version = task.x._version
            fit = checked(module.fit(task, **chosen), task, method, version)
    evidence, predicted = None, Predicted()
    if verified:
        with seeded(seed), _threads(prepared), in_words(prepared.name, "the check of its evidence"):
            fit, evidence = verify(task, fit)
            fit, predicted = predict(task, fit, simulated)
    if request is None:
        request = Request(prepared.model, prepared.data, method, options, {}, seed, prepared.limit, device=device.type)
    if stored is not None and request.of is None:
        request = replace(request, of=str(stored.folder))
    taken = {"model": prepared.options, "method": chosen, "data": prepared.data.options, "limit": prepared.limit}
    taken |= {"dtype": str(prepared.x.dtype).removeprefix("torch."), "device": task.device.type}
    found = Run(
        request=request,
        fit=replace(fit, warnings=_told(prepared, task, fit, device)),
        verified=evidence,
        cost=Cost(cost.seconds, cost.peak_mb, versions()),
        dataset=replace(prepared.data, x=prepared.x.numpy(), truth=None),
        model=prepared.name,
        options=taken,
        predicted=predicted,
        local_sites=tuple(s.name for s in prepared.structure.local_latents),
        learned=task.learn,
        source=prepared.source,
        live=task,
        prepared=prepared,
    )
    if folder is not None:
        _result.save(found, folder)
    return found


def _chosen(method: str, options: Mapping[str, object], saved: bool) -> dict[str, Any]:
    """The method's own options."""
    schema = _options.schema(method_module(method).fit)
    chosen = _options.convert(schema, {k: v for k, v in options.items() if k in schema}, f"option of {method}")
    if saved and (unnamed := next((name for name, value in chosen.items() if callable(value)), None)):
        raise UsageError(
            f"{method} expects a name for '{unnamed}' in a run that is saved, got a function. Write it in a file, and give "
            f"{unnamed}='file.py:function'; or leave out `out`."
        )
    return chosen


def _told(prepared: Prepared, task: Task, fit: Fit, device: torch.device) -> list[str]:
    """The warnings of data, program and method, and of a device that was not used."""
    told = [*prepared.data.warnings, *prepared.structure.warnings, *fit.warnings]
    if task.device.type != device.type:
        told.append(
            f"trained on the CPU, not on {device.type}: the program holds tensors that do not move there. Make them buffers "
            "of a module (register_buffer), or take device=cpu."
        )
    return told


def _task(
    prepared: Prepared,
    seed: int,
    quiet: bool,
    checkpoints: _checkpoint.Checkpoints | None,
    device: torch.device,
    draws: int,
) -> Task:
    draws = max(1, min(draws, DRAW_NUMBERS // (len(prepared.x) * _widest(prepared.structure))))
    return Task(
        prepared.program(seed),
        prepared.structure,
        prepared.x,
        weights=prepared.weights,
        seed=seed,
        draws=draws,
        quiet=quiet,
        limit=prepared.limit,
        intensities=prepared.intensities,
        checkpoints=checkpoints,
        device=device,
    )


def _widest(structure: Structure) -> int:
    """Numbers in one draw of the largest local latent of one row."""
    return max((s.inner * math.prod(s.event_shape) for s in structure.local_latents), default=1)


def _threads(prepared: Prepared) -> contextlib.AbstractContextManager[None]:
    """One thread for a small problem: in steps of a millisecond, threads wait for each other longer than they work."""
    small = prepared.x.numel() * prepared.structure.assignments < SMALL_NUMBERS
    return one_thread() if small else contextlib.nullcontext()


def free_folder(model: str, data: str, what: str) -> Path:
    """`runs/MODEL-DATA-WHAT-TIME`, not taken yet, with `_` for what a file name had better not hold."""
    words = (Path(model.split(":")[0]).stem, Path(data).stem, what, datetime.now().strftime("%Y%m%d-%H%M%S"))
    name = "-".join("".join(c if c.isalnum() or c == "-" else "_" for c in w)[:40] for w in words)
    return _store.free(Path("runs") / name)
