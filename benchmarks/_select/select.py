"""`latent_zoo.select` and `zoo select`: fit a program over a grid of its options, and choose."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from benchmarks._select import ard, bootstrap, fits, grid, parallel
from benchmarks._select.criteria import LARGER, SMALLER, Entry, best, entry
from benchmarks._select.selection import Selection
from benchmarks._select.trial import Trial, checksum, name_of
from benchmarks._suite import bench
from benchmarks._suite.folder import Results
from inference._run.prepare import Found, check_seed, find, method_module, plain
from inference._run.request import DRAWN, PREPARATIONS, Request
from zoo import _options
from zoo._data import datasets
from zoo._data.datasets import Dataset
from zoo._errors import UsageError, unknown
from zoo._program import source
from zoo._program.load import option_schema

COUNTED = ("parallel", "ard")  # what counts factors in the data themselves
CRITERIA = (*SMALLER, *LARGER, *COUNTED)
FOLDS = 5
MOST_REPLICATES = 100_000
Document = dict[str, Any]


@dataclass(frozen=True)
class _Asked:
    """A selection as it was asked for, checked."""

    found: Found
    data: object
    dataset: Dataset
    preparation: dict[str, object]
    grid: dict[str, list[object]]
    by: str
    method: str  # "auto" where none was named
    own: tuple[set[str], set[str]]  # the options of the model, and of the method
    folds: int | None
    restarts: int | None
    replicates: int | None
    seed: int


def select(
    model: object,
    data: object,
    grid: Mapping[str, object],
    *,
    by: str = "bic",
    method: str | None = None,
    folds: int | None = None,
    restarts: int | None = None,
    bootstrap: int | None = None,
    jobs: int | None = None,
    seed: int = 0,
    out: str | PathLike[str] | None = None,
    quiet: bool = True,
    **keywords: object,
) -> Selection:
    """Fit `model` to `data` for every combination of the `grid`'s options, and choose `by` a criterion.

        >>> from latent_zoo import select
        >>> found = select("gmm", "faithful", {"components": range(1, 4)}, restarts=1, jobs=1)
        >>> found.best[0].options
        {'components': 2}

    - `grid`: option of the model or the method → its values: `range(1, 9)`, a list, or text such as `"1:8"`.
    - `by`: `bic`, `icl`, `aic` (the smaller the better), `heldout` (log p of rows left out, in `folds` parts), `evidence` (of
      a program whose parameters have priors), or the number of factors by `parallel` analysis or by `ard`,
      automatic relevance determination.
    - `method`: em when None, laplace where parameters have priors. `restarts`: the most starts of each fit.
    - `bootstrap`: test each K against the next by so many simulated data sets (McLachlan 1987).
    - `jobs`: cells at once. When None, cells run in this process for a few seconds, then one a processor.
    - `out`: a folder for the results. A selection that was stopped resumes from it. None keeps nothing.
    - `keywords`: other options of the model and the method, and how the data are prepared, as in `run`.

    The best cell's ties are kept. A fit that collapsed, or did not converge, has its values in the table and cannot win by
    BIC, ICL or AIC. Raises `UsageError` for what cannot be carried out.
    """
    asked = _asked(model, data, grid, by, method, folds, restarts, bootstrap, seed, keywords)
    if out is not None:
        return _selected(asked, Path(out), jobs, quiet)
    with tempfile.TemporaryDirectory(prefix="zoo-select-") as place:
        return _selected(asked, Path(place) / "results", jobs, quiet, keep=False)


def _asked(
    model: object,
    data: object,
    given: Mapping[str, object],
    by: str,
    method: str | None,
    folds: int | None,
    restarts: int | None,
    replicates: int | None,
    seed: int,
    keywords: Mapping[str, object],
) -> _Asked:
    """Everything that can be checked before any work."""
    if by not in CRITERIA:
        raise unknown("criterion", str(by), CRITERIA)
    if not isinstance(given, Mapping):
        raise UsageError(
            f"Expected options with their values, such as {{'components': range(1, 9)}}, got {given!r:.60}."
        )
    check_seed(seed)
    for what, count, least in (("folds", folds, 2), ("restarts", restarts, 1), ("bootstrap", replicates, 1)):
        _whole(what, count, least)
    preparation = {k: plain(v) for k, v in keywords.items() if k in PREPARATIONS and v is not None and v is not False}
    options = {k: v for k, v in keywords.items() if k not in PREPARATIONS}
    if twice := set(options) & set(given):
        raise UsageError(f"{min(twice)} is in the grid and beside it; give it once.")
    found = find(model, seed)
    methods = ("em", "laplace") if method is None else (method,)
    schemas = [option_schema(found.target), *(_options.schema(method_module(m).fit) for m in methods)]
    what = f"option of model '{name_of(found)}' or method {' or '.join(methods)}"
    fixed: dict[str, list[object]] = {}
    for name, value in options.items():
        fixed[name] = [_options.convert(_owner(name, schemas, what), {name: value}, what)[name]]
    whole: dict[str, list[object]] = {**grid.expand(given, schemas, what), **fixed}
    loaded = datasets.load(data, seed=seed, **preparation)  # type: ignore[arg-type]
    if by == "heldout" or folds is not None:
        folds = folds or FOLDS
        if folds > len(loaded.x):
            raise UsageError(f"folds must be at most {len(loaded.x)}, the rows of the data, got {folds}.")
    if replicates is not None and _counted(whole) is None:
        raise UsageError(
            "bootstrap tests K against the next K: give an option with several whole numbers, as components=1:5."
        )
    if loaded.weights is not None and (replicates is not None or by in COUNTED):
        raise UsageError(f"{'bootstrap' if replicates is not None else by} counts every row once; drop the weights.")
    own = set(schemas[0]), {k for known in schemas[1:] for k in known}
    asked = _Asked(
        found, data, loaded, preparation, whole, by, method or "auto", own, folds, restarts, replicates, seed
    )
    if by in COUNTED:
        {"parallel": parallel, "ard": ard}[by].checked(loaded.x)
    return asked


def _whole(name: str, value: object, least: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool) and least <= value <= MOST_REPLICATES
    if value is not None and not whole:
        raise UsageError(f"Expected a whole number from {least} to {MOST_REPLICATES:,} for {name}, got {value!r}.")


def _owner(name: str, schemas: Sequence[grid.Schema], what: str) -> grid.Schema:
    """The options of the first that knows one of that name."""
    found = next((known for known in schemas if name in known), None)
    if found is None:
        raise unknown(what, name, {key for known in schemas for key in known})
    return found


def _counted(whole: Mapping[str, list[object]]) -> str | None:
    """The first option with several whole numbers."""
    return next(
        (k for k, v in whole.items() if len(v) > 1 and all(isinstance(n, int) and not isinstance(n, bool) for n in v)),
        None,
    )


# ---- cells -----------------------------------------------------------------------------------------------------------


def _trial(asked: _Asked, kind: str, options: Mapping[str, object], **more: object) -> Trial:
    """A cell of the grid's options."""
    found, (model, method) = asked.found, asked.own
    content: Document = {"kind": kind, "model": name_of(found)}
    content["model_options"] = {k: v for k, v in options.items() if k in model}
    if (text := source.fingerprint(found.target)) is not None:
        content["model_text"] = text
    content["data"] = {"name": asked.dataset.name, **asked.preparation, "sha256": checksum(asked.dataset)}
    content |= {"method": asked.method, "method_options": {k: v for k, v in options.items() if k in method}}
    content |= {"seed": asked.seed, "restarts": asked.restarts, **more}
    program = None if isinstance(found.model, str) else found.target
    act = {"select": fits.fit, "heldout": fits.heldout, "bootstrap": bootstrap.refit}[kind]
    return Trial(content, str(Path.cwd()), act=act, dataset=asked.dataset, program=program)


