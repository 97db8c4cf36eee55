"""Autoregressive guide: q(z | x) = ∏ q(z_t | z_<t, x) over the bits of one latent, by a masked network that sees the data.

Germain et al. 2015, made conditional; Mnih & Gregor 2014. For `x_missing` the bits are the missing entries, in the order of the
columns. Unlike a factorised q it can represent any dependence among them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import PyroModule
from pyro.nn.auto_reg_nn import MaskedLinear, create_mask
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from guides import _heads
from guides._heads import Derived, Rows, binary
from zoo._program.autoregressive import AutoregressiveBernoulli
from zoo._program.slots import joint_bits, slots
from zoo._program.structure import Site, Structure
from zoo._program.trace import Shape

Numbers = tuple[Tensor, Tensor]  # what enters the first layer [n, H] and the logits [n, E]

_Masked: Any = PyroModule[MaskedLinear]
_Linear = cast(type[nn.Linear], PyroModule[nn.Linear])
_List: Any = PyroModule[nn.ModuleList]


def refusal(structure: Structure) -> str | None:
    """Why the guide cannot serve the program, or None."""
    if (reason := _heads.refusal(structure)) is not None:
        return reason
    latents = structure.local_latents
    if len(latents) == 1 and binary(latents[0]) and math.prod(latents[0].event_shape) > 1:
        return None
    names = ", ".join(f"{s.name} ({s.family}, {list(s.event_shape)})" for s in latents) or "none"
    return f"guide=autoregressive expects one local latent, a vector of bits, got {names}"


class Guide(Derived):
    """`Guide(structure, x, globals, bijections, hidden=(64, 64))`, called like a model.

    - `x` [N, …]: the data, for the starting values; NaN where unobserved.
    - `hidden`: widths of the masked layers, with softplus between them; the data enter the first layer and the logits.
    - `sees_mask`: whether the network is told which entries were seen; when None, if any of x is missing.
    """

    def __init__(
        self,
        structure: Structure,
        x: Tensor,
        globals: Mapping[str, Tensor] | None = None,
        bijections: Mapping[str, Transform] | None = None,
        *,
        hidden: tuple[int, ...] = (64, 64),
        sees_mask: bool | None = None,
    ) -> None:
        super().__init__(structure, globals, bijections, "diagonal")
        flat = x.reshape(len(x), -1)
        (site,) = self.sites
        self.of_entries = site.completes is not None  # bits are entries of x, other ones in every row
        E = flat.shape[1] if self.of_entries else math.prod(site.event_shape)
        center = flat.nanmean(0).nan_to_num(0.0)
        self.register_buffer("center", center)
        self.register_buffer("order", torch.arange(E))
        self.sees_mask = bool(x.isnan().any()) if sees_mask is None else sees_mask
        seen = flat.shape[1] * (2 if self.sees_mask else 1)
        masks, before = create_mask(E, 0, list(hidden), self.order, 1)
        sizes = (E, *hidden, E)
        layers = [_Masked(i, o, m) for i, o, m in zip(sizes[:-1], sizes[1:], masks, strict=True)]
        self.layers: Any = _List(layers)
        self.direct: Any = _Masked(E, E, before, bias=False)
        self.into = _Linear(seen, hidden[0], bias=False)
        self.onto = _Linear(seen, E)
        with torch.no_grad():
            self.direct.weight.zero_()
            layers[-1].weight.mul_(0.1)
            if self.of_entries:
                self.onto.bias.copy_(center.clamp(0.01, 0.99).logit())
        self.ready(x)

    @property
    def extras(self) -> dict[str, bool]:
        """What the network sees."""
        return {"sees_mask": self.sees_mask}

    def look(self, x: Tensor, rows: Rows) -> tuple[Numbers, Tensor]:
        """What of x [n, …] enters the first layer [n, H] and the logits [n, E]; and x itself, flat."""
        whole = x.reshape(len(x), -1)
        flat = whole - self.center
        if self.sees_mask:
            flat = torch.cat([flat.nan_to_num(0.0), (~flat.isnan()).to(flat.dtype)], 1)
        flat = flat.nan_to_num(0.0)
        return (self.into(flat), self.onto(flat)), whole

    def density(
        self, site: Site, seen: tuple[Numbers, Tensor], drawn: list[Tensor]
    ) -> AutoregressiveBernoulli | AutoregressiveSlots:
        """q(site): a distribution of its bits, one after the other."""
        context, whole = seen
        layers = [(layer.weight * layer.mask, layer.bias) for layer in self.layers]
        fn = AutoregressiveBernoulli(self.order, layers, self.direct.weight * self.direct.mask, context=context)
        return AutoregressiveSlots(fn, *slots(whole, site.event_shape[0])) if self.of_entries else fn


class AutoregressiveSlots(TorchDistribution):
    """The missing entries of n data, slot by slot [M], one after the other in the order of the entries.

    - `fn`: a distribution of all D entries, of which those that were seen stay 0.
    - `index`, `real` [n, M]: the entry of each slot, and whether the slot is used; an unused slot is a fair coin.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.independent(constraints.boolean, 1)
    has_enumerate_support = True

    def __init__(
        self, fn: AutoregressiveBernoulli, index: Tensor, real: Tensor, batch_shape: Sequence[int] | None = None
    ) -> None:
        self.fn, self.index, self.real = fn, index, real
        super().__init__(
            torch.Size(real.shape[:-1] if batch_shape is None else batch_shape), real.shape[-1:], validate_args=False
        )

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> AutoregressiveSlots:
        return AutoregressiveSlots(self.fn, self.index, self.real, batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """[...] nats."""
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        index, real = (v.expand(*shape, -1) for v in (self.index, self.real))
        each = self.fn.conditionals(self._entries(value.expand(*shape, -1))).gather(-1, index)
        return torch.where(real, each, each.new_tensor(-math.log(2))).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """[sample_shape, batch_shape, M], one entry after the other."""
        shape = torch.Size(sample_shape) + self.batch_shape
        missing = self._entries(self.real.float()) > 0  # [n, D]
        drawn = set(missing.any(0).nonzero()[:, 0].tolist())
        steps = self.fn.steps(shape)
        for entry in self.fn.order.tolist():
            if entry in drawn:
                steps.take(torch.bernoulli(steps.logit().sigmoid()) * missing[:, entry])
            else:
                steps.skip()
        found = steps.value.gather(-1, self.index.expand(*shape, -1))
        return torch.where(self.real, found, torch.bernoulli(torch.full_like(found, 0.5)))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """[2^M, 1, …, M], the first slot changing slowest."""
        values = joint_bits(self.event_shape[0]).to(self.fn.layers[0][0])
        values = values.reshape(-1, *(1,) * len(self.batch_shape), *self.event_shape)
        return values.expand(-1, *self.batch_shape, -1) if expand else values

    def _entries(self, value: Tensor) -> Tensor:
        """Slots [..., n, M] at their places among the entries [..., n, D], which are 0 elsewhere."""
        D = len(self.fn.order)
        out = value.new_zeros(*value.shape[:-1], D + 1)
        place = torch.where(self.real, self.index, D).expand(value.shape)  # unused slots go to an extra entry
        return out.scatter(-1, place, value)[..., :D]
