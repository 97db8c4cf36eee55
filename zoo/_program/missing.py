"""NaN in the data means "not observed": one effect handler, around any program (`Unobserved`).

- entries that are independent given the latents are masked out of the density;
- a multivariate normal is replaced by its marginal over the observed sub-block, pattern by pattern;
- for any other family of 0/1 or real entries, the missing entries of the site `x` become the local latent `x_missing`, and
  log p(x_missing) + log p(x) is log p(x_obs, x_missing) (`Completed`);
- a row with nothing observed drops out, for any family: its density is the empty product, 0 nats;
- at a site that other sites are computed from (a parent) nothing can be left out, not even a whole row: the missing entries
  become the latent `x_missing`, for entries of 0/1 or real numbers, and any other family is refused.

The value of `x_missing` is a vector of M slots per row (`slots`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from zoo._data import blockwise
from zoo._errors import UsageError
from zoo._program.masked_normal import MarginalNormal
from zoo._program.noise import Noisy
from zoo._program.slots import Slots, complete, flattened, most_missing, slots
from zoo._program.trace import Node, Shape, is_deterministic, is_discrete, is_latent, is_local

if TYPE_CHECKING:
    from pyro.poutine.runtime import InferDict

Kind = Literal["binary", "real"]


@dataclass(frozen=True)
class Gaps:
    """How many slots each site needs, the same in every batch, and where real entries are to be looked for."""

    slots: Mapping[str, int] = field(default_factory=dict)  # observed site → the most entries that a row misses
    parents: frozenset[str] = frozenset()  # observed sites that other sites are computed from
    center: Tensor = field(default_factory=lambda: torch.zeros(1))  # of each column of x
    scale: Tensor = field(default_factory=lambda: torch.ones(1))  # their standard deviations

    @staticmethod
    def of(x: Tensor, counting: Counting) -> Gaps:
        """For data x [n, …], of which all incomplete rows were counted."""
        slots = {name: most for name, most in counting.most.items() if most}
        if not counting.real:
            return Gaps(slots, counting.parents)
        flat = x.detach().flatten(1)
        center = flat.nanmean(0).nan_to_num(0.0)
        scale = (flat - center).square().nanmean(0).nan_to_num(0.0).sqrt()
        return Gaps(slots, counting.parents, center, torch.where(scale > 0, scale, torch.ones_like(scale)))

    def reference(self, kind: Kind, value: Tensor, index: Tensor, real: Tensor) -> Slots:
        """A distribution of the slots that covers what may have been there; of `value` [..., E], see `slots`.

        Whatever it is, the density of the completed site is divided by it. Fair coins, or a normal as wide as the column
        (as x itself, where the site's entries are not its columns); N(0, 1) for the slots left over.
        """
        if kind == "binary":
            return Slots(dist.Bernoulli(value.new_full(index.shape[-1:], 0.5)), 1)
        center, scale = self.center.to(value), self.scale.to(value)
        if len(center) == value.shape[-1]:
            center, scale = center[index], scale[index]
        else:
            center, scale = center.mean(), (scale.square().mean() + center.var(unbiased=False)).sqrt()
        zero = torch.zeros_like(index, dtype=value.dtype)
        return Slots(dist.Normal(torch.where(real, center, zero), torch.where(real, scale, zero + 1)), 1)


class Unobserved(Messenger):
    """Takes NaN entries out of each observed site: leaves them out of its density, or completes them by a latent site.

    `raw`: observed sites keep their NaN; the latent sites are drawn all the same, so that a program always has the same.
    What a discrete site cannot take, a number that stands for a missing entry of x, gives way to one that it can.
    """

    def __init__(self, gaps: Gaps | None = None, raw: bool = False) -> None:
        super().__init__()
        self.gaps, self.raw = gaps or Gaps(), raw

    def _pyro_sample(self, msg: Node) -> None:
        value = msg["value"]
        if is_latent(msg) or not isinstance(value, Tensor) or not value.is_floating_point():
            return
        if is_deterministic(msg):
            return
        if self.raw:
            msg["value"] = value = _in_support(msg["fn"], value)
        most = self.gaps.slots.get(msg["name"], 0)
        if not most and not holds_nan(value):
            return
        parent = msg["name"] in self.gaps.parents
        kind = completed_as(msg, parent)
        count = 0 if kind is None else max(most, most_missing(flattened(value, msg["fn"]), parent))
        if kind is not None and count:
            self._complete(msg, kind, count, parent)
        elif not self.raw:
            msg["fn"], msg["value"] = marginal(msg["fn"], value, value.isnan(), msg["name"])

    def _complete(self, msg: Node, kind: Kind, count: int, parent: bool) -> None:
        name, fn, flat = msg["name"], msg["fn"], flattened(msg["value"], msg["fn"])
        index, real = slots(flat, count, parent)
        reference = self.gaps.reference(kind, flat, index, real)
        mark = cast("InferDict", {"_completes": name})  # for `describe` to know it by
        given = pyro.sample(f"{name}_missing", reference, infer=mark)
        if self.raw:
            return
        unseen = flat.isnan().all(-1) & (not parent)
        if bool(unseen.any()):
            flat = torch.where(unseen.unsqueeze(-1), torch.full_like(flat, _harmless(_unwrap(fn)[0])), flat)
        whole = complete(flat, given, parent)
        msg["value"] = whole.unflatten(-1, fn.event_shape) if fn.event_shape else whole.squeeze(-1)
        msg["fn"] = Completed(fn, reference, index, real, unseen)


_complete, _looking = False, False


@contextlib.contextmanager
def complete_data() -> Iterator[None]:
    """Inside, no entry is looked at to see whether it is missing: for data that are known to have all."""
    global _complete
    before, _complete = _complete, True
    try:
        yield
    finally:
        _complete = before


@contextlib.contextmanager
def _only_looking() -> Iterator[None]:
    """Inside, values are looked at, and nothing of the program is computed from them."""
    global _looking
    _looking = True
    try:
        yield
    finally:
        _looking = False


def only_looks() -> bool:
    """Whether what is computed now is no part of the program."""
    return _looking


def holds_nan(value: Tensor) -> bool:
    """Whether any entry is NaN; one sum where none is, which is a tenth of the cost of asking each."""
    return value.numel() > 0 and not _complete and bool(value.sum().isnan()) and blockwise.any_missing(value)


class Counting(Messenger):
    """Notes, for each site whose missing entries become a latent, the most entries that a partly missing row misses.

    `parents`: the sites that others are computed from; there a row of which nothing is observed counts too.
    """

    def __init__(self, parents: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.parents = parents
        self.most: dict[str, int] = {}
        self.real = False  # whether any of them has real entries

    def _pyro_sample(self, msg: Node) -> None:
        value = msg["value"]
        if is_latent(msg) or not isinstance(value, Tensor) or not value.is_floating_point():
            return
        parent = msg["name"] in self.parents
        if is_deterministic(msg) or (parent and not holds_nan(value)):
            return
        kind = completed_as(msg, parent)
        if kind is not None:
            self.real |= kind == "real"
            count = most_missing(flattened(value, msg["fn"]), parent)
            self.most[msg["name"]] = max(count, self.most.get(msg["name"], 0))
            if parent:  # what is computed from it has to be a number
                msg["value"] = torch.where(
                    value.isnan(), torch.full_like(value, _harmless(_unwrap(msg["fn"])[0])), value
                )


# -------------------------------------------------------------------------------------------------------- densities


def completed_as(msg: Node, parent: bool = False) -> Kind | None:
    """What kind of entries the site is completed with, where the missing ones have to become a latent.

    `parent`: other sites are computed from it. Raises `UsageError` where they would have to and cannot.
    """
    fn = msg["fn"]
    if not is_local(msg):
        return None
    if parent:
        return _kind_of_parent(msg)
    if not getattr(fn, "event_shape", ()):
        return None
    base, independent = _unwrap(fn)
    if not base.event_shape or msg["value"].dim() <= len(fn.event_shape):
        return None
    if isinstance(base, dist.MultivariateNormal | MarginalNormal | Noisy) and not independent:
        return None
    return _kind(fn.support)


def _kind(support: constraints.Constraint | None) -> Kind | None:
    while (inner := getattr(support, "base_constraint", None)) is not None:
        support = inner
    return "binary" if support is constraints.boolean else "real" if support is constraints.real else None


def _kind_of_parent(msg: Node) -> Kind:
    """0/1 or real entries; `UsageError` for any other."""
    fn, support = msg["fn"], msg["fn"].support
    kind = "real" if support is constraints.real_vector else _kind(support)
    if kind is None:
        family = type(_unwrap(fn)[0]).__name__
        raise UsageError(
            f"site '{msg['name']}' ({family}) has missing entries, and other sites are computed from it. They would become "
            "latents, which must be 0/1 or real: use another family, or leave out the rows where it is missing."
        )
    return kind


def marginal(
    fn: dist.TorchDistribution, value: Tensor, missing: Tensor, site: str
) -> tuple[dist.TorchDistribution, Tensor]:
    """The distribution of the observed entries, and the value with harmless numbers where `missing` is true.

    Raises `UsageError` where a row is partly missing and the family cannot be marginalised, or the value has another shape.
    """
    event = tuple(fn.event_shape)
    if (got := tuple(value.shape[value.dim() - len(event) :])) != event:  # a mask would broadcast them to one another
        raise UsageError(
            f"site '{site}' expects values of its distribution's event shape {event}, got {got} in each row."
        )
    event_dims = tuple(range(value.dim() - len(fn.event_shape), value.dim()))
    row_missing = missing.all(dim=event_dims) if event_dims else missing
    partly = (missing.any(dim=event_dims) if event_dims else missing) & ~row_missing
    base, independent = _unwrap(fn)
    filled = torch.where(missing, torch.full_like(value, _harmless(base)), value)
    if not base.event_shape:
        observed = ~missing
        masked = base.mask(observed)
        return (masked.to_event(independent) if independent else masked), filled
    if isinstance(base, Noisy) and not independent:
        return base.observing(~missing), filled
    if partly.any():
        if isinstance(base, dist.MultivariateNormal) and not independent:
            return MarginalNormal(fn, ~missing), filled
        raise UsageError(
            f"site '{site}' ({type(base).__name__}) expects rows that are complete or wholly missing, got row "
            f"{int(partly.nonzero()[0, 0])} partly missing. Use another family, or fill in the row."
        )
    return fn.mask(~row_missing), filled


def _in_support(fn: dist.TorchDistribution, value: Tensor) -> Tensor:
    """The value of a discrete site with a harmless number in the place of any that it cannot take; NaN stays.

    What stands for a missing entry of x where a program is read may be none of the codes that it knows.
    """
    base, _ = _unwrap(fn)
    if base.event_shape or not is_discrete(base):
        return value
    with _only_looking():
        outside = _outside(base, value)
        if outside.shape != value.shape or not bool(outside.any()):
            return value
    return torch.where(_outside(base, value), torch.full_like(value, _harmless(base)), value)


def _outside(base: dist.TorchDistribution, value: Tensor) -> Tensor:
    return ~torch.as_tensor(cast(constraints.Constraint, base.support).check(value)) & ~value.isnan()


def _unwrap(fn: dist.TorchDistribution) -> tuple[dist.TorchDistribution, int]:
    """The base distribution of nested Independents, and how many dimensions they made into one event."""
    count = 0
    while isinstance(fn, dist.Independent):
        count += fn.reinterpreted_batch_ndims
        fn = fn.base_dist
    return fn, count


def _harmless(base: dist.TorchDistribution) -> float:
    """A number inside the support, to stand where nothing was observed."""
    support = cast(constraints.Constraint, base.support)
    for candidate in (0.0, 1.0, 0.5):
        probe = torch.full(base.batch_shape + base.event_shape, candidate)
        if bool(torch.as_tensor(support.check(probe)).all()):
            return candidate
    return 0.0


class Completed(TorchDistribution):
    """The density of a completed site, less the reference density of the slots that stand for a missing entry.

    Rows with nothing observed have the density 1. `index`, `real`: see `slots`; `unseen` [...]: those rows.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self, fn: dist.TorchDistribution, reference: Slots, index: Tensor, real: Tensor, unseen: Tensor
    ) -> None:
        self.base_dist, self.reference, self.index, self.real, self.unseen = fn, reference, index, real, unseen
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint | None:
        return self.base_dist.support

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Completed:
        return Completed(self.base_dist.expand(batch_shape), self.reference, self.index, self.real, self.unseen)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        return self.base_dist.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """[...] nats."""
        log_prob = self.base_dist.log_prob(value) - self._known(flattened(value, self.base_dist))
        return torch.where(self.unseen, torch.zeros_like(log_prob), log_prob)

    def _known(self, flat: Tensor) -> Tensor:
        """The reference log-density of what was missing of flat [..., E]."""
        if self.reference.cardinality is not None:  # fair coins
            return self.real.sum(-1).to(flat.dtype) * -math.log(2)
        index = self.index.expand(*flat.shape[:-1], self.index.shape[-1])
        each = self.reference.base_dist.log_prob(flat.gather(-1, index))
        return torch.where(self.real, each, torch.zeros_like(each)).sum(-1)
