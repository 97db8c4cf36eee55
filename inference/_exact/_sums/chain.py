"""A stretch of a chain summed out at once: the scaled forward recursion, and its gradient, which is the backward one.

Step t joins the message of the one before it to what each row has for the latent v alone, and to a matrix that all rows share:
a'[j] = Σ_v M[j, v] e_t[v] a[v]. The logarithms' largest entries are taken out, then all is sums of products of numbers ≥ 0, so
nothing cancels; what may be lost is a term too small for a float. There are two cases where that is sure not to matter:

- No entry of M is below `LEAST` of the largest. Each message then has no entry below `LEAST` of its largest, however
  unlikely a state is, so a term that is lost (under 1e-308) is less than 1e-120 of the sum that it is missing from.
- M has hard zeros, and no other number on the way is below `SMALL`. Then no product is lost at all, and each 0 is a true one.

In any other case `Lost` is raised, and the sums go by logarithms.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

LEAST = 1e-20  # of a matrix, for messages to be scaled after `EVERY` steps alone
EVERY = 8  # so many times LEAST is far from the smallest float
SMALL = 1e-100  # three such numbers have a product that is not lost
TINY = 1e-300  # in place of the sum of a row that cannot be


class Lost(ArithmeticError):
    """A number too small to be told from 0 may matter."""


class _Chain(Function):
    """own [L, K, n], matrices [L or 1, K, K] (logarithms, nats) ↦ the last message [K, n]."""

    @staticmethod
    def forward(ctx: FunctionCtx, own: Tensor, matrices: Tensor) -> Tensor:
        top, scale = own.amax(1, keepdim=True), matrices.amax()
        if own.dtype != torch.float64 or not (scale.isfinite() and bool((top < torch.inf).all())):
            raise Lost
        top.nan_to_num_(neginf=0.0)
        e, M = (own - top).exp_(), (matrices - scale).exp_()
        positive = float(M.min()) >= LEAST
        every = EVERY if positive else 1
        w, sums = torch.empty_like(e), own.new_empty(-(-len(own) // every), own.shape[2])
        a = torch.ones_like(e[0])
        for t, (m, e_t, w_t) in enumerate(zip(M.expand(len(e), -1, -1), e, w, strict=True)):
            torch.mul(a, e_t, out=w_t)
            if t % every == 0:
                w_t /= torch.sum(w_t, 0, out=sums[t // every]).clamp_(min=TINY)
            torch.mm(m, w_t, out=a)
        if not positive and (_lost(e, own) or _lost(M, matrices) or _small(w)):
            raise Lost
        ctx.every = every  # type: ignore[attr-defined]
        ctx.save_for_backward(e, M, w, sums, a)
        return a.log() + (top.sum((0, 1)) + len(own) * scale + sums.log().sum(0))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        e, M, w, sums, a = ctx.saved_tensors  # type: ignore[attr-defined]
        every: int = ctx.every  # type: ignore[attr-defined]
        unreached = w == 0 if every == 1 else None  # what comes back to a state that cannot be has no bound
        y, after = torch.empty_like(w), torch.empty_like(w)
        u = torch.where(a > 0, gradients[0] / a, 0.0)
        back = M.mT.expand(len(e), -1, -1).unbind(0)
        for t in range(len(e) - 1, -1, -1):
            after[t] = u
            torch.mm(back[t], u, out=y[t])
            if unreached is not None:
                y[t].masked_fill_(unreached[t], 0.0)
            torch.mul(y[t], e[t], out=u)
            if t % every == 0:
                u /= sums[t // every]
        pairs = M * (after @ w.mT).sum_to_size(len(M), *M.shape[1:])
        return y.mul_(w), pairs


def _lost(small: Tensor, log: Tensor) -> bool:
    """Whether an exponential is so small that it is not known well, and not a true 0."""
    return bool(((small < SMALL) & (log > -torch.inf)).any())


def _small(w: Tensor) -> bool:
    return bool(((w < SMALL) & (w > 0)).any())


def message(own: Tensor, matrices: Tensor) -> Tensor:
    """The message [n, K] that L steps of a chain leave, a log-density: own [L, n, K], matrices [L or 1, next, this].

    It can be differentiated once. Raises `Lost` where it may not be exact.
    """
    out: Tensor = _Chain.apply(own.mT.contiguous(), matrices)  # type: ignore[no-untyped-call]
    return out.mT
