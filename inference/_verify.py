"""The runner's own look at log p(x): the best evaluator there is for a program, at a fit's own θ.

- exact programs: the exact value, by each site's own `log_prob` rather than by the products the method went through (on some
  rows, where that would take minutes, which have to agree with the products);
- global latents with a Gaussian q: importance sampling from it, the local latents summed exactly;
- otherwise: importance sampling from the fit's guide, or when it has none by a particle filter where one can be had, else
  from the prior.
"""

from __future__ import annotations

import torch
from torch import Tensor

from guides import at
from inference import _particles, _weights
from inference._fit import Evidence, Fit, GlobalGaussian
from inference._task import Task

OWN_NUMBERS = 2**30  # of data × joint values, some twenty seconds of them
GLOBAL_SAMPLES = 1000
LOCAL_SAMPLES = 1000
LEAST_SAMPLES = 50
DEFENSIVE = 0.1


@torch.no_grad()
def verify(task: Task, fit: Fit) -> Evidence | None:
    """Evidence for `fit`, whose θ the program of `task` holds; None where nothing better than the claim can be had."""
    if task.structure.exact != "no":
        if fit.global_gaussian is not None:
            return _integrate_globals(task, fit, fit.global_gaussian)
        point = {s.name: torch.as_tensor(fit.parameters[s.name]) for s in task.structure.global_latents}
        given = "" if fit.claimed is None else fit.claimed.given
        exact = Evidence.from_per_datum(_exactly(task, point).numpy(), "exact", given=given)
        return exact.plus(task.outside(point))
    if task.structure.global_latents:
        return None
    return _by_importance(task, fit)


def _exactly(task: Task, point: dict[str, Tensor]) -> Tensor:
    """log p(x_i | θ, globals) [N] of an exact program, nats."""
    each = max(1, task.x[0].numel() * task.structure.assignments)
    if len(task.x) * each <= OWN_NUMBERS:
        return task.exact.per_datum(None, point, own=True)
    found = task.exact.per_datum(None, point)
    rows = torch.linspace(0, len(task.x) - 1, max(1, OWN_NUMBERS // each)).long()
    own = Task(task.program, task.structure, task.x[rows], limit=task.limit).exact.per_datum(None, point, own=True)
    agreed = torch.allclose(found[rows], own, rtol=1e-4 if task.x.dtype == torch.float32 else 1e-9)
    return found if agreed else task.exact.per_datum(None, point, own=True)


def _integrate_globals(task: Task, fit: Fit, q: GlobalGaussian) -> Evidence:
    """log E_q[p(x, globals) / q(globals)], the mass of the posterior that q can see: one labelling of a mixture, say."""
    normal = torch.distributions.MultivariateNormal(q.mean, scale_tril=q.scale_tril)
    flat = normal.sample((GLOBAL_SAMPLES,))
    found = []
    with task.progress("verifying", GLOBAL_SAMPLES) as step:
        for u in flat:
            values = q.coordinates.unflatten(u)
            evidence, prior = task.exact.log_evidence(None, values)
            found.append(evidence + prior + q.coordinates.log_abs_det(u) - normal.log_prob(u))
            step()
    log_w = torch.stack(found).unsqueeze(1)
    value, se = _weights.log_mean(log_w)
    _note_khat(fit, log_w)
    return Evidence(float(value), float(se), "estimate")


def _note_khat(fit: Fit, log_w: Tensor) -> None:
    from inference._arviz import psis

    khat = float(psis(log_w.double().numpy())[0][0])
    fit.notes["khat_of_globals"] = khat
    if not khat <= 0.7:
        fit.warnings.append(
            f"k-hat of the Gaussian over the global latents is {khat:.2f}, above 0.7: its posterior is not close to "
            "Gaussian, and the verified evidence cannot be trusted either."
        )


def _by_importance(task: Task, fit: Fit) -> Evidence:
    samples = _weights.affordable(task.x, LOCAL_SAMPLES, LEAST_SAMPLES)
    filters = None
    if fit.guide is None and _particles.refusal(task.program, task.structure, task.x) is None:
        filters = _particles.share(samples)
    value, se = (torch.empty(len(task.x), dtype=torch.float64) for _ in range(2))
    with task.progress("verifying", len(task.x)) as step:
        for rows in _weights.chunks(task.x, samples):
            x = task.x[rows]
            if filters is not None:
                drawn = _particles.draw(task.program, task.structure, x, samples, filters)
            else:
                guide = None if fit.guide is None else at(fit.guide, rows)
                drawn = _weights.draw(task.program, task.structure, x, guide, samples, DEFENSIVE)
            value[rows], se[rows] = _weights.log_mean(drawn.log_weights, filters)
            step(len(x))
    return Evidence.from_per_datum(value.numpy(), "estimate", se.numpy())
