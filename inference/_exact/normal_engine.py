"""What engines with normal latents share: everything that follows from the posterior of some rows at a time."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from inference._exact.by_rows import ByRows
from inference._exact.engine import P, Points, S, Values
from inference._exact.moments import Posterior

LOG_2PI = math.log(2 * math.pi)


class NormalEngine(ByRows[S, P]):
    """Given each assignment a, the continuous latents z of a row are normal: q(a, z | x_i) is a `Posterior`."""

    @abstractmethod
    def posteriors(
        self, parameters: Values | None = None, globals: Values | None = None
    ) -> Iterator[tuple[slice, Posterior]]:
        """q(a, z | x) of a chunk of rows at a time. Differentiable."""

    @abstractmethod
    def posterior(self, rows: slice, parameters: Values | None = None, globals: Values | None = None) -> Posterior:
        """q(a, z | x) of `rows`. Differentiable."""

    @torch.no_grad()
    def draw(self, responsibilities: Tensor | None, draws: int, globals: Values | None = None) -> dict[str, Tensor]:
        z, chosen = self.x.new_empty(draws, self.N, self.L), list[Tensor]()
        for rows, posterior in self.posteriors(None, globals):
            weights = None if responsibilities is None else responsibilities[rows]
            chosen.append(posterior.draw(draws, weights, z[:, rows])[0])
        return self._drawn(chosen, z)

    @torch.no_grad()
    def summary(self, globals: Values | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        out = self.x.new_empty(2, 1, self.N, self.L)
        for rows, posterior in self.posteriors(None, globals):
            out[:, 0, rows] = _moments(posterior)
        return self._named(out)

    @torch.no_grad()
    def draw_and_summary(self, globals: Values) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        z, chosen, out = self.x.new_empty(1, self.N, self.L), list[Tensor](), self.x.new_empty(2, 1, self.N, self.L)
        for rows, posterior in self.posteriors(None, globals):
            chosen.append(posterior.draw(1, None, z[:, rows])[0])
            out[:, 0, rows] = _moments(posterior)
        return self._drawn(chosen, z), *self._named(out)

    def _drawn(self, chosen: list[Tensor], z: Tensor) -> dict[str, Tensor]:
        """Local site → draws [draws, N, …]: of the assignments, by some rows at a time, and of z [draws, N, L]."""
        out = {}
        if self.assignments:
            some = torch.cat(chosen, 1)
            out = {k: v.reshape(self.A, -1).squeeze(-1)[some] for k, v in self.assignments.items()}
        return {**out, **self.layout.natural(z)}

    def _named(self, moments: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Site → means and deviations, from both of all sites [2, 1, N, L]."""
        means, deviations = ({k: v[0] for k, v in self.layout.natural(each).items()} for each in moments)
        return means, deviations

    @torch.no_grad()
    def points(self, rows: slice, globals: Values | None = None) -> Points:
        # the mean of a quadratic over m ± √L S e_l, for l = 1 … L, is its expectation under N(m, S Sᵀ)
        posterior = self.posterior(rows, None, globals)
        root = posterior.tril().expand(len(posterior.mean), self.A, self.L, self.L) * self.L**0.5
        for a in range(self.A):
            discrete = {k: v[a] for k, v in self.assignments.items()}
            for k in range(self.L):
                for sign in (1.0, -1.0):
                    z = posterior.mean[:, a] + sign * root[:, a, :, k]
                    continuous = {name: v[0] for name, v in self.layout.unflatten(z.unsqueeze(0)).items()}
                    yield posterior.weights[:, a] / (2 * self.L), {**discrete, **continuous}


def _moments(posterior: Posterior) -> Tensor:
    """Means and standard deviations of some rows' continuous latents [2, n, L]."""
    weights = posterior.weights.unsqueeze(-1)
    mean = (weights * posterior.mean).sum(1)
    square = posterior.covariance.diagonal(dim1=-2, dim2=-1) + posterior.mean.square()
    return torch.stack([mean, ((weights * square).sum(1) - mean.square()).clamp(min=0).sqrt()])
