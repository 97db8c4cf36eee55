"""New rows at the θ of a run: their posteriors and log p(x), draws given what is seen of them, and rows from the program.

How a row is answered follows from the run and the new data:

- by the exact engine, where the posterior is exact: a block of rows at a time, and checked on a sample of rows;
- by the run's guide q(z | x), where its method's posterior is the guide; log p(x) comes from the verifier;
- else the method itself is run on the new rows, with θ as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference._answers import rows as _rows
from inference._answers.impute import Imputation, impute
from inference._answers.names import columns_of, names_of
from inference._answers.rows import Rows
from inference._method.check import checked
from inference._method.fit import Arrays, Evidence, Fit
from inference._method.summed import drawn_by
from inference._method.task import Task
from inference._numerics.slices import slices
from inference._run.entrance import entrance, seeded
from inference._run.failures import in_words
from inference._run.prepare import Found, check_draws, check_seed, method_module, prepare, refusal
from inference._run.reopen import other_data, reopen, task_at, task_of
from inference._run.result import Run
from inference._run.verify import confirm, verify
from inference._sampling import weights
from zoo import _options
from zoo._data.datasets import Dataset
from zoo._data.labelled import LEVELS
from zoo._errors import Refusal, UsageError

BLOCK_NUMBERS = 2**21  # in a block of rows, with their posteriors
IMPUTING_DRAWS = 200  # of the latents of a row that is imputed
DRAWN_NUMBERS = 2**25
INHERITED = ("binarize",)  # preparations of a run's data that its new rows need too
COUNTED_ONCE = "the weights that the run counted its rows by were not used: here each row counts once."


@dataclass(frozen=True)
class NewRows:
    """Data and a program at the θ of a finished run."""

    task: Task
    data: Dataset  # in the units of the run
    method: str
    options: Mapping[str, object]  # of the method
    given: str  # what log p(x) is conditional on besides θ
    seed: int
    said: list[str] = field(default_factory=list)  # warnings of the method and of the verifier, once they have worked

    @cached_property
    def names(self) -> np.ndarray:
        """Of the rows [n]: their own, else their numbers from 0."""
        return names_of(self.data)

    @cached_property
    def route(self) -> str:
        """`engine`, `guide` or `method`."""
        structure = self.task.structure
        whole = not structure.is_exact or structure.summed is structure  # whether a guide draws all local latents
        if whole and getattr(method_module(self.method), "POSTERIOR_IS_GUIDE", False) and self.task.guide is not None:
            return "guide"
        return "engine" if structure.is_exact else "method"

    # ---- what is asked of them

    @entrance
    def each(self, take: Callable[[Rows, np.ndarray], None]) -> Evidence | None:
        """Call `take(rows, their names)` for some rows after the other; log p(x) of them all, where it is known."""
        with seeded(self.seed), in_words(self.task.program.name, "looking at new rows"):
            if self.route == "engine":
                return self._by_engine(_rows.of_engine, take)
            found, evidence = self._by_guide() if self.route == "guide" else self._by_method()
            take(found, self.names)
            return evidence

    @entrance
    def score(self) -> Evidence | None:
        """log p(x), of each row and in total; None where the method says nothing of it."""
        with seeded(self.seed), in_words(self.task.program.name, "scoring new rows"):
            if self.route == "engine":
                return self._by_engine(_log_p, lambda rows, names: None)
            return (self._by_guide() if self.route == "guide" else self._by_method())[1]

    @entrance
    def impute(self, draws: int, seed: int) -> Imputation:
        """Mean, standard deviation and joint draws of what is unobserved, in the data's own units."""
        check_seed(seed)
        check_draws(draws)
        if not np.isnan(self.data.x).any():
            raise UsageError("nothing is missing in these rows: there is nothing to impute.")
        with seeded(seed), in_words(self.task.program.name, "imputing"):
            drawn, probabilities = self._latents(draws)
            found = impute(self.task, drawn, self.point, draws, probabilities)
        found = found.in_units(self.data.center, self.data.scale)
        return replace(found, columns=columns_of(self.data), names=self.names)

    # ---- how

    @cached_property
    def point(self) -> dict[str, Tensor]:
        """The globals' values."""
        return dict(self.task.globals)

    @torch.no_grad()
    def _by_engine(
        self, look: Callable[[Task, dict[str, Tensor], slice], Rows], take: Callable[[Rows, np.ndarray], None]
    ) -> Evidence:
        task, whole = self.task.doubled(), []
        point = {n: v.to(task.x.dtype) for n, v in self.point.items()}
        for some in _blocks(task):
            found = look(task, point, some)
            whole.append(found.log_p)
            take(found, self.names[some])
        log_p = np.concatenate([w for w in whole if w is not None])
        confirm(task, torch.as_tensor(log_p), point)
        return Evidence.from_per_datum(log_p, "exact", given=self.given).plus(task.outside(point))

    def _by_guide(self) -> tuple[Rows, Evidence | None]:
        task, guide = self.task, self.task.guide
        assert guide is not None
        parts = [_rows.of_guide(task, guide, some) for some in _blocks(task)]
        parameters = {n: v.numpy() for n, v in {**task.theta(), **self.point}.items()}
        told, evidence = verify(task, Fit(parameters, None, guide=guide))
        self.said.extend(told.warnings)
        evidence = None if evidence is None else replace(evidence, given=evidence.given or self.given)
        return _with_evidence(_rows.joined(parts), evidence), evidence

    def _by_method(self) -> tuple[Rows, Evidence | None]:
        fit, evidence = self._refitted
        told = evidence if evidence is not None and evidence.per_datum is not None else fit.claimed
        return _with_evidence(_rows.of_fit(self.task.structure, fit, f"the method {self.method}"), told), told

    @cached_property
    @torch.enable_grad()
    def _refitted(self) -> tuple[Fit, Evidence | None]:
        """The method on these rows, with θ as it is; and the evidence as verified."""
        task, module = self.task, method_module(self.method)
        if (reason := refusal(self.method, task.structure, False, self.options)) is not None:
            raise Refusal(f"{reason}. Take another method to the run: zoo infer RUN --method … --data ….")
        schema = _options.schema(module.fit)
        trained = task.guide is not None  # then it is used as it is: its training is not continued on these rows
        known = {
            k: v for k, v in self.options.items() if k in schema and v is not None and not (trained and k == "epochs")
        }
        chosen, version = _options.convert(schema, known, f"option of {self.method}"), task.x._version
        fit, evidence = verify(task, checked(module.fit(task, **chosen), task, self.method, version))
        self.said.extend(f"on these rows: {sentence}" for sentence in fit.warnings)
        return fit, None if evidence is None else replace(evidence, given=evidence.given or self.given)

    def _latents(self, draws: int) -> tuple[Arrays, Arrays]:
        """Posterior draws [S, n, …] of the local latents, and probabilities where the method gives them."""
        task, structure = self.task, self.task.structure
        if not structure.local_latents:
            return {}, {}
        width = sum(s.inner * int(np.prod(s.event_shape)) for s in structure.local_latents)
        S = max(1, min(max(draws, IMPUTING_DRAWS), DRAWN_NUMBERS // (len(task.x) * max(1, width))))
        if structure.is_exact:
            with torch.no_grad():
                return {k: v.numpy() for k, v in task.engine.draw(None, S, self.point).items()}, {}
        if self.route == "guide":
            guide, parts = task.guide, []
            assert guide is not None
            for some in weights.chunks(task.x, S):
                parts.append(drawn_by(task, guide, some, S)[0])
            return {k: torch.cat([p[k] for p in parts], 1).numpy() for k in parts[0]}, {}
        fit = self._refitted[0]
        return {s.name: fit.draws[s.name] for s in structure.local_latents if s.name in fit.draws}, fit.probabilities


# ---------------------------------------------------------------------------------------------------- of a run and data


@entrance
def new_rows(run: Run, data: object, preparation: Mapping[str, object], partial: bool = False) -> NewRows:
    """`data` on the program at the run's θ. `partial`: columns that the data lack are unobserved."""
    data = _as_table(data)
    other = other_data(run.dataset, data, run.seed, preparation, partial)
    inherited = {k: v for k in INHERITED if (v := run.dataset.options.get(k)) is not None and k not in preparation}
    if inherited and not _is_binary(other.x[:, :-1] if LEVELS in other.options else other.x):
        other = other_data(run.dataset, data, run.seed, {**inherited, **preparation}, partial)
    told = (COUNTED_ONCE,) if other.weights is not None else ()
    return on(run, replace(other, weights=None, warnings=(*other.warnings, *told)))


def asked_of(run: Run, data: object, preparation: Mapping[str, object]) -> NewRows:
    """`data` as new rows; None: the run's own rows."""
    if data is not None:
        return new_rows(run, data, preparation)
    if preparation:
        raise UsageError("the run's own rows are already prepared: give preparations only with other data.")
    return own_rows(run)


@entrance
def on(run: Run, other: Dataset) -> NewRows:
    """Data that are in the units of the run, on its program."""
    if run.stored is not None:
        prepared = reopen(run.stored, [], {}, other, run.seed)
        task = replace(task_of(prepared, run.stored), quiet=True)
    elif run.live is None or run.prepared is None:
        raise UsageError("this run holds no program: make it with `run`, or read it from its folder.")
    else:
        made = run.prepared
        like = run.x if made.like is None else made.like.numpy()
        how: dict[str, Any] = {"limit": made.limit, "dtype": str(run.options["dtype"]), "like": like}
        prepared = prepare(Found(made.model, made.target, made.name), other, made.options, [], **how)
        task = task_at(run.live, run.fit.guide, prepared, run.at_theta().globals)
    return _asked(run, task, other)


@entrance
def own_rows(run: Run) -> NewRows:
    """The run's own rows, as new ones."""
    return _asked(run, replace(run.at_theta(), weights=None), run.dataset)


def _asked(run: Run, task: Task, data: Dataset) -> NewRows:
    method = run.options.get("method")
    names = ", ".join(s.name for s in task.structure.global_latents)
    given = (run.claimed.given if run.claimed is not None else "") or (f"the point values of {names}" if names else "")
    return NewRows(task, data, run.method, method if isinstance(method, dict) else {}, given, run.seed)


def _as_table(data: object) -> object:
    """Columns by name, in a dictionary, as a data frame; all else as it is."""
    if not isinstance(data, Mapping):
        return data
    import pandas as pd

    try:
        return pd.DataFrame(dict(data))
    except ValueError as error:
        raise UsageError(f"the columns that are given make no table: {error}.") from None


def _is_binary(x: np.ndarray) -> bool:
    """Whether every entry is 0, 1 or unobserved: then binarizing has been done."""
    return bool(((x == 0) | (x == 1) | np.isnan(x)).all())


# ----------------------------------------------------------------------------------------------------------------- parts


def _log_p(task: Task, globals: dict[str, Tensor], some: slice) -> Rows:
    """log p(x_i) alone."""
    return Rows(replace(task, x=task.x[some], weights=None).engine.per_datum(None, globals).numpy())


def _with_evidence(found: Rows, evidence: Evidence | None) -> Rows:
    if evidence is None or evidence.per_datum is None:
        return found
    return replace(found, log_p=evidence.per_datum, kind=evidence.kind, se=evidence.se_per_datum)


def _blocks(task: Task) -> Iterator[slice]:
    """Slices of rows of which all that is known takes little memory."""
    structure = task.structure
    states = min(structure.assignments, 10_000) if structure.discrete_locals else 0
    latents = sum(s.inner * int(np.prod(s.event_shape)) for s in structure.continuous_locals)
    draws = _rows.DRAWS * len(structure.discrete_locals) if _rows.several(structure) else 0
    return slices(len(task.x), max(1, BLOCK_NUMBERS // (task.x[0].numel() + states + 2 * latents + draws)))
