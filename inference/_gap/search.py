"""BFGS for many rows at once, each with a climb of its own (Nocedal & Wright 2006, §6.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ARMIJO = 1e-4
SHORTEST = 1e-8  # a step that is shorter than this share of the direction leads nowhere
CURVED = 1e-10

Function = Callable[[Tensor], tuple[Tensor, Tensor]]  # [n, P] → values [n] and gradients [n, P]


@dataclass
class Climbed:
    """Where each row's climb ended."""

    at: Tensor  # [n, P]
    value: Tensor  # [n]
    left: Tensor  # [n] what the quadratic model of the last steps has still to gain
    converged: Tensor  # [n] bool

    def better(self, other: Climbed) -> Climbed:
        """Each row as it ended higher."""
        mine = (self.value >= other.value) | ~other.value.isfinite()
        pick = lambda a, b: torch.where(mine.reshape(-1, *(1,) * (a.dim() - 1)), a, b)  # noqa: E731
        return Climbed(*(pick(getattr(self, k), getattr(other, k)) for k in ("at", "value", "left", "converged")))


@torch.no_grad()
def climb(function: Function, start: Tensor, tol: float, evaluations: int) -> Climbed:
    """The highest place that a climb of each row reaches from `start` [n, P].

    At every evaluation each row tries a step of its own: where the value does not rise enough the next is half as long. A row
    has converged when its direction promises less than `tol`, twice in a row.
    """
    n, P = start.shape
    at = start.clone()
    value, gradient = function(at)
    inverse = torch.eye(P, dtype=at.dtype).repeat(n, 1, 1)
    fresh, length = torch.ones(n, dtype=torch.bool), 1 / gradient.norm(dim=1).clamp(min=1.0)
    small, left = torch.zeros(n), torch.full((n,), torch.inf, dtype=at.dtype)
    for _ in range(evaluations):
        direction = (inverse @ gradient.unsqueeze(-1))[..., 0]
        slope = (direction * gradient).sum(1)
        left = 0.5 * slope
        going = (small < 2) & (length > SHORTEST) & value.isfinite()
        if not bool(going.any()):
            break
        step = torch.where(going, length, 0.0).unsqueeze(1) * direction
        new_value, new_gradient = function(at + step)
        rises = new_value >= value + ARMIJO * (step * gradient).sum(1) - 1e-12 * value.abs()
        taken = going & rises & new_value.isfinite() & new_gradient.isfinite().all(1)
        small = torch.where(taken, torch.where(left < tol, small + 1, 0.0), small)
        change = gradient - new_gradient
        fits = taken & ((step * change).sum(1) > CURVED * step.norm(dim=1) * change.norm(dim=1))
        _update(inverse, step, change, fits, fits & fresh)
        fresh = fresh & ~fits
        length = torch.where(taken, 1.0, torch.where(going, length / 2, length))
        at, value = torch.where(taken.unsqueeze(1), at + step, at), torch.where(taken, new_value, value)
        gradient = torch.where(taken.unsqueeze(1), new_gradient, gradient)
    return Climbed(at, value, left, (small >= 2) | (left < tol))


def _update(inverse: Tensor, step: Tensor, change: Tensor, fits: Tensor, first: Tensor) -> None:
    """The inverse Hessians [n, P, P] of the rows that `fits` names, in place; the `first` time at the scale of the step."""
    s, y, H = step[fits], change[fits], inverse[fits]
    sy = (s * y).sum(1)[:, None, None]
    scale = torch.where(first[fits][:, None, None], sy / y.square().sum(1)[:, None, None], 1.0)
    H = H * scale
    Hy = H @ y.unsqueeze(-1)
    outer = s.unsqueeze(2) * s.unsqueeze(1)
    crossed = Hy @ s.unsqueeze(1)
    inverse[fits] = H + (1 + (y.unsqueeze(1) @ Hy) / sy) * outer / sy - (crossed + crossed.mT) / sy
