"""Hessians made positive definite, in units in which each has ones on its diagonal.

All take symmetric matrices [..., L, L]. With S = √|diag H|, S⁻¹ H S⁻¹ does not depend on the units of the coordinates, so
that one bound serves for all eigenvalues. For H = [[4, 0], [0, −0.01]], S = diag(2, 0.1) and S⁻¹ H S⁻¹ = diag(1, −1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class NotDefinite(TorchFunctionMode):
    """Inside it a matrix that has no Cholesky factor gets one of NaN, where PyTorch raises for all matrices side by side."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """A call of PyTorch."""
        if func not in (torch.linalg.cholesky, torch.cholesky, Tensor.cholesky) or len(args) != 1 or kwargs:
            return func(*args, **(kwargs or {}))
        factor, info = torch.linalg.cholesky_ex(args[0])
        return torch.where((info > 0)[..., None, None], torch.nan, factor)


def unit_diagonal(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """S⁻¹ H S⁻¹ and S [..., L]; 1 in S where the diagonal is 0 or not finite."""
    size = hessian.diagonal(dim1=-2, dim2=-1).abs().sqrt()
    size = torch.where((size > 0) & size.isfinite(), size, torch.ones_like(size))
    return hessian / (size.unsqueeze(-1) * size.unsqueeze(-2)), size


def eigen(scaled: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors; a matrix that holds what is no number counts as the identity."""
    fine = scaled.isfinite().all(-1).all(-1)[..., None, None]
    identity = torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device)
    values, vectors = torch.linalg.eigh(torch.where(fine, scaled, identity))
    return values, vectors


def cholesky(scaled: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factors, and which are those of a positive definite matrix, to rounding [...]."""
    factor, info = torch.linalg.cholesky_ex(scaled)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    least = 8 * scaled.shape[-1] * torch.finfo(scaled.dtype).eps
    return factor, (info == 0) & (pivots.amin(-1) > least)


def raised(hessian: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """H with its eigenvalues, in units of its diagonal, raised to `floor` at least; how many were below [...]."""
    if not hessian.shape[-1]:
        return hessian, torch.zeros(hessian.shape[:-2], dtype=torch.long, device=hessian.device)
    scaled, size = unit_diagonal(hessian)
    values, vectors = eigen(scaled)
    lifted = (vectors * values.clamp(min=floor).unsqueeze(-2)) @ vectors.mT
    return lifted * (size.unsqueeze(-1) * size.unsqueeze(-2)), (values < floor).sum(-1)


def positive_definite(hessian: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """H [n, L, L], raised as above where it is not positive definite to rounding; which were [n]."""
    _, good = cholesky(unit_diagonal(hessian)[0])
    if bool(good.all()):
        return hessian, ~good
    bad, out = ~good, hessian.clone()
    rounding = 64 * hessian.shape[-1] * torch.finfo(hessian.dtype).eps
    out[bad], _ = raised(hessian[bad], max(floor, rounding))
    return out, bad


def inverse_tril(precision: Tensor) -> Tensor:
    """The lower Cholesky factor of the inverse of `precision` [..., L, L], without making the inverse.

    With the rows and columns in reverse order, P = R Rᵀ for a lower R; in the old order R is upper, P = U Uᵀ, and the
    inverse is U⁻ᵀ U⁻¹ with the lower factor U⁻ᵀ.
    """
    lower = torch.linalg.cholesky(precision.flip((-2, -1))).flip((-2, -1)).mT.contiguous()  # Uᵀ
    identity = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    out: Tensor = torch.linalg.solve_triangular(lower, identity.expand_as(precision), upper=False)
    return out
