"""Laplace's approximation for local latents that are not exact: a Gaussian per row (for each joint value of the discrete).

θ climbs Laplace's log p(x) itself, with the modes moving along: its derivative takes in that of every mode and of every
determinant (`newton.log_evidence`; Kristensen et al. 2016). It is an estimate, and may reward a θ whose posteriors are least
like Gaussians: so each row's Gaussian is checked as a proposal for importance sampling.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from inference._density import guide as _mode_guide
from inference._density import modes as _all_modes
from inference._density import newton
from inference._density.local import LocalDensity
from inference._density.newton import Modes
from inference._method.fit import DRAWS_PER_ROW, Evidence, Fit, weighed
from inference._method.progress import Step
from inference._method.start import Start, begin
from inference._method.task import Task
from inference._numerics import lbfgs
from inference._numerics import weighted as _weighted
from inference._numerics.adam import Adam
from inference._numerics.psis import psis
from inference._sampling.khat import count_above, of_rows

SMALL = 3_000_000  # numbers in all Hessians' columns, up to which L-BFGS sees all data at once
RISE = 1e-4  # nats per row that an epoch should gain, smoothed
PATIENCE = 10  # epochs without it after which the rate is halved
HALVINGS = 6
WARM_ITERATIONS = 20


@dataclass(frozen=True)
class Options:
    """As of `laplace.fit`."""

    max_iter: int
    tol: float
    tries: int
    samples: int
    epochs: int
    batch: int
    lr: float


@dataclass
class _History:
    objective: list[float] = field(default_factory=list)  # nats per row
    converged: bool = True


def fit(task: Task, start: Start, options: Options) -> Fit:
    """Learn θ where the task says so, then find every row's mode, and say how like a Gaussian its posterior is."""
    history, learner = _History(), None
    if task.learn:
        begin(task, start, task.seed)
    density = LocalDensity(task.program, task.structure, task.x)
    parameters: list[Tensor] = [p for p in task.program.parameters() if p.requires_grad]
    if task.learn and parameters:
        learner = _Learner(density, options, task.relative)
        small = density.n * density.A * (task.x[:1].numel() + density.L) * (density.L + 1) <= SMALL
        climb = _all_at_once if small else _in_batches
        with task.progress("laplace: learning", None if small else options.epochs) as step:
            history = climb(learner, parameters, options, task.seed, step)
    begin_at = None if learner is None else learner.means
    with torch.no_grad(), task.progress("laplace", density.n) as step:
        modes = _all_modes.all_modes(
            density, start=begin_at, tries=options.tries, max_iter=options.max_iter, tol=options.tol, step=step
        )
    return _result(task, density, modes, options, history)


# --------------------------------------------------------------------------------------------------------- learning


class _Learner:
    """Laplace's evidence as a function of θ; each row's modes are looked for where they last were."""

    def __init__(self, density: LocalDensity, options: Options, relative: Tensor | None) -> None:
        self.density, self.options, self.relative = density, options, relative
        shape = (density.n, density.A, density.L)
        self.means = torch.zeros(shape, dtype=density.x.dtype, device=density.x.device)
        self.known = torch.zeros(density.n, dtype=torch.bool, device=density.x.device)

    def climb(self, rows: Tensor, tries: int) -> float:
        """Adds the gradient of Σ −log p(x_i)/n to θ's, over the rows; the mean log p(x_i), nats."""
        here, total = self.density.rows(rows), 0.0
        if bool(self.known[rows].all()):
            modes = newton.modes(
                here, start=self.means[rows], tries=tries, max_iter=WARM_ITERATIONS, tol=self.options.tol
            )
        else:
            modes = newton.modes(here, tries=self.options.tries, max_iter=self.options.max_iter, tol=self.options.tol)
        self.means[rows], self.known[rows] = modes.mean, True
        copies = newton.COPIES * (1 + here.L)  # the graph of every column of the Hessian is kept
        for some in here.chunks(here.A, copies):
            found = newton.log_evidence(here.rows(some), modes.rows(some))
            value = _weighted.weighed(found, self.relative, rows[some]).sum() / len(rows)
            (-value).backward()
            total += float(value.detach())
        return total


