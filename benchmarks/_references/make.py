"""References made: what is known without our samplers where it is, else a long run of `nuts`; and what they are held against.

Of models without priors log p(x) at the best of many starts of `em`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np

from benchmarks._references import validate
from benchmarks._references.cases import Case
from benchmarks._references.moments import chains_of, diagnosed, numbered, of_draws
from benchmarks._references.reference import Reference
from inference._run.cost import versions
from inference._run.entrance import entrance
from inference._run.prepare import prepare
from inference._run.result import Run
from inference._run.runner import run_prepared
from zoo._errors import UsageError

LONG: dict[str, Any] = {"chains": 4, "warmup": 1000, "samples": 2000, "target_accept": 0.9}
SEED = 20_240_501
RHAT, ESS = 1.01, 1500.0  # of a long run that makes a reference: no more, and no less


@entrance
def make(case: Case, samples: int | None = None, quick: bool = False) -> Reference:
    """The reference of a case. Raises `UsageError` for chains that make none, unless it is a `quick` try."""
    if not case.posterior:
        return _of_maximum(case)
    found = validate.independent(case.name)
    how = {**LONG, **case.how} | ({} if samples is None else {"samples": samples})
    prepared = prepare(case.walked or case.model, case.data, {}, ["nuts"], seed=SEED)
    run = run_prepared(prepared, "nuts", how, seed=SEED, verified=False, draws=how["chains"] * how["samples"])
    names, draws = numbered(chains_of(run.fit))
    told = diagnosed(draws)
    sound = told["rhat_max"] < RHAT and min(told["ess_bulk_min"], told["ess_tail_min"]) > ESS
    if not (sound or quick or found):
        raise UsageError(f"the chains of '{case.name}' make no reference: {told}. Raise its samples.")
    walked = of_draws(names, draws)
    made = _made(run, how) | told | {"divergences": run.fit.notes["divergences"]}
    if found is None:
        return validate.validated(Reference(case.name, walked, None, made))
    return validate.validated(replace(found, made={**found.made, "held against": made}), walked)


def _of_maximum(case: Case) -> Reference:
    """log p(x; θ̂) at the maximum likelihood, beside that of another package."""
    how = {"restarts": 20, "tol": 1e-10, "max_iter": 5000}
    prepared = prepare(case.model, case.data, {**case.options, **how}, ["em"], seed=SEED, **case.preparation)
    run = run_prepared(prepared, "em", {**case.options, **how}, seed=SEED, verified=False)
    assert run.fit.claimed is not None
    value = {"value": run.fit.claimed.value, "se": 0.0, "how": "at the maximum likelihood, exact"}
    other = validate.maximum(case, prepared.x.numpy())
    nothing = of_draws([], np.zeros((0, 1, 1)))
    return Reference(case.name, nothing, value, _made(run, how), [{**other, "ours": run.fit.claimed.value}])


def _made(run: Run, how: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "by": run.method,
        "options": dict(how),
        "seed": SEED,
        "seconds": round(run.cost.seconds, 1),
        "date": date.today().isoformat(),
        "versions": versions(),
    }
