"""What a linear-Gaussian program says at a run's own θ, in factors that mean something.

Given the discrete latents a, x = B z + b + noise of covariance Ψ. A rotation of z changes B and nothing else that can be
seen, so the factors here are u, standard normal a priori, turned to the principal axes of Ψ^-½ B: Bᵀ Ψ⁻¹ B is diagonal,
the strongest signal comes first, and the largest entry of each column of B is positive.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from inference._exact.choose import normal_engine
from inference._exact.linear import LinearGaussian
from inference._exact.quadratic import Quadratic
from inference._loadings.affine import Affine, read
from inference._method.task import Task
from inference._pictures._views.oracle import drawn_rows
from zoo._program.source import blame


def principal_rotation(coefficients: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The orthogonal R [L, L] for which (B R)ᵀ Ψ⁻¹ (B R) is diagonal, largest first; B [D, L], Ψ [D] or [D, D].

    The largest entry of each column of B R is positive.
    """
    root = np.sqrt(noise)[:, None] if noise.ndim == 1 else np.linalg.cholesky(noise)
    white = coefficients / root if noise.ndim == 1 else np.linalg.solve(root, coefficients)
    rotation = np.linalg.svd(white, full_matrices=len(white) < white.shape[1])[2].T
    turned = coefficients @ rotation
    largest = turned[np.abs(turned).argmax(0), np.arange(turned.shape[1])]
    return rotation * np.where(largest < 0, -1.0, 1.0)


@dataclass
class Loadings:
    """x = B u + b + noise under one joint value of the discrete latents, u ~ N(0, I) on the principal axes."""

    coefficients: np.ndarray  # B [D, L]
    offset: np.ndarray  # b [D]
    noise: np.ndarray  # the noise's variance [D]
    center: np.ndarray  # u = Rᵀ S⁻¹ (z − center): [L]
    to_factors: np.ndarray  # Rᵀ S⁻¹ [L, L]

    @property
    def variance(self) -> np.ndarray:
        """Var x_d [D]."""
        return np.square(self.coefficients).sum(1) + self.noise

    @property
    def shares(self) -> np.ndarray:
        """Each factor's share of the total variance [L]; what is missing to one is the noise's."""
        return np.square(self.coefficients).sum(0) / self.variance.sum()

    @property
    def noise_shares(self) -> np.ndarray:
        """The noise's share of each column's variance [D]."""
        return self.noise / self.variance

    @property
    def correlations(self) -> np.ndarray:
        """Corr(x_d, u_l) [D, L]."""
        return self.coefficients / np.sqrt(self.variance)[:, None]


class Factors:
    """The loadings of a run, and the posterior of the factors of the rows that are drawn."""

    def __init__(self, task: Task) -> None:
        self.task, self.globals = task, task.global_start()
        self.rows = drawn_rows(len(task.x))
        self.exact = self._engine(task.x[self.rows])
        self.A, self.L = self.exact.A, self.exact.L
        # nothing of how the sites see z depends on which entries are observed
        complete = self._engine(task.x[self.rows].nan_to_num(0.0))
        self.affine: Affine | None = read(complete, self.globals) if isinstance(complete, LinearGaussian) else None
        self.columns = np.zeros(0, dtype=int) if self.affine is None else self.affine.columns  # of x

    def _engine(self, x: Tensor) -> LinearGaussian | Quadratic:
        with blame(self.task.program.name), torch.no_grad():
            return normal_engine(self.task.program, self.task.structure, x)

    @property
    def _affine(self) -> Affine:
        assert self.affine is not None  # a scene holds no others
        return self.affine

    def loadings(self, a: int) -> Loadings:
        """Those under the joint value `a` of the discrete latents."""
        found = self._affine
        root, center = found.root[a], found.center[a]
        coefficients = found.in_latents[a] @ root
        rotation = principal_rotation(coefficients, found.noise[a])
        to_factors = rotation.T @ np.linalg.inv(root)
        offset = found.at_zero[a] + found.in_latents[a] @ center
        return Loadings(coefficients @ rotation, offset, found.variances[a], center, to_factors)

    @cached_property
    def _posterior(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """p(a) [A]; E[B z + b | x] [drawn, D]; and of the heaviest a, z's mean [drawn, L] and covariance [drawn, L, L]."""
        weights, signals, means, covariances = [], [], [], []
        exact, B, b = self.exact, torch.as_tensor(self._affine.in_latents), torch.as_tensor(self._affine.at_zero)
        with torch.no_grad(), blame(self.task.program.name):
            for rows, posterior in exact.posteriors(None, self.globals):
                n = rows.stop - rows.start
                weights.append(posterior.weights)
                parts = torch.einsum("na,nal,adl->nd", posterior.weights, posterior.mean, B)
                signals.append(parts + posterior.weights @ b)
                means.append(posterior.mean[:, 0])
                covariances.append(posterior.covariance[:, 0].expand(n, -1, -1))
        first, second, third, fourth = (torch.cat(v).numpy() for v in (weights, signals, means, covariances))
        return first.mean(0), second, third, fourth

    @property
    def weights(self) -> np.ndarray:
        """The share of the data [A] of each joint value of the discrete latents."""
        return self._posterior[0]

    @property
    def signal(self) -> np.ndarray:
        """E[B z + b | x_i] [drawn, D]: what the factors make of each row."""
        return self._posterior[1]

    def scores(self) -> tuple[np.ndarray, np.ndarray]:
        """Posterior means [drawn, L] and covariances [drawn, L, L] of the factors, of a program without discrete latents."""
        only, mean, covariance = self.loadings(0), *self._posterior[2:]
        turn = only.to_factors
        return (mean - only.center) @ turn.T, turn @ covariance @ turn.T
