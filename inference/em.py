"""Expectation-maximisation, exact by enumeration, with a closed-form M-step wherever the program allows one.

Dempster, Laird & Rubin 1977. With global latents it climbs log p(x, globals; θ): maximum a posteriori (MAP-EM). What it
claims is exact: log p(x; θ̂), given the globals at their mode where there are any. Global latents that are jointly normal with
the data, or conjugate to them, are integrated out instead (`_training/integrated.py`): it climbs log p(x; θ) itself, and claims
that.

Two other E-steps complete the data instead of taking expectations (`e_step`): by draws of the latents, stochastic EM (Celeux &
Diebolt 1985) and Monte Carlo EM (Wei & Tanner 1990), or by the most probable ones, classification EM (Celeux & Govaert 1992).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated

import numpy as np
import pyro
import torch

from inference._em import chain as _chain
from inference._em.climb import BORDER, ENOUGH, Climb, Options, climb_by_em
from inference._em.completed import ByDensity, ByStatistics, Completion
from inference._em.e_step import EStep
from inference._em.hard import classify
from inference._em.latents import Latents, latents
from inference._exact.engine import MOST_SUMMED
from inference._families._family import Floor
from inference._method.advice import MOST_NAMED, component, empty, remedy
from inference._method.fit import Evidence, Fit
from inference._method.row_posteriors import RowPosteriors
from inference._method.start import FLOOR, Start, begin, contest, usual_restarts
from inference._method.summed import completed, summed
from inference._method.task import Task
from inference._training import integrated
from inference._training.in_double import in_double
from zoo._errors import Refusal
from zoo._options import Count, NotNegative, Positive, Used
from zoo._program.structure import Structure
from zoo._program.trace import node_of

WEIGHTS = IMPROPER = True  # rows may have weights, and a global latent a prior that is no density
MAX_ITER, MAX_SAMPLED = 1000, 300  # iterations at most, and those of a chain over θ
EMPTY = 1e-10  # a weight that is as good as 0
EXACT = Used(e_step="exact")
SHARES = True  # the processes that torchrun starts share the rows


def refusal(structure: Structure) -> str | None:
    """Why EM cannot serve the program, or None."""
    if structure.is_exact:
        return structure.cut or None
    instead = "" if EStep("sample").refusal(structure) else " (e_step=sample draws the latents instead)"
    return f"em needs an exact posterior, and {structure.reason}{instead}"


def refusal_with(structure: Structure, options: Mapping[str, object]) -> str | None:
    """The same with these options: draws of the latents serve other programs."""
    how = EStep.named(str(options.get("e_step", "exact")))
    return refusal(structure) if how.kind == "exact" else how.refusal(structure)


def fit(
    task: Task,
    *,
    max_iter: Count | None = None,
    tol: Annotated[NotNegative, EXACT] = 1e-10,
    restarts: Annotated[Count | None, EXACT] = None,
    start: Start = "auto",
    floor: Positive | None = None,
    accelerate: Annotated[bool, EXACT] = True,
    e_step: str = "exact",
) -> Fit:
    """Climb the log-likelihood until it changes by less than `tol` of itself, `restarts` times; keep the best.

    `restarts` is 1 by default; 20 on small data for a model that says its likelihood has many optima (`many_optima`).
    It has converged where, besides, the gradient promises no more than rounding and `tol` allow.

    - `max_iter`: iterations at most; when None 1000. With e_step=sample all of them are made; when None 300.
    - `tol`: the rise of the log-likelihood in one iteration, as a share of itself, below which it stops.
    - `restarts`: how many climbs from different starts; the best is kept.
    - `start`: `kmeans`, `random`, or the `program`'s own values; `auto` tries several for a few iterations, where one is known
      to fail, and continues from the best. Where normal latents enter one site by a linear map that is all free (as in factor
      analysis) it begins at the best map, which is known in closed form, and the noise that Newton's steps find for it.
    - `floor`: the smallest variance that an M-step sets, as a share of the data's own; when None, only a variance that falls to
      rounding is held, at a millionth.
    - `accelerate`: extrapolate when it is still climbing after 20 plain iterations, and climb by L-BFGS where that is slow; the
      log-likelihood never falls for it.
    - `e_step`: `exact`; `sample` or `sample:M`, which completes the data by one or M draws of the latents (stochastic EM, Monte
      Carlo EM), also where the posterior is not exact; `hard`, by the most probable values of discrete latents.

    With e_step=sample θ is a Markov chain. What is reported is the mean of its iterates after a burn-in of half of them, where
    they move about one place, else the last one; `converged` is False where the two halves of the rest do not agree, and else
    unknown.
    """
    how = EStep.named(e_step)
    if how.kind != "exact" and (reason := how.refusal(task.structure)) is not None:
        raise Refusal(reason)
    if not task.structure.is_exact:
        return _of_draws(task, how, max_iter or MAX_SAMPLED, start)
    if task.structure.integrable and task.x.dtype == torch.float64:
        return integrated.fit(task, max_iter or MAX_ITER, tol)
    if task.x.dtype != torch.float64 and not any(s.completes for s in task.structure.discrete_locals):
        same = partial(fit, max_iter=max_iter, tol=tol, restarts=restarts, start=start, floor=floor, e_step=e_step)
        return in_double(task, partial(same, accelerate=accelerate))
    if not task.learn:
        return _result(task, Climb(globals=task.global_start(), converged=True), [], FLOOR)
    if how.kind != "exact":
        return _by_completion(task, how, max_iter, start, floor)
    max_iter, initial = max_iter or MAX_ITER, task.theta()
    climbs: list[Climb] = []
    restarts = restarts or usual_restarts(task, start)
    with task.progress("em", max_iter * restarts) as step:
        for r in range(restarts):
            task.program.assign(initial)
            # the program's own values are one start: a second from the same place would add nothing
            again = r > 0 and (start == "program" or task.structure.assignments == 1)
            limit = Floor(floor or FLOOR, set(), strict=floor is not None)
            climb = _begun(task, "random" if again else start, task.seed + r, limit)
            climbs.append(climb_by_em(task, climb, Options(max_iter, tol, accelerate, step)))
    best = max(climbs, key=lambda c: c.objective[-1])
    task.program.assign(best.parameters)
    return _result(task, best, climbs, floor or FLOOR)


def _begun(task: Task, start: Start, seed: int, floor: Floor) -> Climb:
    """A climb at its start."""
    if start == "auto":
        globals, starts = contest(task, seed, floor)
        return Climb(globals, starts=starts, floor=floor)
    return Climb(begin(task, start, seed, floor), floor=floor)


# ---------------------------------------------------------------------------------------------------- completed data


def _by_completion(task: Task, how: EStep, max_iter: int | None, start: Start, floor: float | None) -> Fit:
    """Of an exact program: its data completed by draws or by the most probable latents; log p(x; θ) is exact all the same."""
    climb = _begun(task, start, task.seed, Floor(floor or FLOOR, set(), strict=floor is not None))
    iterations = max_iter or (MAX_ITER if how.kind == "hard" else MAX_SAMPLED)
    closed = how.kind == "hard" or task.engine.sampled(1) is not None
    by: Completion = ByStatistics(task, how.draws, climb.floor) if closed else ByDensity(task, latents(task, how.draws))
    notes: dict[str, object] = {"e_step": how.kind}
    with task.progress("em", iterations) as step:
        if how.kind == "hard":
            assert isinstance(by, ByStatistics)
            climb.objective, settled = classify(task, by, iterations, step)
            notes["climbed"] = "log p(x, a; θ) of the most probable latents a, not log p(x; θ)"
            said = (
                [] if settled else [f"em with e_step=hard did not settle in {iterations} iterations; raise max_iter."]
            )
        else:
            walked = _chain.walk(task, by, iterations, step)
            climb.objective, settled, said = walked.trace, walked.agrees, walked.warnings()
            notes |= walked.notes(by, how.draws)
    climb.iterations, climb.numeric = len(climb.objective), by.numeric
    climb.closed = by.plan.closed if isinstance(by, ByStatistics) else ()
    climb.counts, climb.converged = task.engine.e_step().counts, True  # or it would warn of a maximum that is not meant
    found = _result(task, climb, [climb], floor or FLOOR).with_notes(said, notes)
    trace = {"classification_log_likelihood" if how.kind == "hard" else "log_likelihood": np.asarray(climb.objective)}
    sure = how.kind == "hard" or not settled
    return replace(found, trace=trace, converged=settled if sure else None)


def _of_draws(whole: Task, how: EStep, iterations: int, start: Start) -> Fit:
    """Of a program without an exact posterior: by moves of its latents. Nothing is claimed about log p(x; θ)."""
    task = summed(whole)
    drawn, said, trace, settled = latents(task, how.draws), [], {}, True
    notes: dict[str, object] = {"e_step": how.kind}
    if task.learn and task.structure.learnable:
        begin(task, start, task.seed)
        by = ByDensity(task, drawn)
        with task.progress("em", iterations) as step:
            walked = _chain.walk(task, by, iterations, step)
        notes |= {"iterations": iterations, "numeric": list(by.numeric)} | walked.notes(by, how.draws)
        said, settled, trace = walked.warnings(), walked.agrees, {"complete_log_joint": np.asarray(walked.trace)}
    fit = Fit(
        parameters={n: v.detach().numpy() for n, v in task.program.values().items()},
        claimed=None,
        draws=_at_the_end(drawn, how.draws, task.draws),
        trace=trace,
        converged=None if settled else False,
        warnings=said,
        notes=notes,
    )
    return completed(whole, task, fit)


def _at_the_end(drawn: Latents, each: int, draws: int) -> dict[str, np.ndarray]:
    """Site → draws [draws, N, …] at θ̂, by moves from where the chain ended."""
    parts = [drawn.draw() for _ in range(-(-draws // each))]
    return {n: torch.cat([p[n] for p in parts])[:draws].numpy() for n in parts[0]}


# ------------------------------------------------------------------------------------------------------------- result


def _result(task: Task, climb: Climb, climbs: list[Climb], floor: float) -> Fit:
    exact, globals = task.engine, climb.globals
    held = RowPosteriors.of(task, globals)
    point = "point values" if climb.stuck == BORDER or _emptied(task, climb) else "posterior mode"
    given = f"the {point} of {', '.join(globals)}" if globals else ""
    parameters = {n: v.detach().numpy() for n, v in {**task.program.values(), **globals}.items()}
    notes: dict[str, object] = {"iterations": climb.iterations}
    notes |= {"closed_form": list(climb.closed), "numeric": list(climb.numeric)}
    notes |= {"collapsed": [component(task, a) for a in sorted(reached)]} if (reached := climb.floor.reached) else {}
    if climbs:
        notes |= {"restarts": [c.objective[-1] for c in climbs], "variance_floor": floor}
    notes |= {"starts": dict(climb.starts)} if climb.starts else {}
    notes |= {"posterior": held.left_out} if held.left_out else {}
    per_datum = exact.per_datum(None, globals).numpy()
    claimed = Evidence.from_per_datum(per_datum, "exact", given=given, weights=task.times).plus(task.outside(globals))
    if len(per_datum) > MOST_SUMMED:  # the verified evidence holds the value of each row: one such array is enough
        claimed = replace(claimed, per_datum=None)
    if exact.delicate:
        claimed = replace(claimed, kind="estimate", se=None)
    return Fit(
        parameters=parameters,
        claimed=claimed,
        draws=held.draws,
        means=held.means,
        deviations=held.deviations,
        probabilities=held.probabilities,
        trace={"log_joint" if globals else "log_likelihood": np.asarray(climb.objective)} if climbs else {},
        converged=climb.converged if climbs else None,
        warnings=_warnings(task, climb, floor),
        notes=notes,
    )


def _warnings(task: Task, climb: Climb, floor: float) -> list[str]:
    out, many = [], task.structure.assignments > 1
    components = not any(s.completes for s in task.structure.discrete_locals)
    if climb.counts is not None and many and components:
        out += empty(task, (climb.counts < 1).nonzero()[:, 0].tolist(), climb.counts)
    collapsed = sorted(climb.floor.reached)
    advice = remedy(task, many) if collapsed else ""
    rest = f"a variance is at the floor, {floor:g} of the data's own, and sets log p(x). {advice}, or set floor."
    if len(collapsed) > MOST_NAMED:
        out.append(f"{len(collapsed):,} of {task.structure.assignments:,} components collapsed: in each {rest}")
    else:
        out += [f"{component(task, a)} collapsed: {rest}" for a in collapsed]
    for name in sorted(climb.floor.latent):
        out.append(f"the scale of '{name}' went to 0, the lower end of its range: the data show no variation there.")
    if task.engine.delicate:
        out.append(
            "the latents' posterior is too nearly singular for float64 to compute its determinant to all digits: log p(x) is "
            "an estimate here, not exact. Standardize the data, or give the observations more noise."
        )
    if climb.objective and not climb.converged:
        out.append(_unfinished(task, climb))
    return out


@torch.no_grad()
def _emptied(task: Task, climb: Climb) -> str | None:
    """A global latent with an entry at 0, where the density of its Dirichlet prior is infinite."""
    names = [s.name for s in task.structure.global_latents if s.family == "Dirichlet" and climb.stuck]
    trace = task.program.trace(task.x[:2], latents=climb.globals) if names else pyro.poutine.Trace()
    for name in names:
        if bool(((climb.globals[name] < EMPTY) & (node_of(trace, name)["fn"].concentration < 1)).any()):
            return name
    return None


def _unfinished(task: Task, climb: Climb) -> str:
    if climb.stuck == BORDER:
        what = "posterior mode: log p(x, globals)" if climb.globals else "maximum: log p(x)"
        return (
            f"em found no {what} grows without bound as a variance goes to 0. {remedy(task)}, or give the variance a lower "
            "bound or a prior that keeps it away from 0."
        )
    if site := _emptied(task, climb):
        return (
            f"em found no posterior mode: the prior of '{site}' grows without bound as a weight goes to 0, and one has gone "
            "there. Take concentrations of 1 or more, fewer components, or a method that integrates, such as nuts."
        )
    if climb.stuck:
        return f"em did not converge: it stopped after {climb.iterations} iterations because {climb.stuck}."
    ahead = f" (at least {climb.left:.2g} nats are left)" if climb.left > ENOUGH else ""
    return f"em did not converge in {climb.iterations} iterations{ahead}; raise max_iter or tol."
