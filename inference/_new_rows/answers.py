"""What a run answers for rows: as tables in Python, and as files for the command line."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from inference._answers import table as _table
from inference._answers.impute import Imputation
from inference._answers.names import columns_of, names_of
from inference._answers.rows import Rows
from inference._answers.table import Table
from inference._method.fit import Evidence
from inference._new_rows.ahead import by_step as steps_of
from inference._new_rows.asked import NewRows, asked_of, new_rows
from inference._run import folder as _store
from inference._run import predictive
from inference._run.entrance import entrance, seeded
from inference._run.failures import in_words
from inference._run.prepare import check_seed
from inference._run.result import Run, load
from inference._run.saving import known_rows
from zoo import _atomic
from zoo._errors import UsageError
from zoo._options import flags

Preparation = Mapping[str, object]
Take = Callable[[Rows, np.ndarray], None]
SIZE = 100  # rows that are sampled, unless told otherwise
MOST_SAMPLED = 100_000_000  # numbers


# ----------------------------------------------------------------------------------------------------------------- rows


def predict(
    run: Run, data: object, preparation: Preparation, ahead: int | None = None, by_step: bool = False
) -> pd.DataFrame:
    """`Run.predict`."""
    flags(by_step=by_step)
    if by_step or ahead is not None:
        found, steps = steps_of(run, ahead, by_step, data, preparation)
        frame = found.frame()
        frame.attrs["posterior"] = steps.told
        _tell(steps.known)
        return frame
    tables: list[Table] = []
    asked = _each(run, data, preparation, lambda found, names: tables.append(found.table(names)))
    _tell(asked)
    return _indexed(_table.joined(tables).frame("row"), data, asked)


def transform(run: Run, data: object, preparation: Preparation) -> pd.DataFrame:
    """`Run.transform`."""
    tables: list[Table] = []
    asked = _each(run, data, preparation, lambda found, names: tables.append(found.features(names)))
    _tell(asked)
    if len(tables[0].columns) == 1:
        raise UsageError(f"'{run.model}' has no latents of its own for each row: there is nothing to transform to.")
    return _indexed(_table.joined(tables).frame("row"), data, asked)


def score(run: Run, data: object, preparation: Preparation) -> Evidence:
    """`Run.score`."""
    asked = None if data is None else new_rows(run, data, preparation)
    found = (run.verified or run.claimed) if asked is None else asked.score()
    if found is None:
        raise UsageError(
            f"{run.method} says nothing of log p(x) here; take another method to the run (infer(run, 'importance', data=…))."
        )
    _tell(asked)
    return found


def impute(run: Run, data: object, preparation: Preparation, draws: int, seed: int) -> Imputation:
    """`Run.impute`, of new rows."""
    asked = new_rows(run, data, preparation)
    found = asked.impute(draws, seed)
    _tell(asked)
    return found


def _tell(asked: NewRows | None) -> None:
    """Warn of what the method, which may have been run on these rows, and the verifier say: a table has no place for it."""
    for sentence in dict.fromkeys([] if asked is None else asked.said):
        warnings.warn(sentence, UserWarning, stacklevel=4)


def _each(run: Run, data: object, preparation: Preparation, take: Take) -> NewRows | None:
    """Call `take` for some rows after the other: of new data, or of the run's own as it holds them."""
    if data is None and not preparation and not (_left_out(run) or _nothing_of_log_p(run)):
        take(known_rows(run), names_of(run.dataset))
        return None
    asked = asked_of(run, data, preparation)
    asked.each(take)
    return asked


def _nothing_of_log_p(run: Run) -> bool:
    """Whether the run's evidence does not split over its rows (globals are integrated out), and its program is at hand."""
    if any(e is not None and e.per_datum is not None for e in (run.verified, run.claimed)):
        return False
    return run.live is not None or (run.stored is not None and run.stored.may_execute())


def _left_out(run: Run) -> bool:
    """Whether the run has latents for each row of which it holds nothing, since they are too many."""
    return bool(run.local_sites) and not (
        run.probabilities or run.means or any(s in run.draws for s in run.local_sites)
    )


