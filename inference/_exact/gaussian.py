"""A normal site of a linear program, and the algebra of its posterior where that is nearly singular."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from inference._families import _gaussian as families

CONDITION = 1e6  # of a posterior precision above which its square root is taken from a QR decomposition


@dataclass
class Gaussian:
    """A normal site at one setting of the parameters: its value is B z + b + noise."""

    name: str
    coefficients: Tensor  # B [A, E, L]
    offset: Tensor  # b [A, E]
    scale: Tensor  # [A, E], or of a joint family a Cholesky factor [A, E, E]
    family: type[families.Gaussian]  # of its distribution
    form: str  # the distribution's own parameter: scale, scale_tril, covariance_matrix, precision_matrix
    given: Tensor  # that parameter
    place: slice | None  # where in z the site's value stands; None for an observed site

    @property
    def diagonal(self) -> bool:
        return not self.family.joint

    def precision_times(self, matrix: Tensor) -> Tensor:
        """S⁻¹ M [A, E, k] for M [A, E, k]."""
        if self.diagonal:
            return matrix / self.scale.square().unsqueeze(-1)
        return torch.cholesky_solve(matrix, self.scale)

    def whitened(self, matrix: Tensor) -> Tensor:
        """T⁻¹ M [A, E, k] for M [A, E, k], where T Tᵀ = S."""
        if self.diagonal:
            return matrix / self.scale.unsqueeze(-1)
        white: Tensor = torch.linalg.solve_triangular(self.scale, matrix, upper=False)
        return white

    def log_det(self) -> Tensor:
        """½ log det S [A]."""
        return (self.scale if self.diagonal else self.scale.diagonal(dim1=-2, dim2=-1)).log().sum(-1)

    def selected(self, L: int) -> Tensor:
        """The matrix E [size, L] that picks the site's value out of z."""
        assert self.place is not None
        return torch.eye(L, dtype=self.offset.dtype)[self.place]


def least_squares(J: Tensor, r: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """min ‖J z − r‖² by J = Q R: the solutions [n, A, L], S = R⁻¹ [U, A, L, L], and Σ log |R_ll| [U, A].

    J [U, A, m, L], r [n, A, m], whose row i has the matrix J[which[i]]. RᵀR is the precision JᵀJ, without forming it: its
    condition is the square of J's. Large rows go first, or Householder's reflections would drown the small ones' digits.
    """
    order = J.detach().norm(dim=-1).argsort(-1, descending=True)  # [U, A, m]
    Q, R = torch.linalg.qr(J.gather(2, order.unsqueeze(-1).expand_as(J)))
    root = torch.linalg.solve_triangular(R, torch.eye(J.shape[-1], dtype=J.dtype).expand_as(R), upper=True)
    gain = torch.zeros_like(J).scatter(2, order.unsqueeze(-1).expand_as(J), (root @ Q.mT).mT)  # [U, A, m, L]
    if len(J) == 1:
        z = torch.einsum("nam,aml->nal", r, gain[0])
    else:  # some rows at a time: each has a matrix of its own
        size = max(1, 2**20 // gain[0].numel())
        pairs = zip(r.split(size), which.split(size), strict=True)
        z = torch.cat([(some.unsqueeze(-2) @ gain[mine]).squeeze(-2) for some, mine in pairs])
    return z, root, R.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)


@torch.no_grad()
def solid(matrix: Tensor) -> bool:
    """Whether symmetric matrices are positive definite and far enough from singular to be inverted."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed.any()):
        return False
    return condition(matrix, torch.cholesky_inverse(factor)) <= CONDITION


@torch.no_grad()
def condition(matrix: Tensor, inverse: Tensor) -> float:
    """An upper bound on the largest condition number of some matrices; ∞ where it is not a number."""
    worst = float((matrix.square().sum((-2, -1)) * inverse.square().sum((-2, -1))).max())
    return math.sqrt(worst) if worst < math.inf else math.inf
