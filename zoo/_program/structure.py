"""A program's structure as plain data: its sites and parameters, whether it is exact, and why. `describe` finds it."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from zoo._program.axes import Axes
from zoo._program.repeats import Line, lines

if TYPE_CHECKING:
    from torch.distributions.constraints import Constraint

LARGEST_NUMBER = 2**53  # that every reader of JSON takes
ENUMERATION_LIMIT = 10_000

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


class Exactness(enum.StrEnum):
    """What makes the posterior of the local latents, and the evidence, exact."""

    ENUMERABLE = "enumerable"
    LINEAR_GAUSSIAN = "linear-gaussian"
    CONDITIONALLY_LINEAR_GAUSSIAN = "conditionally linear-gaussian"
    ELIMINABLE = "enumerable by elimination"
    CONJUGATE = "conjugate"  # given each joint value of the discrete latents, where there are any
    NO = "no"


@dataclass(frozen=True)
class Site:
    """One `sample` statement."""

    name: str
    role: Literal["latent", "observed"]
    scope: Literal["local", "global"]
    family: str
    event_shape: tuple[int, ...]
    plates: tuple[str, ...]  # inner plates first
    support: str
    discrete: bool
    cardinality: int | None = None  # values of the support, when it can be enumerated
    inner: int = 1  # independent copies of the site in each row, from plates other than `data`
    inner_dims: tuple[tuple[int, int], ...] = ()  # the batch dimension and size of each of those plates
    completes: str | None = None  # the observed site whose missing entries are this latent's slots
    moving: tuple[str, ...] = ()  # what the support of a discrete latent depends on
    parents: tuple[str, ...] = ()  # the sites that its log-density depends on, besides itself
    reads_data: bool = True  # whether its log-density depends on data, besides what it observes itself
    moved: bool = False  # whether what it observes is computed from other sites
    improper: bool = False  # whether it is a latent whose prior, or a part of it, is no density
    constraint: Constraint | None = field(default=None, repr=False, compare=False)  # the support itself

    def to_json(self) -> dict[str, Json]:
        """The site as plain JSON types."""
        count = self.cardinality
        return {
            "name": self.name,
            "role": self.role,
            "scope": self.scope,
            "family": self.family,
            "event_shape": list(self.event_shape),
            "plates": list(self.plates),
            "support": self.support,
            "discrete": self.discrete,
            "cardinality": written(count) if count is not None and count > LARGEST_NUMBER else count,
            "inner": self.inner,
            "completes": self.completes,
            "parents": list(self.parents),
        }


@dataclass(frozen=True)
class Parameter:
    """One parameter θ: its constrained shape and its constraint."""

    name: str
    shape: tuple[int, ...]
    constraint: str
    learnable: bool = True  # False where the program itself keeps it fixed (`requires_grad`)

    def to_json(self) -> dict[str, Json]:
        """The parameter as plain JSON types."""
        return {"name": self.name, "shape": list(self.shape), "constraint": self.constraint}


@dataclass(frozen=True)
class Structure:
    """A program's sites and parameters, and whether its posterior and evidence are exact."""

    program: str
    n: int
    sites: tuple[Site, ...]
    parameters: tuple[Parameter, ...]
    exact: Exactness
    reason: str  # one sentence: why it is exact, or why not and at which site
    assignments: int = 1  # joint values of the discrete local latents
    data_dim: int = -1  # the batch dimension of the `data` plate
    max_plate_nesting: int = 1
    curvature_change: float | None = (
        None  # of the log joint in the continuous local latents, relative; None: there are none
    )
    warnings: tuple[str, ...] = field(default=())
    obstacle: str = ""  # why no method here can serve the program; "" where there is no such reason
    outside: tuple[str, ...] = ()  # what is observed outside the `data` plate
    largest_table: int | None = (
        None  # entries a row of the largest table, where the discrete latents are summed out one by one, given all others
    )
    integrable: Literal["", "normal", "conjugate"] = ""  # why the global latents can be integrated out exactly
    cut: str = ""  # why steps by derivatives would go wrong, in one sentence

    @property
    def is_exact(self) -> bool:
        """Whether the posterior of the local latents and the evidence are exact, given θ and the global latents."""
        return self.exact != Exactness.NO

    @property
    def improper(self) -> tuple[str, ...]:
        """The latents without a proper prior: log p(x) with them integrated out is no number."""
        return tuple(s.name for s in self.sites if s.improper)

    @property
    def enumerable(self) -> bool:
        """Whether exact, and without continuous local latents: all joint values of the discrete ones can be enumerated."""
        return self.exact == Exactness.ENUMERABLE

    @property
    def linear_gaussian(self) -> bool:
        """Whether exact, and quadratic in continuous local latents, given each joint value of the discrete ones if any."""
        return self.exact in (Exactness.LINEAR_GAUSSIAN, Exactness.CONDITIONALLY_LINEAR_GAUSSIAN)

    @property
    def eliminable(self) -> bool:
        """Whether exact because its discrete local latents, too many to list together, can be summed out one by one."""
        return self.exact == Exactness.ELIMINABLE

    @property
    def summed(self) -> Structure:
        """What is left to a method that sums the discrete local latents out one by one, given all other latents.

        Itself where they need no such sum, or there are no other latents.
        """
        gone = {s.name for s in self.discrete_locals}
        if self.largest_table is None or all(s.discrete for s in self.sites if s.role == "latent"):
            return self
        left = [replace(s, parents=tuple(p for p in s.parents if p not in gone)) for s in self.sites]
        sites = tuple(s for s in left if s.name not in gone)
        change = math.inf if any(s.role == "latent" and s.scope == "local" for s in sites) else None
        return replace(self, sites=sites, exact=Exactness.NO, largest_table=None, curvature_change=change)

    @property
    def scopes(self) -> dict[str, tuple[str, ...]]:
        """Local site → the discrete local latents that its log-density depends on, in the order of the sites."""
        place = {s.name: i for i, s in enumerate(self.sites)}
        discrete = {s.name for s in self.discrete_locals}
        return {
            s.name: tuple(sorted({*s.parents, s.name} & discrete, key=lambda n: place[n]))
            for s in self.sites
            if s.scope == "local"
        }

    @property
    def cards(self) -> dict[str, int]:
        """Discrete local latent → how many values it can take."""
        return {s.name: s.cardinality or 1 for s in self.discrete_locals}

    @property
    def conjugate(self) -> bool:
        """Whether exact, and the posterior of every continuous local latent is of its prior's family."""
        return self.exact == Exactness.CONJUGATE

    @property
    def by_row(self) -> bool:
        """Whether log p(x, z) can be computed row by row, at every joint value of the row's discrete latents.

        It cannot where rows may depend on each other, or where the joint values cannot be listed. `reason` says which.
        """
        return (self.is_exact and not self.eliminable) or self.curvature_change is not None

    @property
    def learnable(self) -> bool:
        """Whether there is a parameter to learn."""
        return any(p.learnable for p in self.parameters)

    @property
    def axes(self) -> Axes:
        """Where the plates lie among the dimensions of a value."""
        return Axes(self.max_plate_nesting, self.data_dim)

    @cached_property
    def local_latents(self) -> tuple[Site, ...]:
        return tuple(s for s in self.sites if s.role == "latent" and s.scope == "local")

    @cached_property
    def global_latents(self) -> tuple[Site, ...]:
        return tuple(s for s in self.sites if s.role == "latent" and s.scope == "global")

    @property
    def observed(self) -> tuple[Site, ...]:
        return tuple(s for s in self.sites if s.role == "observed")

    @property
    def discrete_locals(self) -> tuple[Site, ...]:
        return tuple(s for s in self.local_latents if s.discrete)

    @property
    def continuous_locals(self) -> tuple[Site, ...]:
        return tuple(s for s in self.local_latents if not s.discrete)

    @property
    def lines(self) -> list[Line]:
        """The sites as a person reads them, those that repeat a pattern as one."""
        return lines([s.to_json() for s in self.sites])

    def to_json(self) -> dict[str, Json]:
        """The structure as plain JSON types."""
        change = self.curvature_change
        return {
            "model": self.program,
            "n": self.n,
            "exact": self.exact.value,
            "reason": self.reason,
            "assignments": self.assignments,
            "largest_table": self.largest_table,
            "curvature_change": None if change is None or math.isinf(change) else change,  # JSON knows no infinity
            "sites": [s.to_json() for s in self.sites],
            "parameters": [p.to_json() for p in self.parameters],
            "warnings": list(self.warnings),
            "obstacle": self.obstacle or None,
            "integrable": self.integrable or None,
        }


def written(count: int) -> str:
    """A count in digits, or as a power where it has too many."""
    if count < 10**15:
        return f"{count:,}"
    twos = (count & -count).bit_length() - 1
    odd = count >> twos
    tens = math.floor(count.bit_length() * math.log10(2))  # python does not write more than 4300 digits
    return f"2^{twos}" if odd == 1 else f"{odd} × 2^{twos}" if odd < 10**6 else f"about 10^{tens}"
