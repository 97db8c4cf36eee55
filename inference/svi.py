"""Stochastic variational inference: θ and a guide climb the ELBO together, by mini-batches.

Hoffman et al. 2013; Kingma & Welling 2014. The guide is derived from the structure, or given. Discrete local latents that
can be enumerated are summed out under it, so that their ELBO has no sampling noise; `particles=K` climbs the
importance-weighted bound (Burda, Grosse & Salakhutdinov 2016). What it claims is a lower bound. A program without latents
is learned by maximum likelihood, and its log p(x) is exact.

Where a few data have global latents, single draws are too noisy to tell where the bound stops rising: there the draws are
held fixed, and L-BFGS climbs (`climb`). k-hat, for each row and for the globals, says how near q is (Yao et al. 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pyro
import torch
from torch import Tensor

import guides
from guides import at
from inference._exact.enumeration import Enumeration
from inference._laplace.globals import approximation
from inference._method.fit import DRAWS_PER_ROW, Evidence, Fit, GlobalGaussian
from inference._method.progress import Step
from inference._method.start import Start, begin
from inference._method.summed import completed, summed
from inference._method.task import Task
from inference._numerics.coordinates import Coordinates, bijection
from inference._sampling import weights
from inference._training import climb as _climb
from inference._training import elbo
from inference._training import nearness as _nearness
from inference._training.collapse import collapse
from inference._training.fixed_draws import FixedDraws
from inference._training.loop import History, Plan, Schedule, train, usual
from inference._training.nearness import Nearness
from zoo._errors import Refusal
from zoo._options import Count, Limits, Positive, Used
from zoo._program.structure import Structure
from zoo._program.trace import local_log_prob, node_of

WEIGHTS = True  # rows may have weights
SHARES = True  # the processes that torchrun starts share the rows of a mini-batch
BOUND_DRAWS = 200
FIXED_BOUND_DRAWS = 1024  # where they go side by side
FEW = 2**18  # numbers in one draw of the whole program, up to which L-BFGS is the usual way
FEW_GLOBAL = 2**21  # the same without local latents
EPOCHS, STEPS = 1000, 5000
FULL = 100  # numbers of global latents that have a covariance matrix unless told otherwise
Optimizer = Literal["auto", "adam", "lbfgs"]
GlobalGuide = Literal["auto", "diagonal", "full", "lowrank", "flow"]
ADAM = Used(optimizer=("auto", "adam"))
POSTERIOR_IS_GUIDE = True  # new rows are answered by the guide as it is


def refusal(structure: Structure) -> str | None:
    """Why SVI cannot serve the program, or None."""
    structure = structure.summed
    for site in structure.global_latents:
        if site.discrete:
            return f"svi has no guide for the discrete global latent '{site.name}'"
    return guides.refusal("amortized", structure)


def fit(
    task: Task,
    *,
    epochs: Count | None = None,
    batch: Annotated[Count | None, ADAM] = None,
    lr: Annotated[Positive | None, ADAM] = None,
    tol: Annotated[Positive, ADAM] = 1e-4,
    particles: Count = 1,
    guide: str = "amortized",
    hidden: Annotated[tuple[Count, ...] | None, Used(guide=guides.NETWORKS)] = None,
    guide_covariance: Annotated[guides.Covariance, Used(guide=guides.GAUSSIANS)] = "diagonal",
    globals: Annotated[GlobalGuide, Used(guide=guides.GAUSSIANS)] = "auto",
    optimizer: Optimizer = "auto",
    schedule: Annotated[Schedule, ADAM] = "plateau",
    patience: Annotated[Count, ADAM] = 10,
    held_out: Annotated[float, Limits(least=0, below=1), ADAM] = 0.0,
    clip: Annotated[Positive, ADAM] = 1000.0,
    start: Start = "auto",
) -> Fit:
    """Climb the bound for `epochs` epochs, or until it stops rising.

    - `epochs`: at most. When None 1000, and at least 5000 steps; of L-BFGS, iterations.
    - `batch`: rows of a mini-batch; more than there are means all. When None 64; for data of 100 columns or more 128. Where all
      rows are fewer than 64, each has several draws a step.
    - `lr`: the rate of Adam. When None 0.02; for data of 100 columns or more, or a program with networks of its own, 0.002.
    - `hidden`: widths of the guide's layers. When None 64,64; for data of 100 columns or more 200,200.
    - `tol`: the smallest rise of the bound that counts as progress, nats per row; of Adam.
    - `particles`: draws per row of the importance-weighted bound; 1 is the ELBO.
    - `guide`: `amortized`, `convolutional` (square images), `mean_field`, `autoregressive`, `smoothing` (series) or
      `file.py:callable`.
    - `guide_covariance`: of the Gaussians of an amortized or mean-field guide.
    - `globals`: q of the global latents in unconstrained coordinates: `full`, one normal with all their covariances; `lowrank`,
      with those along √d directions; `flow`, a normal that a triangular flow bends and skews; `diagonal`, independent ones. All
      but the last begin at Laplace's approximation where there is one. `auto` is full for at most 100 numbers and where
      there is one.
    - `optimizer`: `adam`, by mini-batches; `lbfgs`, on fixed draws for all rows. `auto` is `lbfgs` where there are global
      latents and few rows, unless batch, lr, schedule, held_out or particles ask for Adam.
    - `schedule`: `plateau` halves the rate when progress stops, down to 1/64, and then begins again at the first rate,
      until that gains less than 0.01 nats a row; `cosine`; `constant`.
    - `patience`: epochs without such a rise of the bound after which progress has stopped.
    - `held_out`: the share of rows kept aside; the parameters that were best on them are kept, and `patience` counts there.
    - `clip`: the largest norm of a step's gradient (nats per row).
    - `start`: `kmeans`, `random`, or the `program`'s own values; `auto` chooses.
    """
    whole, task = task, summed(task, guide)
    adams = batch is not None or lr is not None or schedule != "plateau" or held_out > 0
    batch, lr, hidden = usual(task, batch, lr, hidden)
    latents = bool(task.structure.local_latents or task.structure.global_latents)
    if particles > 1 and task.structure.global_latents:
        raise Refusal(
            "particles weigh each row separately, and the global latents belong to all of them: take particles=1"
        )
    if not task.structure.enumerable:
        weights.check(task.program, task.structure, task.x)
    points = begin(task, start, task.seed) if task.learn else task.global_start()
    q = None
    if latents:
        q = task.guide or _guide(task, guide, points, globals, {"hidden": hidden, "covariance": guide_covariance})
    objective = elbo.objective(task, q, particles)
    epochs, draws = epochs or max(EPOCHS, -(-STEPS // -(-len(task.x) // batch))), elbo.draws_of_few(task, q, batch)
    plan = Plan(epochs, batch, lr, tol, schedule, patience, clip, held_out, draws)
    fixed = _fixed_draws(task, q, particles, optimizer)
    few = fixed is not None and fixed.width <= (FEW if task.structure.local_latents else FEW_GLOBAL)
    found = _Found(task, q, particles, objective, list(points), fixed)
    with task.progress("svi", plan.epochs) as step, pyro.validation_enabled(False):
        if fixed is not None and found.learns and (optimizer == "lbfgs" or (optimizer == "auto" and few and not adams)):
            found.climb(plan.epochs, step)
        else:
            found.train(plan, few, step)
        return completed(whole, task, found.fit())


def _guide(task: Task, name: str, points: dict[str, Tensor], wanted: GlobalGuide, options: dict[str, object]) -> Any:
    """The guide by name; one with a covariance of the globals begins at Laplace's approximation, where there is one."""
    bijections = {n: bijection(s) for n, s in task.global_supports.items()}
    d = sum(bijections[n].inv(v).numel() for n, v in points.items())
    kind = wanted if wanted != "auto" else "full" if 1 < d <= FULL else "diagonal"

    def make(kind: GlobalGuide) -> Any:
        return guides.make(name, task.structure, task.x, points, bijections, **options, globals_covariance=kind)

    made = make(kind)
    if kind != "diagonal" and isinstance(made, guides.Derived) and made.globals_covariance == kind:
        gaussian = approximation(task)
        if gaussian is not None:
            made.begin_globals(gaussian.mean, gaussian.scale_tril)
        elif wanted == "auto":  # no Gaussian is near the posterior, and covariances would take long to find
            made = make("diagonal")
    return made