def _all_at_once(learner: _Learner, parameters: list[Tensor], options: Options, seed: int, step: Step) -> _History:
    """L-BFGS. Where the line search runs to a θ that has no density it begins again from the best, with shorter steps."""
    history, everything = _History(converged=False), torch.arange(learner.density.n)

    def loss() -> Tensor:
        value = learner.climb(everything, 0)
        if not np.isfinite(value):
            raise ArithmeticError(f"the evidence became {value}")
        history.objective.append(value)
        step(note=f"{value:.4f} nats per row")
        return torch.tensor(-value, dtype=parameters[0].dtype)

    rates = (1.0, 0.1, 0.01)
    history.converged = lbfgs.minimise(parameters, loss, max_iter=options.max_iter, tolerance_change=1e-11, rates=rates)
    return history


def _in_batches(learner: _Learner, parameters: list[Tensor], options: Options, seed: int, step: Step) -> _History:
    """Adam (Kingma & Ba 2015); its rate is halved when an epoch gains too little, and at 1/64 of the first it ends."""
    n, batch = learner.density.n, min(options.batch, learner.density.n)
    history, generator = _History(converged=False), torch.Generator().manual_seed(seed)
    optimiser = Adam(parameters, options.lr)
    smoothed, best, since, halvings = -np.inf, -np.inf, 0, 0
    for epoch in range(options.epochs):
        mean = 0.0
        for rows in torch.randperm(n, generator=generator).split(batch):
            for p in parameters:
                p.grad = None
            value = learner.climb(rows, 2)
            torch.nn.utils.clip_grad_norm_(parameters, 100.0 * len(parameters) ** 0.5)
            optimiser.step()
            mean += value * len(rows) / n
        if not np.isfinite(mean):
            raise ArithmeticError(
                f"laplace stopped at epoch {epoch + 1}: the evidence became {mean}; try a smaller lr."
            )
        history.objective.append(mean)
        step(note=f"{mean:.4f} nats per row")
        smoothed = 0.8 * smoothed + 0.2 * mean if epoch else mean
        best, since = (smoothed, 0) if smoothed > best + RISE else (best, since + 1)
        if since >= PATIENCE:
            since, halvings = 0, halvings + 1
            if halvings > HALVINGS:
                history.converged = True
                break
            optimiser.lr *= 0.5
    return history


# ----------------------------------------------------------------------------------------------------------- result


@torch.no_grad()
def _result(task: Task, density: LocalDensity, modes: Modes, options: Options, history: _History) -> Fit:
    drawn = _Drawn(density, modes, options.samples, task.draws)
    with task.progress("laplace: checking", density.n) as step:
        drawn.run(step)
    found = bool(modes.converged.all())
    guide = None if _mode_guide.refusal(density) else _mode_guide.ModeGuide(density, modes)
    means, deviations = _moments(density, modes, drawn)
    per_datum = modes.log_evidence.double().cpu().numpy()
    return Fit(
        parameters={n: v.detach().cpu().numpy() for n, v in task.program.values().items()},
        claimed=Evidence(float(weighed(per_datum, task.times).sum()), None, "estimate", per_datum),
        draws=drawn.values,
        means=means,
        deviations=deviations,
        probabilities=density.marginals(modes.assignment_weights),
        khat=drawn.khat,
        ess=drawn.ess,
        trace={"log_evidence_per_datum": np.asarray(history.objective)} if history.objective else {},
        converged=history.converged and found,
        warnings=_warnings(task, modes, drawn, history, options),
        notes={
            "newton_steps": {"mean": float(modes.steps.double().mean()), "max": int(modes.steps.max())},
            "modes_not_found": int((~modes.converged).any(1).sum()),
            "hessians_damped": int(modes.damped.any(1).sum()),
            "rows_with_several_modes": int(modes.several.sum()),
            "samples": options.samples,
            DRAWS_PER_ROW: drawn.samples,
        },
        guide=guide,
    )


