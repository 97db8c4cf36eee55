"""A distribution of binary vectors with p(x) = ∏ p(x_t | x_<t) along an order of the entries, by one network.

All conditionals of a given x come from one pass (MADE, Germain et al. 2015; without hidden layers a fully visible belief
net, Neal 1992); drawing goes one entry at a time. `Steps` is that walk, for whatever wants to take part in it: many
vectors side by side, some entries known, some drawn, particles resampled on the way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import binary_cross_entropy_with_logits, linear, softplus

from zoo._program.trace import Shape


class AutoregressiveBernoulli(TorchDistribution):
    """Binary vectors [D]; the logit of each entry is a function of those before it in `order`.

    - `order` [D]: which entry comes first, second, …
    - `layers`: (weight [out, in], bias [out]) of each layer, masked so that no entry sees itself or one after it; softplus
      between them; D numbers go in and D logits come out.
    - `direct`: weights [D, D] from the inputs straight to the logits, masked likewise.
    - `context`: what vectors of batch shape [n] are conditional on, as it enters: added to the first layer [n, H], and to the
      logits [n, D].
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.independent(constraints.boolean, 1)

    def __init__(
        self,
        order: Tensor,
        layers: Sequence[tuple[Tensor, Tensor]],
        direct: Tensor | None = None,
        batch_shape: Sequence[int] = (),
        context: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.order, self.layers, self.direct, self.context = order, list(layers), direct, context
        shape = (
            torch.Size(batch_shape) if context is None else torch.broadcast_shapes(context[0].shape[:-1], batch_shape)
        )
        super().__init__(shape, order.shape, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> AutoregressiveBernoulli:
        return AutoregressiveBernoulli(self.order, self.layers, self.direct, batch_shape, self.context)

    def logits(self, value: Tensor) -> Tensor:
        """The logit of each entry of value [..., D] given those before it, [..., D], in one pass."""
        out = value
        for number, (weight, bias) in enumerate(self.layers):
            out = linear(softplus(out) if number else out, weight, bias)
            if not number and self.context is not None:
                out = out + self.context[0]
        if self.context is not None:
            out = out + self.context[1]
        return out if self.direct is None else out + linear(value, self.direct)

    def conditionals(self, value: Tensor) -> Tensor:
        """log p(x_d | the entries before it) for each entry of value [..., D], nats.

        Entries later in the order do not matter.
        """
        return -binary_cross_entropy_with_logits(self.logits(value), value, reduction="none")

    def log_prob(self, value: Tensor) -> Tensor:
        """[...] nats."""
        return self.conditionals(value).sum(-1)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """[sample_shape, batch_shape, D], one entry after the other."""
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        return self.fill(self.layers[0][0].new_full(shape, torch.nan))[0]

    @torch.no_grad()
    def fill(self, known: Tensor) -> tuple[Tensor, Tensor]:
        """Draw what is NaN in known [..., D], each entry from its conditional given all before it, known or drawn.

        Returns the vectors [..., D] and log p(x_d | before) of every entry [..., D] (nats): summed over the known entries
        that is the log-weight of the draw for p(known).
        """
        steps, log_prob = self.steps(known.shape[:-1]), torch.empty_like(known)
        for entry in self.order.tolist():
            logit, value = steps.logit(), known[..., entry]
            value = torch.where(value.isnan(), torch.bernoulli(logit.sigmoid()), value)
            log_prob[..., entry] = -binary_cross_entropy_with_logits(logit, value, reduction="none")
            steps.take(value)
        return steps.value, log_prob

    def steps(self, shape: Sequence[int]) -> Steps:
        """A walk along the order for vectors of batch shape `shape`, whose last dimension is the context's."""
        return Steps(self, torch.Size(shape))


class Steps:
    """The entries one by one: `logit()` of the entry that is next, `take(value)` to fix it and move on to the next.

    The first layer is kept summed up, and a hidden unit is activated once: when an entry first needs it, all that it sees is
    taken. So a step costs O(D + H) numbers a vector, and with one hidden layer of H units the whole walk takes H
    activations, not the D H of a pass for each entry. `value` [shape, D] holds what was taken, 0 elsewhere. No gradients.
    """

    def __init__(self, fn: AutoregressiveBernoulli, shape: torch.Size) -> None:
        self.shape, self.t = shape, 0
        self._order = fn.order.tolist()
        (weight, bias), *self._rest = [(w.detach(), b.detach()) for w, b in fn.layers]
        self._into = weight.mT.contiguous()  # a row for each entry
        self._direct = None if fn.direct is None else fn.direct.detach()
        count = math.prod(shape)
        # vectors side by side: what an entry does not see, or is not seen by, is then left out as a block of rows
        first = bias.unsqueeze(1).repeat(1, count)  # summed over the entries taken
        self._offset: Tensor | None = None  # of the logits [D, count]
        if fn.context is not None:
            into, onto = (c.detach().expand(*shape, -1).reshape(count, -1).mT for c in fn.context)
            first, self._offset = first + into, onto
        self._units = [first, *(first.new_zeros(len(b), count) for _, b in self._rest[:-1])]  # of each layer [H, count]
        self._active = [torch.zeros(len(u), dtype=torch.bool, device=u.device) for u in self._units]
        self._value = weight.new_zeros(weight.shape[1], count)

    @property
    def value(self) -> Tensor:
        return self._value.mT.reshape(*self.shape, -1)

    @property
    def entry(self) -> int:
        """The entry that is next."""
        return self._order[self.t]

    @torch.no_grad()
    def logit(self) -> Tensor:
        """Of the entry that is next, given those taken [shape]."""
        entry = self.entry
        if self._rest:
            weight, bias = self._rest[-1]
            part = _used(weight[entry])
            self._activate(len(self._rest) - 1, weight[entry] != 0)
            logit = weight[entry, part] @ self._units[-1][part] + bias[entry]
        else:
            logit = self._units[0][entry]
        if self._direct is not None:
            part = _used(self._direct[entry])
            logit = logit + self._direct[entry, part] @ self._value[part]
        if self._offset is not None:
            logit = logit + self._offset[entry]
        return logit.reshape(self.shape)

    def _activate(self, layer: int, needed: Tensor) -> None:
        """Make activations of those units [H] of a layer that are needed and are none yet."""
        new, units = needed & ~self._active[layer], self._units[layer]
        if not bool(new.any()):
            return
        if layer:
            weight, bias = (part[new] for part in self._rest[layer - 1])
            self._activate(layer - 1, (weight != 0).any(0))
            units[new] = softplus(torch.addmm(bias.unsqueeze(1), weight, self._units[layer - 1]))
        else:
            units[new] = softplus(units[new])
        self._active[layer] |= new

    @torch.no_grad()
    def take(self, value: Tensor) -> None:
        """Fix the entry that is next at value [shape], 0 or 1."""
        into, flat = self._into[self.entry], value.expand(self.shape).reshape(-1).to(self._value)
        part = _used(into)
        self._units[0][part].addr_(into[part], flat)
        self._value[self.entry] = flat
        self.t += 1

    def skip(self) -> None:
        """Leave the next entry at 0, and move on."""
        self.t += 1

    @torch.no_grad()
    def select(self, index: Tensor) -> None:
        """Continue with the vectors `index` [shape] (numbered in flat order), as resampled particles are. Their number may
        change."""
        flat, self.shape = index.reshape(-1), index.shape
        self._value, self._units = self._value[:, flat], [u[:, flat] for u in self._units]
        if self._offset is not None:
            self._offset = self._offset[:, flat]


def _used(weights: Tensor) -> slice:
    """From the first weight that is not zero to the last: a mask leaves a run of them, where units are in order."""
    places = weights.nonzero()[:, 0]
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)
