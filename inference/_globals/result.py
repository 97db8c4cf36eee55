"""A fit from weighted draws of all latents: posterior moments, resampled draws, and what was summed out given each."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from inference._globals.labels import Labels
from inference._globals.target import Target
from inference._mcmc.conditional import conditional
from inference._mcmc.posterior import Posterior
from inference._method.estimates import Estimates
from inference._method.fit import Arrays, Evidence, Fit, GlobalGaussian
from inference._method.task import Task
from inference._numerics.coordinates import Coordinates
from inference._numerics.psis import smoothed
from zoo._errors import Refusal


def fit_of(
    task: Task,
    target: Target,
    flat: Tensor,
    log_weights: Tensor,
    labels: Labels,
    told: Estimates,
    remedy: str,
    notes: Mapping[str, object],
    every_label: bool = False,
    beyond: float = 0.0,
) -> Fit:
    """`flat` [S, d]: draws with log-weights [S]; `told`: what these say of log p(x).

    `remedy`: what to do where that is not much. `every_label`: whether the draws come from all labellings by themselves.
    `beyond`: the share of walks from the draws that end where weights are larger than any (`walked`).
    """
    share = smoothed(log_weights.numpy())
    if (reason := target.at_an_edge(flat, torch.from_numpy(share))) is not None:
        raise Refusal(reason)
    flat = labels.alike(flat, torch.from_numpy(share))
    values = {n: v.numpy() for n, v in target.posterior.values(flat).items()}
    means = {n: np.einsum("s,s...->...", share, v) for n, v in values.items()}
    deviations = {n: np.einsum("s,s...->...", share, (v - means[n]) ** 2) ** 0.5 for n, v in values.items()}
    generator = torch.Generator().manual_seed(task.seed)
    chosen = torch.multinomial(torch.from_numpy(share), task.draws, replacement=True, generator=generator)
    given = conditional(target.posterior, flat[chosen], generator)
    globals = {s.name for s in task.structure.global_latents}
    theta = {n: v.detach().cpu().numpy() for n, v in task.program.values().items()}
    points = points_of(target.posterior, values, means)
    evidence, warnings = claim(told, labels, remedy, every_label, beyond)
    return Fit(
        parameters={**theta, **{n: v for n, v in points.items() if n in globals}},
        claimed=evidence,
        draws={n: v[chosen.numpy()] for n, v in values.items()} | arrays(given.draws),
        means={n: v for n, v in means.items() if n not in globals} | arrays(given.means),
        deviations={n: v for n, v in deviations.items() if n not in globals} | arrays(given.deviations),
        probabilities=arrays(given.probabilities),
        standard_errors={n: v for n, v in deviations.items() if n in globals},
        converged=not warnings,
        warnings=warnings,
        notes={**notes, "point": "posterior means", **said(told), **labels.notes()},
        global_gaussian=gaussian_of(task, target.posterior, flat[chosen], globals),
    )


def said(told: Estimates) -> dict[str, object]:
    """Of the weights of all data together, for the notes."""
    khat = float(told.khat[0])
    return {"khat": khat if np.isfinite(khat) else None, "effective_draws": float(told.ess[0])}


def claim(told: Estimates, labels: Labels, remedy: str, every_label: bool, beyond: float) -> tuple[Evidence, list[str]]:
    """The evidence of weights that belong to all rows together, and what speaks against it."""
    found, warnings = told.evidence(), []
    if bool(told.doubtful[0]):
        warnings.append(
            f"the evidence claimed is a lower bound, not an estimate: the weights of the draws cannot be trusted (k-hat "
            f"{float(told.khat[0]):.2f}, {float(told.ess[0]):.0f} effective draws). {remedy}"
        )
    evidence = Evidence(found.value, found.se, found.kind)
    if beyond and not warnings:
        evidence = Evidence(float(told.log_mean[0]), found.se, "lower bound")
        warnings.append(
            f"the evidence claimed is a lower bound, not an estimate: {beyond:.0%} of short walks from the draws end where "
            f"weights are larger than any draw's. A part of the posterior is missing, as the neck of a funnel is. {remedy}"
        )
    if not (labels.counted or every_label):
        evidence = Evidence(float(told.log_mean[0]), found.se, "lower bound")
        warnings.append(
            f"the evidence claimed is a lower bound: the labels can be exchanged in exp({labels.log_count:.1f}) ways, which "
            "are too many to count, and not all of them need be in it. Order the components by a constraint."
        )
    return evidence, warnings


def points_of(posterior: Posterior, values: Arrays, means: Arrays) -> Arrays:
    """The posterior means; where a support is not convex, the draw nearest to its mean."""
    out = {}
    for place in posterior.places:
        name, mean = place.site.name, means[place.site.name]
        if not _inside(place.site.constraint, torch.as_tensor(mean)):
            away = np.square(values[name] - mean).reshape(len(values[name]), -1).sum(1)
            mean = values[name][away.argmin()]
        out[name] = mean
    return out


def gaussian_of(task: Task, posterior: Posterior, flat: Tensor, names: set[str]) -> GlobalGaussian | None:
    """The Gaussian with the draws' mean and covariance, from which the verifier draws; None where a support moves."""
    places = [p for p in posterior.places if p.site.name in names]
    if not places or not task.structure.is_exact or len(flat) < 2:
        return None
    part = flat[:, torch.cat([torch.arange(p.part.start, p.part.stop) for p in places])]
    some = posterior.values(flat[:2])
    supports = posterior.task.global_supports
    coordinates = Coordinates({p.site.name: some[p.site.name][0] for p in places}, supports)
    again = coordinates.unflatten(part[:2])
    if not all(torch.allclose(again[n], some[n]) for n in again):
        return None
    covariance = torch.cov(part.mT).reshape(part.shape[1], -1)
    root, failed = torch.linalg.cholesky_ex(covariance)
    if bool(failed):
        return None
    return GlobalGaussian(coordinates, part.mean(0).to(task.x.dtype), root.to(task.x.dtype))


def _inside(support: Constraint | None, value: Tensor) -> bool:
    try:
        return support is None or bool(torch.as_tensor(support.check(value)).all())
    except (NotImplementedError, RuntimeError):
        return True


def arrays(values: Mapping[str, Tensor]) -> Arrays:
    """Tensors as arrays."""
    return {n: v.numpy() for n, v in values.items()}