def _selected(asked: _Asked, folder: Path, jobs: int | None, quiet: bool, keep: bool = True) -> Selection:
    """Run the cells that have no result yet, and put them side by side."""
    combinations = list(grid.combinations(asked.grid))
    cells = [_trial(asked, "select", options) for options in combinations]
    held = [
        [_trial(asked, "heldout", o, fold=i, folds=asked.folds, fold_seed=asked.seed) for i in range(asked.folds or 0)]
        for o in combinations
    ]
    results = Results(folder)
    every = [*cells, *(c for row in held for c in row)]
    results.begin("select", "select", f"{name_of(asked.found)} on {asked.dataset.name}", every)
    bench.finish_patiently(every, results, jobs, quiet)
    varied = tuple(k for k, v in asked.grid.items() if len(v) > 1)
    entries = [
        entry(dict(o), varied, _read(results, c), [_read(results, h) for h in row])
        for o, c, row in zip(combinations, cells, held, strict=True)
    ]
    _nothing_at_all(entries)
    horn = parallel.analysis(asked.dataset.x, asked.seed) if asked.by == "parallel" else None
    relevant = ard.relevance(asked.dataset.x) if asked.by == "ard" else None
    counted = horn or relevant
    winners = (
        best(entries, asked.by)
        if counted is None
        else [e for e in entries if e.result.get("factors") == counted.factors]
    )
    found = Selection(
        model=name_of(asked.found),
        data=asked.dataset.name,
        shape=asked.dataset.x.shape,
        by=asked.by,
        grid=asked.grid,
        entries=entries,
        winners=winners,
        requests={e.name: _request(asked, e) for e in entries},
        parallel=horn,
        relevance=relevant,
    )
    if asked.replicates is not None and winners:
        found.ratios = _ratios(asked, winners[0], entries, cells, results, jobs, quiet)
    if keep:
        found.write(results.folder)
    return found


