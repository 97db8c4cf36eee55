"""The one training loop: mini-batches, Adam, a schedule, early stopping, a guard against NaN, and checkpoints.

A run that was killed and resumed from its checkpoint ends with the same numbers, bit for bit, as one that was not: what is
saved holds the parameters, the optimiser, the schedule, the random state and the place in the data.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from inference._method.progress import Step
from inference._method.task import Task
from inference._numerics import ranks
from inference._numerics.adam import Adam
from inference._training.elbo import Index, Objective
from inference._training.recorded import WARM, WORTH, Compiled
from zoo._errors import UsageError
from zoo._options import positive

Schedule = Literal["plateau", "cosine", "constant"]

WIDE = 100  # columns from which the usual settings are those for images
WARM_UP = 0.02  # of all steps, of the cosine schedule
LAST_RATE = 0.005  # of the first rate, at the end of the cosine schedule
SMALLEST_RATE = 1 / 64  # of the first rate: below it the rate begins again, or training ends
LEAST_STEPS = 50  # without progress before a rate is halved, however few rows make an epoch
HIDDEN = 0.1  # nats per row: in the noise of a mean that is less sure than this a rise may be hidden
GAIN = 0.01  # nats per row that beginning again at the first rate has to bring to be done once more
RISING = 2.0  # standard errors of the slope from which a noisy objective counts as rising


@dataclass
class History:
    """Objective per row at each epoch (nats), the learning rate used, and whether progress had stopped: None where training
    ended because its schedule did, which says nothing of that."""

    objective: np.ndarray  # [epochs]
    lr: np.ndarray  # [epochs]
    converged: bool | None
    held_out: np.ndarray = field(default_factory=lambda: np.zeros(0))  # [epochs] of the rows kept aside
    unsure: str = "the schedule ended"  # why `converged` is None, where it is

    @property
    def notes(self) -> dict[str, str]:
        """What a fit says of the end where it cannot say whether training had converged."""
        return {} if self.converged is not None else {"ended": self.unsure}

    def trace(self, name: str) -> dict[str, np.ndarray]:
        """What a fit shows of it."""
        if not len(self.objective):
            return {}
        out = {name: self.objective} | ({"lr": self.lr} if len(self.lr) else {})
        return out | ({f"{name}_held_out": self.held_out} if len(self.held_out) else {})


@dataclass(frozen=True)
class Plan:
    """How to train: see the options of `svi`. With `draws` each row stands in its batch so many times, each with a draw of
    its own: a batch of few rows costs hardly more, and its objective has less noise."""

    epochs: int
    batch: int
    lr: float
    tol: float
    schedule: Schedule = "plateau"
    patience: int = 10
    clip: float = 1000.0
    held_out: float = 0.0
    draws: int = 1


def usual(
    task: Task, batch: int | None, lr: float | None, hidden: tuple[int, ...] | None
) -> tuple[int, float, tuple[int, ...]]:
    """Batch, rate and encoder widths, where none are given: 64, 0.02 and (64, 64); for data of 100 columns or more 128, 0.002
    and (200, 200). A program with networks of its own is learned at 0.002. A batch larger than the data means all of them."""
    wide = task.x[0].numel() >= WIDE
    rate = 0.002 if wide or task.program.has_networks else 0.02
    return (
        min(batch or (128 if wide else 64), len(task.x)),
        lr or rate,
        hidden or ((200, 200) if wide else (64, 64)),
    )


def train(
    task: Task,
    modules: Mapping[str, nn.Module],
    objective: Objective,
    plan: Plan,
    *,
    step: Step,
    evaluate: Objective | None = None,
    culprit: Callable[[Index, Tensor], str] | None = None,
) -> History:
    """Maximise `objective(rows, x[rows])`, the mean per row over a batch, by Adam (Kingma & Ba 2015).

    - `modules`: name → what is learned; their states are what a checkpoint holds.
    - `evaluate`: the figure to watch on the rows held out; the objective when None.
    - `culprit`: says in words what stopped being a number, and where.

    `schedule=plateau`: when the smoothed objective (or that of the held-out rows) has not risen by `tol` nats per row in
    `patience` epochs, and at least 50 steps, and its noise does not hide such a rise either, the rate is halved. At 1/64 of the
    first rate it begins again at the first, since small rates alone end progress too; where that raised the objective by less
    than 0.01 nats per row, beyond its noise, training has converged. `converged` is None where the mean over the last epochs
    has a standard error above 0.1 nats per row, since so much noise can hide a rise. `cosine`: the rate falls along a half
    cosine over all epochs; where it ends, or a `constant` rate does, says nothing of convergence, and `converged` is None, or
    False where the objective was still rising (both: Loshchilov & Hutter 2017). With rows held out, the parameters of the
    epoch that was best on them are kept.

    Raises `ArithmeticError` with the step when the objective is not a number, `UsageError` for impossible settings.
    """
    for name in ("epochs", "batch", "lr", "tol"):
        positive(name, getattr(plan, name))
    if plan.batch > len(task.x):
        raise UsageError(f"batch={plan.batch} is more than the {len(task.x)} rows of the data.")
    moved = [*modules.values(), task.program]  # a program whose θ is kept is none of the modules
    if task.device.type != "cpu" and not _runs_on(task, moved, objective):
        task.device = torch.device("cpu")
    with _on(task.device, moved):
        loop = _Loop(task, modules, objective, plan, evaluate or objective, culprit)
        if not loop.parameters:
            return History(np.zeros(0), np.zeros(0), True)
        loop.resume()
        step(loop.epoch)
        with ranks.own_draws(task.seed):
            while loop.epoch < plan.epochs and not loop.done:
                loop.run_epoch()
                step(note=f"{loop.seen[-1]:.4f} nats per row")
        loop.keep_best()
    found = History(np.asarray(loop.seen), np.asarray(loop.rates), loop.converged(), np.asarray(loop.watched))
    if plan.schedule == "plateau":
        found.unsure = "noise hides whether the objective still rose"
    return found


def plan_is_long(plan: Plan, batches: int) -> bool:
    """Whether there are steps enough for a recording to pay."""
    return plan.epochs * batches >= WORTH


def _runs_on(task: Task, modules: Sequence[nn.Module], objective: Objective) -> bool:
    """Whether the objective of two rows runs on the device: not where a program holds constants on the CPU."""
    rows = torch.arange(min(2, len(task.x)))
    with torch.random.fork_rng(), _on(task.device, modules), torch.no_grad():
        try:
            objective(rows, task.x[rows].to(task.device))
        except RuntimeError as error:
            if "device" in str(error) and "assert" not in str(error):
                return False
            raise
    return True


@contextlib.contextmanager
def _on(device: torch.device, modules: Sequence[nn.Module]) -> Iterator[None]:
    """In here the modules are on the device, and what is made without saying where is made there."""
    if device.type == "cpu":  # what says so costs time at every operation
        yield
        return
    try:
        with device:
            for module in modules:
                module.to(device)
            yield
    finally:
        for module in modules:
            module.to("cpu")


class _Loop:
    """Everything that training resumes from."""

    def __init__(
        self,
        task: Task,
        modules: Mapping[str, nn.Module],
        objective: Objective,
        plan: Plan,
        evaluate: Objective,
        culprit: Callable[[Index, Tensor], str] | None,
    ) -> None:
        self.task, self.modules, self.plan = task, modules, plan
        self.objective, self.evaluate, self.culprit = objective, evaluate, culprit
        self.parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        self.compiled = Compiled(objective, self.parameters, [*modules.values(), task.program])
        self.recorded: bool | None = None  # whether to; not known yet
        self.generator = torch.Generator("cpu").manual_seed(task.seed)
        self.kept, self.aside = self._split()
        if self.parameters:
            self.optimiser = Adam(self.parameters, plan.lr)
        self.epoch, self.batch = 0, 0  # the next to do
        self.order = torch.zeros(0, dtype=torch.long, device="cpu")
        self.total, self.done = 0.0, False
        self.seen: list[float] = []
        self.rates: list[float] = []
        self.watched: list[float] = []
        self.smoothed, self.best, self.since, self.rate = -math.inf, -math.inf, 0, plan.lr
        self.reached = -math.inf  # at the end of the last descent of the rate
        self.best_state: dict[str, dict[str, Tensor]] | None = None

    def _split(self) -> tuple[Tensor, Tensor]:
        N = len(self.task.x)
        count = round(self.plan.held_out * N)
        if not count:
            return torch.arange(N, device="cpu"), torch.arange(0, device="cpu")
        if N - count < 1:
            raise UsageError(f"held_out={self.plan.held_out:g} leaves no row of {N} to learn from.")
        order = torch.randperm(N, generator=torch.Generator("cpu").manual_seed(self.task.seed + 1), device="cpu")
        return order[count:].sort().values, order[:count].sort().values

    # ------------------------------------------------------------------------------------------------------ steps

    def run_epoch(self) -> None:
        x = self._here(self.task.at_epoch(self.epoch))
        size = min(self.plan.batch, len(self.kept))
        if not self.batch:
            self.order = self.kept[torch.randperm(len(self.kept), generator=self.generator, device="cpu")]
            self.total = 0.0
        batches = self.order.split(size)
        long = plan_is_long(self.plan, len(batches))
        if long and self.compiled.calls >= WARM:
            self.record(batches[self.batch :], x)
        while self.batch < len(batches):
            rows = self._taken(batches[self.batch])
            self.total += self._step(rows, x[rows], len(batches)) * len(batches[self.batch])
            self.batch += 1
            if self.batch < len(batches):
                self._checkpoint()
                if long and self.compiled.calls == WARM:
                    self.record(batches[self.batch :], x)
        self._end_of_epoch()
        self._checkpoint()

    def _taken(self, batch: Tensor) -> Tensor:
        """The rows of a batch that this process takes, each as often as it has draws."""
        return ranks.part(batch.repeat(self.plan.draws))

    def _here(self, x: Tensor) -> Tensor:
        """Data on the device of the training."""
        return x if self.task.device.type == "cpu" else x.to(self.task.device)

    def record(self, batches: Sequence[Tensor], x: Tensor) -> None:
        """Record the step for batches of each size, or check that the records still give what the program does."""
        stateful = any(
            isinstance(part, nn.modules.batchnorm._BatchNorm) for m in self.modules.values() for part in m.modules()
        )
        if stateful or self.task.device.type != "cpu":  # a look at a batch would change it; a GPU has other rounding
            return
        if self.recorded is None:
            self.recorded = not bool(self.task.x.isnan().any())
        if self.recorded:
            for n, rows in {len(rows): rows for rows in map(self._taken, reversed(batches))}.items():
                # other rows, also where a batch has them all
                twice = self.kept[torch.arange(n, device="cpu") // 2 % len(self.kept)]
                self.compiled.prepare(rows, x[rows], twice, x[twice])

    def _step(self, rows: Tensor, x: Tensor, batches: int) -> float:
        self.optimiser.lr = self._rate((self.epoch * batches + self.batch) / (self.plan.epochs * batches))
        value = float(self._descent(rows, x))
        if not math.isfinite(value):
            self._stop(value, rows, x)
        if not math.isfinite(self._clip()):
            self._stop(math.nan, rows, x)
        self.optimiser.step()
        return value

    def _descent(self, rows: Tensor, x: Tensor) -> Tensor:
        """The objective, with its gradients in the parameters' `grad`; of several processes, the mean of their parts."""
        value = self.compiled(rows, x)
        if ranks.size() > 1:
            slopes = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
            value, *slopes = ranks.mean([value, *slopes], len(rows))
            for p, slope in zip(self.parameters, slopes, strict=True):
                p.grad = slope
        return value

    def _clip(self) -> float:
        """The norm of the gradient, which is made shorter where it is longer than it may be."""
        moved = [p for p in self.parameters if p.grad is not None]
        gradients = [p.grad for p in moved if p.grad is not None]
        norm = float(torch.stack(torch._foreach_norm(gradients)).norm()) if gradients else 0.0
        if self.plan.clip < norm < math.inf:  # not in place: two parameters may share one gradient
            for p, shorter in zip(moved, torch._foreach_mul(gradients, self.plan.clip / norm), strict=True):
                p.grad = shorter
        return norm

    def _stop(self, value: float, rows: Tensor, x: Tensor) -> None:
        why = f" ({self.culprit(rows, x)})" if self.culprit is not None else ""
        raise ArithmeticError(
            f"training stopped at step {self.batch + 1} of epoch {self.epoch + 1}: the objective became {value}{why}; try a "
            "smaller lr."
        )

    def _rate(self, progress: float) -> float:
        if self.plan.schedule != "cosine":
            return self.rate
        half = 0.5 * (1 + math.cos(math.pi * progress))
        return self.plan.lr * min(1.0, (progress + 1e-9) / WARM_UP) * (LAST_RATE + (1 - LAST_RATE) * half)

    def _end_of_epoch(self) -> None:
        mean = self.total / len(self.kept)
        self.seen.append(mean)
        self.rates.append(self.optimiser.lr)
        figure = mean
        if len(self.aside):
            figure = self._watch()
            self.watched.append(figure)
        self.smoothed = figure if len(self.seen) == 1 else 0.8 * self.smoothed + 0.2 * figure
        better = self.smoothed > self.best + self.plan.tol
        self.since = 0 if better else self.since + 1
        if better:
            self.best = self.smoothed
        if len(self.aside) and figure >= max(self.watched):
            self.best_state = {name: copy.deepcopy(m.state_dict()) for name, m in self.modules.items()}
        patience = self._patience()
        if self.plan.schedule == "plateau" and self.since >= patience and not self._rising(patience):
            self.since, self.rate = 0, self.rate / 2
            if self.rate < self.plan.lr * SMALLEST_RATE:
                self._end_of_descent()
        self.epoch, self.batch = self.epoch + 1, 0

    def _end_of_descent(self) -> None:
        """Begin again at the first rate, unless that brought nothing the last time: small rates alone end progress too."""
        level, se = self._level()
        self.done = level <= self.reached + GAIN + RISING * 2**0.5 * se
        if not self.done:
            self.reached, self.rate = level, self.plan.lr

    def _rising(self, epochs: int) -> bool:
        """Whether the figure of the last epochs rises, beyond its noise, by `tol` in all: the slope of a line."""
        if len(self.seen) < max(4, epochs):
            return False
        slope, noise, spread = self._line(epochs)
        return slope * epochs > self.plan.tol and slope > RISING * noise / spread**0.5

    def _figures(self) -> list[float]:
        return self.watched if len(self.aside) else self.seen

    def _line(self, epochs: int) -> tuple[float, float, float]:
        """The slope of a line through the figure of the last epochs, the noise about it, and Σ t² of its times."""
        seen = np.asarray(self._figures()[-epochs:])
        t = np.arange(len(seen)) - (len(seen) - 1) / 2
        slope = float(t @ seen / (t @ t))
        noise = float(np.sqrt(np.square(seen - seen.mean() - slope * t).sum() / (len(seen) - 2)))
        return slope, noise, float(t @ t)

    def _level(self) -> tuple[float, float]:
        """The mean of the figure over the epochs in which progress seemed to have stopped, and its standard error."""
        epochs = max(4, self._patience())
        return float(np.mean(self._figures()[-epochs:])), self._line(epochs)[1] / epochs**0.5

    def _patience(self) -> int:
        batches = -(-len(self.kept) // min(self.plan.batch, len(self.kept)))
        return max(self.plan.patience, -(-LEAST_STEPS // batches))

    def converged(self) -> bool | None:
        """Whether progress had stopped when training did; None where nothing says so."""
        if self.plan.schedule == "plateau":
            return None if self.done and self._level()[1] > HIDDEN else self.done
        return False if self._rising(max(4, len(self.seen) // 4)) else None

    @torch.no_grad()
    def _watch(self) -> float:
        """The figure of the rows held out, by the same draws at every epoch."""
        total = 0.0
        gpu = [torch.cuda.current_device()] if self.task.device.type == "cuda" else []
        with torch.random.fork_rng(devices=gpu):
            torch.manual_seed(self.task.seed)
            for rows in self.aside.split(max(self.plan.batch, 256)):
                total += float(self.evaluate(rows, self._here(self.task.x[rows]))) * len(rows)
        return total / len(self.aside)

    def keep_best(self) -> None:
        """Put back the parameters of the epoch that was best on the rows held out."""
        if self.best_state is not None:
            for name, module in self.modules.items():
                module.load_state_dict(self.best_state[name])

    # ------------------------------------------------------------------------------------------------ checkpoints

    def _checkpoint(self) -> None:
        if self.task.checkpoints is not None and self.task.checkpoints.due():
            self.task.checkpoints.write(self.state())

    def state(self) -> dict[str, object]:
        """All of it, as tensors, numbers and lists."""
        plain = (
            "epoch",
            "batch",
            "total",
            "done",
            "seen",
            "rates",
            "watched",
            "smoothed",
            "best",
            "since",
            "rate",
            "reached",
        )
        return {
            "modules": {name: m.state_dict() for name, m in self.modules.items()},
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "random_on_gpu": torch.cuda.get_rng_state() if self.task.device.type == "cuda" else None,
            "order": self.order,
            "best_state": self.best_state,
            "plain": {k: getattr(self, k) for k in plain},
        }

    def resume(self) -> None:
        """Go on from the checkpoint, where there is one."""
        found = None if self.task.checkpoints is None else self.task.checkpoints.read()
        if found is None:
            return
        for name, module in self.modules.items():
            module.load_state_dict(found["modules"][name])
        self.optimiser.load_state_dict(found["optimiser"])
        self.generator.set_state(found["generator"])
        torch.set_rng_state(found["random"])
        if self.task.device.type == "cuda":
            torch.cuda.set_rng_state(found["random_on_gpu"])
        self.order, self.best_state = found["order"], found["best_state"]
        for name, value in found["plain"].items():
            setattr(self, name, value)
