"""Run one cell and write its result file, also where it fails. Works in any process that sees the folder."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import math
import os
import shutil
import threading
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._suite import cells, checks, imputing, limits, synthetic
from benchmarks._suite import folder as _folder
from benchmarks._suite.cells import Cell
from inference._pictures import _draw as drawing
from inference._run import folder as _store
from inference._run import runner
from inference._run.cost import versions
from inference._run.entrance import alone
from inference._run.folder import Stored
from inference._run.prepare import Prepared, find
from inference._run.result import Run
from zoo._data import datasets
from zoo._errors import Refusal, UsageError
from zoo._program import source

DPI = 88  # of pictures for the page
QUICK = 3.0  # seconds: a run shorter than this is done again when its process had not warmed up yet
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
LEFT_OUT = ("model", "data", "method", "seed", "status", "reason", "run", "parameters", "standard_errors", "options")
UNWRITTEN = "unwritten"  # the status of a cell whose result did not fit on the disk
_warm: set[str] = set()  # methods that this process has run before


@dataclass(frozen=True)
class Outcome:
    """How a cell ended; `busy`: another process is running it."""

    id: str
    title: str
    status: str
    reason: str | None
    seconds: float
    key: str = ""  # cells of the same key take about as long


def run_cell(cell: Cell, folder: str, redo: str = "", threads: int | None = None, parent: int | None = None) -> Outcome:
    """Run `cell` and write its result to `folder`. Errors are in the result and never raise.

    `parent`: the process that this one works for, and ends with.
    """
    if parent is not None and os.getppid() == parent:
        end_with(parent)
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        return alone(_claimed)(cell, _folder.Results(folder), redo)
    except OSError as error:  # of the folder; a cell's own errors are in its result
        return Outcome(cell.id, cell.title, UNWRITTEN, f"cannot write to '{folder}': {error.strerror or error}.", 0.0)


def _claimed(cell: Cell, results: _folder.Results, redo: str) -> Outcome:
    began = time.perf_counter()
    with results.claim(cell.id) as mine:
        if not mine:
            return Outcome(cell.id, cell.title, "busy", None, 0.0)
        if results.done(cell, redo):  # another process has finished it since this one looked
            found = results.read(cell.id)
            status, reason = ("missing", None) if found is None else (found["status"], found["reason"])
            return Outcome(cell.id, cell.title, status, reason, 0.0)
        with results.workspace(cell.id) as work:
            document = _plainly(cell, results, work)
            document["wall_seconds"] = round(time.perf_counter() - began, 3)
            results.write(cell.content, document, work)
    return Outcome(cell.id, cell.title, document["status"], document["reason"], document["wall_seconds"], key(cell))


@functools.cache
def end_with(parent: int) -> None:
    """End this process once `parent` has ended: its results would not be read, and nothing else would end it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def key(cell: Cell) -> str:
    """What a cell's time depends on most."""
    c = cell.content
    return json.dumps([c["kind"], c.get("model"), c.get("data", {}).get("name"), c.get("method"), c.get("name")])


def crashed(cell: Cell, folder: str, reason: str) -> Outcome:
    """Write down that the process of `cell` died."""
    results = _folder.Results(folder)
    with results.workspace(cell.id) as work:
        results.write(cell.content, {"status": "failed", "reason": reason, **_around(cell)}, work)
    return Outcome(cell.id, cell.title, "failed", reason, 0.0)


def _plainly(cell: Cell, results: _folder.Results, place: Path) -> dict[str, Any]:
    status, reason, result = "ok", None, None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            act = cell.act or DO[cell.content["kind"]]
            work = functools.partial(act, cell, results, place)
            result = limits.within(cell.seconds, cell.memory_mb, work)
        except Refusal as error:
            status, reason = "refused", str(error)
        except limits.OutOfTime as error:
            status, reason = "timeout", f"{error}, the cell's budget"
        except ModuleNotFoundError as error:
            status, reason = "skipped", f"{error.name} is not installed"
        except UsageError as error:
            status, reason = "failed", str(error)
        except Exception as error:
            status, reason = "failed", f"{type(error).__name__}: {str(error).strip() or 'no message'}"
            if isinstance(error, MemoryError) or "allocate" in str(error):
                reason = f"out of memory; the cell's budget is {cell.memory_mb:g} MB" if cell.memory_mb else reason
    if result is not None:
        if result.get("errors"):  # a benchmark that ran, but whose results differ where they should be equal
            status, reason = "failed", " ".join(result["errors"])
        said = [f"{w.category.__name__}: {w.message}" for w in caught]
        result["warnings"] = list(dict.fromkeys([*result.get("warnings", []), *said]))
    document = {"status": status, "reason": reason, "result": result, **_around(cell)}
    # an error of a user's program may name its folder, which does not belong in a result
    return json.loads(json.dumps(_strict(document), ensure_ascii=False).replace(json.dumps(cell.base)[1:-1] + "/", ""))


