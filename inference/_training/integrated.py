"""Global latents integrated out where they are jointly normal with the data, or conjugate to them: log p(x; θ), its maximum
in θ, the exact posterior.

Given θ, f(g) = log p(x, g) is quadratic in the global latents g, the local ones integrated out. Gradient and Hessian at one
point give its peak m and precision P, and log p(x) = f(m) + (G/2) log 2π − ½ log det P. To maximise this over θ is empirical
Bayes (type II maximum likelihood; Bishop 2006, §3.5). For example y_i ~ N(g, 1) and g ~ N(0, τ²) give P = n + 1/τ² and
m = Σ y / P. Of conjugate latents f is a sum of the statistics of their families (`zoo._reading.conjugate`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from inference._exact.engine import Values
from inference._method.fit import Arrays, Evidence, Fit, Kind
from inference._method.task import Task
from inference._numerics import definite
from inference._numerics.coordinates import Coordinates
from inference._numerics.peak import Peak, climb
from zoo._errors import Refusal
from zoo._program.trace import node_of
from zoo._reading.conjugate import Parts
from zoo._reading.pairs import parts_of_globals

MOST_GLOBALS = 1000  # numbers: the Hessian is taken column by column
MOST_PARAMETERS = 300
LOST = 1e-4  # nats that rounding may take from log p(x)
LOOKS = 3  # at two points each, as for conjugate local latents
LOG_2PI = math.log(2 * math.pi)


def fit(task: Task, max_iter: int, tol: float) -> Fit:
    """θ at the maximum of log p(x; θ), and the posterior of all latents there."""
    whole = Integrated.of(task)
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


class Integrated(ABC):
    """log p(x; θ) of a program whose global latents g can be integrated out, and their posterior q(g)."""

    def __init__(self, task: Task) -> None:
        self.task, self.engine = task, task.engine
        self.start = task.global_start()
        self.sizes = {n: v.numel() for n, v in self.start.items()}
        if (total := sum(self.sizes.values())) > MOST_GLOBALS:
            raise Refusal(
                f"em integrates the global latents out and would need a Hessian over {total:,} of their numbers, more than "
                f"{MOST_GLOBALS:,}. Methods that need none: svi."
            )

    @staticmethod
    def of(task: Task) -> Integrated:
        """The one for the structure of the task's program."""
        return JointlyNormal(task) if task.structure.integrable == "normal" else ConjugateGlobals(task)

    def values(self, flat: Tensor) -> dict[str, Tensor]:
        """Flat numbers [..., G] → global site → its values [..., shape]."""
        parts = flat.split(list(self.sizes.values()), -1)
        lead = flat.shape[:-1]
        return {n: p.reshape((*lead, *v.shape)) for (n, v), p in zip(self.start.items(), parts, strict=True)}

    def first(self) -> Tensor:
        """The values to begin with, flat [G]."""
        return torch.cat([v.reshape(-1) for v in self.start.values()])

    def log_joint(self, flat: Tensor, parameters: Values | None = None) -> Tensor:
        """log p(x, g; θ), the local latents integrated out."""
        evidence, prior = self.engine.log_evidence(parameters, self.values(flat), every_row=True)
        return evidence + prior

    @abstractmethod
    def evidence(self, parameters: Values | None = None) -> Tensor:
        """log p(x; θ), differentiable."""

    @abstractmethod
    def posterior(self) -> Posterior:
        """q(g) at the program's θ."""


class Posterior(ABC):
    """The posterior of the global latents, as flat numbers [..., G]."""

    mean: Tensor
    deviation: Tensor

    @abstractmethod
    def log_density(self, flat: Tensor) -> Tensor:
        """log q(g)."""

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator, wide: float = 1.0) -> Tensor:
        """Draws [count, G]; `wide`: further away, where that can be."""


class Normal(Posterior):
    """Mean [G] and precision [G, G]."""

    def __init__(self, mean: Tensor, precision: Tensor) -> None:
        self.mean, factor = mean, torch.linalg.cholesky(precision)
        self.tril = torch.linalg.cholesky(torch.cholesky_inverse(factor))
        self.deviation = self.tril.square().sum(1).sqrt()
        self._normal = torch.distributions.MultivariateNormal(mean, scale_tril=self.tril)

    def log_density(self, flat: Tensor) -> Tensor:
        return self._normal.log_prob(flat)

    def draw(self, count: int, generator: torch.Generator, wide: float = 1.0) -> Tensor:
        noise = torch.randn(count, len(self.mean), generator=generator, dtype=torch.float64).to(self.mean.dtype)
        return self.mean + wide * noise @ self.tril.mT


