"""What is inside an approximation over global latents: log p(x | globals; θ), the local latents integrated out.

Where the locals are exact given the globals their engine integrates them out. Else each row gets Laplace's approximation of
its own, or Gauss–Hermite quadrature about its mode where it has one or two continuous latents: nested Laplace (Rue, Martino &
Chopin 2009). The modes follow the globals, and the gradient takes them along (`newton.log_evidence`).
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyro
import torch
from torch import Tensor

from inference._density import modes as _all_modes
from inference._density import newton, quadrature
from inference._density.local import LocalDensity
from inference._density.newton import Modes
from inference._density.together import Together
from inference._method.fit import DRAWS_PER_ROW, Arrays
from inference._method.row_posteriors import MOST_NUMBERS
from inference._method.task import Task
from inference._numerics.psis import psis
from inference._numerics.slices import fitting, slices
from inference._numerics.weighted import weighed
from inference._sampling import weights
from inference._sampling.khat import count_above, of_rows
from inference._training.integrated import locals_given
from zoo._errors import Refusal
from zoo._program.trace import outside_log_prob

Values = Mapping[str, Tensor]
TOGETHER = 2**21  # numbers of several values of the globals side by side
WIDER = 1.4  # times a Gaussian's standard deviation
CANDIDATES = 20  # draws from each row's Gaussian, of which one is taken by its weight
LARGEST = 2**26  # numbers in the derivatives of all rows at once
LEFT_OUT = "left out: draws of the local latents, which would take too much memory"


@dataclass
class Locals:
    """What is known of the local latents, given draws of the globals; all as in `Fit`."""

    draws: Arrays = field(default_factory=dict)
    means: Arrays = field(default_factory=dict)
    deviations: Arrays = field(default_factory=dict)
    probabilities: Arrays = field(default_factory=dict)
    khat: np.ndarray | None = None
    ess: np.ndarray | None = None
    warnings: list[str] = field(default_factory=list)
    notes: dict[str, object] = field(default_factory=dict)


@dataclass
class _Sums:
    """Draws of the local latents, and sums of their moments and of their assignments' probabilities."""

    drawn: dict[str, list[Tensor]] = field(default_factory=dict)
    first: dict[str, Tensor] = field(default_factory=dict)
    second: dict[str, Tensor] = field(default_factory=dict)
    chances: Tensor = field(default_factory=lambda: torch.zeros(()))


class Inner(ABC):
    """log p(x | globals; θ) of a task, and its local latents."""

    twice = True  # whether the second derivative is known too

    def __init__(self, task: Task) -> None:
        self.task = task

    @abstractmethod
    def log_evidence(self, parameters: Values | None, globals: Values) -> tuple[Tensor, Tensor]:
        """log p(x | globals; θ), and log p(globals) with what is observed outside the rows; differentiable."""

    def log_evidences(self, parameters: Values, globals: Values) -> Tensor:
        """Their sum [B] at each of B values [B, …] of θ and the globals."""
        size = len(next(iter({**parameters, **globals}.values())))
        found = [
            self.log_evidence(*({n: v[i] for n, v in of.items()} for of in (parameters, globals))) for i in range(size)
        ]
        return torch.stack([evidence + prior for evidence, prior in found])

    @abstractmethod
    def locals(self, draws: Mapping[str, Tensor], point: Values) -> Locals:
        """The local latents given each of the draws of the globals; all given `point` where there are no globals."""


class Exact(Inner):
    """By the program's exact engine."""

    def log_evidence(self, parameters: Values | None, globals: Values) -> tuple[Tensor, Tensor]:
        """See `Inner`."""
        return self.task.engine.log_evidence(parameters, globals)

    @torch.no_grad()
    def locals(self, draws: Mapping[str, Tensor], point: Values) -> Locals:
        """See `Inner`."""
        task, structure = self.task, self.task.structure
        posterior = task.engine.responsibilities(None, point)
        means, deviations = task.engine.summary(point)
        out = Locals(probabilities=_arrays(task.engine.marginals(posterior, point)), notes=self._notes())
        if structure.eliminable and task.draws * len(task.x) * len(structure.discrete_locals) > MOST_NUMBERS:
            out.notes["posterior"] = LEFT_OUT
        elif draws and structure.local_latents:
            out.means, out.deviations, out.draws = locals_given(task, dict(draws))
            return out
        elif structure.local_latents:
            out.draws = _arrays(task.engine.draw(posterior, task.draws))
        out.means, out.deviations = _arrays(means), _arrays(deviations)
        return out

    def _notes(self) -> dict[str, object]:
        if not self.task.structure.continuous_locals:
            return {}
        names = ", ".join(f"'{s.name}'" for s in self.task.structure.continuous_locals)
        return {
            "newton_steps": 1,
            "exact": f"the log joint is quadratic in {names}: Laplace's approximation is exact",
        }


