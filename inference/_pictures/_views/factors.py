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
from inference._exact.gaussian import Gaussian
from inference._exact.linear import LinearGaussian
from inference._exact.quadratic import Quadratic
from inference._method.task import Task
from inference._pictures._views.oracle import columns_of, drawn_rows
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
        self.columns = np.zeros(0, dtype=int)
        if isinstance(complete, LinearGaussian):
            self._read(complete)

    def _engine(self, x: Tensor) -> LinearGaussian | Quadratic:
        with blame(self.task.program.name), torch.no_grad():
            return normal_engine(self.task.program, self.task.structure, x)

    @torch.no_grad()
    def _read(self, exact: LinearGaussian) -> None:
        """Put the observed sites' B, b and Ψ together, with the column of x that each of their entries is."""
        seen = [g for g in exact.sites(None, self.globals).gaussians if g.place is None]
        x = exact.x.reshape(exact.N, -1)
        places = [columns_of(exact.data.values[g.name], x) for g in seen]
        entries = np.concatenate(places) if places else np.zeros(0, dtype=int)
        self._kept = np.flatnonzero(entries >= 0)
        if not len(self._kept):
            return
        self.columns = entries[self._kept]  # of x, that the sites observe
        self._coefficients = torch.cat([g.coefficients for g in seen], 1).numpy()[:, self._kept]
        self._offset = torch.cat([g.offset for g in seen], 1).numpy()[:, self._kept]
        self._noise = [_covariance(g) for g in seen]
        self._prior = _prior(exact, self.globals)

    def loadings(self, a: int) -> Loadings:
        """Those under the joint value `a` of the discrete latents."""
        root, center = (v[a] for v in self._prior)
        coefficients, offset = self._coefficients[a], self._offset[a]
        if all(block.ndim == 2 for block in self._noise):
            noise = variance = np.concatenate([block[a] for block in self._noise])[self._kept]
        else:
            blocks = [torch.as_tensor(b[a] if b.ndim == 3 else np.diag(b[a])) for b in self._noise]
            noise = torch.block_diag(*blocks).numpy()[np.ix_(self._kept, self._kept)]
            variance = np.diag(noise)
        rotation = principal_rotation(coefficients @ root, noise)
        to_factors = rotation.T @ np.linalg.inv(root)
        return Loadings(coefficients @ root @ rotation, offset + coefficients @ center, variance, center, to_factors)

    @cached_property
    def _posterior(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """p(a) [A]; E[B z + b | x] [drawn, D]; and of the heaviest a, z's mean [drawn, L] and covariance [drawn, L, L]."""
        weights, signals, means, covariances = [], [], [], []
        exact, B, b = self.exact, torch.as_tensor(self._coefficients), torch.as_tensor(self._offset)
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


def _covariance(g: Gaussian) -> np.ndarray:
    """A site's noise: variances [A, E], or covariances [A, E, E]."""
    return (g.scale.square() if g.diagonal else g.scale @ g.scale.mT).numpy()


def _prior(exact: LinearGaussian, globals: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """z = S u + m a priori, u standard normal: S [A, L, L] and m [A, L]. The latents may depend on each other."""
    sites = [g for g in exact.sites(None, globals).gaussians if g.place is not None]
    away = torch.cat([g.selected(exact.L) - g.coefficients for g in sites], 1)  # of z, what is each site's own
    scales = [torch.diag_embed(g.scale) if g.diagonal else g.scale for g in sites]
    root = torch.stack([torch.block_diag(*(s[a] for s in scales)) for a in range(exact.A)])
    offset = torch.cat([g.offset for g in sites], 1).unsqueeze(-1)
    return torch.linalg.solve(away, root).numpy(), torch.linalg.solve(away, offset).squeeze(-1).numpy()
