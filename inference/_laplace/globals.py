"""Laplace's approximation where the local latents are exact: a Gaussian over global latents, or over θ.

With global latents (parameters with priors) the Gaussian is over them, in unconstrained coordinates, and gives log p(x)
(MacKay 2003, §27; Tierney & Kadane 1986). A program with none has no more to approximate, and the Gaussian is the
large-sample one over θ itself, from the observed information (Efron & Hinkley 1978): standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from inference._method.fit import Evidence, Fit, GlobalGaussian
from inference._method.row_posteriors import MOST_NUMBERS
from inference._method.start import Start, begin
from inference._method.task import Task
from inference._numerics import definite
from inference._numerics.coordinates import Coordinates
from inference._numerics.peak import SMALLEST_EIGENVALUE, Peak, climb, value_and_hessian
from zoo._errors import Refusal

LEFT_OUT = "left out: draws of the local latents, which would take too much memory"
MOST_BELOW = 0.01  # nats from θ to the mode near it, for a curvature at θ to say how well the data fix θ
MOST_PARAMETERS = 3000  # a Hessian of more is neither cheap nor telling


def fit(task: Task, max_iter: int, tol: float, start: Start) -> Fit:
    """Climb to the mode by L-BFGS, finish with Newton steps, and take the Hessian there.

    A Hessian that is not positive definite is damped, and the fit says so.
    """
    globals = begin(task, start, task.seed) if task.learn else task.global_start()
    theta = {n: v.detach().clone() for n, v in task.program.values().items()}
    free = globals | (theta if task.learn or not globals else {})
    supports = {**task.program.constraints, **task.global_supports}
    coordinates = Coordinates(free, supports)
    if coordinates.d > MOST_PARAMETERS:
        raise Refusal(
            f"laplace would need a Hessian over {coordinates.d:,} numbers, more than {MOST_PARAMETERS:,}. Methods that need "
            "none: em, svi, importance."
        )
    density = _density(task, coordinates, set(globals), theta)
    flat = coordinates.flatten(free).to(task.x.dtype)
    with task.progress("laplace", max_iter) as step, _unbounded_is_a_refusal():
        if not coordinates.d:  # nothing to climb, and no Gaussian to put on it
            peak = Peak(flat, float(density(flat).detach()), flat.new_zeros(0, 0), converged=True, trace=[])
        elif task.learn or globals:
            peak = climb(density, flat, max_iter, tol, step)
        else:
            peak = Peak(flat, *value_and_hessian(density, flat), converged=True, trace=[])
    values = {n: v.detach() for n, v in coordinates.unflatten(peak.flat).items()}
    if task.learn:
        task.program.assign({n: v for n, v in values.items() if n in theta})
    fit = _result(task, coordinates, peak, values, set(globals))
    return fit if task.learn or globals or not coordinates.d else _at_kept_theta(fit, density, peak)


def _at_kept_theta(fit: Fit, density: Callable[[Tensor], Tensor], peak: Peak) -> Fit:
    """Without standard errors and draws of θ where θ is not the mode on these data."""
    (slope,) = torch.autograd.grad(density(flat := peak.flat.detach().clone().requires_grad_()), flat)
    below = float((_spread(peak.hessian).mT @ slope).square().sum() / 2)  # the Newton decrement, in nats
    if below <= MOST_BELOW:
        return fit
    said = [w for w in fit.warnings if not w.startswith("the Hessian at the mode")]
    kept = {n: v for n, v in fit.draws.items() if n not in fit.standard_errors}
    told = (
        f"θ is kept, and is not the mode of log p(x; θ) on these data (about {below:.2g} nats below it): it has no standard "
        "errors here. Those of the data it was learned on: zoo infer RUN --method laplace, without other data."
    )
    return replace(fit, standard_errors={}, draws=kept, warnings=[*said, told])


def _density(
    task: Task, coordinates: Coordinates, globals: set[str], theta: dict[str, Tensor]
) -> Callable[[Tensor], Tensor]:
    """flat ↦ log p(x, globals; θ), with the Jacobian of the globals' coordinates: their density, not that of θ's."""
    layout, places = coordinates.part(globals)

    def density(flat: Tensor) -> Tensor:
        values = coordinates.unflatten(flat)
        parameters = {**theta, **{n: v for n, v in values.items() if n not in globals}}
        evidence, prior = task.engine.log_evidence(parameters, {n: values[n] for n in globals})
        return evidence + prior + layout.log_abs_det(flat[places])

    return density


@contextmanager
def _unbounded_is_a_refusal() -> Iterator[None]:
    """A climb that ends where the program's own distributions refuse their parameters has no maximum to end at."""
    try:
        yield
    except (ValueError, torch.linalg.LinAlgError, ArithmeticError) as error:
        raise Refusal(
            "laplace found no mode: the density grows without bound on these data (a component or a noise collapses on a "
            "few of them). em holds such a variance at a floor; else ask for fewer components, or priors."
        ) from error


def _spread(hessian: Tensor) -> Tensor:
    """A factor F with F Fᵀ the inverse Hessian on the directions that the data identify; none along the others."""
    if not len(hessian):
        return hessian
    scaled, size = definite.unit_diagonal(hessian)
    values, vectors = definite.eigen(scaled)
    root = torch.where(values > SMALLEST_EIGENVALUE, values.abs().clamp(min=1e-300).rsqrt(), torch.zeros_like(values))
    return vectors * root / size.unsqueeze(1)