def _read(results: Results, cell: Trial) -> Document:
    document = results.read(cell.id)
    if document is None:
        raise UsageError(f"'{results.folder}' has lost the result of {cell.title}; run the selection again.")
    return dict(document)


def _nothing_at_all(entries: Iterable[Entry]) -> None:
    reasons = [str(e.document["reason"]) for e in entries if e.document["status"] == "ok" or e.document["reason"]]
    if all(e.document["status"] != "ok" for e in entries):
        raise UsageError(f"no cell of the grid has a result: {reasons[0]}")


def _request(asked: _Asked, e: Entry) -> Request:
    """What fits a cell's best start again."""
    result = e.result
    options = {**e.options, **({"start": result["start"]} if "start" in result else {})}
    seed = result.get("seed", asked.seed)
    data, preparation = asked.data, asked.preparation
    if seed != asked.seed and any(k in preparation for k in DRAWN):
        data, preparation = asked.dataset, {}  # as they were drawn, by another seed than the start's
    method = result.get("method") or (None if asked.method == "auto" else asked.method)
    return Request(asked.found.model, data, method, options, preparation, seed)


# ---- likelihood ratios -----------------------------------------------------------------------------------------------


def _ratios(
    asked: _Asked,
    winner: Entry,
    entries: list[Entry],
    cells: list[Trial],
    results: Results,
    jobs: int | None,
    quiet: bool,
) -> list[bootstrap.Ratio]:
    """Tests along the counted option, the winner's other options held."""
    option = _counted(asked.grid)
    assert option is not None
    others = {k: v for k, v in winner.options.items() if k != option}
    line = [
        (e, c)
        for e, c in zip(entries, cells, strict=True)
        if {k: v for k, v in e.options.items() if k != option} == others and e.ended == "ok" and "bic" in e.values
    ]
    line.sort(key=lambda pair: pair[0].options[option])  # type: ignore[arg-type,return-value]  # whole numbers
    cell_of = {c.id: c for _, c in line}
    steps = [(dict(a[0].document), dict(b[0].document)) for a, b in itertools.pairwise(line)]

    def trials(null: Document, alternative: Document, replicates: int) -> list[Trial]:
        theta = bootstrap.theta_of(cell_of[null["id"]], null)
        options = {**alternative["cell"]["model_options"], **alternative["cell"]["method_options"]}
        origin = [null["id"], null["result"]["seed"], null["result"].get("start")]
        more = {"null_options": null["cell"]["model_options"], "origin": origin}
        base = _trial(asked, "bootstrap", options, **more, replicate=0)
        base = replace(base, content={**base.content, "method": null["result"]["method"]}, theta=theta)
        return [replace(base, content={**base.content, "replicate": b}) for b in range(replicates)]

    def finish(some: list[Trial]) -> list[Document]:
        bench.finish_patiently(some, results, jobs, quiet)
        return [_read(results, c) for c in some]

    assert asked.replicates is not None
    return bootstrap.sequence(option, steps, trials, asked.replicates, finish)
