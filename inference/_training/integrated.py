"""Global latents that are jointly normal with the data, integrated out: log p(x; θ), its maximum in θ, the exact posterior.

Given θ, f(g) = log p(x, g) is quadratic in the global latents g, the local ones integrated out. Gradient and Hessian at one
point give its peak m and precision P, and log p(x) = f(m) + (G/2) log 2π − ½ log det P. To maximise this over θ is empirical
Bayes (type II maximum likelihood; Bishop 2006, §3.5). For example y_i ~ N(g, 1) and g ~ N(0, τ²) give P = n + 1/τ² and
m = Σ y / P.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from inference._exact.engine import Values
from inference._method.fit import Arrays, Evidence, Fit, GlobalGaussian
from inference._method.task import Task
from inference._numerics.coordinates import Coordinates
from inference._numerics.peak import Peak, climb, value_and_hessian
from zoo._errors import Refusal

MOST_GLOBALS = 1000  # numbers: the Hessian is taken column by column
MOST_PARAMETERS = 300
LOG_2PI = math.log(2 * math.pi)


def fit(task: Task, max_iter: int, tol: float) -> Fit:
    """θ at the maximum of log p(x; θ), and the posterior of all latents there."""
    whole = Integrated(task)
    theta = {n: v.detach().clone() for n, v in task.program.values().items()}
    learned = {p.name for p in task.structure.parameters if p.learnable} if task.learn else set()
    free = {n: v for n, v in theta.items() if n in learned}
    coordinates = Coordinates(free, task.program.constraints)
    if coordinates.d > MOST_PARAMETERS:
        raise Refusal(
            f"em integrates the global latents out and would need a Hessian over {coordinates.d:,} parameters, more than "
            f"{MOST_PARAMETERS:,}. Methods that need none: laplace, svi."
        )

    def density(flat: Tensor) -> Tensor:
        return whole.evidence({**theta, **coordinates.unflatten(flat)})

    flat = coordinates.flatten(free).to(task.x.dtype)
    with task.progress("em", max_iter) as step:
        if coordinates.d:
            peak = climb(density, flat, max_iter, max(tol, 1e-9), step)
        else:
            peak = Peak(flat, float(density(flat).detach()), flat.new_zeros(0, 0), True, [])
    if coordinates.d:
        task.program.assign({n: v.detach() for n, v in coordinates.unflatten(peak.flat).items()})
    return _result(task, whole, peak, bool(coordinates.d))


class Integrated:
    """log p(x; θ) of a program whose global latents are jointly normal with the local ones and the data."""

    def __init__(self, task: Task) -> None:
        self.task, self.engine = task, task.engine
        start = task.global_start()
        self.coordinates = Coordinates(start, task.global_supports)
        self.start = self.coordinates.flatten(start).to(task.x.dtype)
        if self.coordinates.d > MOST_GLOBALS:
            raise Refusal(
                f"em integrates the global latents out and would need a Hessian over {self.coordinates.d:,} of their numbers, "
                f"more than {MOST_GLOBALS:,}. Methods that need none: svi."
            )

    def log_joint(self, flat: Tensor, parameters: Values | None = None) -> Tensor:
        """log p(x, g; θ), the local latents integrated out."""
        evidence, prior = self.engine.log_evidence(parameters, self.coordinates.unflatten(flat))
        return evidence + prior

    def posterior(self, parameters: Values | None = None, keep: bool = False) -> tuple[Tensor, Tensor]:
        """Mean [G] and precision [G, G] of g given x; `keep`: differentiable in θ."""
        with torch.enable_grad():
            flat = self.start.clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.log_joint(flat, parameters), flat, create_graph=True)
            columns = [
                torch.autograd.grad(s, flat, create_graph=keep, retain_graph=True, materialize_grads=True)[0]
                for s in slope
            ]
        precision = -torch.stack(columns)
        precision = (precision + precision.mT) / 2
        mean = self.start + torch.linalg.solve(precision, slope)
        return (mean, precision) if keep else (mean.detach(), precision.detach())

    def evidence(self, parameters: Values | None = None) -> Tensor:
        """log p(x; θ), differentiable."""
        mean, precision = self.posterior(parameters, keep=torch.is_grad_enabled())
        log_det = 2 * torch.linalg.cholesky(precision).diagonal().log().sum()
        return self.log_joint(mean, parameters) + 0.5 * len(mean) * LOG_2PI - 0.5 * log_det


@torch.no_grad()
def _result(task: Task, whole: Integrated, peak: Peak, learned: bool) -> Fit:
    mean, precision = whole.posterior()
    tril = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(precision)))
    generator = torch.Generator().manual_seed(task.seed)
    noise = torch.randn(task.draws, len(mean), generator=generator, dtype=torch.float64).to(mean.dtype)
    draws = whole.coordinates.unflatten(mean + noise @ tril.mT)
    point = whole.coordinates.unflatten(mean)
    deviations = whole.coordinates.unflatten(tril.square().sum(1).sqrt())
    means, local_deviations, local = _locals(task, draws)
    theta = {n: v.detach().numpy() for n, v in task.program.values().items()}
    warnings = [] if peak.converged else ["em did not reach the maximum to the tolerance asked for; raise max_iter or tol."]
    kind = "estimate" if task.engine.delicate else "exact"
    return Fit(
        parameters={**theta, **{n: v.numpy() for n, v in point.items()}},
        claimed=Evidence(float(whole.evidence()), None if task.engine.delicate else 0.0, kind),
        draws={**{n: v.numpy() for n, v in draws.items()}, **local},
        means=means,
        deviations=local_deviations,
        standard_errors={n: v.numpy() for n, v in deviations.items()},
        trace={"log_evidence": np.asarray(peak.trace)} if peak.trace else {},
        converged=peak.converged if learned else None,
        warnings=warnings,
        notes={"integrated_out": list(whole.coordinates.sizes), "evaluations": len(peak.trace)},
        global_gaussian=GlobalGaussian(whole.coordinates, mean, tril),
    )


def _locals(task: Task, draws: dict[str, Tensor]) -> tuple[Arrays, Arrays, Arrays]:
    """Means, deviations and draws of the local latents: one draw given each draw of the global ones, and their moments over
    the draws of what is known given each (Rao–Blackwell)."""
    if not task.structure.local_latents:
        return {}, {}, {}
    count = len(next(iter(draws.values())))
    drawn: dict[str, list[Tensor]] = {}
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}
    for i in range(count):
        point = {n: v[i] for n, v in draws.items()}
        for name, value in task.engine.draw(None, 1, point).items():
            drawn.setdefault(name, []).append(value)
        means, deviations = task.engine.summary(point)
        for name, mean in means.items():
            first[name] = first.get(name, torch.zeros(())) + mean / count
            second[name] = second.get(name, torch.zeros(())) + (mean.square() + deviations[name].square()) / count
    spread = {n: (second[n] - first[n].square()).clamp(min=0).sqrt().numpy() for n in first}
    return {n: v.numpy() for n, v in first.items()}, spread, {n: torch.cat(v).numpy() for n, v in drawn.items()}
