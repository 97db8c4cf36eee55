"""Importance sampling: log p(x) of each row from weighted draws, with standard error, k-hat and effective sample size.

Proposals: `prior` (naive Monte Carlo), `guide` (an amortized q), `laplace` (a Gaussian at each row's mode) and `sequential`
(a particle filter along the local latents of a chain, whose pasts are drawn again where few are left, or through the missing
entries of an autoregressive distribution). θ is learned by the importance-weighted bound (Burda, Grosse & Salakhutdinov 2016),
the guide by the wake and sleep phases of reweighted wake-sleep (Bornschein & Bengio 2015). What it claims is an estimate where
the weights of every row can be trusted, and otherwise a lower bound (`estimates`; Vehtari et al. 2024). Discrete latents that
can be summed out along the graph given the continuous ones are, except under `sequential`.

Global latents are drawn jointly with what is not exact given them (`_globals`), and θ then stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pyro
import torch
from torch import Tensor

import guides
from guides import at
from inference._density import guide as _mode_guide
from inference._density import local, modes
from inference._globals import importance as _globals
from inference._method.estimates import Estimates
from inference._method.fit import DRAWS_PER_ROW, Fit
from inference._method.progress import Step
from inference._method.start import Start, begin
from inference._method.summed import completed, summed
from inference._method.task import Task
from inference._sampling import sequential as _sequential
from inference._sampling import weights
from inference._training import elbo
from inference._training.loop import History, Plan, Schedule, train, usual
from inference._training.wake_sleep import Phases
from zoo._errors import Refusal
from zoo._options import Count, Limits, Positive, Used
from zoo._program.structure import Structure

Proposal = Literal["auto", "guide", "prior", "laplace", "sequential"]
SHARES = True  # the processes that torchrun starts share the rows of a mini-batch
OF_ROWS, OF_GLOBALS = 1000, 4000  # draws for the estimate
LEAST_LINES = 100  # particles of a row whose lines are left
NO_HISTORY = History(np.zeros(0), np.zeros(0), True)


def refusal(structure: Structure) -> str | None:
    """Why importance sampling cannot serve the program, or None."""
    if structure.global_latents:
        return _globals.refusal(structure)
    if structure.outside:
        return (
            f"importance looks at one row at a time, and '{structure.outside[0]}' is observed outside the plate 'data'"
        )
    if not structure.local_latents:
        return "importance needs a latent to draw, and the program has none"
    return None


def fit(
    task: Task,
    *,
    proposal: Proposal = "auto",
    samples: Annotated[int, Limits(least=2)] | None = None,
    particles: Count = 20,
    defensive: Annotated[float, Limits(least=0, below=1)] = 0.1,
    filters: Annotated[int, Limits(least=2), Used(proposal="sequential")] = _sequential.FILTERS,
    insomnia: Annotated[float, Limits(least=0, most=1)] = 1.0,
    epochs: Annotated[int, Limits(least=0)] | None = None,
    batch: Count | None = None,
    lr: Positive | None = None,
    tol: Positive = 1e-3,
    schedule: Schedule = "plateau",
    patience: Count = 10,
    guide: Annotated[str, Used(proposal=("auto", "guide"))] = "amortized",
    hidden: Annotated[tuple[Count, ...] | None, Used(guide=guides.NETWORKS), Used(proposal=("auto", "guide"))] = None,
    guide_covariance: Annotated[
        guides.Covariance, Used(guide=guides.GAUSSIANS), Used(proposal=("auto", "guide"))
    ] = "diagonal",
    start: Start = "auto",
) -> Fit:
    """Learn θ (and the guide) with `particles` draws per row, then estimate log p(x) with `samples` draws per row.

    - `proposal`: what draws: the `guide`; the `prior` (naive Monte Carlo); `laplace`, Gaussians at each row's modes; or
      `sequential`, a particle filter along a chain of latents, or through missing entries. `auto`: the guide. With global
      latents a mixture of Student t's that adapts, from the modes (`laplace`) or from the `guide` of an earlier run; `auto`:
      from the latter where there is one.
    - `samples`: draws per row for the estimate of log p(x), 1,000 when None; with global latents draws of all latents, 4,000.
    - `particles`: draws per row of the bound by which θ and the guide are learned.
    - `epochs`: at most. When None 500, and 0 where nothing has to be learned: θ and the guide are those of another run.
    - `defensive`: the share of the guide's draws that comes from the prior (Hesterberg 1995).
    - `filters`: how many independent particle filters share the samples of a row, with proposal=sequential.
    - `insomnia`: the wake phase's share in what the guide learns from; the rest is sleep, data simulated from the program.
    - `tol`: the smallest rise of the bound that counts as progress, nats per row.
    - `schedule`: `plateau` halves the rate when progress stops, and begins again at the first one while that helps;
      `cosine`; `constant`.
    - `patience`: epochs without such a rise after which progress has stopped.
    - `guide`: `amortized`, `convolutional` (square images), `mean_field`, `autoregressive`, `smoothing` (series) or
      `file.py:callable`.
    - `guide_covariance`: of the guide's Gaussians.
    - `start`: `kmeans`, `random`, or the `program`'s own values; `auto` chooses.
    - `batch`: rows of a mini-batch; more than there are means all. When None 64; for data of 100 columns or more 128.
    - `lr`: the rate of Adam. When None 0.02; for data of 100 columns or more, or a program with networks of its own, 0.002.
    - `hidden`: widths of the guide's layers. When None 64,64; for data of 100 columns or more 200,200.
    """
    if task.structure.global_latents:
        return _globals.fit(task, proposal, samples or OF_GLOBALS)
    samples, proposal = samples or OF_ROWS, "guide" if proposal == "auto" else proposal
    whole, task = task, _prepared(task, proposal, guide)
    if task.learn:
        begin(task, start, task.seed)
    batch, lr, hidden = usual(task, batch, lr, hidden)
    ready = proposal != "guide" or task.guide is not None
    q = task.guide if proposal == "guide" else None
    if not ready:
        q = guides.make(guide, task.structure, task.x, hidden=hidden, covariance=guide_covariance)
    both = {"program": task.program if task.learn else None, "guide": q}
    modules = {name: m for name, m in both.items() if m is not None}
    if epochs is None:
        epochs = 0 if ready and not task.learn else 500
    groups = _sequential.share(samples, filters) if proposal == "sequential" else None
    history = NO_HISTORY
    if epochs:
        phases = Phases(task, q, particles, defensive, insomnia, groups and 1)
        history = _learned(task, phases, modules, Plan(epochs, batch, lr, tol, schedule, patience))
    q = _at_the_modes(task) if proposal == "laplace" else q
    with torch.no_grad(), pyro.validation_enabled(False), task.progress("importance: estimating", len(task.x)) as step:
        fit = _estimate(task, q, _Estimator(proposal, samples, defensive, groups), history, step)
    return completed(whole, task, fit)


def _prepared(task: Task, proposal: Proposal, guide: str) -> Task:
    """The task without the discrete latents that can be summed out; a particle filter draws all latents as they come.

    Raises `Refusal` where the proposal cannot serve the program.
    """
    own = task if proposal == "sequential" else summed(task, guide if proposal == "guide" else None)
    _check(own, proposal, guide)
    return own


def _learned(task: Task, phases: Phases, modules: dict[str, torch.nn.Module], plan: Plan) -> History:
    """Train the modules, and say how that went."""
    phases.check()
    with task.progress("importance", plan.epochs) as step, pyro.validation_enabled(False):
        return train(
            task,
            modules,
            phases.objective,
            plan,
            step=step,
            culprit=lambda rows, x: elbo.culprit(task, phases.guide, rows, x),
        )


def _check(task: Task, proposal: Proposal, guide: str) -> None:
    """Raise `Refusal` where the proposal cannot serve the program."""
    if proposal == "laplace":
        _check_laplace(task)
    if proposal == "sequential" and (reason := _sequential.refusal(task.program, task.structure, task.x)) is not None:
        raise Refusal(reason)
    if proposal == "guide" and task.guide is None and (reason := guides.refusal(guide, task.structure)) is not None:
        raise Refusal(f"{reason}, or take proposal=prior")
    weights.check(task.program, task.structure, task.x)


def _check_laplace(task: Task) -> None:
    if task.learn and task.program.unconstrained():
        raise Refusal(
            "the modes hold for one θ: fit the program by another method, then `zoo infer RUN --method importance`"
        )
    if not task.structure.continuous_locals:
        raise Refusal("proposal=laplace needs a continuous local latent, and the program has none")
    if (reason := local.refusal(task.structure)) is not None:
        raise Refusal(f"{reason}, so there are no modes to propose from")


@torch.no_grad()
def _at_the_modes(task: Task) -> _mode_guide.ModeGuide:
    """The mixture of Laplace's Gaussians at each row's modes, and of wider ones, as a guide."""
    density = local.LocalDensity(task.program, task.structure, task.x)
    if (reason := _mode_guide.refusal(density)) is not None:
        raise Refusal(reason)
    with task.progress("importance: modes", len(task.x)) as step:
        return _mode_guide.ModeGuide(density, modes.with_wide(modes.all_modes(density, step=step), density))


@dataclass(frozen=True)
class _Estimator:
    """How the draws are made that the evidence is estimated from."""

    proposal: Proposal
    samples: int
    defensive: float
    filters: int | None

    def draw(self, task: Task, guide: torch.nn.Module | None, rows: slice) -> weights.Draws:
        """Weighted draws for some rows."""
        x = task.x[rows]
        if self.filters is not None:
            return _sequential.draw(task.program, task.structure, x, self.samples, self.filters, LEAST_LINES)
        q = None if guide is None else at(guide, rows)
        return weights.draw(task.program, task.structure, x, q, self.samples, self.defensive)


def _estimate(task: Task, guide: torch.nn.Module | None, how: _Estimator, history: History, step: Step) -> Fit:
    structure, N = task.structure, len(task.x)
    # made before the work: small results left between large temporaries would cut the memory that those need into pieces
    parts: list[Estimates] = []
    kept: dict[str, Tensor] = {}
    lines = torch.full((N,), how.samples)  # distinct particles that the draws of the first latent come from
    bits = {s.name: torch.empty(N, *s.event_shape) for s in structure.local_latents if s.completes and s.discrete}
    for rows in weights.chunks(task.x, how.samples):
        drawn = how.draw(task, guide, rows)
        log_w = drawn.log_weights
        if drawn.origin is not None:
            lines[rows] = _sequential.lines(drawn.origin)
        parts.append(
            Estimates.of(log_w, how.filters, weights.lone_states(drawn.values, log_w, structure, task.x[rows]))
        )
        share = _shares(log_w)
        chosen = torch.multinomial(share.mT, task.draws, replacement=True).mT  # [draws, rows]
        for site in structure.local_latents:
            values = structure.axes.by_datum(drawn.values[site.name], site)
            if site.name not in kept:
                kept[site.name] = values.new_empty(task.draws, N, *values.shape[2:])
            kept[site.name][:, rows] = values[chosen, torch.arange(log_w.shape[1])]
            if site.name in bits:
                bits[site.name][rows] = torch.einsum("sn,snm->nm", share, values)
        step(log_w.shape[1])
    found = Estimates.joined(parts)
    if task.structure.is_exact and bool(found.alone.any()):
        found = found.beside(task.engine.per_datum())
    return Fit(
        parameters={n: v.detach().numpy() for n, v in task.program.values().items()},
        claimed=found.evidence(),
        draws={n: v.numpy() for n, v in kept.items()},
        probabilities={n: torch.stack([1 - v, v], -1).numpy() for n, v in bits.items()},
        khat=found.khat.numpy(),
        ess=found.ess.numpy(),
        trace=history.trace("bound_per_datum"),
        converged=False if bool(found.doubtful.any()) else history.converged,
        warnings=_warnings(found, how, history) + _degenerate(lines),
        notes={
            "proposal": how.proposal,
            "samples": how.samples,
            DRAWS_PER_ROW: how.samples,
            "epochs": len(history.objective),
            "training_converged": history.converged,
        }
        | history.notes
        | ({} if how.filters is None else {"filters": how.filters, "fewest_lines": int(lines.min())}),
        guide=guide,
    )


def _degenerate(lines: Tensor) -> list[str]:
    """What becomes of draws of early latents where few particles' lines are left."""
    few = int((lines < LEAST_LINES).sum())
    if not few:
        return []
    return [
        f"the posterior draws of the first latents of {few} of {len(lines)} rows descend from fewer than {LEAST_LINES} "
        f"particles (the fewest {int(lines.min())}), so their spread is too small; log p(x) is not affected. Take more samples "
        "or filters."
    ]


def _shares(log_w: Tensor) -> Tensor:
    """The weights of each row as shares [samples, n]; equal ones where a row's draws all have none."""
    lost = ~log_w.amax(0).isfinite()
    return log_w.masked_fill(lost, 0.0).softmax(0) if bool(lost.any()) else log_w.softmax(0)


def _warnings(found: Estimates, how: _Estimator, history: History) -> list[str]:
    remedy = (
        "Take more samples, or another proposal than {}: ais, or `zoo infer RUN --method importance` at a fitted θ."
    )
    claim = found.warning("the evidence claimed", remedy.format(f"proposal={how.proposal}"))
    out = [] if claim is None else [claim]
    if history.converged is False:
        out.append("importance did not converge: the bound was still rising; raise epochs or tol.")
    return out