def _indexed(frame: pd.DataFrame, data: object, asked: NewRows | None) -> pd.DataFrame:
    """With the index of a data frame that was given, where its rows have no other names."""
    if (
        asked is None
        or asked.data.row_names is not None
        or not isinstance(data, pd.DataFrame)
        or len(data) != len(frame)
    ):
        return frame
    return frame.set_index(data.index)


# -------------------------------------------------------------------------------------------------------------- sampling


def sample(run: Run, n: int | None, given: object, seed: int) -> pd.DataFrame:
    """`Run.sample`."""
    found, asked = sampled(run, n, given, seed, {})
    _tell(asked)
    frame = found.frame()
    if given is None:
        return frame
    index = pd.MultiIndex.from_arrays([frame.pop("draw"), frame.pop("row")])
    return frame.set_index(index)


def sampled(
    run: Run, n: int | None, given: object, seed: int, preparation: Preparation
) -> tuple[Table, NewRows | None]:
    """n new rows; or, with `given`, n draws of what is missing there, with the columns `draw` and `row` before."""
    check_seed(seed)
    size = (SIZE if given is None else 1) if n is None else n
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise UsageError(f"Expected a whole number of 1 or more for the size of a sample, got {size!r:.40}.")
    if size * run.x[:1].size > MOST_SAMPLED:
        raise UsageError(f"Expected a sample of at most {MOST_SAMPLED:,} numbers, got {size * run.x[:1].size:,}.")
    if given is None:
        return _in_words(Table(_by_column(_simulated(run, int(size), seed), columns_of(run.dataset))), run), None
    asked = new_rows(run, given, preparation, partial=True)
    if not np.isnan(asked.data.x).any():
        raise UsageError("nothing is missing in the rows that are given: there is nothing to sample.")
    return _in_words(asked.impute(int(size), seed).drawn(), run), asked


def _in_words(table: Table, run: Run) -> Table:
    """With the names of categories in place of their codes, in columns that hold nothing but codes."""
    columns = dict(table.columns)
    for name, levels in run.dataset.options.get("categories", {}).items():
        codes = columns.get(name)
        if codes is not None and np.isin(codes, np.arange(len(levels))).all():
            columns[name] = np.array(levels, dtype=object)[codes.astype(int)]
    return replace(table, columns=columns)


@entrance
def _simulated(run: Run, n: int, seed: int) -> np.ndarray:
    """n new rows [n, …] from the program, in the data's own units."""
    with seeded(seed), in_words(run.model, "sampling"):
        x = predictive.simulate(run.at_theta(), n)
    return x if run.center is None or run.scale is None else x * run.scale + run.center


def _by_column(x: np.ndarray, columns: tuple[str, ...]) -> dict[str, np.ndarray]:
    flat = x.reshape(len(x), -1)
    return {name: flat[:, j] for j, name in enumerate(columns)}


# ------------------------------------------------------------------------------------------- files, for the command line


@dataclass(frozen=True)
class Written:
    """A file that was written, and what there is to say of it."""

    path: str
    rows: int
    columns: list[str]
    evidence: Evidence | None = None
    source: str = ""
    warnings: tuple[str, ...] = ()
    weight: float = 0.0  # how many rows those stand for, which the evidence is of
    standardized: bool = False  # log p(x) and latents are of the standardized data

    def to_json(self, run: Path) -> dict[str, Any]:
        """JSON-ready."""
        out: dict[str, Any] = {"run": str(run), "file": self.path, "rows": self.rows, "columns": self.columns}
        if self.source:
            out["posterior"] = self.source
        if self.evidence is not None:
            out["log_p"] = self.evidence.to_json(self.weight)
        return out | {"standardized": self.standardized, "warnings": list(self.warnings)}


