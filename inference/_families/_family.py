"""What a family with sufficient statistics is: `Family`, and how its parameters are pooled into θ: `Pool`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from zoo._data import blockwise

LOG_2PI = math.log(2 * math.pi)
Params = dict[str, Tensor]
Density = Callable[[Tensor], Tensor]


# what a global latent may be of a parameter → how it is made of the parameter, and the parameter of it
FORMS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "": (lambda value: value, lambda value: value),
    "variance": (torch.square, torch.sqrt),
    "precision": (lambda scale: scale**-2, torch.rsqrt),
}
ROUNDING = (
    4500  # machine epsilons: a variance below this share of the data's own is lost in rounding (1e-12 in float64)
)


@dataclass
class Floor:
    """The smallest variance the M-step may set, as a share of the data's own, and who reached it.

    With `strict`, every variance below `share` is raised to it. Without, a variance may be as small as the arithmetic can
    tell from 0: nearly collinear columns and narrow clusters keep theirs. One that falls to rounding has collapsed, and
    is held at `share` from then on: `held` lists those, and `fell` says that there is a new one.
    """

    share: float
    reached: set[int]  # assignments
    strict: bool = True
    held: set[tuple[str, int]] = field(default_factory=set)  # θ and its entry or block
    latent: set[str] = field(default_factory=set)  # latent sites whose own variance went to nothing
    fell: bool = False
    resting: dict[str, Tensor] = field(
        default_factory=dict
    )  # θ → which of its entries the last M-step put on the floor

    def clear(self) -> None:
        """Before an M-step: forget what the last one met, but not what is held."""
        self.reached.clear()
        self.latent.clear()
        self.resting.clear()
        self.fell = False

    def least(self, dtype: torch.dtype) -> float:
        """The share of the data's variance below which a variance counts as collapsed."""
        return self.share if self.strict else min(self.share, ROUNDING * torch.finfo(dtype).eps)

    def lowest(self, theta: str, share: Tensor, known: Tensor) -> Tensor:
        """The smallest share of each entry (or block) of θ, from what the M-step found: `share`, where `known`."""
        least = self.least(share.dtype)
        out = torch.full_like(share, least)
        if least == self.share:
            return out
        fallen = known & ~(share >= least)
        if fallen.any() or self.held:
            for entry in fallen.nonzero()[:, 0].tolist():
                self.fell |= (theta, entry) not in self.held
                self.held.add((theta, entry))
            for name, entry in self.held:
                if name == theta:
                    out[entry] = self.share
        return out


