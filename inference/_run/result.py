"""A run: the same object just made by the runner, or read back from its folder."""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch

from inference._answers.impute import Imputation, impute
from inference._answers.names import columns_of, names_of
from inference._answers.parameters import Axes, column_axes
from inference._loadings.table import Loadings
from inference._method.fit import Arrays, Evidence, Fit, Kind
from inference._method.task import Task
from inference._run import folder as _store
from inference._run import saving
from inference._run.cost import Cost
from inference._run.datatree import loo as leave_one_out
from inference._run.datatree import to_datatree
from inference._run.entrance import entrance, seeded
from inference._run.failures import in_words
from inference._run.folder import Stored
from inference._run.loadings import loadings_of
from inference._run.netcdf import write_netcdf
from inference._run.predictive import Predicted
from inference._run.prepare import Prepared, check_draws, check_seed
from inference._run.record import Record
from inference._run.reopen import data_of, reopen, task_of
from inference._run.request import Request
from zoo._errors import NotWritten, UsageError
from zoo._program.program import Program

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from inference._run.datatree import ELPDData

Format = Literal["png", "pdf", "svg"]


@dataclass(repr=False, eq=False)
class Run(Record):
    """A request, what its method found, the evidence as verified, the cost and the data. `latent_zoo.load(folder)` gives
    the same back.

        >>> from latent_zoo import run
        >>> found = run("gmm", data="faithful", method="em")
        >>> found.claimed.kind, found.verified.kind, found.parameters["locs"].shape
        ('exact', 'exact', (2, 2))
        >>> sorted(found.idata["posterior"].data_vars)
        ['z']

    `live`: the program and data that it was made with; `stored`: the folder that it was read from. It has one of the two.
    """

    live: Task | None = None
    stored: Stored | None = None
    prepared: Prepared | None = None  # what a live run was made from
    axes: Axes | None = None  # `column_axes`, once found

    # ---- what a user asks of it

    @property
    def idata(self) -> xr.DataTree:
        """All of it as an `xarray.DataTree` in ArviZ's schema."""
        if self.stored is not None:
            return self.stored.tree
        return to_datatree(self)

    def predict(
        self, data: object = None, *, ahead: int | None = None, by_step: bool = False, **preparation: object
    ) -> pd.DataFrame:
        """What is known of each row, by its name: log p(x_i) in nats, the most probable states of discrete latents with all
        probabilities, means and standard deviations of continuous ones, k-hat. It is what `rows.csv` holds.

            >>> from latent_zoo import run
            >>> found = run("gmm", data="faithful")
            >>> found.predict([[2.0, 55.0], [4.5, float("nan")]]).round(3)[["z", "P(z=0)", "P(z=1)"]]
                 z  P(z=0)  P(z=1)
            row
            0    1     0.0     1.0
            1    0     1.0     0.0

        - `data`: new rows, a table (matched by the names of its columns), a file or an array; the run's own rows when None.
        - `ahead`: of series, so many next steps, a row for each: mean, standard deviation and quantiles of each number, and the
          latents' posterior, at the run's θ and averaged over draws of the global latents, or else at their point values:
          `attrs["posterior"]` says which. A series in an array ends with the array, seen there or not.
        - `by_step`: a row for each step that is there.
        - `preparation`: of new rows, as for `infer`.

        The column of log p(x_i) says what it is: `log_p` (exact), `log_p_lower_bound`, `log_p_estimate`. Of standardized data
        it is the density of the standardized rows.
        """
        found: pd.DataFrame = _answers().predict(self, data, preparation, ahead, by_step)
        return found

    def transform(self, data: object = None, **preparation: object) -> pd.DataFrame:
        """The latents of each row: probabilities of discrete ones (`P(z=0)`, …), posterior means of others (`z[0]`, …).

        >>> from latent_zoo import run
        >>> run("ppca", data="wine", standardize=True, latents=2).transform().shape
        (178, 2)
        """
        found: pd.DataFrame = _answers().transform(self, data, preparation)
        return found

    def score(self, data: object = None, **preparation: object) -> Evidence:
        """log p(x) of new rows at this run's θ, with its kind, in total and of each row; of its own rows as verified.

            >>> from latent_zoo import run
            >>> found = run("gmm", data="faithful").score([[2.0, 55.0], [4.5, 80.0]])
            >>> found.kind, found.per_datum.round(3)
            ('exact', array([-3.27 , -3.257]))

        Raises `UsageError` where the run's method says nothing of log p(x).
        """
        found: Evidence = _answers().score(self, data, preparation)
        return found

    def sample(self, n: int | None = None, given: object = None, seed: int | None = None) -> pd.DataFrame:
        """n new rows from the program at this run's θ (100 when None), in the data's own names and units.

            >>> from latent_zoo import run
            >>> found = run("gmm", data="faithful")
            >>> found.sample(3).columns.tolist()
            ['eruptions', 'waiting']
            >>> found.sample(2, given={"waiting": [55.0]}).shape  # two draws of the eruption after a wait of 55 minutes
            (2, 2)

        - `given`: rows of which some entries are known: n joint draws (1 when None) of the others, given those. Columns that
          are left out are unknown. The index holds the number of the draw and the row.
        - `seed`: the run's own when None.
        """
        found: pd.DataFrame = _answers().sample(self, n, given, self.seed if seed is None else seed)
        return found

    def impute(
        self, data: object = None, *, draws: int = 20, seed: int | None = None, **preparation: object
    ) -> Imputation:
        """Mean, standard deviation and joint draws of the unobserved entries, in the data's own units.

            >>> from latent_zoo import run
            >>> found = run("gmm", data="faithful").impute([[4.5, float("nan")]])
            >>> found.to_frame().round(1)
                 eruptions  waiting
            row
            0          4.5     81.1

        Given the globals at their point values, where there are any. `data`: new rows; the run's own when None. `seed`: the
        run's own when None. Raises `UsageError` when nothing is missing.
        """
        seed = self.seed if seed is None else seed
        if data is None:
            return _imputed(self, draws, seed)
        found: Imputation = _answers().impute(self, data, preparation, draws, seed)
        return found

    def loadings(
        self, rotation: str | None = "varimax", *, standardized: bool = True, kaiser: bool | None = None
    ) -> Loadings:
        """The loadings of a linear-Gaussian program, rotated; with communalities, explained variance and `scores`.

            >>> from latent_zoo import run
            >>> found = run("factor_analysis", "wine", standardize=True, latents=2).loadings("varimax")
            >>> found.loadings.shape, found.scores().shape
            ((13, 2), (178, 2))

        - `rotation`: `varimax`, `quartimax`, `oblimin`, `promax`; None: principal axes; `own`: the program's own latents;
        - `standardized`: of columns of variance 1, else in the data's own units;
        - `kaiser`: give each column the same weight in rotating; None: as R, for varimax and promax alone.

        Raises `UsageError` for a program that has no loadings.
        """
        return loadings_of(self, self.at_theta, rotation, standardized, kaiser)

    def loo(self, **options: object) -> ELPDData:
        """PSIS-LOO by `arviz_stats.loo`, which takes the `options`. Raises `UsageError` where θ has no draws."""
        if not self.dataset.has_rows:
            raise UsageError("leave-one-out needs rows, and the run's data are a covariance matrix.")
        return leave_one_out(self, self.idata, **options)

    @overload
    def plot(self, name: str) -> Any: ...

    @overload
    def plot(
        self, name: None = None, out: str | os.PathLike[str] | None = None, format: Format = "png"
    ) -> list[Path]: ...

    def plot(self, name: str | None = None, out: str | os.PathLike[str] | None = None, format: Format = "png") -> Any:
        """The picture of that `name` ("clusters", "trace", …) as a matplotlib figure; without one, all that belong to the run
        are written to `out` (the run folder's `plots`), and their paths returned."""
        _draw = importlib.import_module("inference._pictures._draw")  # by name, as methods are: pictures stand on runs

        return _draw.write(self, out, format) if name is None else _draw.figure(self, name)

    def save(self, out: str | os.PathLike[str]) -> str:
        """Write the run folder `out`, whole or not at all; returns its path."""
        return str(save(self, _store.check_out(out)))

    # ---- what it is made of

    @property
    def folder(self) -> Path | None:
        """The run folder, once there is one."""
        return None if self.run is None else Path(self.run)

    @property
    def task(self) -> Task:
        """The program, its structure and the data. Of a run that was read back, built again at its θ: a user's file is
        executed only if `load` was told to trust it. Raises `UsageError` where the program cannot be had."""
        if self.live is None:
            self.live = self._made_anew()[1]()
        return self.live

    @property
    def program(self) -> Program:
        """The program, at this run's θ."""
        return self.task.program

    @property
    def guide(self) -> torch.nn.Module | None:
        """The fitted guide q(z | x), where the method has one."""
        if self.stored is None or self.stored.json.get("guide") is None:
            return self.fit.guide
        guide: torch.nn.Module | None = self.task.guide
        return guide

    def guide_recipe(self) -> object:
        """The recipe from which the guide can be built again; None without a guide."""
        return super().guide_recipe() if self.stored is None else self.stored.json.get("guide")

    def column_axes(self) -> Axes:
        """Parameter → its axes that belong to the columns of the data: found by differentiation, once."""
        if self.stored is not None:
            known = self.stored.json.get("column_axes") or {}
            return {k: tuple(v) for k, v in known.items()}
        if self.axes is None:
            self.axes = {} if self.live is None or not self.columns else _axes(self.at_theta())
        return self.axes

    def at_theta(self) -> Task:
        """A task at this run's θ, globals and guide, that learns nothing: for pictures and other uses of a finished run."""
        if self.stored is not None:
            return self.task
        own = self.task
        names = [s.name for s in own.structure.global_latents]
        point = {n: torch.as_tensor(self.parameters[n]) for n in names}
        task = Task(own.program, own.structure, own.x, learn=False, guide=self.fit.guide, globals=point)
        return replace(task, weights=own.weights, limit=own.limit, quiet=own.quiet)

    def _made_anew(self) -> tuple[Prepared, Callable[[], Task]]:
        """Of a stored run: its program on its data, and how to put it at θ."""
        stored = self.stored
        assert stored is not None
        prepared = reopen(stored)
        return prepared, lambda: task_of(prepared, stored)