def _fixed_draws(task: Task, guide: torch.nn.Module | None, particles: int, optimizer: Optimizer) -> FixedDraws | None:
    """The bound with its draws held fixed, where it exists and is wanted."""
    asked = optimizer == "lbfgs"
    if not (asked or task.structure.global_latents):
        return None
    why = "the program has no latents" if guide is None else ""
    why = why or ("particles are drawn at every step" if particles > 1 else "")
    why = why or ("each epoch has a binarisation of its own" if task.intensities is not None else "")
    if guide is not None and not why:
        try:
            return FixedDraws(task, guide)
        except NotImplementedError as error:
            why = str(error)
    if asked:
        raise Refusal(f"optimizer=lbfgs needs draws that are held fixed, but {why}: take optimizer=adam")
    return None


@dataclass
class _Found:
    """A guide and a program, and how they come to fit."""

    task: Task
    guide: torch.nn.Module | None
    particles: int
    objective: elbo.Objective
    globals: list[str]
    fixed: FixedDraws | None
    effort: float = 0.0  # how often the program was run on all data, roughly

    def __post_init__(self) -> None:
        self.modules: dict[str, torch.nn.Module] = {"program": self.task.program} if self.task.learn else {}
        self.modules |= {} if self.guide is None else {"guide": self.guide}
        self.history = History(np.zeros(0), np.zeros(0), True)
        self.outcome: _climb.Outcome | None = None

    @property
    def learns(self) -> bool:
        """Whether there is a number to learn: a guide of one's own may have none."""
        return any(p.requires_grad for m in self.modules.values() for p in m.parameters())

    def climb(self, iterations: int, step: Step) -> None:
        """By L-BFGS on fixed draws."""
        assert self.fixed is not None and self.guide is not None
        self.outcome = out = _climb.climb(self.task, self.guide, self.modules, self.fixed, iterations, step)
        self.effort = 3.0 * len(out.trace) * _climb.FIRST
        self.history = History(np.asarray(out.trace) / self.task.count, np.zeros(0), out.converged)

    def train(self, plan: Plan, few: bool, step: Step) -> None:
        """By Adam on mini-batches."""
        if self.fixed is not None and self.guide is not None:
            _climb.scales_from_curvature(self.fixed, self.guide, torch.Generator().manual_seed(self.task.seed))
        blame = lambda rows, x: elbo.culprit(self.task, self.guide, rows, x)  # noqa: E731
        self.history = train(self.task, self.modules, self.objective, plan, step=step, culprit=blame)
        self.effort = 3.0 * len(self.history.objective) * self.particles
        if self.guide is not None and self.task.structure.global_latents and self.history.converged:
            self.history.converged = _climb.stationary(self.task, self.guide, self.objective)
            self.history.unsure = "the slope of the bound in the guide's global latents is not known"

    def fit(self) -> Fit:
        """The result."""
        task, nearness = self.task, Nearness()
        if self.guide is None:
            claimed = _log_likelihood(task)
        elif task.structure.global_latents:
            values = self._draws_of_the_bound()
            claimed = Evidence(float(values.mean()), float(values.std() / len(values) ** 0.5), "lower bound")
            _nearness.of_globals(task, self.guide, values, self.effort, nearness)
            gaussian = _global_gaussian(task, self.guide, self.globals)
            if gaussian is not None:
                point = gaussian.coordinates.unflatten(gaussian.mean)
                _nearness.of_locals(task, self.guide, point, self.effort, nearness)
        else:
            claimed = _bound(task, self.guide, self.particles, nearness)
        if claimed.per_datum is not None:
            claimed = claimed.plus(task.outside({}))
        return _result(self, claimed, nearness)

    @torch.no_grad()
    def _draws_of_the_bound(self) -> Tensor:
        """The bound by independent draws [draws], nats in total."""
        if self.fixed is not None and self.fixed.width * FIXED_BOUND_DRAWS <= weights.EFFORT:
            generator = torch.Generator().manual_seed(self.task.seed)
            return self.fixed.all_values(self.fixed.draw(FIXED_BOUND_DRAWS, generator, plain=True)).double()
        values = [float(self.objective(slice(None), self.task.x)) for _ in range(BOUND_DRAWS)]
        return torch.tensor(values, dtype=torch.float64) * self.task.count