class Family:
    """What the E- and M-step need of a site's distribution.

    A family knows distributions, never models: it sees parameters [A, E] (A assignments, E entries of an event) and data
    [n, E]. All log-densities are in nats. A subclass in a public file of this folder serves its `distribution`.

        >>> from inference._families.poisson import Poisson
        >>> x, params = torch.tensor([[0.0], [5.0]]), {"rate": torch.tensor([[1.0], [4.0]])}  # two rows, two assignments
        >>> Poisson(x).log_prob(x, params).argmax(1).tolist()
        [0, 1]
    """

    distribution: ClassVar[type[Distribution]]  # the class that it serves, and no subclass of it
    parameters: ClassVar[dict[str, Constraint]]  # torch's name of each → the values it may take
    one_of: ClassVar[tuple[str, ...]] = ()  # parameters of which a distribution is given one
    up_to_constant: ClassVar[tuple[str, ...]] = ()  # vectors to which a constant may be added: logits of categories
    forms: ClassVar[dict[str, tuple[str, ...]]] = {}  # parameter → which `FORMS` of it a global latent may be
    priors: ClassVar[dict[str, tuple[type[Distribution], ...]]] = {}  # parameter or form → priors with a closed mode
    location: ClassVar[str | None] = None  # the parameter that others are taken about, so that it is updated first
    joint: ClassVar[bool] = False  # whether an event is one draw, of entries that depend on each other
    by_pattern: ClassVar[bool] = (
        False  # whether rows with the same entries missing share work, so that many at once are best
    )

    @classmethod
    def given(cls, params: Params) -> bool:
        """Whether `params` are all that the other methods need."""
        needed = cls.parameters.keys() - set(cls.one_of)
        return needed <= params.keys() and (not cls.one_of or any(name in params for name in cls.one_of))

    def __init__(self, x: Tensor) -> None:
        """`x` [N, E]: the site's data, NaN where unobserved; the other methods take some of its rows, [n, E]."""
        self.complete = not blockwise.any_missing(x)

    def weigh(self, x: Tensor, weights: Tensor) -> None:
        """Count each row of x [n, E] by its weight [n], in what the family knows of all data."""

    def log_prob(self, x: Tensor, params: Params) -> Tensor:
        """log p(x_i | a) [n, A], over the observed entries of x [n, E]."""
        base, out = self.log_base(x), self.density(params)(self.terms(x))
        return out if base is None else out + base.unsqueeze(1)

    def log_base(self, x: Tensor) -> Tensor | None:
        """The part of log p(x_i | a) that no parameter enters [n], None for zero: it need be worked out only once."""
        return None

    def terms(self, x: Tensor) -> Tensor:
        """What `density` and `statistics` take of the data x [n, E]: [n, …], worked out once for both."""
        return x

    def density(self, params: Params) -> Density:
        """The `terms` of x [n, E] ↦ the rest of log p(x_i | a) [n, A], with all that needs no x worked out once.

        It lies in memory with the data of one assignment next to each other: reductions over assignments run fast.
        """
        raise NotImplementedError

    def width(self, entries: int, assignments: int) -> int:
        """How many numbers the largest temporary of a pass over the data holds for each row, its `terms` among them."""
        return max(entries, assignments)

    def statistics(self, terms: Tensor, weights: Tensor, params: Params) -> dict[str, Tensor]:
        """Sufficient statistics summed over rows with `weights` [n, A], from their `terms`; they add over chunks."""
        raise NotImplementedError

    def _whole(self, x: Tensor) -> bool:
        """Whether every entry of these rows was observed."""
        return self.complete or not bool(x.isnan().any())

    def _fill(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x with 0 where it is NaN, and 1.0 where it was seen (None when all of it was)."""
        if self._whole(x):
            return x, None
        missing = x.isnan()
        return x.masked_fill(missing, 0.0), (~missing).to(x.dtype)

    def expected(self, stats: dict[str, Tensor], params: Params) -> Tensor:
        """Σ_i Σ_a weight · log p(x_i | a) from the statistics, up to a constant; differentiable in `params`."""
        raise NotImplementedError

    def closed(self, name: str, pool: Pool, params: Params) -> bool:
        """Whether `maximise` has a closed form: vectors and matrices must be copied whole."""
        return not self.parameters[name].event_dim or pool.blocks(block_size(self, name, params)) is not None

    def maximise(self, name: str, pool: Pool, stats: dict[str, Tensor], params: Params, floor: Floor) -> Tensor:
        """θ with the entries that parameter `name` copies at their best value, the other parameters held.

        Of a global latent (`pool.prior`), the most probable value; its prior is one of `priors`.
        """
        raise NotImplementedError

    def smallest(self, params: Params) -> Tensor | None:
        """The smallest variance of each assignment [A], as a share of the data's own; None for a family without one."""
        return None

    def blurred(self, stats: dict[str, Tensor], share: float) -> dict[str, Tensor]:
        """Statistics of a clustering, with a `share` of each assignment's taken from all data alike.

        So no probability starts at 0, from where no E-step could raise it. Only for families that have such a border.
        """
        return stats


@dataclass(frozen=True)
class Places:
    """Which entry of θ each entry of a distribution's parameter [A, …] is a copy of: `index` into θ.flat, −1 for none.

    An M-step asks the same of it each time: that is worked out once.
    """

    index: Tensor
    _blocks: dict[int, Tensor | None] = field(default_factory=dict)

    @cached_property
    def in_order(self) -> bool:
        """Whether they are 0, 1, 2, …: the parameter is θ in another shape."""
        return torch.equal(self.index.reshape(-1), torch.arange(self.index.numel()))

    @cached_property
    def used(self) -> tuple[Tensor, Tensor]:
        """Which entries of the flat parameter are copies, and of which entry of θ.flat each of these is."""
        flat = self.index.reshape(-1)
        used = flat >= 0
        return used, flat[used]

    def blocks(self, size: int) -> Tensor | None:
        """For parameters that copy θ in whole blocks of `size` entries: which block, for each of theirs; or None."""
        if size not in self._blocks:
            flat = self.index.reshape(-1, size)
            first = flat.max(dim=1).values // size
            wanted = first.unsqueeze(1) * size + torch.arange(size)
            whole = bool(((flat == wanted) | (flat < 0)).all()) and bool((first >= 0).all())
            self._blocks[size] = first if whole else None
        return self._blocks[size]


@dataclass
class Pool:
    """A parameter [A, …] and the θ that its entries are copies of, at their `places`."""

    theta: str
    value: Tensor  # θ as it stands
    places: Places
    prior: Distribution | None = None  # of a global latent, without what is wrapped around it
    form: str = ""  # of the parameter, that θ is

    @property
    def index(self) -> Tensor:
        """Into θ.flat, for each entry of the parameter; −1 for none."""
        return self.places.index

    def hyper(self, name: str) -> Tensor:
        """A parameter of the prior for each entry of θ.flat."""
        value: Tensor = getattr(self.prior, name)
        return value.to(self.value).expand(self.value.shape).reshape(-1)

    def total(self, statistic: Tensor) -> Tensor:
        """Sum a statistic, shaped like the parameter, over the copies of each θ entry: θ.flat's shape."""
        each = statistic.expand(self.index.shape).reshape(-1)
        if self.places.in_order and len(each) == self.value.numel():
            return each
        used, places = self.places.used
        return statistic.new_zeros(self.value.numel()).index_add(0, places, each[used])

    def mean(self, statistic: Tensor) -> Tensor:
        """The mean of a statistic over the copies of each θ entry."""
        return self.total(statistic) / self.total(torch.ones_like(statistic)).clamp(min=1)

    def fill(self, values: Tensor, known: Tensor) -> Tensor:
        """θ with the entries where `known` replaced by `values` (both flat)."""
        return torch.where(known, values, self.value.reshape(-1)).reshape(self.value.shape)

    def blocks(self, size: int) -> Tensor | None:
        """Which block of `size` entries of θ each of the parameter's is; None where not all of it are whole blocks."""
        return self.places.blocks(size)


def block_size(family: Family, name: str, params: Params) -> int:
    return math.prod(params[name].shape[-family.parameters[name].event_dim :])


def product(weight: Tensor, value: Tensor) -> Tensor:
    """weight · value, with 0 · ±inf = 0."""
    return torch.where(weight == 0, torch.zeros(()).to(value), weight * value)


def tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny
