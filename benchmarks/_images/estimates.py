"""Estimates of log p(x_obs) from more and more weighted completions, the ELBOs of several q, the noise of their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyro
import torch
from matplotlib.axes import Axes
from numpy.typing import ArrayLike
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from torch import Tensor, nn

import guides
from benchmarks._suite.documents import Options
from inference._method.task import Task
from inference._numerics.psis import psis
from inference._pictures._views.style import INK, OKABE_ITO, QUIET, styled, taller_figure
from inference._sampling import particles as _particles
from inference._sampling import weights
from inference._training import elbo as _elbo
from inference._training.loop import Plan, train
from inference._training.wake_sleep import Phases
from inference.svi import enumerated_bound
from zoo._program.describe import describe
from zoo._program.load import load
from zoo._program.program import Program

Guide = nn.Module  # q: a Pyro program with parameters φ
Point = TypedDict("Point", {"samples": int, "nats": float, "se": float | None, "khat_above_0.7": float})


class Row(TypedDict):
    """What a q makes of the missing pixels: its ELBO, and estimates of log p(x_obs) from more and more draws."""

    label: str
    elbo_nats: float | None
    elbo_se: float | None
    points: list[Point]


class Problem(TypedDict):
    """A data set with missing pixels, and every q there."""

    name: str
    title: str
    images: int
    exact_nats: float
    rows: list[Row]


class GradientNoise(TypedDict):
    """The total variance of an estimator's gradient under a q that is new and under one that is half-trained."""

    estimator: str
    untrained: float
    half_trained: float
    repeats: int


FILTERS = 20  # of one estimate: it is often of few particles
PRIMING = 50  # gradients that Pyro's running baseline has seen before the noise is measured


def new_task(x: np.ndarray, options: Options, theta: Program | None = None, dtype: torch.dtype = torch.float32) -> Task:
    """`missing_pixels` on images x [n, D]; with the parameters of the program `theta`, which then stay as they are."""
    data = torch.as_tensor(x, dtype=dtype)
    program = load("missing_pixels", data, options)
    if theta is not None:
        program.load_state_dict(theta.state_dict())
    return Task(program, describe(program, data), data, learn=theta is None, quiet=True)


def climb(task: Task, guide: Guide | None, plan: Plan, dreaming: bool = False) -> None:
    """Train θ (where it is to be learned) and the guide by the ELBO, or the guide on simulated images."""
    asleep = Phases(task, guide, particles=1, insomnia=0.0)
    objective = asleep.objective if dreaming else _elbo.objective(task, guide, 1)
    modules = ({"program": task.program} if task.learn else {}) | ({} if guide is None else {"guide": guide})
    with pyro.validation_enabled(False):
        train(task, modules, objective, plan, step=lambda *_, **__: None)