def write_predictions(
    run: Run, data: object, preparation: Preparation, out: str | os.PathLike[str] | None, only_log_p: bool = False
) -> Written:
    """What is known of each row as a CSV file, `out` or a new one in the run folder. `only_log_p`: nothing but that."""
    final, source, header = _place(run, out, "scores.csv" if only_log_p else "predicted.csv"), list[str](), list[str]()
    evidence: Evidence | None = None
    with _atomic.workspace(final) as work, (work / "rows").open("w", encoding="utf-8", newline="") as file:
        count = 0

        def take(found: Rows, names: np.ndarray) -> None:
            nonlocal count
            if not header:
                source.append(found.source)
            table = found.table(names)
            file.writelines(table.text(header=not header))
            header[:] = list(table.columns)
            count += len(table)

        if only_log_p:
            asked = None if data is None else new_rows(run, data, preparation)
            evidence = score(run, None, {}) if asked is None else asked.score()
            if evidence is None or evidence.per_datum is None:
                raise UsageError(f"{run.method} gives no log p(x) for each row here; take another method to the run.")
            names = names_of(run.dataset) if asked is None else asked.names
            take(Rows(evidence.per_datum, evidence.kind, evidence.se_per_datum), names)
        else:
            asked = _each(run, data, preparation, take)
        file.flush()
        os.fsync(file.fileno())
        os.replace(work / "rows", final)
    told = "" if only_log_p or len(header) < 3 else source[0]
    said = () if asked is None else (*asked.data.warnings, *asked.said)
    weight = run.count if asked is None else count
    return Written(str(final), count, header, evidence, told, said, weight, run.center is not None)


def write_steps(
    run: Run,
    ahead: int | None,
    by_step: bool,
    data: object,
    preparation: Preparation,
    out: str | os.PathLike[str] | None,
) -> Written:
    """What is known of each step, or of the next steps, as a CSV file: `out`, or a new one in the run folder."""
    final = _place(run, out, "steps.csv" if ahead is None else "ahead.csv")
    found, steps = steps_of(run, ahead, by_step, data, preparation)
    _write(final, found)
    said = (*(() if data is None else steps.known.data.warnings), *steps.known.said)
    return Written(str(final), len(found), list(found.columns), None, steps.told, said)


def write_sample(
    run: Run, n: int | None, given: object, seed: int, preparation: Preparation, out: str | os.PathLike[str] | None
) -> Written:
    """`sampled` as a CSV file, `out` or a new one in the run folder."""
    final = _place(run, out, "sample.csv")
    found, asked = sampled(run, n, given, seed, preparation)
    _write(final, found)
    said = () if asked is None else (*asked.data.warnings, *asked.said)
    return Written(str(final), len(found), list(found.columns), warnings=said)


def _write(final: Path, found: Table) -> None:
    with _atomic.workspace(final) as work:
        _table.write(work / "rows", [found])
        _atomic.flush(work / "rows")
        os.replace(work / "rows", final)


def _place(run: Run, out: str | os.PathLike[str] | None, name: str) -> Path:
    """Where a file is to be written: `out`, which must not exist, or one of that name in the run folder that is not taken."""
    if out is not None:
        place = _atomic.place(out)
        if os.path.lexists(place):
            raise UsageError(f"'{place}' exists already; name another file with --out.")
        _atomic.check_parent(place)
        return place
    assert run.folder is not None
    number, place = 1, run.folder / name
    while os.path.lexists(place):
        number += 1
        place = run.folder / name.replace(".", f"-{number}.")
    _atomic.check_parent(place)
    return place


def impute_run(
    folder: str | os.PathLike[str],
    draws: int,
    seed: int,
    out: str | os.PathLike[str] | None = None,
    model: object = None,
    trust: bool = False,
    changed_program: bool = False,
    data: object = None,
    preparation: Preparation | None = None,
) -> list[Path]:
    """Impute a saved run, or new rows, and write it to `out` (the run's folder `imputed`), in the file format of the data.

    `model`, `trust` and `changed_program`: as in `infer`.
    """
    check_seed(seed)
    run = load(folder, model, trust, changed_program)
    assert run.folder is not None
    place = _store.check_out(out or (run.folder / "imputed" if data is None else _store.free(run.folder / "imputed")))
    found = run.impute(data, draws=draws, seed=seed, **(preparation or {}))
    source = str(data) if data is not None else str(run.dataset.options.get("source", ""))
    return _store.save_imputation(found, place, list(run.columns), source)
