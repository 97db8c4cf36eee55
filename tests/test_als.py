"""PPCA's EM as the noise goes to 0: coordinates on a subspace and the subspace through them, by least squares in alternation.

Roweis 1998: with σ² → 0 the E-step is z = (WᵀW)⁻¹ Wᵀ x, the coordinates of x on the subspace that W spans, and the M-step is
W = X Zᵀ (Z Zᵀ)⁻¹, the subspace that fits best given the coordinates: alternating least squares, whose fixed point is PCA's.
"""

from __future__ import annotations

import numpy as np
from helpers import task_of, tensor
from scipy.linalg import subspace_angles

from inference._families._family import Floor

L = 2


def als(x, W):
    """One step from W [D, L] for centred rows x [N, D]."""
    z = np.linalg.solve(W.T @ W, W.T @ x.T)  # [L, N]
    return np.linalg.solve(z @ z.T, z @ x).T


def test_em_without_noise_is_alternating_least_squares():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5)) * [3.0, 2.0, 1.0, 0.7, 0.5]
    x -= x.mean(0)
    task, W = task_of("ppca", x, latents=L), rng.normal(size=(5, L))
    task.program.assign({"loadings": tensor(W)})
    plan, axes = task.plan({}), np.linalg.svd(x)[2][:L].T
    angles = []
    for _ in range(40):
        task.program.assign({"noise": tensor(1e-5)})  # σ: its square is what is left out
        task.m_step(plan, task.engine.e_step(), {}, Floor(1e-12, set()))
        W = als(x, W)
        assert np.allclose(task.theta()["loadings"].numpy(), W, atol=1e-6)
        angles.append(subspace_angles(W, axes)[0])
    rate = angles[7] / angles[6]  # the last are rounding
    assert angles[-1] < 1e-6
    eigenvalues = np.linalg.svd(x)[1] ** 2
    assert np.isclose(rate, eigenvalues[L] / eigenvalues[L - 1], rtol=0.05)  # the power method's