# ---- estimates --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def log_weights(task: Task, guide: Guide | None, samples: int, numbers: int = weights.NUMBERS) -> Tensor:
    """log p(x_obs, x_missing) − log q(x_missing) [samples, n], drawn in pieces of at most `numbers` numbers.

    The pieces' mean weight is the mean of all: what stands side by side is joined before the logsumexp. `guide`: None for
    fair coins.
    """
    pieces = _pieces(samples, numbers // task.x.numel())
    drawn = [weights.draw(task.program, task.structure, task.x, guide, size).log_weights for size in pieces]
    return torch.cat(drawn)


@torch.no_grad()
def filtered(task: Task, samples: int, numbers: int = weights.NUMBERS) -> tuple[Tensor, int]:
    """The same by a particle filter, and of how many independent filters, whose particles follow one another."""
    filters = _particles.share(samples, FILTERS)
    particles = samples // filters
    pieces = _pieces(filters, numbers // (task.x.numel() * particles))
    drawn = [_particles.draw(task.program, task.structure, task.x, k * particles, k).log_weights for k in pieces]
    return torch.cat(drawn), filters


def _pieces(count: int, most: int) -> Iterator[int]:
    """`count` as a sum of sizes of `most` or less."""
    most = max(1, most)
    while count:
        yield min(count, most)
        count -= min(count, most)


def point(log_w: Tensor, groups: int | None = None) -> Point:
    """The mean over images of log p(x_obs), its standard error over the draws, and the share of k-hats above 0.7."""
    estimate, se = weights.log_mean(log_w.double(), groups)
    khat = psis(log_w.numpy())[0]
    spread = float(se.square().sum().sqrt() / len(se))
    return {
        "samples": len(log_w),
        "nats": float(estimate.mean()),
        "se": spread if math.isfinite(spread) else None,
        "khat_above_0.7": float((~(khat <= 0.7)).mean()),
    }


# ---- bounds -----------------------------------------------------------------------------------------------------------


def elbo(log_w: Tensor) -> tuple[float, float]:
    """The ELBO, nats an image, by its draws [samples, n], with its standard error."""
    each = log_w.double().mean(1)
    return float(each.mean()), float(each.std() / len(each) ** 0.5)


@torch.no_grad()
def all_on(task: Task) -> float:
    """φ = 1, a point mass on the missing pixels all on: log p(x_obs, 1), nats an image."""
    ones = torch.ones_like(task.x[:, : task.structure.local_latents[0].event_shape[0]]).unsqueeze(0)
    return float(weights.log_joint(task.program, task.structure, task.x, {"x_missing": ones}).mean())


@torch.no_grad()
def enumerated_elbo(task: Task, guide: Guide) -> float:
    """The ELBO of a q, nats an image, summed over all completions."""
    return float(enumerated_bound(task, guide).double().mean())


def fresh(task: Task, name: str, hidden: tuple[int, ...] = (40,), on: Tensor | float | None = None) -> Guide:
    """A guide that has learned nothing; a factorised one begins near φ = ½, or where `on` [M] says."""
    guide = guides.make(name, task.structure, task.x, hidden=hidden)
    with torch.no_grad():
        for table in [] if on is None else guide.tables.values():
            table.copy_(torch.as_tensor(on).logit().expand_as(table))
    return guide


# ---- gradients --------------------------------------------------------------------------------------------------------


Scale = Callable[[ArrayLike], np.ndarray]
Step = Callable[[], object]  # leaves a gradient in the guide's parameters


@dataclass(frozen=True)
class Noise:
    """How far gradients of the ELBO in the guide's parameters scatter, each of 8 draws an image."""

    task: Task
    guide: Guide

    def total_variance(self, how: str, repeats: int) -> float:
        """The trace of the gradient's covariance over repeated draws, of the ELBO in nats an image."""
        return float(self.gradients(how, repeats).double().var(0).sum())

    def gradients(self, how: str, repeats: int) -> Tensor:
        """`repeats` gradients of −ELBO [repeats, parameters], nats an image, by one of `ESTIMATORS`."""
        with pyro.get_param_store().scope(), pyro.validation_enabled(False):  # Pyro's baseline lives in the store
            step = getattr(self, f"_{ESTIMATORS[how]}")()
            for _ in range(PRIMING if ESTIMATORS[how] == "graph" else 0):
                self._after(step)
            return torch.stack([self._after(step) for _ in range(repeats)])

    def _after(self, step: Step) -> Tensor:
        self.guide.zero_grad()
        step()
        return torch.cat([p.grad.reshape(-1) for p in self.guide.parameters() if p.grad is not None])

    def _score(self) -> Step:
        return self._pyro(Trace_ELBO, self.guide)

    def _graph(self) -> Step:
        averaged: Any = {"baseline": {"use_decaying_avg_baseline": True}}  # keys that Pyro's own type leaves out
        return self._pyro(TraceGraph_ELBO, pyro.poutine.infer_config(self.guide, lambda site: averaged))

    def _pyro(self, elbo: type[Trace_ELBO] | type[TraceGraph_ELBO], guide: Callable[..., object]) -> Step:
        task, depth = self.task, self.task.structure.max_plate_nesting
        of = elbo(num_particles=_elbo.SCORE_DRAWS, vectorize_particles=True, max_plate_nesting=depth)
        share = pyro.poutine.scale(scale=1 / len(task.x))

        def step() -> None:
            with task.program.settings():
                of.loss_and_grads(share(task.program), share(guide), task.x)

        return step

    def _ours(self) -> Step:
        bound = _elbo.Bound(self.task, self.guide, 1)
        return lambda: (-bound.surrogate(slice(None), self.task.x)).backward()

    def _exact(self) -> Step:
        of = _elbo.enumerated(self.task, self.guide)
        return lambda: (-of(slice(None), self.task.x)).backward()


ESTIMATORS = {
    "score function, no baseline": "score",
    "Pyro's TraceGraph_ELBO, decaying average": "graph",
    "ours, leave-one-out": "ours",
    "enumeration": "exact",
}


# ---- the picture ------------------------------------------------------------------------------------------------------


def picture(path: Path, problems: list[Problem]) -> None:
    """Estimates against samples, a panel a problem; hollow where most k-hats are above 0.7 or cannot be had."""
    figure = taller_figure(10.5, 4.6, TITLE)
    row: list[Axes] = list(figure.subplots(1, len(problems), squeeze=False)[0])
    for axes, problem in zip(row, problems, strict=True):
        _panel(styled(axes), problem)
    handles, labels = row[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    figure.savefig(path, dpi=110)


TITLE = (
    "Estimates of log p(seen pixels) against the number of weighted completions\n"
    "hollow: most k-hats above 0.7, or too few draws to have one"
)


def _panel(axes: Axes, problem: Problem) -> None:
    exact, rows = problem["exact_nats"], [r for r in problem["rows"] if r["points"]]
    axes.set_xscale("log")
    axes.set_yscale("function", functions=_about(exact))
    axes.axhline(exact, color=INK, linewidth=1, linestyle="--", label="exact")
    for place, row in enumerate(rows):
        shift = 1.12 ** (place - (len(rows) - 1) / 2)  # side by side, where they agree
        color = OKABE_ITO[place]
        at = [p["samples"] * shift for p in row["points"]]
        axes.plot(at, [p["nats"] for p in row["points"]], color=color, linewidth=1)
        for x, p in zip(at, row["points"], strict=True):
            fill = "white" if p["khat_above_0.7"] > 0.5 else color
            axes.errorbar(
                x, p["nats"], yerr=p["se"], fmt="o", color=color, markerfacecolor=fill, markersize=6, capsize=2
            )
        axes.plot([], [], "o-", color=color, label=row["label"])
    lowest = min(p["nats"] for r in rows for p in r["points"])
    ticks = [exact + d for d in (3, 1, 0, -1, -3, -10, -30, -100, -300, -1000) if lowest - 5 < exact + d]
    axes.set_yticks(
        ticks, [f"{t:.0f}".replace("-", "−") if abs(t) >= 100 else f"{t:.1f}".replace("-", "−") for t in ticks]
    )
    axes.set_ylim(1.5 * (lowest - exact) + exact, exact + 4)
    axes.set_xlabel("samples")
    axes.set_ylabel("log p(seen), nats (linear near exact)")
    axes.set_title(problem["title"], fontsize=10, color=INK, loc="left")
    axes.grid(axis="y", color=QUIET, alpha=0.2)


def _about(exact: float) -> tuple[Scale, Scale]:
    """An axis that is linear within a nat or so of `exact`, and logarithmic away from it."""
    return (lambda y: np.arcsinh(np.asarray(y) - exact), lambda v: np.sinh(np.asarray(v)) + exact)
