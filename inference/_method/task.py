"""What the runner hands to a method: the program, its structure, the data, and how to report progress."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from inference._exact.choose import engine_for
from inference._exact.engine import AnyEngine, Plan, Rows, Statistics
from inference._families._family import Floor
from inference._method.progress import Step, progress
from inference._numerics.coordinates import bijection
from inference._numerics.weighted import count
from zoo._program.program import Program
from zoo._program.structure import ENUMERATION_LIMIT, Structure
from zoo._program.trace import Node, family_name, node_of, outside_log_prob, support_of


class Checkpoints(Protocol):
    """Where training leaves its state, and finds it again: a state is tensors, numbers, lists and dictionaries of them."""

    def due(self) -> bool:
        """Whether it is time for the next."""

    def write(self, state: Mapping[str, object]) -> None:
        """Keep this state."""

    def read(self) -> dict[str, Any] | None:
        """The state to resume from; None where training begins."""


@dataclass
class Task:
    """One program on one data set. Methods change the program's parameters in place, and nothing else.

    `learn`: False keeps θ as it is. `draws`: how many posterior draws the fit should hold.

        >>> from zoo._program.describe import describe
        >>> from zoo._program.load import load
        >>> x = torch.tensor([[0.0], [1.0], [9.0]], dtype=torch.float64)
        >>> program = load("gmm", x, {"components": 2})
        >>> task = Task(program, describe(program, x), x)
        >>> sorted(task.theta()), task.engine.per_datum().shape
        (['locs', 'scale_tril', 'weights'], torch.Size([3]))
    """

    program: Program
    structure: Structure
    x: Tensor  # [N, …], NaN where unobserved
    weights: Tensor | None = field(default=None, kw_only=True)  # [N] how many times each row counts; None: once each
    seed: int = 0
    learn: bool = True
    draws: int = 200
    quiet: bool = False
    guide: torch.nn.Module | None = None  # a guide that was fitted before, to continue with
    globals: dict[str, Tensor] = field(default_factory=dict)  # point values of the global latents, to continue with
    limit: int = ENUMERATION_LIMIT  # joint values of discrete latents that may be enumerated
    intensities: Tensor | None = None  # [N, …] of which x is one binarisation, where each epoch is to draw its own
    checkpoints: Checkpoints | None = None  # where training leaves its state, and resumes from
    numeric: set[str] = field(default_factory=set)  # parameters whose closed form turned out not to hold
    _plan: Plan | None = field(default=None, init=False, repr=False)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # of training; all else is on the CPU

    def at_epoch(self, epoch: int) -> Tensor:
        """The data as training sees them at an epoch: the same, or binarised again (Salakhutdinov & Murray 2008)."""
        if self.intensities is None:
            return self.x
        generator = torch.Generator("cpu").manual_seed(self.seed * 1_000_003 + epoch)
        x, places, chances = self._between
        x.view(-1)[places] = (torch.rand(len(places), generator=generator, device="cpu") < chances).to(x.dtype)
        return x

    @cached_property
    def _between(self) -> tuple[Tensor, Tensor, Tensor]:
        """A binarisation to write each epoch's into, the places [m] strictly between 0 and 1, and their intensities [m]."""
        assert self.intensities is not None
        flat = self.intensities.reshape(-1)
        places = ((flat > 0) & (flat < 1)).nonzero()[:, 0]
        return self.intensities.clone(memory_format=torch.contiguous_format), places, flat[places].float()

    @cached_property
    def exact(self) -> AnyEngine | None:
        """The engine of a program whose posterior and evidence are exact, else None."""
        return engine_for(self.program, self.structure, self.x, self.weights)

    @property
    def count(self) -> float:
        """How many rows the data stand for: Σ w, their number where each counts once."""
        return count(self.weights, len(self.x))

    @property
    def times(self) -> np.ndarray | None:
        """The rows' weights as evidence takes them [N], None where each counts once."""
        return None if self.weights is None else self.weights.double().numpy()

    @cached_property
    def relative(self) -> Tensor | None:
        """The rows' weights with a mean of 1 [N], None where each counts once: for sums that are taken as means over rows."""
        return None if self.weights is None else self.weights * (len(self.x) / self.count)

    def some(self, rows: Tensor | slice) -> Task:
        """The same on some rows."""
        weights = None if self.weights is None else self.weights[rows]
        return replace(self, x=self.x[rows], weights=weights)

    @property
    def engine(self) -> AnyEngine:
        """The exact engine, for a method whose `refusal` has ensured that there is one."""
        if self.exact is None:
            raise TypeError(f"the posterior of '{self.program.name}' is not exact: {self.structure.reason}")
        return self.exact

    def theta(self) -> dict[str, Tensor]:
        """A copy of the program's constrained parameters."""
        return {n: v.detach().clone() for n, v in self.program.values().items()}

    def plan(self, globals: dict[str, Tensor]) -> Plan:
        """How the M-step will update each parameter."""
        if self._plan is None:
            self._plan = self.engine.plan(globals)
        return self._plan.without(self.numeric)

    def doubled(self) -> Task:
        """This task in float64, with a program of its own; itself where it is in float64 already."""
        if self.x.dtype == torch.float64:
            return self
        program = copy.deepcopy(self.program).double()
        program.dtype = torch.float64
        globals = {n: v.double() for n, v in self.globals.items()}
        weights = None if self.weights is None else self.weights.double()
        return replace(self, program=program, x=self.x.double(), weights=weights, globals=globals)

    def m_step(
        self,
        how: Plan,
        stats: Statistics,
        globals: dict[str, Tensor],
        floor: Floor,
        responsibilities: Rows | None = None,
        iterations: int = 10,
    ) -> dict[str, Tensor]:
        """Maximise the expected complete log joint: θ in place, the globals returned."""
        return self.engine.m_step(how, stats, globals, self.global_supports, floor, responsibilities, iterations)

    @cached_property
    def global_supports(self) -> dict[str, Constraint]:
        """Global latent site → its support."""
        return {n: support_of(node["fn"]) for n, node in self._global_nodes().items()}

    def global_start(self) -> dict[str, Tensor]:
        """A point value for each global latent: the one given, else the program's own (`infer={"init": value}` at the site),
        else its prior mean, else the middle of its support."""
        out = {}
        for name, node in self._global_nodes().items():
            own = (node["infer"] or {}).get("init")
            flat = family_name(node["fn"]) == "ImproperUniform"
            begin = own if own is not None else node["value"] if flat else _center(node["fn"])
            out[name] = torch.as_tensor(self.globals.get(name, begin)).detach().to(self.x.dtype)
        return out

    def outside(self, globals: dict[str, Tensor]) -> float:
        """log p of what is observed outside the `data` plate, given θ and the globals; nats."""
        if not self.structure.outside:
            return 0.0
        with torch.no_grad():
            trace = self.program.trace(self.x[:2], latents=globals)
            return float(outside_log_prob(trace, self.structure.outside))

    def _global_nodes(self) -> dict[str, Node]:
        names = [s.name for s in self.structure.global_latents]
        if not names:
            return {}
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            trace = self.program.trace(self.x[:2])
        return {n: node_of(trace, n) for n in names}

    def progress(self, what: str, total: int | None = None) -> AbstractContextManager[Step]:
        """A progress bar on standard error, shown once the work has taken two seconds.

        Yields a function to call at every step: `step(advance=1, note="")`.
        """
        return progress(what, total, self.quiet)


def keeps_theta(method: str, program: str) -> str:
    """Why a method that leaves θ as it is refuses a program with parameters to learn."""
    return (
        f"{method} keeps θ as it is, and '{program}' has parameters to learn: fit them by another method, then "
        f"`zoo infer RUN --method {method}`"
    )


def _center(fn: dist.TorchDistribution) -> Tensor:
    """The mean of `fn` where it has one inside its support, else the image of 0 under the support's bijection."""
    try:
        mean = fn.mean
        if bool(mean.isfinite().all()) and bool(torch.as_tensor(support_of(fn).check(mean)).all()):
            return mean.detach().clone()
    except NotImplementedError:
        pass
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        example = fn.sample()
    transform = bijection(support_of(fn))
    middle: Tensor = transform(torch.zeros_like(transform.inv(example)))
    return middle
