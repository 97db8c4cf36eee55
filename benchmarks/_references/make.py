"""References made: long runs of our `nuts`; of models without priors log p(x) at the best of many starts of `em`."""

from __future__ import annotations

from collections.abc import Mapping
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

CHAINS = 4
LONG: dict[str, Any] = {"chains": CHAINS, "warmup": 1500, "samples": 6000, "target_accept": 0.95}
SEED = 20_240_501
RHAT, ESS = 1.01, 2000.0  # a reference has no more, and no less


@entrance
def make(case: Case, samples: int | None = None) -> Reference:
    """The reference of a case. Raises `UsageError` for chains that do not make one."""
    if not case.posterior:
        return _of_maximum(case)
    how = {**LONG, **case.how} | ({} if samples is None else {"samples": samples})
    prepared = prepare(case.walked or case.model, case.data, {}, ["nuts"], seed=SEED)
    run = run_prepared(prepared, "nuts", how, seed=SEED, verified=False, draws=how["chains"] * how["samples"])
    names, draws = numbered(chains_of(run.fit))
    told = diagnosed(draws)
    if samples is None and not (told["rhat_max"] < RHAT and min(told["ess_bulk_min"], told["ess_tail_min"]) > ESS):
        raise UsageError(f"the chains of '{case.name}' make no reference: {told}. Raise its samples.")
    made = _made(run, how) | told | {"divergences": run.fit.notes["divergences"]}
    found = Reference(case.name, of_draws(names, draws), validate.log_evidence(case.name), made)
    return Reference(found.name, found.moments, found.log_evidence, made, validate.validated(found))


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