def _result(task: Task, coordinates: Coordinates, peak: Peak, values: dict[str, Tensor], globals: set[str]) -> Fit:
    hessian, low = definite.raised(peak.hessian, SMALLEST_EIGENVALUE)
    raised = int(low)
    factor = _spread(peak.hessian)
    warnings = []
    if raised:
        warnings.append(
            f"the Hessian at the mode is not positive definite: {raised} of its {len(hessian)} eigenvalues were damped. The "
            "data do not identify those directions (rotated loadings, an empty component); standard errors leave them out."
        )
    if not peak.converged:
        warnings.append("laplace did not reach the mode to the tolerance asked for; raise max_iter or tol.")
    generator = torch.Generator().manual_seed(task.seed)
    noise = torch.randn(task.draws, coordinates.d, generator=generator, dtype=torch.float64).to(peak.flat.dtype)
    draws = coordinates.unflatten(peak.flat + noise @ factor.mT)
    point = {n: v for n, v in values.items() if n in globals}
    posterior = task.engine.responsibilities(None, point)
    means, deviations = task.engine.summary(point)
    wide = task.structure.eliminable and task.draws * len(task.x) * len(task.structure.discrete_locals) > MOST_NUMBERS
    local = {} if wide else _local_draws(task, {n: v for n, v in draws.items() if n in globals}, posterior)
    errors = _standard_errors(coordinates, peak.flat, factor)
    theta = {n: v.detach().numpy() for n, v in task.program.values().items()}
    return Fit(
        parameters={**theta, **{n: v.numpy() for n, v in point.items()}},
        claimed=_evidence(task, coordinates, peak, hessian, point),
        draws={**{n: v.detach().numpy() for n, v in draws.items()}, **local},
        means={n: v.numpy() for n, v in means.items()},
        deviations={n: v.numpy() for n, v in deviations.items()},
        probabilities={n: v.numpy() for n, v in task.engine.marginals(posterior, point).items()},
        standard_errors={n: v.numpy() for n, v in errors.items()},
        trace={"log_joint" if globals else "log_likelihood": np.asarray(peak.trace)} if peak.trace else {},
        converged=peak.converged,
        warnings=warnings,
        notes=_notes(task, coordinates, peak, raised) | ({"posterior": LEFT_OUT} if wide else {}),
        global_gaussian=_global_gaussian(coordinates, peak, hessian, globals),
    )


@torch.no_grad()
def _local_draws(task: Task, globals: dict[str, Tensor], posterior: Tensor) -> dict[str, np.ndarray]:
    """Draws of the local latents, one given each draw of the globals; where there are none, all from `posterior`."""
    if not task.structure.local_latents:
        return {}
    if not globals:
        return {n: v.numpy() for n, v in task.engine.draw(posterior, task.draws).items()}
    drawn: dict[str, list[Tensor]] = {}
    for i in range(task.draws):
        point = {n: v[i].detach() for n, v in globals.items()}
        for name, value in task.engine.draw(task.engine.responsibilities(None, point), 1, point).items():
            drawn.setdefault(name, []).append(value)
    return {n: torch.cat(v).numpy() for n, v in drawn.items()}


def _notes(task: Task, coordinates: Coordinates, peak: Peak, raised: int) -> dict[str, object]:
    notes = {"over": list(coordinates.sizes), "eigenvalues_raised": raised, "evaluations": len(peak.trace)}
    if task.structure.continuous_locals:
        names = ", ".join(f"'{s.name}'" for s in task.structure.continuous_locals)
        notes |= {
            "newton_steps": 1,
            "exact": f"the log joint is quadratic in {names}: Laplace's approximation is exact",
        }
    return notes


def _evidence(task: Task, coordinates: Coordinates, peak: Peak, hessian: Tensor, point: dict[str, Tensor]) -> Evidence:
    if not point:
        exact = Evidence.from_per_datum(task.engine.per_datum().numpy(), "exact", weights=task.times)
        # what is observed outside the data plate belongs to no row
        return replace(exact, value=exact.value + float(task.engine.log_prior().detach()))
    # θ is a point: only the globals' block of the Hessian is integrated over
    _, index = coordinates.part(set(point))
    log_det = 2 * torch.linalg.cholesky(hessian[index][:, index]).diagonal().log().sum()
    value = peak.value + 0.5 * len(index) * math.log(2 * math.pi) - 0.5 * float(log_det)
    if task.structure.integrable == "normal" and not task.engine.delicate:  # the Gaussian is the posterior itself
        return Evidence(value, 0.0, "exact")
    return Evidence(value, None, "estimate")


def _global_gaussian(coordinates: Coordinates, peak: Peak, hessian: Tensor, globals: set[str]) -> GlobalGaussian | None:
    if not globals:
        return None
    layout, index = coordinates.part(globals)
    tril = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian[index][:, index])))
    return GlobalGaussian(layout, peak.flat[index], tril)


def _standard_errors(coordinates: Coordinates, flat: Tensor, factor: Tensor) -> dict[str, Tensor]:
    """Of the constrained values, by the delta method: √diag(J Σ Jᵀ)."""
    out = {}
    for name in coordinates.sizes:
        jacobian = torch.autograd.functional.jacobian(lambda f, n=name: coordinates.unflatten(f)[n], flat)
        assert isinstance(jacobian, Tensor)
        out[name] = (jacobian @ factor).square().sum(-1).sqrt()
    return out
