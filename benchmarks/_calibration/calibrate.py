"""`latent_zoo.calibrate` and `zoo calibrate`: is a method's posterior as wide as it ought to be, and in the right place?"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._calibration.calibration import Calibration
from benchmarks._calibration.simulation import drawn, prepared_task, simulate
from benchmarks._select.trial import Trial, checksum, name_of
from benchmarks._suite import bench
from benchmarks._suite.folder import Results
from inference._run import result, runner
from inference._run.prepare import Prepared, check_seed, check_serves, find, plain
from inference._run.result import Run
from zoo._data.options import PREPARATIONS
from zoo._errors import Refusal, UsageError
from zoo._program import source
from zoo._program.load import option_schema, simulated

SIMULATIONS, DRAWS, ROWS = 200, 99, 50
MOST, MOST_DRAWS = 10_000, 10_000
BATCH = 5  # simulations of one cell
Document = dict[str, Any]
Theta = Mapping[str, np.ndarray]


def calibrate(
    model: object,
    method: str = "em",
    *,
    data: object = None,
    theta: object = None,
    simulations: int = SIMULATIONS,
    rows: int | None = None,
    draws: int = DRAWS,
    jobs: int | None = None,
    seed: int = 0,
    out: str | PathLike[str] | None = None,
    quiet: bool = True,
    **keywords: object,
) -> Calibration:
    """Simulation-based calibration of `method` on `model`: do its posteriors hold the truth as often as they say?

        >>> import pyro, pyro.distributions as dist
        >>> from latent_zoo import calibrate
        >>> def coins(x=None, size=None):
        ...     p = pyro.sample("p", dist.Beta(2.0, 3.0))
        ...     with pyro.plate("data", size if x is None else len(x)):
        ...         return pyro.sample("x", dist.Binomial(10, p), obs=x)
        >>> calibrate(coins, "em", simulations=3, rows=5, jobs=1).verdict
        'too few simulations'

    Each simulation draws the latents from their priors and data from the program, fits the data, and ranks the true values
    among about independent posterior draws (Talts et al. 2018). θ is held fixed, in drawing and in fitting.

    - `data`: gives a model that is built on data its shape and start values, and covariates and holes to the simulated data.
      Without it the program is asked for `rows` rows (50).
    - `theta`: a run, or its folder, whose θ is taken; the start values when None.
    - `simulations`: how many. `draws`: posterior draws at most that a rank is taken among.
    - `jobs`: cells at once. When None, cells run in this process for a few seconds, then one a processor.
    - `out`: a folder for the results. A calibration that was stopped resumes from it, and more simulations add to it.
    - `keywords`: other options of the model and the method, and how the data are prepared, as in `run`.

    Raises `UsageError` for what cannot be carried out, `Refusal` where the method cannot serve the program.
    """
    checked_counts(simulations, draws, seed)
    trial = asked(model, method, data, theta, rows, seed, keywords)
    content = {**trial.content, "kind": "calibrate", "draws": draws}
    cells = list(batches(trial, content, simulations, simulate))
    found = carried_out(cells, out, jobs, quiet, "calibrate")
    outcomes = [s for document in found for s in document["simulations"]]
    calibration = Calibration(
        model=content["model"],
        data=content["data"]["name"],
        method=method,
        shape=trial.data.x.shape,
        theta={n: v.shape for n, v in (trial.theta or {}).items()},
        outcomes=outcomes,
    )
    if out is not None:
        calibration.write(Path(out))
    return calibration


def checked_counts(simulations: int, draws: int, seed: int) -> None:
    """Raise `UsageError` for a number that is not one."""
    check_seed(seed)
    for name, value, least, most in (("simulations", simulations, 2, MOST), ("draws", draws, 9, MOST_DRAWS)):
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise UsageError(f"Expected a whole number from {least} to {most:,} for {name}, got {value!r:.40}.")


def asked(
    model: object,
    method: str,
    data: object,
    theta: object,
    rows: int | None,
    seed: int,
    keywords: Mapping[str, object],
) -> Trial:
    """What all cells share, with everything checked that can be checked before any work."""
    found = find(model, seed)
    preparation = {k: plain(v) for k, v in keywords.items() if k in PREPARATIONS and v is not None and v is not False}
    given = {k: v for k, v in keywords.items() if k not in PREPARATIONS}
    known = option_schema(found.target)
    own = {k: v for k, v in given.items() if k in known}
    if data is None:
        if preparation:
            raise UsageError(f"{min(preparation)} prepares data: give it with --data.")
        data = simulated(found.target, found.name, own, rows or ROWS, seed).numpy()
        name = "simulated rows"
    else:
        preparation |= {} if rows is None else {"rows": rows}
        name = ""
    prepared = runner.prepare(found, data, given, [method], seed=seed, **preparation)
    _check(prepared, method)
    content: Document = {"model": name_of(found), "model_options": own}
    if (text := source.fingerprint(found.target)) is not None:
        content["model_text"] = text
    dataset = prepared.data
    content["data"] = {"name": name or dataset.name, **preparation, "rows": len(dataset.x), "sha256": checksum(dataset)}
    content |= {"method": method, "method_options": {k: v for k, v in given.items() if k not in own}, "seed": seed}
    values = _theta(prepared, theta, seed)
    content["theta"] = hashlib.sha256(b"".join(v.tobytes() for v in values.values())).hexdigest()[:16]
    program = None if isinstance(found.model, str) else found.target
    trial = Trial(content, str(Path.cwd()), dataset=dataset, program=program, theta=values)
    drawn(prepared_task(trial, dataset.x), np.random.default_rng(seed))  # a program that does not simulate says so now
    return trial


def _check(prepared: Prepared, method: str) -> None:
    """Raise `Refusal` where there is nothing to calibrate, or the method cannot serve."""
    structure = prepared.structure
    if prepared.weights is not None:
        raise UsageError("calibration draws each row once: leave out the weights.")
    if not (structure.global_latents or structure.local_latents):
        raise Refusal(
            f"'{prepared.name}' has no latents, so there is no posterior to calibrate: give its parameters priors (pyro.sample "
            "in place of pyro.param)."
        )
    check_serves(prepared, method, learn=False)


def _theta(prepared: Prepared, given: object, seed: int) -> dict[str, np.ndarray]:
    """θ of a run, or the program's own start values."""
    own = {n: v.detach().numpy() for n, v in prepared.program(seed).values().items()}
    if given is None:
        return own
    run = given if isinstance(given, Run) else result.load(given)  # type: ignore[arg-type]
    out = {}
    for name, value in own.items():
        if name not in run.parameters or run.parameters[name].shape != value.shape:
            raise UsageError(
                f"the run has no value of shape {value.shape} for the parameter '{name}': give the run's own model, options "
                "and data."
            )
        out[name] = np.asarray(run.parameters[name], dtype=value.dtype)
    return out


