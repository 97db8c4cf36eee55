"""The covariances of mixture components by their volume, shape and orientation, Σ_k = λ_k D_k A_k D_kᵀ.

Banfield & Raftery 1993, Celeux & Govaert 1995. A name has a letter for each of the three: E where it is equal in all
components, V where it varies, I where it is that of the identity: for the shape a sphere, for the orientation the axes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Covariance = Literal["full", "tied", "diagonal", "spherical", "EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE", "VEE", "EVE",
                     "VVE", "EEV", "VEV", "EVV", "VVV"]  # fmt: skip
LETTERS = {"full": "VVV", "tied": "EEE", "diagonal": "VVI", "spherical": "VII"}
WHOLE = ("VVV", "EEE", "VVI", "EEI", "VII", "EII")  # those that are parameters as they are, each copied or not


def angles(D: int) -> int:
    """How many numbers an orientation has."""
    return D * (D - 1) // 2


def axes(volume: Tensor, shape: Tensor) -> Tensor:
    """The standard deviations along the principal axes [K, D] (or [D]), the roots of λ_k A_k.

    `volume` λ [K] or [1]; `shape` [K, D] or [D], positive: A is shape over its geometric mean, so that its determinant is 1.
    """
    logs = shape.log()
    return (0.5 * (volume.log().unsqueeze(-1) + logs - logs.mean(-1, keepdim=True))).exp()


def rotation(angles: Tensor, D: int) -> Tensor:
    """The rotation [..., D, D] that is the exponential of the skew-symmetric matrix with these numbers [..., D(D−1)/2]."""
    row, column = torch.tril_indices(D, D, -1)
    flat = angles.new_zeros(*angles.shape[:-1], D * D)
    lower = flat.index_copy(-1, row * D + column, angles).unflatten(-1, (D, D))
    return torch.linalg.matrix_exp(lower - lower.mT)


def scale_tril(axes: Tensor, rotation: Tensor) -> Tensor:
    """The Cholesky factor of D A Dᵀ λ [K, D, D], from the `axes` [K, D] and D [K, D, D], either without K where equal."""
    root = rotation * axes.unsqueeze(-2)
    upper = torch.linalg.qr(root.mT).R  # root rootᵀ = upperᵀ upper, with no digit lost to squares
    sign = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    return (upper * sign.unsqueeze(-1)).mT
