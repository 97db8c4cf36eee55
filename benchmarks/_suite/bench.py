"""Run the missing cells of a suite in parallel. A stop at any moment loses only the cells that are running."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import TypedDict, Unpack

from benchmarks._suite import names, work
from benchmarks._suite.cells import Cell
from benchmarks._suite.documents import Document, SuiteDocument
from benchmarks._suite.folder import RESULTS, Results, text_of
from benchmarks._suite.progress import Progress, spoken
from benchmarks._suite.suite import Suite, load
from benchmarks._suite.work import Outcome
from benchmarks.peers import _turns as turns
from zoo import _options, _show
from zoo._errors import NotWritten, UsageError

WAIT = 0.5  # seconds between two looks at cells that another process is doing
PATIENCE = 5.0  # seconds of cells done in this process before others are started
PROBLEMS = ("failed", "timeout", "missing")


def bench(
    spec: str,
    out: Path | None = None,
    jobs: int | None = None,
    backend: str = "loky",
    retry: bool = False,
    only: list[str] | None = None,
    quiet: bool = False,
) -> SuiteDocument:
    """Run the missing cells of a suite, and return all of its results as one document.

    - `jobs`: cells at once; as many as there are processors when None, and never more than the suite allows.
    - `backend`: joblib's, by name: `loky`, `dask`, `ray`, …; `sequential` runs one at a time in this process, and a
      cell that crashes ends it (re-run the suite to resume). The other backends survive a crash.
    - `retry`: re-run cells that failed or ran out of time. `only`: re-run only cells whose ids start so.

    Raises `UsageError` before any work where something is wrong with the suite.
    """
    suite = load(spec)
    cells = _chosen(suite, only)
    jobs = _jobs(suite, jobs, quiet)
    with _backend(backend, jobs) as parallel:
        results = Results(out or RESULTS / suite.name)
        results.begin(suite.name, suite.spec, suite.about, suite.cells)
        wanted = [c for c in cells if not only or c.id.startswith(tuple(only))]
        redo = "all" if only else "failed" if retry else ""
        # θ first; what `only` needs but does not name is not done again
        phases = [([c for c in cells if c not in wanted], "")]
        phases += [([c for c in wanted if (c.needs is None) is first], redo) for first in (True, False)]
        todo = [([c for c in phase if not results.done(c, how)], how) for phase, how in phases]
        _carry_out(todo, results, parallel, jobs, quiet)
    return results.collected()


def finish(
    cells: Sequence[Cell], results: Results, jobs: int | None = None, backend: str = "loky", quiet: bool = False
) -> None:
    """Run those of the cells that have no result yet, or failed; their results are in the folder afterwards.

    `jobs`: at once, as many as there are processors when None, and no more than there are cells to run.
    """
    import joblib

    todo = [c for c in cells if not results.done(c, "failed")]
    if todo:
        jobs = min(jobs or joblib.cpu_count(), len(todo))
        with _backend(backend, jobs) as parallel:
            _carry_out([(todo, "failed")], results, parallel, jobs, quiet)


def finish_patiently(cells: Sequence[Cell], results: Results, jobs: int | None, quiet: bool) -> None:
    """`finish` in this process, and where that takes long and `jobs` allows, in others."""
    began, left = time.monotonic(), [c for c in cells if not results.done(c, "failed")]
    while left and jobs is None and time.monotonic() - began < PATIENCE:
        finish(left[:1], results, 1, "sequential", quiet=True)
        left = left[1:]
    if left:
        finish(left, results, jobs, "sequential" if jobs == 1 else "loky", quiet)


def _carry_out(
    phases: list[tuple[list[Cell], str]], results: Results, parallel: Parallel, jobs: int, quiet: bool
) -> None:
    """Run the cells of one phase after the other. Raises `NotWritten` where a result does not fit on the disk."""
    with Progress([work.key(c) for phase, _ in phases for c in phase], jobs, quiet) as progress:
        for phase, how in phases:
            for outcome in _finish(phase, results, how, parallel):
                progress.step(outcome)
                if outcome.status == work.UNWRITTEN:
                    results.sweep()
                    raise NotWritten(str(outcome.reason), results.collected())
    results.sweep()


def _chosen(suite: Suite, only: list[str] | None) -> list[Cell]:
    """The cells whose ids begin so, with those whose θ they need."""
    if not only:
        return list(suite.cells)
    for start in only:
        if not any(c.id.startswith(start) for c in suite.cells):
            raise UsageError(
                f"no cell of the suite '{suite.name}' has an id that starts with '{start}'; the ids are in its results folder."
            )
    found = [c for c in suite.cells if c.id.startswith(tuple(only))]
    needed = {c.needs for c in found}
    return [c for c in suite.cells if c in found or c.id in needed]


def _jobs(suite: Suite, jobs: int | None, quiet: bool) -> int:
    import joblib

    most = suite.jobs or joblib.cpu_count()
    if jobs is not None and jobs > most and suite.jobs is not None and not quiet:
        print(f"{suite.name}: at most {most} at once, as more would distort its times.", file=sys.stderr)
    return min(jobs or joblib.cpu_count(), most) if suite.jobs else jobs or most


# ---- running cells ---------------------------------------------------------------------------------------------------


Parallel = Callable[[list[Cell], str, str], Iterator[Outcome]]  # cells, folder and `redo` → outcomes as they come


def _finish(cells: list[Cell], results: Results, redo: str, parallel: Parallel) -> Iterator[Outcome]:
    """Every cell's outcome. Waits for cells that another process is running, and takes them over if it dies."""
    left = cells
    while left:
        busy = set()
        for outcome in _survive(left, results, redo, parallel):
            if outcome.status == "busy":
                busy.add(outcome.id)
            else:
                yield outcome
        left = [c for c in left if c.id in busy]
        if left:
            time.sleep(WAIT)