@torch.no_grad()
def _log_likelihood(task: Task) -> Evidence:
    """log p(x) of a program without latents."""
    parts = [task.x[r] for r in weights.chunks(task.x, 1)]
    data_dim = task.structure.data_dim
    exact = [local_log_prob(task.program.trace(x), data_dim, len(x)).reshape(len(x)) for x in parts]
    return Evidence.from_per_datum(torch.cat(exact).numpy(), "exact", weights=task.times)


@torch.no_grad()
def _bound(task: Task, guide: torch.nn.Module, particles: int, nearness: Nearness) -> Evidence:
    """The bound over all data: exact where all latents are enumerated, else the mean of draws with its standard error."""
    if task.structure.enumerable and particles == 1:
        summed = enumerated_bound(task, guide, nearness).numpy()
        return Evidence.from_per_datum(summed, "lower bound", weights=task.times)
    times = max(10, weights.affordable(task.x, BOUND_DRAWS, 10) // particles)
    value, se = (torch.empty(len(task.x), dtype=torch.float64) for _ in range(2))
    for rows in weights.chunks(task.x, times * particles):
        x = task.x[rows]
        log_w = weights.draw(task.program, task.structure, x, at(guide, rows), times * particles).log_weights
        bound = weights.log_mean(log_w.reshape(particles, times, len(x)))[0]
        value[rows], se[rows] = bound.mean(0), bound.std(0) / times**0.5
        nearness.add(log_w)
    return Evidence.from_per_datum(value.numpy(), "lower bound", se.numpy(), weights=task.times)


def enumerated_bound(task: Task, guide: torch.nn.Module, nearness: Nearness | None = None) -> Tensor:
    """Σ_a q(a | x_i) [log p(x_i, a) − log q(a | x_i)] [N], nats: no sampling noise."""
    exact = _listed(task)
    views, _ = exact.views()
    out = []
    for rows in exact.chunks():
        joint, log_q = exact.log_joint(rows, views), log_guide(task, guide, rows)
        out.append(torch.where(log_q.exp() > 0, log_q.exp() * (joint - log_q), torch.zeros_like(joint)).sum(1))
        if nearness is not None:
            nearness.add(_nearness.of_assignments(joint, log_q))
    return torch.cat(out)


def log_guide(task: Task, guide: torch.nn.Module, rows: slice) -> Tensor:
    """log q(a | x_i) [rows, A] for every joint assignment."""
    n, structure = rows.stop - rows.start, task.structure
    sites = {s.name: s for s in structure.discrete_locals}

    def everywhere(name: str, value: Tensor) -> Tensor:
        """A joint value [A, plates with a 1 for the data's, event] in every row."""
        shape = list(value.shape)
        shape[structure.axes.row_dim(len(sites[name].event_shape))] = n
        return value.expand(shape)

    every = {k: everywhere(k, v) for k, v in _listed(task).assignments.items()}
    conditioned = pyro.poutine.condition(at(guide, rows), data=every)
    with task.program.settings():
        trace = pyro.poutine.trace(conditioned).get_trace(task.x[rows])
    return local_log_prob(trace, structure.data_dim, n).reshape(_listed(task).A, -1).mT


def _listed(task: Task) -> Enumeration:
    """The engine of a program whose latents can be enumerated."""
    assert isinstance(task.exact, Enumeration)
    return task.exact


def _global_gaussian(task: Task, guide: torch.nn.Module | None, names: list[str]) -> GlobalGaussian | None:
    if not names or not isinstance(guide, guides.Derived):
        return None
    with torch.no_grad():
        values = {n: transform(guide.loc(n)) for n, transform in guide.bijections.items()}
        layout = Coordinates(values, task.global_supports)
        mean, tril = guide.globals_loc(), guide.globals_tril()
        if guide.globals_covariance == "flow":
            mean, tril = guide.moments(torch.Generator().manual_seed(task.seed))
        return GlobalGaussian(layout, mean, guide.scales().diag() if tril is None else tril)


@torch.no_grad()
def _result(found: _Found, claimed: Evidence, nearness: Nearness) -> Fit:
    task, guide, history, names = found.task, found.guide, found.history, found.globals
    gaussian = None if guide is None else _global_gaussian(task, guide, names)
    draws: dict[str, np.ndarray] = {}
    parameters = {n: v.detach() for n, v in task.program.values().items()}
    if gaussian is not None and isinstance(guide, guides.Derived):
        noise = torch.randn(task.draws, gaussian.coordinates.d, dtype=task.x.dtype)
        draws |= {n: v.numpy() for n, v in guide.globals_of(noise).items()}
        parameters |= gaussian.coordinates.unflatten(gaussian.mean)
    elif names and guide is not None:
        of_globals = _global_draws(task, guide)
        draws |= {n: v.numpy() for n, v in of_globals.items()}
        free = {n: bijection(s) for n, s in task.global_supports.items()}
        parameters |= {n: free[n](free[n].inv(v).mean(0)) for n, v in of_globals.items()}
    probabilities = {}
    if task.structure.local_latents and guide is not None:
        draws |= _local_draws(task, guide)
        if task.structure.enumerable:
            log_q = torch.cat([log_guide(task, guide, rows) for rows in _listed(task).chunks()])
            probabilities = {n: v.numpy() for n, v in _listed(task).marginals(log_q.exp()).items()}
    notes = {"epochs": len(history.objective), "particles": found.particles} | history.notes | _climbed(found.outcome)
    collapsed, told = ([], {}) if guide is None else collapse(task, guide)
    if nearness.of_globals is not None:
        notes["khat_of_globals"] = nearness.of_globals
    return Fit(
        parameters={n: v.numpy() for n, v in parameters.items()},
        claimed=claimed,
        draws=draws,
        probabilities=probabilities,
        khat=nearness.khat,
        ess=nearness.ess,
        trace=history.trace("elbo_per_datum" if guide is not None else "log_likelihood_per_datum"),
        converged=history.converged,
        warnings=[*_not_converged(found), *collapsed, *nearness.warnings(verified=task.structure.is_exact)],
        notes={**notes, **told, DRAWS_PER_ROW: nearness.draws},
        guide=guide,
        global_gaussian=gaussian,
    )


def _global_draws(task: Task, guide: torch.nn.Module) -> dict[str, Tensor]:
    """Draws of the global latents from a guide of the user's own [draws, …]."""
    traces = [pyro.poutine.trace(guide).get_trace(task.x) for _ in range(task.draws)]
    return {n: torch.stack([node_of(t, n)["value"] for t in traces]) for n in task.global_supports}


def _climbed(outcome: _climb.Outcome | None) -> dict[str, object]:
    """What a climb on fixed draws has to tell: how many draws, and what twice as many gained (nats)."""
    if outcome is None:
        return {"optimizer": "adam"}
    return {"optimizer": "lbfgs", "draws": outcome.draws, "gain_of_twice_the_draws": outcome.gain}


def _not_converged(found: _Found) -> list[str]:
    """One sentence where the bound is not known to be at its best."""
    out = found.outcome
    if found.history.converged is not False:
        return []
    if out is not None and out.gain is not None and out.lacks is not None and out.lacks > abs(out.gain):
        return [
            f"svi did not converge: the encoder reaches {out.lacks:.2f} nats less than a separate q for each row; take "
            "guide=mean_field, or a larger hidden."
        ]
    if out is not None and out.gain is not None:
        return [
            f"svi did not converge: twice the draws still changed the bound by {out.gain:+.2f} nats; raise epochs, or take "
            "another start or seed."
        ]
    return ["svi did not converge: the bound was still rising; raise epochs or tol."]


def _local_draws(task: Task, guide: torch.nn.Module) -> dict[str, np.ndarray]:
    """Draws from q of each local site [draws, N, …]."""
    pieces = [
        weights.guide_draws(task.program, task.structure, task.x[rows], at(guide, rows), task.draws)
        for rows in weights.chunks(task.x, task.draws)
    ]
    return {
        s.name: torch.cat([task.structure.axes.by_datum(p[s.name], s) for p in pieces], dim=1).numpy()
        for s in task.structure.local_latents
    }