class JointlyNormal(Integrated):
    """All latents are jointly normal with the data."""

    def _solve(self, parameters: Values | None, keep: bool) -> tuple[Tensor, Tensor]:
        """Mean [G] and precision [G, G] of g given x; `keep`: differentiable in θ."""
        start = self.first()
        with torch.enable_grad():
            flat = start.clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.log_joint(flat, parameters), flat, create_graph=True)
            columns = [
                torch.autograd.grad(s, flat, create_graph=keep, retain_graph=True, materialize_grads=True)[0]
                for s in slope
            ]
        precision = -torch.stack(columns)
        precision = (precision + precision.mT) / 2
        mean = start + torch.linalg.solve(precision, slope)
        return (mean, precision) if keep else (mean.detach(), precision.detach())

    def evidence(self, parameters: Values | None = None) -> Tensor:
        mean, precision = self._solve(parameters, keep=torch.is_grad_enabled())
        log_det = 2 * torch.linalg.cholesky(precision).diagonal().log().sum()
        return self.log_joint(mean, parameters) + 0.5 * len(mean) * LOG_2PI - 0.5 * log_det

    def posterior(self) -> Normal:
        mean, precision = self._solve(None, keep=False)
        values = definite.eigen(definite.unit_diagonal(precision)[0])[0]
        if not bool(precision.isfinite().all()) or float(values[0]) * LOST < torch.finfo(values.dtype).eps:
            raise Refusal(
                "the posterior of the global latents is too nearly singular for its determinant to be computed: a variance is "
                "almost 0, or two of them can hardly be told apart. Leave that latent out, or give it more variance."
            )
        return Normal(mean, precision)


class Natural(Posterior):
    """Each site's posterior by the coefficients of its family's statistics."""

    def __init__(self, parts: Parts, coefficients: dict[str, Tensor]) -> None:
        self._parts, self._c = parts, coefficients
        each = {k: parts.families[k].distribution(c) for k, c in coefficients.items()}
        self.mean = parts.joined({k: q.mean for k, q in each.items()})
        self.deviation = parts.joined({k: q.stddev for k, q in each.items()})

    def log_density(self, flat: Tensor) -> Tensor:
        return self._parts.log_density(self._c, flat)

    def draw(self, count: int, generator: torch.Generator, wide: float = 1.0) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            each = {k: self._parts.families[k].distribution(c).sample((count,)) for k, c in self._c.items()}
        return self._parts.joined(each)


class ConjugateGlobals(Integrated):
    """Each global latent is conjugate to the data that depend on it, and no datum depends on two."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            trace = task.program.trace(task.x[:2])
        self.parts = parts_of_globals({n: node_of(trace, n) for n in self.start})

    def _solve(self, parameters: Values | None, keep: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """log p(x, g) at a point, the point, and the coefficients of q(g)."""

        def joint(flat: Tensor) -> Tensor:
            return self.log_joint(flat, parameters)

        one, other = self.parts.first(self.first())
        for _ in range(LOOKS - 1):
            _, c = self.parts.coefficients(joint, one, other)
            one, other = self.parts.near({k: v.detach() for k, v in c.items()})
        value, c = self.parts.coefficients(joint, one, other, keep)
        return value, one, c

    def evidence(self, parameters: Values | None = None) -> Tensor:
        value, point, c = self._solve(parameters, keep=torch.is_grad_enabled())
        return value - self.parts.log_density(c, point)

    def posterior(self) -> Natural:
        return Natural(self.parts, self._solve(None, keep=False)[2])


@torch.no_grad()
def _result(task: Task, whole: Integrated, peak: Peak, learned: bool) -> Fit:
    q = whole.posterior()
    draws = whole.values(q.draw(task.draws, torch.Generator().manual_seed(task.seed)))
    point, deviations = whole.values(q.mean), whole.values(q.deviation)
    means, local_deviations, local = locals_given(task, draws)
    theta = {n: v.detach().numpy() for n, v in task.program.values().items()}
    warnings = (
        [] if peak.converged else ["em did not reach the maximum to the tolerance asked for; raise max_iter or tol."]
    )
    kind: Kind = "estimate" if task.engine.delicate else "exact"
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
        notes={"integrated_out": list(whole.sizes), "evaluations": len(peak.trace)},
    )


def locals_given(task: Task, draws: dict[str, Tensor]) -> tuple[Arrays, Arrays, Arrays]:
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
        once, means, deviations = task.engine.draw_and_summary(point)
        for name, value in once.items():
            drawn.setdefault(name, []).append(value)
        for name, mean in means.items():
            first[name] = first.get(name, torch.zeros(())) + mean / count
            second[name] = second.get(name, torch.zeros(())) + (mean.square() + deviations[name].square()) / count
    spread = {n: (second[n] - first[n].square()).clamp(min=0).sqrt().numpy() for n in first}
    return {n: v.numpy() for n, v in first.items()}, spread, {n: torch.cat(v).numpy() for n, v in drawn.items()}