def _answers() -> Any:
    """What answers for new rows: by name, as methods are, since it stands on runs."""
    return importlib.import_module("inference._new_rows.answers")


# ----------------------------------------------------------------------------------------------------------- imputing


@entrance
def _imputed(run: Run, draws: int, seed: int) -> Imputation:
    check_seed(seed)
    check_draws(draws)
    task_at: Callable[[], Task] = lambda: run.task  # noqa: E731
    if run.stored is not None and run.live is None:
        task_at = run._made_anew()[1]
    if not np.isnan(run.x).any():
        whose = "this run" if run.stored is None else f"'{run.stored.folder}'"
        raise UsageError(f"nothing is missing in the data of {whose}: there is nothing to impute.")
    with seeded(seed), in_words(run.model, "imputing"):
        task = task_at()
        globals = {s.name: torch.as_tensor(run.parameters[s.name]) for s in task.structure.global_latents}
        local = {s.name: run.draws[s.name] for s in task.structure.local_latents if s.name in run.draws}
        found = impute(task, local, globals, draws, run.probabilities).in_units(run.center, run.scale)
        return replace(found, columns=columns_of(run.dataset), names=names_of(run.dataset))


@entrance
def _axes(task: Task) -> Axes:
    return column_axes(task, task.globals)


# ------------------------------------------------------------------------------------------------------------- saving


