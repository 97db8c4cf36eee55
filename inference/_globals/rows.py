"""p(x | globals) without bias, where each row's own latents are neither exact nor few: a proposal for each row given each draw.

Given a draw g of the globals, Newton's method finds every row's mode, and K draws from a Student t there give
p̂(x_i | g) = Σ_k p(x_i, z_k | g) / q(z_k) / K. Their product over the rows is an unbiased p(x | g), whatever K, so that weights
made of it are those of the globals alone (Tran, Scharth, Pitt & Kohn 2013, "Importance sampling squared").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inference._globals.target import Target, settled

DRAWS = 16  # of each row's latents for each draw of the globals
MOST = 6  # numbers of a row's latents, of which a Hessian is taken
NEWTON = 25
FREEDOM = 6.0
LEAST = 1e-6  # eigenvalue of a row's Hessian, relative to the largest


def serves(target: Target) -> bool:
    """Whether the rows' latents are few for each row, and independent given the globals."""
    return target.structure.by_row and 0 < target.of_rows.shape[1] <= MOST and len(target.of_globals) > 0


class Rows:
    """Proposals for all rows' latents given draws of the globals."""

    def __init__(self, target: Target) -> None:
        self.target, self.places = target, target.of_rows
        self.n, self.L = self.places.shape
        self.start = torch.zeros(1, self.n, self.L, dtype=torch.float64)

    def weigh(self, globals: Tensor) -> tuple[Tensor, Tensor]:
        """log p̂(x, g) [B] of globals [B, g], and points [B, d] whose row latents are drawn in proportion to their weights."""
        step = max(1, 2**22 // max(1, self.target.posterior.width * DRAWS))
        parts = [self._weigh(some) for some in globals.split(step)]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def _weigh(self, globals: Tensor) -> tuple[Tensor, Tensor]:
        B, generator = len(globals), self.target.generator
        mean, factor = self._modes(globals)
        noise = torch.randn(DRAWS, B, self.n, self.L, 1, generator=generator, dtype=torch.float64)
        squares = torch.randn(DRAWS, B, self.n, int(FREEDOM), generator=generator, dtype=torch.float64).square().sum(-1)
        away = torch.linalg.solve_triangular(factor.mT, noise, upper=True).squeeze(-1)
        z = mean + away / (squares / FREEDOM).sqrt().unsqueeze(-1)
        distance = noise.squeeze(-1).square().sum(-1) * FREEDOM / squares
        v, L = FREEDOM, self.L
        constant = math.lgamma((v + L) / 2) - math.lgamma(v / 2) - 0.5 * L * math.log(v * math.pi)
        log_q = constant + factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * (v + L) * torch.log1p(distance / v)
        flat = self._points(globals.repeat(DRAWS, 1), z.flatten(0, 1))
        with torch.no_grad():
            local, outside = self._terms(flat)
        weights = settled(local.unflatten(0, (DRAWS, B)) - log_q)  # [K, B, n]
        total = weights.logsumexp(0).sum(-1) - self.n * math.log(DRAWS) + outside[:B]
        share = weights.softmax(0).nan_to_num(1 / DRAWS).movedim(0, -1).reshape(-1, DRAWS)
        chosen = torch.multinomial(share, 1, generator=generator).reshape(1, B, self.n, 1).expand(1, B, self.n, L)
        return settled(total), self._points(globals, z.gather(0, chosen)[0])

    def _points(self, globals: Tensor, z: Tensor) -> Tensor:
        flat = globals.new_zeros(len(globals), self.target.d)
        flat[:, self.target.of_globals] = globals
        flat[:, self.places.reshape(-1)] = z.flatten(1)
        return flat

    def _terms(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x_i, z_i | g) [B, n] and log p(g) [B]."""
        found = self.target.posterior.terms(flat)
        return found.local.logsumexp(1), found.outside

    def _modes(self, globals: Tensor) -> tuple[Tensor, Tensor]:
        """Modes [B, n, L] and Cholesky factors of the precision there [B, n, L, L]."""
        z = self.start.expand(len(globals), -1, -1)
        value, slope, precision = self._curved(globals, z)
        for _ in range(NEWTON):
            move = torch.cholesky_solve(slope.unsqueeze(-1), precision).squeeze(-1)
            decrement = (slope * move).sum(-1)
            if not bool((decrement > 1e-4).any()):
                break
            size = torch.ones_like(value)
            for _ in range(8):
                with torch.no_grad():
                    after = settled(self._terms(self._points(globals, z + size.unsqueeze(-1) * move))[0])
                worse = after < value - 1e-9
                if not bool(worse.any()):
                    break
                size = torch.where(worse, size / 3, size)
            z = z + torch.where(worse, 0.0, size).unsqueeze(-1) * move
            value, slope, precision = self._curved(globals, z)
        self.start = z.mean(0, keepdim=True)
        return z, precision

    def _curved(self, globals: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log-densities [B, n], slopes [B, n, L], and factors of the negative Hessians, their eigenvalues kept off 0."""
        with torch.enable_grad():
            z = z.detach().clone().requires_grad_()
            value = self._terms(self._points(globals, z))[0]
            (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True)
            columns = [
                torch.autograd.grad(slope[..., k].sum(), z, retain_graph=True, materialize_grads=True)[0]
                for k in range(self.L)
            ]
        hessian = -torch.stack(columns, -1).nan_to_num(0.0, 0.0, 0.0)
        values, vectors = torch.linalg.eigh((hessian + hessian.mT) / 2)
        values = torch.maximum(values.abs(), LEAST * values.abs().amax(-1, keepdim=True)).clamp(min=1e-12)
        whole = (vectors * values.unsqueeze(-2)) @ vectors.mT
        return settled(value.detach()), slope.detach().nan_to_num(0.0, 0.0, 0.0), torch.linalg.cholesky(whole)
