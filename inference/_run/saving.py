"""What a run folder holds of a run: how many draws fit beside the data, and the tables for people.

Draws and simulated data are many times as large as the data that they belong to. A folder keeps the first of them, as many as
take about twice the memory of the data (or a megabyte, for small data, which keep all), and a note says how many that is. What
imputing and leave-one-out need stays. Each row's evidence, moments and probabilities stay too, up to `MOST_BYTES`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from inference._answers import readme, rows, table
from inference._answers.names import names_of
from inference._answers.parameters import MOST_NUMBERS, Parameters
from inference._answers.rows import Rows
from inference._answers.table import Table
from inference._method.task import Task
from inference._run.record import Record

MOST_BYTES = 64 << 20  # of what a file holds for each row, beside the data
SMALL_BYTES = 1 << 20  # of draws, and of simulated data, that a file holds however small the data are
MOST_CELLS = 2_000_000  # of rows.csv: 40 MB, two seconds
GLOBAL_DRAWS = 100  # of globals, whose spread is told by them
IMPUTED = 20  # draws that imputing takes, unless told otherwise
PARAMETERS, ROWS, README = "parameters.csv", "rows.csv", "README.txt"


# ----------------------------------------------------------------------------------------------------- what fits a file


def bounded(run: Record, slots: tuple[str, ...], exact: bool) -> Record:
    """The run as its file shall hold it; `slots`: sites whose missing entries are latents; `exact`: its posterior is."""
    kept = {k: v for k, v in run.probabilities.items() if any(s in k for s in slots)}
    out, left = _thinned(run)
    out, said = _fewer_draws(out, slots, exact)
    steps: list[tuple[str, Callable[[Record], Record]]] = [
        ("posterior predictive data", lambda r: replace(r, predicted=replace(r.predicted, simulated={}))),
        ("posterior means", lambda r: replace(r, fit=replace(r.fit, means={}, deviations={}))),
        ("each row's posterior probabilities", lambda r: replace(r, fit=replace(r.fit, probabilities=kept))),
        ("pointwise log-likelihoods", lambda r: replace(r, predicted=replace(r.predicted, log_likelihood=None))),
    ]
    for what, without in steps:
        fewer = without(out)
        if _size(out) > MOST_BYTES and _size(fewer) < _size(out):
            out, left = fewer, [*left, what]
    if (factor := _size(out) / MOST_BYTES) > 1:
        draws = {k: v[: max(1, int(len(v) / factor))] for k, v in out.draws.items()}
        out, left = replace(out, fit=replace(out.fit, draws=draws)), [*left, "all but a few draws"]
    if left:
        sentence = f"the run folder leaves out {', '.join(left)}: over {MOST_BYTES >> 20} MB."
        if sentence not in run.warnings:
            run.fit = run.fit.with_notes([sentence])
    if said:
        run.fit = run.fit.with_notes([], {"stored": said})
    out.fit = replace(out.fit, warnings=run.warnings, notes=run.notes)
    return out


def _fewer_draws(run: Record, slots: tuple[str, ...], exact: bool) -> tuple[Record, str]:
    """The run with the first of its draws and of its simulated data, and how many those are; "" where all are kept."""
    most, said = max(SMALL_BYTES, run.x.nbytes), list[str]()
    predicted, fit = run.predicted, run.fit
    if predicted.simulated:
        had = len(next(iter(predicted.simulated.values())))
        count = min(had, max(1, int(most / _packed(list(predicted.simulated.values())))))
        if count < had:
            said.append(f"{count} of {had} simulated data sets")
            predicted = replace(predicted, simulated={k: v[:count] for k, v in predicted.simulated.items()})
    missing = bool(np.isnan(run.x).any())
    needed = predicted.log_likelihood is not None or (missing and (bool(slots) or not exact))
    if fit.draws and not needed:  # leave-one-out, and imputing by draws, are worse with fewer
        drawn = list(fit.draws.values())
        varies = any(k not in run.local_sites for k in fit.draws)
        least = max(GLOBAL_DRAWS if varies else 1, IMPUTED if missing else 1)
        had = len(drawn[0])
        count = min(had, max(least, int(most / _packed(drawn))))
        if count < had:
            said.append(f"{count} of {had} posterior draws")
            fit = replace(fit, draws={k: v[:count] for k, v in fit.draws.items()})
    if not said:
        return run, ""
    return replace(run, fit=fit, predicted=predicted), f"the first {' and '.join(said)}"


def _packed(arrays: list[np.ndarray]) -> float:
    """Bytes that a draw of all of `arrays` [draws, …] takes in a file, compressed: estimated from the first."""
    total = 0.0
    for values in arrays:
        one = np.ascontiguousarray(values[0]).reshape(-1)[: 2**18]
        shuffled = one.view(np.uint8).reshape(len(one), -1).T.tobytes() if len(one) else b""  # as HDF5 has them
        total += len(zlib.compress(shuffled, 1)) * values[0].size / max(1, len(one))
    return max(total, 1.0)


def _thinned(run: Record) -> tuple[Record, list[str]]:
    """The run without each row's evidence, and without x under a second name, where that is too much; and what is left out."""
    out, left = run, list[str]()
    told = [e for e in (run.claimed, run.verified) if e is not None]
    each = [a for e in told for a in (e.per_datum, e.se_per_datum) if a is not None]
    if sum(a.nbytes for a in each) > MOST_BYTES:
        claimed, verified = (e and replace(e, per_datum=None, se_per_datum=None) for e in (run.claimed, run.verified))
        out, left = replace(out, fit=replace(out.fit, claimed=claimed), verified=verified), ["each row's evidence"]
    twice = [k for k, v in run.observed.items() if _is_view(v, run.x)]
    if run.x.nbytes > MOST_BYTES and twice:
        observed = {k: v for k, v in run.observed.items() if k not in twice}
        out = replace(out, predicted=replace(out.predicted, observed=observed))
        left.append(f"{', '.join(map(repr, twice))} of observed_data, equal to x")
    return out, left


