"""What an exact engine is: posterior, evidence and M-step of one program on one data set (`Engine`).

Six kinds are told apart by what the program is (`engine_for` in `choose`): discrete latents are listed (`Enumeration`), or
where they are too many summed out one by one (`Elimination`); conjugate latents go by the natural parameters of their
posterior (`ConjugateEngine`); normal latents whose sites are the same for all rows go by matrix products (`LinearGaussian`,
and `Compressed` where a few points stand for the data); many normal latents of which each meets few others are eliminated along
their graph (`Chains`); any other log joint that is quadratic in its latents goes by autograd (`Quadratic`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from inference._exact.copies import Copy
from inference._exact.numeric import climb_numerically
from inference._families._family import Family, Floor
from inference._numerics.threads import one_thread
from inference._numerics.weighted import count
from zoo._program.program import Program
from zoo._program.structure import Structure

Values = Mapping[str, Tensor]  # parameters or global latents, constrained
Points = Iterator[
    tuple[Tensor, dict[str, Tensor]]
]  # weights [n] and values of the local latents, as the program takes them


class Rows(Protocol):
    """Numbers [N, A] of which some rows at a time are asked for: a tensor, or what makes them as they are needed."""

    def __getitem__(self, rows: slice, /) -> Tensor: ...


@dataclass
class Statistics:
    """What an E-step leaves for the M-step."""

    counts: Tensor  # [A] expected number of rows under each assignment
    per_datum: Tensor  # [N] log p(x_i) times the row's weight, or of very many rows their sums over chunks
    log_prior: Tensor  # of the globals
    sites: dict[str, dict[str, Tensor]]  # site → its sufficient statistics
    globals: Values = field(default_factory=dict, kw_only=True)  # where the E-step was

    @property
    def log_joint(self) -> float:
        """log p(x, globals; θ) at the θ of the E-step, nats."""
        return float(self.per_datum.sum()) + float(self.log_prior)

    @property
    def need_responsibilities(self) -> bool:
        """Whether a site has no sufficient statistics, so that the M-step must see the responsibilities themselves."""
        return False


@dataclass(frozen=True)
class Plan:
    """How an M-step updates each parameter: those in `copies` in closed form, the `numeric` ones by L-BFGS.

    A global latent is in `copies` where its prior (in `priors`) allows a closed form, else it is numeric.
    """

    copies: dict[str, Copy]
    numeric: tuple[str, ...]
    priors: Mapping[str, Distribution] = field(default_factory=dict, kw_only=True)
    changing: tuple[str, ...] = field(default=(), kw_only=True)  # those whose priors depend on other values
    hypers: Mapping[str, Copy] = field(default_factory=dict, kw_only=True)  # parameters of other latents' priors

    def by_steps(self, globals: Values) -> tuple[str, ...]:
        """The parameters and global latents that have no closed form."""
        others = [n for n in globals if n not in self.copies and n not in self.hypers]
        return tuple(dict.fromkeys([*self.numeric, *others]))

    @property
    def closed(self) -> tuple[str, ...]:
        """Names of the parameters with a closed form."""
        return (*self.copies, *self.hypers)

    def without(self, names: Collection[str]) -> Self:
        """The same plan with `names` updated numerically."""
        moved = tuple(n for n in self.copies if n in names)
        copies = {n: copy for n, copy in self.copies.items() if n not in names}
        return replace(self, copies=copies, numeric=(*self.numeric, *moved)) if moved else self


MOST_SUMMED = 2**21  # rows: of more, an E-step keeps log p(x_i) summed over chunks alone
S = TypeVar("S", bound=Statistics)
P = TypeVar("P", bound=Plan)


class Engine(ABC, Generic[S, P]):
    """The exact posterior and evidence of `program` for the data `x` [N, …], NaN where unobserved.

    Sums over rows count each as often as its weight says; what is asked row by row is the same whatever its weight.
    The A joint values of the discrete local latents are its assignments; A = 1 where there are none. In all methods
    `parameters` and `globals` are constrained values used in place of the program's own. All log-densities are in nats.

    >>> from zoo._program.describe import describe
    >>> from zoo._program.load import load
    >>> from inference._exact.choose import engine_for
    >>> x = torch.tensor([[0.0], [1.0], [9.0]], dtype=torch.float64)
    >>> program = load("gmm", x, {"components": 2})
    >>> engine = engine_for(program, describe(program, x), x)
    >>> statistics = engine.e_step()  # one step of EM: what it expects of the latents,
    >>> _ = engine.m_step(engine.plan({}), statistics, {}, {}, Floor(1e-6, set()))  # and θ at its best for that
    >>> engine.e_step().log_joint > statistics.log_joint
    True
    """

    program: Program
    structure: Structure
    x: Tensor
    weights: Tensor | None  # [N] how many times each row counts; None: once each
    N: int
    A: int
    assignments: dict[str, Tensor]  # discrete site → its value under each assignment [A, 1, …, event]
    families: dict[str, Family]  # site → the family that has its sufficient statistics, where one does
    delicate: bool = False  # whether a determinant lost digits, so that the evidence is no longer exact

    # ------------------------------------------------------------------------------------- evidence and posterior

    @property
    @abstractmethod
    def size(self) -> float:
        """Rows × assignments: what one pass over the data costs; ∞ where every row needs a run of the program."""

    @abstractmethod
    def log_prior(self, parameters: Values | None = None, globals: Values | None = None) -> Tensor:
        """log p(globals), differentiable."""

    @abstractmethod
    def log_evidence(
        self, parameters: Values | None = None, globals: Values | None = None, every_row: bool = False
    ) -> tuple[Tensor, Tensor]:
        """(Σ_i w_i log p(x_i | θ, globals), log p(globals)), both differentiable.

        `every_row`: never by points in their place.
        """

    @abstractmethod
    def per_datum(self, parameters: Values | None = None, globals: Values | None = None, own: bool = False) -> Tensor:
        """log p(x_i | θ, globals) [N]. `own`: by the sites' own `log_prob` throughout, as a check on matrix products."""

    @abstractmethod
    def responsibilities(self, parameters: Values | None = None, globals: Values | None = None) -> Tensor:
        """p(a | x_i) [N, A]."""

    @abstractmethod
    def draw(self, responsibilities: Tensor | None, draws: int, globals: Values | None = None) -> dict[str, Tensor]:
        """Local site → exact posterior draws [draws, N, …]. `responsibilities` [N, A]: worked out where None."""

    @abstractmethod
    def summary(self, globals: Values | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Posterior mean and standard deviation of each continuous local latent, site → [N, …]."""

    def draw_and_summary(self, globals: Values) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """One draw of each row's latents, and their means and deviations, from one look at their posterior."""
        return self.draw(None, 1, globals), *self.summary(globals)

    @abstractmethod
    def points(self, rows: slice, globals: Values | None = None) -> Points:
        """Weighted values of the local latents whose mean is the posterior's, of all that is quadratic in continuous ones."""

    def label(self, assignment: int) -> str:
        """An assignment in words: "z=1"."""
        parts = []
        for name, value in self.assignments.items():
            shown = value[assignment].flatten().tolist()
            parts.append(f"{name}={shown[0] if len(shown) == 1 else shown}")
        return ", ".join(parts)

    @property
    def states(self) -> int:
        """How many numbers the posterior of a row's discrete latents takes."""
        return self.A if self.structure.discrete_locals else 0

    def values_of(self, latent: str) -> Tensor:
        """The values of a discrete latent that is one number, from the smallest up."""
        values: Tensor = self.assignments[latent].reshape(-1).unique()
        return values

    def marginals(self, responsibilities: Tensor, globals: Values | None = None) -> dict[str, Tensor]:
        """Site → p(z = k | x_i) [N, K], for discrete sites with one value a row."""
        out = {}
        for site in self.structure.discrete_locals:
            if site.inner == 1 and not site.event_shape:
                values, index = self.assignments[site.name].reshape(-1).unique(return_inverse=True)
                if torch.equal(index, torch.arange(responsibilities.shape[1])):
                    out[site.name] = responsibilities  # the only site: each assignment is one of its values
                    continue
                zero = responsibilities.new_zeros(self.N, len(values))
                out[site.name] = zero.index_add_(1, index, responsibilities)
        return out

    # ---------------------------------------------------------------------------------------------------- learning

    @abstractmethod
    def e_step(self, globals: Values | None = None, responsibilities: Rows | None = None) -> S:
        """Expected sufficient statistics and log p(x_i), in one pass over the data.

        `responsibilities` [N, A]: use these for the discrete latents in place of their posterior (a start from clusters).
        """

    def sampled(self, draws: int, globals: Values | None = None) -> tuple[S, Tensor] | None:
        """Statistics of the data completed with so many posterior draws of each row's latents, each counted as one in `draws`;
        and the share of each assignment among them [N, A]. None where an M-step here has no statistics of draws."""
        return None

    @abstractmethod
    def look(self, globals: Values | None = None) -> S:
        """What an E-step sees of the sites at the program's θ, without a pass over the data: statistics of no rows."""

    @abstractmethod
    def plan(self, globals: Values) -> P:
        """Which parameters an M-step can update in closed form, found by differentiation."""

    @abstractmethod
    def closed(self, plan: P, stats: S, floor: Floor, globals: Values) -> dict[str, Tensor]:
        """Put the parameters that have a closed form at their best value; returns the globals that have one."""

    def m_step(
        self,
        plan: P,
        stats: S,
        globals: dict[str, Tensor],
        supports: Mapping[str, Constraint],
        floor: Floor,
        responsibilities: Rows | None = None,
        iterations: int = 10,
    ) -> dict[str, Tensor]:
        """Maximise the expected complete log joint over θ (in place) and the globals (returned), on their `supports`.

        `responsibilities` [N, A]: where the statistics need them; `iterations`: of L-BFGS, for what is numeric.
        """
        with torch.no_grad(), one_thread():  # its matrices are small: threads cost more than they save
            globals = globals | self.closed(plan, stats, floor, globals)

        def objective(parameters: Values, point: Values) -> Tensor:
            return self.expected(stats, parameters, {**globals, **point}, responsibilities)

        return globals | climb_numerically(
            self.program, plan.by_steps(globals), globals, supports, objective, count(self.weights, self.N), iterations
        )

    @abstractmethod
    def expected(self, stats: S, parameters: Values, globals: Values, responsibilities: Rows | None = None) -> Tensor:
        """E_q[log p(x, z, globals)] up to a constant; differentiable in parameters and globals."""

    @abstractmethod
    def broken(self, plan: P, stats: S) -> list[str]:
        """The parameters whose closed form does not hold where the E-step saw them: no longer the copies they were."""

    @abstractmethod
    def smallest(self, stats: S) -> float:
        """The smallest variance of an observed site, as a share of the data's own; ∞ where there is none."""

    def highest(self, plan: P, floor: Floor) -> dict[str, Tensor] | None:
        """θ at the top of log p(x; θ), where that is known without climbing; None where it is not."""
        return None

    def is_highest(self, plan: P, stats: S, enough: float) -> bool:
        """Whether it is certain that no θ near that of the E-step has a log p(x; θ) higher by more than `enough` nats."""
        return False

    def blur(self, stats: S, share: float) -> None:
        """Mix a `share` of all rows alike into the statistics of counts, so that no probability starts at 0."""
        for site, found in stats.sites.items():
            if site not in self.assignments and site in self.families:
                stats.sites[site] = self.families[site].blurred(found, share)


AnyEngine = Engine[Any, Any]
