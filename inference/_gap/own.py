"""A guide whose q of each row can be moved: by numbers of the row's own, added to those that the guide computes.

With all of them 0 it is the guide itself. For a site whose q depends on x alone they reach every member of the family: every
mean and scale of a normal, every logit. Where q of a site also depends on sites drawn before, the dependence stays the guide's.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import TransformedDistribution

from guides import at
from inference._method.task import Task
from zoo._program.slots import Slots
from zoo._program.trace import Node, is_local

Take = Callable[[Tensor], Tensor]  # a parameter of q [draws…, n, …] → the next numbers of each row [n, …] in its shape


class Own(nn.Module):
    """`guide` for the rows `index` [n] of its data; `numbers` [n, P] move each row's q, P of them as `size` says.

    Raises `NotImplementedError` where the guide draws a site from something else than a normal, bits or one of K values.
    """

    by_row = True

    def __init__(self, task: Task, guide: nn.Module, index: Tensor) -> None:
        super().__init__()
        self.guide, self.index, self.data_dim = guide, index, task.structure.data_dim
        self.parts: dict[str, slice] = {}
        self.right: dict[str, int] = {}  # dimensions of a site's parameters right of the rows
        self.transformed = False  # whether a site is a function of what is normal
        self.families: dict[str, str] = {}
        self.numbers: Tensor | None = None
        with task.program.settings(), torch.no_grad():
            self(task.x)
        self.size = sum(part.stop - part.start for part in self.parts.values())
        self.numbers = task.x.new_zeros(len(index), self.size)

    def forward(self, x: Tensor | None = None, size: int | None = None, rows: slice | Tensor | None = None) -> None:
        """Draw the latents of some of the rows."""
        some = slice(None) if rows is None else rows
        with _Moved(self, some):
            at(self.guide, self.index[some])(x)

    def moved(self, name: str, fn: dist.TorchDistribution, rows: slice | Tensor) -> dist.TorchDistribution:
        """q of a site with the rows' own numbers; the first time with none, and how many there are is noted."""
        rest = (
            len(fn.batch_shape) + self.data_dim + 1
        )  # of a parameter's dimensions, the first that is right of the rows
        if self.numbers is None:
            sizes: list[int] = []

            def count(like: Tensor) -> Tensor:
                sizes.append(like.shape[rest:].numel())
                self.right.setdefault(name, like.dim() - rest)
                return like.new_zeros(like.shape[rest - 1 :])

            self.transformed = self.transformed or isinstance(fn, TransformedDistribution)
            out, first = _moved(fn, count), sum(p.stop - p.start for p in self.parts.values())
            self.parts[name], self.families[name] = slice(first, first + sum(sizes)), _name(fn)
            return out
        here, place = self.numbers[rows, self.parts[name]], [0]

        def take(like: Tensor) -> Tensor:
            first, shape = place[0], like.shape[rest:]
            place[0] += shape.numel()
            return here[:, first : place[0]].reshape(len(here), *shape)

        return _moved(fn, take)


class _Moved(Messenger):
    """Moves q of each local site that a guide draws."""

    def __init__(self, own: Own, rows: slice | Tensor) -> None:
        super().__init__()
        self.own, self.rows = own, rows

    def _pyro_sample(self, msg: Node) -> None:
        if type(msg["fn"]).__name__ != "_Subsample" and is_local(msg):
            msg["fn"] = self.own.moved(msg["name"], msg["fn"], self.rows)


def _moved(fn: dist.TorchDistribution, take: Take) -> dist.TorchDistribution:
    """The member of fn's family that the numbers lead to: in standard deviations, in logarithms of scales, in logits."""
    if isinstance(fn, TransformedDistribution):
        if any(isinstance(t, nn.Module) for t in fn.transforms):
            raise NotImplementedError("a normalizing flow, whose networks belong to all rows together")
        return dist.TransformedDistribution(_moved(fn.base_dist, take), fn.transforms)
    if isinstance(fn, Slots):
        return Slots(_moved(fn.base_dist, take), fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.Independent):
        return _moved(fn.base_dist, take).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.Normal):
        away, wider = take(fn.loc), take(fn.loc)
        return dist.Normal(fn.loc + fn.scale * away, fn.scale * wider.exp())
    if isinstance(fn, dist.MultivariateNormal):
        away, wider = take(fn.loc).unsqueeze(-1), take(fn.loc).exp().diag_embed()
        L = fn.loc.shape[-1]
        row, column = torch.tril_indices(L, L, -1)
        below = take(fn.loc[..., :1].expand(*fn.loc.shape[:-1], len(row)))
        factor = wider.flatten(-2).index_add(-1, row * L + column, below).reshape(wider.shape)
        return dist.MultivariateNormal(fn.loc + (fn.scale_tril @ away)[..., 0], scale_tril=fn.scale_tril @ factor)
    if isinstance(fn, dist.Bernoulli | dist.Categorical):
        return type(fn)(logits=fn.logits + take(fn.logits))
    raise NotImplementedError(f"a {type(fn).__name__}")


def centred(fn: dist.TorchDistribution, value: Tensor | None) -> Tensor | None:
    """The first numbers [n, L] of a normal q [n] that move its centre to a value, or to its mirror image at 0 where None."""
    while isinstance(fn, TransformedDistribution | dist.Independent):
        if isinstance(fn, TransformedDistribution) and value is not None:
            for transform in reversed(fn.transforms):
                value = transform.inv(value)
        fn = fn.base_dist
    if not isinstance(fn, dist.Normal | dist.MultivariateNormal):
        return None
    away = (-fn.loc if value is None else value.reshape(fn.loc.shape)) - fn.loc
    if isinstance(fn, dist.MultivariateNormal):
        return torch.linalg.solve_triangular(fn.scale_tril, away.unsqueeze(-1), upper=False).flatten(1)
    return (away / fn.scale).reshape(len(away), -1)


def _name(fn: dist.TorchDistribution) -> str:
    """What a site is drawn from, in words."""
    while isinstance(fn, TransformedDistribution | dist.Independent):
        fn = fn.base_dist
    names = {dist.MultivariateNormal: "full normal", dist.Normal: "diagonal normal", dist.Bernoulli: "independent bits"}
    return next((said for kind, said in names.items() if isinstance(fn, kind)), type(fn).__name__.lower())