# ---- cells -----------------------------------------------------------------------------------------------------------


def batches(trial: Trial, content: Document, simulations: int, act: Any) -> Iterator[Trial]:
    """Cells of a few simulations each."""
    for first in range(0, simulations, BATCH):
        part = {"first": first, "count": min(BATCH, simulations - first)}
        yield replace(trial, content={**content, **part}, act=act)


def carried_out(
    cells: Sequence[Trial], out: str | PathLike[str] | None, jobs: int | None, quiet: bool, suite: str
) -> list[Document]:
    """The results of all cells, those that are there already taken from the folder.

    Raises `Refusal` where the first cell was refused, `UsageError` where one has no result.
    """
    if out is None:
        with tempfile.TemporaryDirectory(prefix="zoo-calibrate-") as place:
            return carried_out(cells, Path(place) / "results", jobs, quiet, suite)
    results = Results(out)
    results.begin(suite, suite, cells[0].title, cells)
    bench.finish(cells[:1], results, 1, "sequential", quiet=True)  # what is refused on the first data is on all
    _result(results, cells[0])
    bench.finish_patiently(cells, results, jobs, quiet)
    return [_result(results, cell) for cell in cells]


def _result(results: Results, cell: Trial) -> Document:
    document = results.read(cell.id)
    if document is not None and document["status"] == "refused":
        raise Refusal(str(document["reason"]))
    found = None if document is None else document.get("result")
    if document is None or document["status"] != "ok" or found is None:
        why = "its file is gone" if document is None else document["reason"]
        raise UsageError(f"{cell.title} has no result ({why}); run the calibration again.")
    return found