class _Drawn:
    """Draws from each row's Gaussian: posterior draws, and importance weights that tell how near it is."""

    def __init__(self, density: LocalDensity, modes: Modes, samples: int, draws: int) -> None:
        self.density, self.modes, self.samples, self.draws = density, modes, samples, draws
        self.values: dict[str, np.ndarray] = {}  # site → [draws, n, …]
        self.moments: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # constrained site → mean and deviation [n, …]
        self.khat: np.ndarray | None = None  # [n]
        self.ess: np.ndarray | None = None

    def run(self, step: Step) -> None:
        values: list[dict[str, Tensor]] = []
        moments: list[dict[str, tuple[Tensor, Tensor]]] = []
        checks = []
        constrained = [p.site.name for p in self.density.sites if not p.real]
        for rows in self.density.chunks(max(self.samples, self.draws), 4):
            here, at = self.density.rows(rows), self.modes.rows(rows)
            z, chosen = at.draw(max(self.samples, self.draws))
            if self.samples:
                some, where = z[: self.samples], chosen[: self.samples]
                checks.append(psis((here.log_joint(some, where) - at.log_prob(some, where)).cpu().numpy()))
            known = here.values(z, chosen)
            moments.append({k: (known[k].mean(0), known[k].std(0)) for k in constrained})
            values.append({k: v[: self.draws].cpu() for k, v in known.items()})
            step(rows.stop - rows.start)
        if self.samples:
            self.khat, self.ess = (np.concatenate(c) for c in zip(*checks, strict=True))
        self.values = {k: torch.cat([v[k] for v in values], 1).numpy() for k in values[0]}
        for k in constrained:
            mean, deviation = (torch.cat([m[k][i] for m in moments]).cpu().numpy() for i in (0, 1))
            self.moments[k] = (mean, deviation)


def _moments(density: LocalDensity, modes: Modes, drawn: _Drawn) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Site → posterior mean and standard deviation [n, …]: of the Gaussians, or by draws where a site is constrained."""
    weights = modes.weights.unsqueeze(-1)
    mean = (weights * modes.mean).sum(1)
    variance = modes.scale_tril.square().sum(-1) + (modes.mean - mean.unsqueeze(1)).square()
    deviation = (weights * variance).sum(1).sqrt()
    means, deviations = {}, {}
    for place in density.sites:
        name = place.site.name
        if not place.real:
            means[name], deviations[name] = drawn.moments[name]
            continue
        shape = drawn.values[name].shape[1:]
        means[name] = mean[:, place.part].reshape(shape).cpu().numpy()
        deviations[name] = deviation[:, place.part].reshape(shape).cpu().numpy()
    return means, deviations


def _warnings(task: Task, modes: Modes, drawn: _Drawn, history: _History, options: Options) -> list[str]:
    n, out = len(task.x), []
    if lost := int((~modes.converged).any(1).sum()):
        out.append(
            f"Newton's method did not reach the mode for {lost} of {n} rows (the worst has {float(modes.decrement.max()):.2g} "
            "nats to gain): raise max_iter, or tries; a density with kinks (a relu decoder) may have its mode at one."
        )
    if damped := int(modes.damped.any(1).sum()):
        out.append(
            f"the Hessian at the mode is not positive definite for {damped} of {n} rows, and was damped: their posteriors "
            "are flat in some direction, and their evidence cannot be trusted."
        )
    if drawn.khat is not None and (bad := count_above(drawn.khat)):
        out.append(
            f"{of_rows(bad, n)}: their posteriors have heavier tails than a Gaussian. Check the evidence claimed for them by "
            "another method at the same θ (zoo infer RUN --method ais)."
        )
    if not history.converged:
        out.append("laplace did not converge: the evidence was still rising; raise max_iter or epochs.")
    return out
