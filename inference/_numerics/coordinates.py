"""Constrained values as one flat vector of free numbers, and back: where Hessians are taken and optimisers walk.

The map is a bijection for every support, so that no direction is flat for the map's sake (torch's `transform_to` has one
number too many for a simplex, and unused ones above the diagonal of a Cholesky factor).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transforms


class LowerCholesky(transforms.Transform):
    """R^{D(D+1)/2} → lower-triangular D × D with a positive diagonal (logarithms on the diagonal)."""

    domain = constraints.real_vector
    codomain: Any = constraints.lower_cholesky
    bijective = True

    @staticmethod
    def _size(length: int) -> int:
        return int(((8 * length + 1) ** 0.5 - 1) / 2 + 0.5)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        D = self._size(shape[-1])
        return torch.Size([*shape[:-1], D, D])

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size([*shape[:-2], shape[-1] * (shape[-1] + 1) // 2])

    def _call(self, x: Tensor) -> Tensor:
        D = self._size(x.shape[-1])
        row, column = torch.tril_indices(D, D)
        free = x.new_zeros(*x.shape[:-1], D, D)
        flat = free.flatten(-2).scatter(-1, (row * D + column).expand(x.shape), x)
        free = flat.reshape(free.shape)
        return free.tril(-1) + free.diagonal(dim1=-2, dim2=-1).exp().diag_embed()

    def _inverse(self, y: Tensor) -> Tensor:
        row, column = torch.tril_indices(y.shape[-1], y.shape[-1])
        free = y.tril(-1) + y.diagonal(dim1=-2, dim2=-1).log().diag_embed()
        return free[..., row, column]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return y.diagonal(dim1=-2, dim2=-1).log().sum(-1)


class PositiveDefinite(LowerCholesky):
    """R^{D(D+1)/2} → positive definite D × D, through its Cholesky factor."""

    codomain = constraints.positive_definite

    def _call(self, x: Tensor) -> Tensor:
        tril = super()._call(x)
        return tril @ tril.mT

    def _inverse(self, y: Tensor) -> Tensor:
        return super()._inverse(torch.linalg.cholesky(y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        diagonal: Tensor = torch.linalg.cholesky(y).diagonal(dim1=-2, dim2=-1).log()
        D = y.shape[-1]
        power = torch.arange(D, 0, -1, dtype=y.dtype)  # d(LLᵀ)/dL: 2^D ∏ L_ii^{D−i+1}
        return diagonal.sum(-1) + D * torch.tensor(2.0, dtype=y.dtype).log() + (power * diagonal).sum(-1)


def bijection(support: constraints.Constraint) -> transforms.Transform:
    """The bijection from free numbers onto `support`."""
    base = support
    while isinstance(base, constraints.independent):
        base = base.base_constraint
    if type(base) is type(constraints.lower_cholesky):
        return LowerCholesky()
    if type(base) is type(constraints.positive_definite):
        return PositiveDefinite()
    transform: transforms.Transform = biject_to(support)
    return transform


class Coordinates:
    """The layout of a flat vector [d] that stands for the tensors `values`, each in its support."""

    def __init__(self, values: Mapping[str, Tensor], supports: Mapping[str, constraints.Constraint]) -> None:
        self.transforms = {n: bijection(supports[n]) for n in values}
        self.shapes = {n: self.transforms[n].inv(v.detach()).shape for n, v in values.items()}
        self.sizes = {n: s.numel() for n, s in self.shapes.items()}
        self.d = sum(self.sizes.values())

    def part(self, names: set[str]) -> tuple[Coordinates, Tensor]:
        """The layout of some of the tensors, and the places [their size] of the flat vector that are theirs."""
        places = torch.split(torch.arange(self.d), list(self.sizes.values()))
        index = [p for n, p in zip(self.sizes, places, strict=True) if n in names]
        some = copy.copy(self)
        some.transforms = {n: t for n, t in self.transforms.items() if n in names}
        some.shapes = {n: s for n, s in self.shapes.items() if n in names}
        some.sizes = {n: s for n, s in self.sizes.items() if n in names}
        some.d = sum(some.sizes.values())
        return some, torch.cat(index) if index else torch.zeros(0, dtype=torch.long)

    def flatten(self, values: Mapping[str, Tensor]) -> Tensor:
        """Constrained values → [d]."""
        if not self.shapes:
            return torch.zeros(0)
        return torch.cat([self.transforms[n].inv(values[n].detach()).reshape(-1) for n in self.shapes])

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """[..., d] → constrained values, each [..., its shape]; differentiable."""
        parts = torch.split(flat, list(self.sizes.values()), dim=-1)
        return {
            n: self.transforms[n](part.reshape((*flat.shape[:-1], *self.shapes[n])))
            for n, part in zip(self.shapes, parts, strict=True)
        }

    def log_abs_det(self, flat: Tensor) -> Tensor:
        """log |det ∂values/∂flat| [...] in nats."""
        total = flat.new_zeros(flat.shape[:-1])
        parts = torch.split(flat, list(self.sizes.values()), dim=-1)
        for n, part in zip(self.shapes, parts, strict=True):
            free = part.reshape((*flat.shape[:-1], *self.shapes[n]))
            term = self.transforms[n].log_abs_det_jacobian(free, self.transforms[n](free))
            total = total + term.reshape(*flat.shape[:-1], -1).sum(-1)
        return total