def save(run: Run, folder: Path) -> Path:
    """Write `run` to `folder`. If another run took that name meanwhile, a number is added to it.

    Raises `NotWritten` where the disk is full, say; the run is its `result`.
    """

    def describe(final: str) -> dict[str, object]:
        run.run = final
        return run.to_document()

    before = run.run
    try:
        if run.stored is None:
            kept = saving.bounded(run, run.program.completes, run.task.structure.is_exact)
            tree, state = to_datatree(kept), _store.state_of(run.program, run.fit.guide)
        else:
            tree, state = run.stored.tree, run.stored.state
        content, parameters = _store.state_as_bytes(state), run.parameters
        rows = saving.known_rows(run, run.at_theta() if run.stored is None else None)

        def fill(work: Path) -> tuple[str, ...]:
            write_netcdf(tree, work / "fit.nc")
            _store.put(work / "state.safetensors", content)
            return saving.write_tables(run, work, rows, parameters)

        return _store.write(folder, fill, describe)
    except BaseException as error:
        run.run = before
        if isinstance(error, NotWritten):
            error.result = run
        raise


# ------------------------------------------------------------------------------------------------------- reading back


def load(
    folder: str | os.PathLike[str], model: object = None, trust: bool = False, changed_program: bool = False
) -> Run:
    """Read a run folder; nothing of it is executed before the program is needed (`task`, `impute`, `plot`).

        >>> from latent_zoo import load, run
        >>> _ = run("gmm", "faithful", rows=100, out="saved")
        >>> load("saved").parameters["locs"].shape
        (2, 2)

    - `model`: the program, named again; `trust`: execute the file that the folder names; `changed_program`: also where its text
      has changed.

    Raises `UsageError` when it is not a run, is damaged, or was written by a newer version.
    """
    return opened(_store.load(folder, model, trust, changed_program))