def _survive(cells: list[Cell], results: Results, redo: str, parallel: Parallel) -> Iterator[Outcome]:
    """Like `parallel`, but a worker that dies, out of memory for example, loses only its own cell.

    A worker's death ends all that run in parallel, and does not say whose it was. The cells that dead processes left
    unfinished are suspects (every cell left, where none is known): each is done alone, and the rest in parallel again.
    """
    left = cells
    while left:
        seen: set[str] = set()
        try:
            for outcome in parallel(left, str(results.folder), redo):
                seen.add(outcome.id)
                yield outcome
            return
        except Exception:  # `run_cell` never raises: a worker died
            suspects = results.sweep()
        left = [c for c in left if c.id not in seen]
        alone = [c for c in left if c.id in suspects] or left
        yield from _alone(alone, str(results.folder), redo)
        left = [c for c in left if c not in alone]


def _alone(cells: list[Cell], folder: str, redo: str = "") -> Iterator[Outcome]:
    """One at a time, in a process of their own; when that dies, it is known which cell it was."""
    executor: ProcessPoolExecutor | None = None
    try:
        for cell in cells:
            executor = executor or ProcessPoolExecutor(
                1, get_context("spawn"), initializer=_begin, initargs=(os.getpid(),)
            )
            try:
                yield executor.submit(work.run_cell, cell, folder, redo, None, os.getpid()).result()
            except BrokenProcessPool:
                executor = None
                Results(folder).sweep()
                yield work.crashed(cell, folder, "its process died; it may have run out of memory")
    finally:
        if executor is not None:
            for process in list((getattr(executor, "_processes", None) or {}).values()):
                process.terminate()
            executor.shutdown(wait=False, cancel_futures=True)


def _begin(parent: int) -> None:
    """A worker ignores Ctrl-C, which the main process handles, and ends when the main process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.getppid() != parent:  # it was killed while this one was starting
        os._exit(1)
    work.end_with(parent)


@contextlib.contextmanager
def _backend(name: str, jobs: int) -> Iterator[Parallel]:
    """A function of cells, folder and `redo` that gives outcomes as they come."""
    import joblib

    if name == "loky" and jobs == 1:
        yield _alone
        return
    with contextlib.ExitStack() as stack:
        how: Document = {"initializer": _begin, "initargs": (os.getpid(),)} if name == "loky" else {}
        if name == "dask":
            stack.enter_context(_dask(jobs))
        elif name == "ray":
            _module("ray.util.joblib", name).register_ray()
        threads = max(1, joblib.cpu_count() // jobs) if name in ("loky", "multiprocessing") else None
        try:
            stack.enter_context(joblib.parallel_config(name, n_jobs=jobs, **how))
        except ValueError as error:
            known = ", ".join(sorted({*joblib.parallel.BACKENDS, "dask", "ray"}))
            raise UsageError(f"unknown backend '{name}'; known: {known}.") from error

        def outcomes(cells: list[Cell], folder: str, redo: str) -> Iterator[Outcome]:
            tasks = (joblib.delayed(work.run_cell)(c, folder, redo, threads, os.getpid()) for c in cells)
            yield from joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs")(tasks)

        with warnings.catch_warnings():  # whoever interrupts a suite knows that
            warnings.filterwarnings("ignore", message=".*unnecessary computation time")
            yield outcomes


def _dask(jobs: int) -> contextlib.AbstractContextManager[object]:
    """The cluster whose scheduler Dask's settings name (DASK_SCHEDULER_ADDRESS), or one on this machine."""
    distributed = _module("distributed", "dask")
    import dask

    here = {"n_workers": jobs, "threads_per_worker": 1, "dashboard_address": None}
    client: contextlib.AbstractContextManager[object] = distributed.Client(
        **({} if dask.config.get("scheduler-address", None) else here)
    )
    return client