class Nested(Inner):
    """By a Gaussian, or quadrature, at the modes of each row."""

    twice = False

    def __init__(self, task: Task, max_iter: int, tol: float, tries: int, samples: int, by_nodes: bool | None) -> None:
        super().__init__(task)
        self.density = LocalDensity(task.program, task.structure, task.x)
        self.max_iter, self.tol, self.tries, self.samples = max_iter, tol, tries, samples
        L = self.density.L
        self.by_nodes = len(quadrature.NODES) > L if by_nodes is None else by_nodes
        if self.by_nodes and len(quadrature.NODES) <= L:
            raise Refusal(
                f"inner=quadrature serves rows of at most {len(quadrature.NODES) - 1} continuous latents, and these have {L}: "
                "take inner=laplace"
            )
        self.width = self.density.n * self.density.A * (task.x[:1].numel() + L)
        self.width *= len(quadrature.rule(L)[0]) if self.by_nodes else (L + 1) * newton.COPIES
        if self.width > LARGEST:
            raise Refusal(
                f"laplace would hold the derivatives of all {self.density.n:,} rows at once, which is too much with global "
                "latents beside them: take fewer rows, or svi"
            )
        self.means: Tensor | None = None  # where the modes were last
        self.side_by_side: bool | None = None
        self.held: Modes | None = None

    @contextlib.contextmanager
    def holding(self, point: Values) -> Iterator[None]:
        """Inside it a few nodes of quadrature stay where they are at a point: quick near it, and less exact."""
        self.held = self.modes(point)
        try:
            yield
        finally:
            self.held = None

    @torch.no_grad()
    def modes(self, globals: Values, parameters: Values | None = None) -> Modes:
        """Each row's, looked for where they last were."""
        there = self.density.given(_detached(globals), None if parameters is None else _detached(parameters))
        found = None
        if self.means is not None:
            found = newton.modes(there, start=self.means, tries=0, max_iter=self.max_iter, tol=self.tol)
        if found is None or not bool((found.converged & found.log_evidence_each.isfinite()).all()):
            found = newton.modes(there, start=self.means, tries=self.tries, max_iter=self.max_iter, tol=self.tol)
        if bool(found.converged.all()):
            self.means = found.mean
        return found

    def log_evidence(self, parameters: Values | None, globals: Values) -> tuple[Tensor, Tensor]:
        """See `Inner`."""
        modes = self.modes(globals, parameters)
        return self._total(modes, globals, parameters), self._outside(parameters, globals)

    def log_evidences(self, parameters: Values, globals: Values) -> Tensor:
        """See `Inner`: side by side, where the program can be run so."""
        if self.side_by_side is None:
            self._try(parameters, globals)
        if not self.side_by_side:
            return super().log_evidences(parameters, globals)
        size = len(next(iter({**parameters, **globals}.values())))
        parts = []
        for some in slices(size, fitting(TOGETHER, self.width)):
            given = [{n: v[some] for n, v in of.items()} for of in (parameters, globals)]
            parts.append(self._evidences(*given))
        return torch.cat(parts)

    def _try(self, parameters: Values, globals: Values) -> None:
        """Whether values side by side give what they give one by one."""
        two = [{n: v[:2].detach() for n, v in of.items()} for of in (parameters, globals)]
        try:
            with torch.no_grad():
                together = self._evidences(*two)
                alone = super().log_evidences(*two)
            self.side_by_side = torch.allclose(together, alone, rtol=1e-8, atol=1e-6, equal_nan=True)
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
            self.side_by_side = False

    def _evidences(self, parameters: Values, globals: Values) -> Tensor:
        together = Together(self.density, globals, parameters)
        if self.held is not None:
            each = quadrature.log_evidence(
                together, self.held.rows(torch.arange(self.density.n).repeat(together.B)), few=True
            )
        else:
            modes = self.modes_together(globals, parameters)[1]
            each = (quadrature if self.by_nodes else newton).log_evidence(together, modes)
        each = each.reshape(together.B, -1)
        with pyro.validation_enabled(False):  # the locals that the program draws are not looked at
            outside = torch.vmap(self._outside, in_dims=(0 if parameters else None, 0), randomness="same")(
                parameters or None, globals
            )
        return weighed(each.mT, self.task.weights, slice(None)).sum(0) + outside

    @torch.no_grad()
    def modes_together(self, globals: Values, parameters: Values | None = None) -> tuple[Together, Modes]:
        """Each row's given each of B values of the globals (and θ)."""
        together = Together(self.density, _detached(globals), _detached(parameters or {}))
        if self.means is None:
            self.modes(*({n: v[0] for n, v in of.items()} for of in (globals, parameters or {})))
        start = None if self.means is None else self.means.repeat(together.B, 1, 1)
        found = newton.modes(together, start=start, tries=0, max_iter=self.max_iter, tol=self.tol)
        return together, found

    def _total(self, modes: Modes, globals: Values, parameters: Values | None = None) -> Tensor:
        by = quadrature if self.by_nodes else newton
        each = by.log_evidence(self.density.given(globals, parameters), modes)
        return weighed(each, self.task.weights, slice(None)).sum()

    def _outside(self, parameters: Values | None, globals: Values) -> Tensor:
        structure = self.task.structure
        trace = self.task.program.trace(self.task.x[:2], parameters=parameters, latents=globals)
        names = [s.name for s in structure.global_latents] + list(structure.outside)
        return outside_log_prob(trace, names).to(self.task.x.dtype)

    @torch.no_grad()
    def locals(self, draws: Mapping[str, Tensor], point: Values) -> Locals:
        """See `Inner`. Of a few draws from each row's Gaussian one is taken by its weight."""
        out, sums, count = self._checked(point), _Sums(), len(next(iter(draws.values())))
        if self.side_by_side is None:
            self._try({}, draws)
        size = fitting(TOGETHER, self.density.n * self.density.A * (self.task.x[:1].numel() + 1) * CANDIDATES)
        with self.task.progress("laplace: local latents", count) as step:
            for some in slices(count, size if self.side_by_side else 1):
                given = {n: v[some] for n, v in draws.items()}
                if self.side_by_side:
                    there, modes = self.modes_together(given)
                    self._add(sums, there, modes, some.stop - some.start)
                else:
                    one = {n: v[0] for n, v in given.items()}
                    self._add(sums, self.density.given(one), self.modes(one), 1)
                step(some.stop - some.start)
        continuous = [s.name for s in self.task.structure.continuous_locals]
        out.draws = {n: torch.cat(v).numpy() for n, v in sums.drawn.items()}
        out.means = {n: (sums.first[n] / count).numpy() for n in continuous}
        out.deviations = {
            n: (sums.second[n] / count - (sums.first[n] / count).square()).clamp(min=0).sqrt().numpy()
            for n in continuous
        }
        out.probabilities = self.density.marginals(sums.chances / count)
        return out

    def _add(self, sums: _Sums, there: LocalDensity, modes: Modes, B: int) -> None:
        """One draw of each row's latents given each of B values of the globals, and their moments."""
        modes = self._wider(modes)
        z, chosen = modes.draw(CANDIDATES)  # [candidates, B·n, L]
        share = (there.log_joint(z, chosen) - modes.log_prob(z, chosen)).softmax(0)
        taken = torch.multinomial(share.mT, 1)[:, 0]
        for name, value in there.values(z, chosen).items():
            each = share.reshape(*share.shape, *(1,) * (value.dim() - 2))
            sums.drawn.setdefault(name, []).append(value[taken, torch.arange(len(taken))].unflatten(0, (B, -1)))
            for moments, power in ((sums.first, value), (sums.second, value.square())):
                found = (each * power).sum(0).unflatten(0, (B, -1)).sum(0)
                moments[name] = moments.get(name, torch.zeros_like(found)) + found
        sums.chances = sums.chances + modes.assignment_weights.unflatten(0, (B, -1)).sum(0)

    def _wider(self, modes: Modes) -> Modes:
        """The Gaussians that draws are proposed from: wider ones, where that costs few draws."""
        return replace(modes, scale_tril=WIDER * modes.scale_tril) if len(quadrature.NODES) > self.density.L else modes

    def _checked(self, point: Values) -> Locals:
        """How near the rows' Gaussians are to their posteriors, given the globals at `point`."""
        there = self.density.given(point)
        modes = _all_modes.all_modes(there, start=self.means, max_iter=self.max_iter, tol=self.tol)
        out, n = Locals(), self.density.n
        laplace = self.modes(point)
        plain = float(weighed(laplace.log_evidence, self.task.weights, slice(None)).sum())
        out.notes["inner"] = (
            "Gauss–Hermite quadrature at each row's mode" if self.by_nodes else "Laplace at each row's mode"
        )
        out.notes["rows_with_several_modes"] = several = int(modes.several.sum())
        if self.by_nodes:
            out.notes["inner_correction"] = float(self._total(laplace, point)) - plain
        if self.samples:
            q = self._wider(modes)
            z, chosen = q.draw(self.samples)
            log_w = there.log_joint(z, chosen) - q.log_prob(z, chosen)
            out.khat, out.ess = psis(log_w.numpy())
            out.notes[DRAWS_PER_ROW] = self.samples
            value, se = weights.log_mean(log_w)
            if not self.by_nodes:
                out.notes["inner_correction"] = float(weighed(value, self.task.weights, slice(None)).sum()) - plain
                out.notes["inner_correction_se"] = float(se.square().sum().sqrt())
            if bad := count_above(out.khat):
                out.warnings.append(
                    f"{of_rows(bad, n)}: given the global latents their posteriors have heavier tails than a Gaussian."
                )
        if lost := int((~modes.converged).any(1).sum()):
            out.warnings.append(
                f"Newton's method did not reach the mode for {lost} of {n} rows: raise max_iter, or tries."
            )
        if several:
            out.warnings.append(
                f"{several} of {n} rows have several modes given the global latents, and the evidence covers one of each."
            )
        return out


def _detached(values: Values) -> dict[str, Tensor]:
    return {n: v.detach() for n, v in values.items()}


def _arrays(values: Mapping[str, Tensor]) -> Arrays:
    return {n: v.detach().numpy() for n, v in values.items()}