def opened(stored: Stored) -> Run:
    """The run that a folder holds."""
    json, groups = stored.json, _Groups(stored)
    return Run(
        request=Request.from_json(json),
        fit=_fit(stored, groups),
        verified=groups.evidence("verified_log_evidence"),
        cost=Cost(json.get("seconds") or 0.0, json.get("peak_memory_mb") or 0.0, json.get("versions") or {}),
        dataset=data_of(stored),
        model=json["model"],
        options=json["options"],
        predicted=Predicted(
            {k: v for k, v in groups("observed_data").items() if k != "x"},
            {k: v[0] for k, v in groups("posterior_predictive").items()},
            _joined(groups("log_likelihood")["x"]) if "log_likelihood" in stored.tree else None,
        ),
        local_sites=groups.local_sites(),
        learned=json.get("learned", True),
        source=json.get("program"),
        run=str(stored.folder),
        created=str(json.get("created") or stored.tree.attrs.get("created_at", "")),
        stored=stored,
    )


def _fit(stored: Stored, groups: _Groups) -> Fit:
    stats, json = groups("sample_stats"), stored.json
    errors = groups("standard_errors") or {
        k: np.asarray(v, dtype=float) for k, v in (json.get("standard_errors") or {}).items()
    }
    return Fit(
        parameters={groups.name(k): v for k, v in stored.parameters().items()},
        claimed=groups.evidence("log_evidence"),
        draws={k: _joined(v) for k, v in groups("posterior").items()},
        means=_ending("_mean", stats, groups),
        deviations=_ending("_sd", stats, groups),
        probabilities=_ending("_probability", stats, groups),
        standard_errors=errors,
        khat=stats.get("khat"),
        ess=stats.get("ess"),
        trace=groups("trace"),
        chains={k: v for k, v in stats.items() if k in groups.of_chains()},
        converged=json.get("converged"),
        warnings=list(json.get("warnings") or []),
        notes=dict(json.get("notes") or {}),
    )


def _joined(values: np.ndarray) -> np.ndarray:
    """[chain, draw, …] as [draws, …], chain after chain."""
    return values.reshape(-1, *values.shape[2:])


def _ending(end: str, stats: Arrays, groups: _Groups) -> Arrays:
    return {groups.name(k.removesuffix(end)): v for k, v in stats.items() if k.endswith(end)}


class _Groups:
    """What the groups of a stored tree hold, under the names that they had before "/" became "."."""

    def __init__(self, stored: Stored) -> None:
        self.stored, self.attrs = stored, stored.tree.attrs
        self.names: dict[str, str] = json.loads(self.attrs.get("names", "{}"))

    def name(self, key: str) -> str:
        return self.names.get(key, key)

    def __call__(self, group: str) -> Arrays:
        if group not in self.stored.tree:
            return {}
        return {self.name(str(k)): v.values for k, v in self.stored.tree[group].data_vars.items()}

    def local_sites(self) -> tuple[str, ...]:
        """Sites whose draws have the rows of the data for their third dimension."""
        drawn = self.stored.tree["posterior"].data_vars.items() if "posterior" in self.stored.tree else ()
        return tuple(self.name(str(k)) for k, v in drawn if v.dims[2:3] == ("data",))

    def of_chains(self) -> set[str]:
        """What `sample_stats` says of each draw of each chain."""
        stats = self.stored.tree["sample_stats"].data_vars.items() if "sample_stats" in self.stored.tree else ()
        return {str(k) for k, v in stats if v.dims == ("chain", "draw")}

    def evidence(self, name: str) -> Evidence | None:
        """The evidence of that name: its figures from the tree, which can say infinity, its words from the document."""
        said = self.stored.json.get(name)
        if said is None:
            return None
        stats, kind = self("sample_stats"), said["kind"]
        value = self.attrs.get(name, math.nan if said["value"] is None else said["value"])
        known: Kind = kind
        per_datum, errors = stats.get(name), stats.get(f"{name}_se")
        return Evidence(
            float(value), self.attrs.get(f"{name}_se", said["se"]), known, per_datum, said.get("given", ""), errors
        )