def _is_view(value: np.ndarray, x: np.ndarray) -> bool:
    """Whether `value` is all of x, in the same place of the memory."""
    one, other = value.__array_interface__, x.__array_interface__
    return bool(value.shape == x.shape and value.strides == x.strides and one["data"] == other["data"])


def _size(run: Record) -> int:
    fit = run.fit
    arrays = [*run.predictive.values(), run.log_likelihood, *fit.probabilities.values(), *fit.draws.values()]
    return sum(a.nbytes for a in (*arrays, *fit.means.values(), *fit.deviations.values()) if a is not None)


# ------------------------------------------------------------------------------------------------------ tables and words


def known_rows(run: Record, task: Task | None = None) -> Rows:
    """What the run itself holds of each of its rows. `task`: at its θ, for an exact log p(x_i) where the run's evidence has
    integrated the globals out, and does not split over rows."""
    found = rows.of_sites(None, run.probabilities, run.means, run.deviations, run.draws, run.local_sites)
    told = next((e for e in (run.verified, run.claimed) if e is not None and e.per_datum is not None), None)
    found = replace(found, khat=run.khat, ess=run.ess, source=_source(run, found.source))
    if told is None and task is not None and task.structure.is_exact:
        wide, names = task.doubled(), ", ".join(task.globals)
        given = f"the point values of {names}" if names else ""
        return replace(found, log_p=wide.engine.per_datum(None, wide.globals).numpy(), given=given)
    if told is None:
        return found
    return replace(found, log_p=told.per_datum, kind=told.kind, se=told.se_per_datum, given=told.given)


def _source(run: Record, how: str) -> str:
    exact = run.claimed is not None and run.claimed.kind == "exact" and not how
    return rows.EXACT if exact else f"as {run.method} found it{f', {how}' if how else ''}"


def write_tables(run: Record, work: Path, found: Rows, parameters: Parameters) -> tuple[str, ...]:
    """Put `parameters.csv`, `rows.csv` and `README.txt` into the folder `work`; the names of what was written."""
    cells = Table(parameters.table(MOST_NUMBERS), full=True)
    table.write(work / PARAMETERS, [cells])
    whole = found.table(names_of(run.dataset))
    left_out = len(whole) * len(whole.columns) > MOST_CELLS
    if not left_out:
        table.write(work / ROWS, [whole])
    text = readme.text(readme.About(run.to_document(), tuple(whole.columns), found, left_out, _large(parameters)))
    (work / README).write_text(text, encoding="utf-8")
    return (PARAMETERS, README) if left_out else (PARAMETERS, ROWS, README)


def _large(parameters: Parameters) -> list[str]:
    return [name for name, value in parameters.items() if np.size(value) > MOST_NUMBERS]


def axes_as_json(parameters: Parameters) -> dict[str, list[int]]:
    """Which axes of parameters belong to columns, for `run.json`."""
    out: dict[str, list[int]] = json.loads(json.dumps({k: list(v) for k, v in parameters.known.axes.items()}))
    return out
