"""log p(x_i) of each row by Gauss–Hermite quadrature about its mode, in the few continuous latents that a row has.

Adaptive quadrature (Liu & Pierce 1994; Pinheiro & Bates 1995): nodes ẑ + T ξ_k, with T Tᵀ the inverse Hessian at the mode ẑ.
One node is Laplace's approximation; what smooth densities lack falls with each further node as of a power series.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import torch
from torch import Tensor

from inference._density.local import LocalDensity
from inference._density.newton import Modes

NODES = (1, 15, 11)  # along each direction, for 0, 1 and 2 latents
FEW = (1, 9, 7)  # the same, for a density that is only walked on


@functools.cache
def rule(L: int, few: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Nodes ξ [K, L], and the logarithms [K] of the weights with which exp f(ξ) is summed to its integral."""
    nodes, weights = np.polynomial.hermite_e.hermegauss((FEW if few else NODES)[L])
    log_weights = np.log(weights) + nodes**2 / 2
    points = np.array(list(itertools.product(nodes, repeat=L))).reshape(-1, L)
    return points, np.array([sum(w) for w in itertools.product(log_weights, repeat=L)], dtype=float)


def log_evidence(density: LocalDensity, at: Modes, few: bool = False) -> Tensor:
    """log p(x_i) [n], nats, by nodes that stay where they are: differentiable in θ and the globals."""
    n, C, L = at.mean.shape
    row = torch.arange(n, device=at.mean.device).repeat_interleave(C)
    points, log_weights = (torch.as_tensor(v, dtype=at.mean.dtype, device=at.mean.device) for v in rule(L, few))
    tril = at.scale_tril.reshape(-1, L, L)
    z = at.mean.reshape(-1, L) + torch.einsum("mij,kj->kmi", tril, points)
    values = density.rows(row).log_joint(z, at.assignment.reshape(1, -1).expand(len(z), -1))
    log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    each = (values + log_weights.unsqueeze(1)).logsumexp(0) + log_det
    return each.reshape(n, C).logsumexp(1)