def _module(name: str, backend: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the backend '{backend}' needs the package {error.name}, which is not installed; install it."
        ) from error


# ---- the command -----------------------------------------------------------------------------------------------------


class How(TypedDict, total=False):
    """The options of `bench`, as the command line has them."""

    out: Path | None
    jobs: int | None
    backend: str
    retry: bool
    only: list[str] | None
    quiet: bool


def main(
    name: str,
    json: bool = False,
    quick: bool = False,
    settings: dict[str, str] | None = None,
    model: str | None = None,
    **how: Unpack[How],
) -> int:
    """`zoo bench NAME`: a suite, or a benchmark that is a program, with its own `settings`. The exit status.

    `model`: a model or a run, for a benchmark that takes one.
    """
    if names.find(name) is None:
        module = importlib.import_module("benchmarks." + name.replace("/", "."))
        program = module.main if hasattr(module, "main") else module.measure  # what is measured alone is shown here
        known = _options.schema(program)
        given = {k: v for k, v in {"model": model, **how}.items() if v not in (None, False, [], "loky")}
        for key in given.keys() - known.keys():
            what = "takes no MODEL" if key == "model" else f"has no option --{key}, which is for suites"
            raise UsageError(f"the benchmark '{name}' {what}; leave it out.")
        own = {k: p for k, p in known.items() if k not in ("json", "quick", "model", *how)}
        rest = dict(settings or {})
        mine = {k: rest.pop(k) for k in list(rest) if k in known or not getattr(module, "OPTIONS_OF_THE_MODEL", False)}
        given |= rest | _options.convert(own, mine, f"option of the benchmark '{name}'")
        given |= {"quick": quick} if "quick" in known else {}
        if not hasattr(module, "main"):
            turns.show(program(**given), json)
        else:
            program(json=json, **given)
        return 0
    if model is not None:
        raise UsageError(f"the suite '{name}' takes no MODEL: its file names its models. Leave it out.")
    if settings:
        raise UsageError("--set is for benchmarks that are programs; write a suite's options in its file.")
    if quick:
        raise UsageError("--quick is for benchmarks that are programs; use the suite 'smoke' for a quick one.")
    if how.get("backend") == "sequential":  # one at a time, but in a process that may die: the command must not
        how["backend"], how["jobs"] = "loky", 1
    began, unwritten = time.monotonic(), None
    try:
        document = bench(name, **how)
    except NotWritten as error:
        if error.result is None:
            raise
        document, unwritten = error.result, error
    if json:
        print(text_of(document))
    else:
        _say(document, how.get("out") or RESULTS / document["suite"], time.monotonic() - began)
    if unwritten is not None:
        raise unwritten
    return 1 if any(document["counts"].get(p) for p in PROBLEMS if p != "missing" or not how.get("only")) else 0


def _say(document: SuiteDocument, folder: Path, seconds: float) -> None:
    """Print the outcome, and where the results are."""
    counts = ", ".join(f"{n} {status}" for status, n in document["counts"].items())
    out = _show.console()
    for cell in document["cells"]:
        if cell["status"] in PROBLEMS:
            said = f"{_show.escape(cell['command'])}: {_show.escape(cell['reason'] or '')}"
            out.print(f"[red]{_show.escape(cell['status'])}[/] {said}", soft_wrap=True)
    out.print(f"{document['suite']}: {len(document['cells'])} cells, {counts}; {spoken(seconds)}", soft_wrap=True)
    out.print(f"{folder}; for a page: zoo report {folder}", soft_wrap=True)
