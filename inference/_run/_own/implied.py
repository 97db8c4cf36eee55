"""The posterior of continuous latents that a claim implies, from the derivatives of the log joint."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from inference._run._own.disagreement import Disagreement
from zoo._reading.conjugate import Parts

LOG_2PI = math.log(2 * math.pi)


class Implied(Protocol):
    """The posterior that a claim implies: its density must be the log joint's, up to a constant, at every z."""

    kind: str
    middle: Tensor
    blurred: Tensor  # [m] where it cannot be worked out in these digits

    def log_density(self, z: Tensor) -> Tensor:
        """log q(z) [m]."""

    def draw(self, k: int) -> Tensor:
        """A draw [m, L], the wider the larger k modulo 3."""


class Gaussian:
    kind = "quadratic"

    def __init__(self, joint: Callable[[Tensor], Tensor], like: Tensor) -> None:
        self.middle, self.factor, self.blurred = _square(joint, torch.zeros_like(like))

    def log_density(self, z: Tensor) -> Tensor:
        return _log_normal(z, self.middle, self.factor)

    def draw(self, k: int) -> Tensor:
        white = torch.randn_like(self.middle).unsqueeze(-1) * (1 + k % 3)
        away: Tensor = torch.linalg.solve_triangular(self.factor.mT, white, upper=True).squeeze(-1)
        return self.middle + away


class Natural:
    kind = "that of its conjugate family"

    def __init__(self, parts: Parts, joint: Callable[[Tensor], Tensor], like: Tensor) -> None:
        self._parts = parts
        points = parts.first(like)
        for _ in range(3):
            c = parts.coefficients(joint, *points)[1]
            points = parts.near(c)
        self._c, self.middle = c, points[0]
        proper = [parts.families[k].proper(v).all(-1) for k, v in c.items()]
        if not bool(torch.stack(proper).all()):
            raise Disagreement(
                "log p(x) was treated as exact, but its log joint is not that of a conjugate family: no member has its "
                "derivatives. Nothing is reported. Use a method that does not need that: importance or ais."
            )
        self.blurred = torch.zeros(len(like), dtype=torch.bool)

    def log_density(self, z: Tensor) -> Tensor:
        return self._parts.log_density(self._c, z)

    def draw(self, k: int) -> Tensor:
        return self._parts.joined({n: self._parts.families[n].distribution(c).sample() for n, c in self._c.items()})


def _square(joint: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [m, L] and Cholesky factor of the precision [m, L, L] of a quadratic log joint, from its derivatives at z.

    And where the precision is so nearly singular that its inverse in these digits would say nothing [m].
    """
    z = z.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(joint(z).sum(), z, create_graph=True, materialize_grads=True)
        columns = []
        for k in range(z.shape[1]):
            if not gradient.requires_grad:
                columns.append(torch.zeros_like(z))
                continue
            columns.append(
                torch.autograd.grad(gradient[:, k].sum(), z, retain_graph=True, materialize_grads=True)[0].detach()
            )
    precision = -torch.stack(columns, -1)
    precision = (precision + precision.mT) / 2
    factor, info = torch.linalg.cholesky_ex(precision)
    blurred = _nearly_singular(precision)
    if bool(blurred.any()):
        identity = torch.eye(z.shape[1], dtype=z.dtype).expand_as(factor)
        factor = torch.where((blurred & (info != 0))[:, None, None], identity, factor)
    if bool(((info != 0) & ~blurred).any()):
        raise Disagreement(
            "log p(x) was treated as exact, but the log joint is not Gaussian in the continuous latents: its curvature is "
            "not negative. Nothing is reported. Use a method that does not need that: importance or ais."
        )
    return z.detach() + torch.cholesky_solve(gradient.detach().unsqueeze(-1), factor).squeeze(-1), factor, blurred


def _nearly_singular(precision: Tensor) -> Tensor:
    """Which matrices [m, L, L], in units of their diagonal, have a condition that eats most digits; concave ones alone."""
    size = precision.diagonal(dim1=-2, dim2=-1).clamp(min=1e-300).rsqrt()
    values = torch.linalg.eigvalsh((precision * size.unsqueeze(-1) * size.unsqueeze(-2)).nan_to_num(0.0))
    least = torch.finfo(precision.dtype).eps * len(values[0]) * 64
    concave = (values[:, 0] > -least) & (precision.diagonal(dim1=-2, dim2=-1) > 0).all(1)
    blurred: Tensor = concave & (values[:, 0] < values[:, -1] * torch.finfo(precision.dtype).eps * 1e8)
    return blurred


def _log_normal(z: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """log N(z; m, P⁻¹) [m], P = factor factorᵀ."""
    white = (factor.mT @ (z - mean).unsqueeze(-1)).squeeze(-1)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return log_det - 0.5 * white.square().sum(-1) - 0.5 * z.shape[1] * LOG_2PI