def _around(cell: Cell) -> dict[str, Any]:
    budget = {"seconds": cell.seconds, "memory_mb": cell.memory_mb}
    return {"date": _folder.today(), "budget": budget, "versions": versions(), "machine": _folder.machine()}


def _strict(value: Any) -> Any:
    """Plain JSON: NaN and infinity become null, NumPy numbers plain ones."""
    if isinstance(value, Mapping):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    if isinstance(value, np.generic | np.ndarray):
        return _strict(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- fits ------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def _prepared(model: str, options: str, data: str, preparation: str, seed: int) -> Prepared:
    """A program on data with its structure, which cells next to each other share; `seed`: for what a user's file draws."""

    if data == "synthetic":
        loaded = replace(datasets.load(synthetic.table(**json.loads(preparation))), name=data)
    else:
        loaded = datasets.load(data, **json.loads(preparation))
    return runner.prepare(find(model, seed), loaded, json.loads(options), [])


def _program(cell: Cell) -> Prepared:
    asked = cells.request(cell.content, cell.base)
    given = {k: v for k, v in asked.preparation.items() if k != "seed" or v}
    executed = asked.seed if source.is_file(asked.model) else 0  # a file may draw numbers of its own
    options = json.dumps(cell.content["model_options"])
    return _prepared(str(asked.model), options, str(asked.data), json.dumps(given), executed)


def _run(
    cell: Cell, prepared: Prepared, folder: Path | None, stored: Stored | None = None, verified: bool = True
) -> Run:
    """A fit, with the time that it takes in a process that has run the method before."""

    asked, options = cells.request(cell.content, cell.base), cell.content["method_options"]
    method = cell.content["method"]
    how: dict[str, Any] = {"seed": asked.seed, "stored": stored, "verified": verified, "request": asked}
    if method not in _warm:
        first = runner.run_prepared(prepared, method, options, **how)
        _warm.add(method)
        if first.seconds > QUICK:
            if folder is not None:
                first.save(folder)
            return first
    return runner.run_prepared(prepared, method, options, **how, folder=folder)


def _fit(cell: Cell, results: _folder.Results, work: Path) -> dict[str, Any]:
    pictures = bool(cell.content.get("pictures"))
    fit = _run(cell, _program(cell), work / "run" if cell.keeps or pictures else None)
    return _described(fit) | ({"pictures": _pictures(work, cell.keeps)} if pictures else {})


def _infer(cell: Cell, results: _folder.Results, work: Path) -> dict[str, Any]:
    """Another method at the θ of the cell that this one needs."""

    assert cell.needs is not None
    theta = results.read(cell.needs)
    if theta is None or theta["status"] != "ok":
        why = "missing" if theta is None else theta["reason"]
        raise UsageError(f"the cell that fits θ has no result ({why}); re-run it with --retry.")
    pictures, folder = bool(cell.content.get("pictures")), results.run(cell.needs)
    if not _folder.is_as_written(folder / "run.json", "run/run.json", theta):
        raise UsageError(f"'{folder}' is damaged: it is not the run of the cell {cell.needs}. Re-run that with --only.")
    fit = _run(cell, _program(cell), work / "run" if pictures else None, _store.load(folder))
    return _described(fit) | ({"pictures": _pictures(work, False)} if pictures else {})


def _described(fit: Run) -> dict[str, Any]:
    """What `zoo run --json` says, without the parameters, and the spread over the data of what is known of each datum."""
    out = {k: v for k, v in fit.to_json().items() if k not in (*LEFT_OUT, "versions")}
    for name in ("khat", "ess"):
        values = getattr(fit, name)
        if values is not None and np.isfinite(values).any():
            out[f"{name}_quantiles"] = np.quantile(values[np.isfinite(values)], QUANTILES).tolist()
    return out


def _pictures(work: Path, keep: bool) -> list[str]:
    """Draw the pictures of the run in `work`; their file names. A run of which nothing can be drawn has none."""
    names: list[str] = []
    with contextlib.suppress(UsageError), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        names = [p.name for p in drawing.plot(work / "run", work / "pictures", "png", DPI)]
    if not keep:
        shutil.rmtree(work / "run")
    return names


# ---- imputation, scaling, other programs -----------------------------------------------------------------------------


def _impute(cell: Cell, results: _folder.Results, work: Path) -> dict[str, Any]:
    content = cell.content
    preparation = {k: v for k, v in content["data"].items() if k not in ("name", "sha256", "seed")}
    name, seed, draws = cells.resolved(content["data"]["name"], cell.base), content["seed"], content["draws"]
    data = imputing.hidden(name, content["hide"], seed, preparation)
    truth: Any = data.truth
    if content.get("baseline"):
        found = imputing.baseline(content["method"], content["method_options"], data.x, draws, seed)
        scores = imputing.scores(truth, data.x, found.mean, found.draws)
        return {"n": len(data.x), "seconds": found.seconds, "warnings": found.warnings, **scores}

    model = cells.resolved(content["model"], cell.base)
    prepared = runner.prepare(model, data, content["model_options"], [], seed=seed)
    fit = _run(cell, prepared, work / "fit")
    filled = fit.impute(draws=draws, seed=seed)
    if fit.center is not None:  # `impute` answers in the data's own units
        filled = replace(
            filled, mean=(filled.mean - fit.center) / fit.scale, draws=(filled.draws - fit.center) / fit.scale
        )
    scores = imputing.scores(truth, data.x, filled.mean, filled.draws)
    full = runner.prepare(model, replace(data, x=truth, truth=None), content["model_options"], [], seed=seed)
    held_out = _held_out(fit, full, _store.load(work / "fit"), scores["hidden"])
    return {**_described(fit), **scores, "held_out": held_out}


def _held_out(fit: Run, full: Prepared, stored: Stored, count: int) -> dict[str, Any] | None:
    """log p(hidden | seen; θ̂) = log p(all; θ̂) − log p(seen; θ̂), nats, with a standard error; None where it cannot be had."""

    able = [m for m in ("em", "importance") if runner.method_module(m).refusal(full.structure) is None]
    if fit.verified is None or not able:
        return None
    if able[0] == "em":  # an exact method needs no guide, and what was a latent may be none where all is seen
        stored = replace(stored, json={**stored.json, "guide": None})
    whole = runner.run_prepared(full, able[0], {}, seed=fit.seed, stored=stored).verified
    if whole is None or (whole.given != fit.verified.given):
        return None
    se = math.hypot(whole.se or 0.0, fit.verified.se or 0.0)
    kind = "exact" if whole.kind == fit.verified.kind == "exact" else "estimate"
    value = whole.value - fit.verified.value
    return {"value": value, "se": se, "kind": kind, "per_entry": value / max(1, count)}


def _scaling(cell: Cell, results: _folder.Results, work: Path) -> dict[str, Any]:
    """Time of a fit, and the memory that it takes beyond what its process held before."""
    prepared = _program(cell)
    if cell.content["method"] not in _warm:
        _run(cell, prepared, None, verified=False)
    limits.give_back()
    before = limits.resident_mb()
    fit = _run(cell, prepared, None, verified=False)
    out = _described(fit)
    return out | {"extra_memory_mb": None if before is None else max(0.0, out["peak_memory_mb"] - before)}


def _benchmark(cell: Cell, results: _folder.Results, work: Path) -> dict[str, Any]:
    """A program of this folder; what it prints is not shown, and a peer that is not installed is named."""
    module = importlib.import_module("benchmarks." + cell.content["name"].replace("/", "."))
    with contextlib.redirect_stdout(io.StringIO()):
        found = checks.measuring(module)(**cell.content["options"])
    return {k: v for k, v in found.items() if k != "versions"}


DO = {
    "fit": _fit,
    "theta": _fit,
    "infer": _infer,
    "impute": _impute,
    "scaling": _scaling,
    "benchmark": _benchmark,
}
