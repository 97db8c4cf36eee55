"""p(x | outer) without bias, where inner latents are neither exact nor few: proposals at their modes given the outer ones.

Inner latents come in n groups that are independent given the outer ones: each row's own, or one group of global ones. Given a
draw g of the outer latents, Newton's method finds every group's mode, and K draws from a Student t there give
p̂(x_i | g) = Σ_k p(x_i, z_k | g) / q(z_k) / K. Their product over the groups is an unbiased p(x | g), whatever K, so that
weights made of it are those of the outer latents alone (Tran, Scharth, Pitt & Kohn 2013, "Importance sampling squared").
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from inference._sampling.student import chi, log_t

DRAWS = 16  # of each group's latents for each draw of the outer ones
NEWTON = 25
LATE = 0.01  # of the draws, whose modes are not waited for: their weights tell
FREEDOM = 6.0
LEAST = 1e-6  # eigenvalue of a group's Hessian, relative to the largest
NUMBERS = 2**22  # in the largest temporary

Terms = Callable[[Tensor], tuple[Tensor, Tensor]]  # points [B, d] ↦ log p(x_i, z_i | g) [B, n] and log p(g) [B]


def settled(log_p: Tensor) -> Tensor:
    """What is no number is impossible."""
    return log_p.nan_to_num(-torch.inf, -torch.inf, -torch.inf)


class Nested:
    """Proposals for all groups' latents given draws of the outer ones."""

    def __init__(self, terms: Terms, outer: Tensor, inner: Tensor, width: int, generator: torch.Generator) -> None:
        """`outer` [g] and `inner` [n, L]: coordinates of a point; `width`: numbers in an evaluation of one."""
        self.terms, self.outer, self.inner, self.width, self.generator = terms, outer, inner, width, generator
        self.n, self.L = inner.shape
        self.d = len(outer) + inner.numel()
        self.start = torch.zeros(1, self.n, self.L, dtype=torch.float64)

    def weigh(self, outer: Tensor) -> tuple[Tensor, Tensor]:
        """log p̂(x, g) [B] of outer latents [B, g], and points [B, d] whose inner latents are drawn by weight."""
        step = max(1, NUMBERS // max(1, self.width * DRAWS))
        parts = [self._weigh(some) for some in outer.split(step)]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def _weigh(self, outer: Tensor) -> tuple[Tensor, Tensor]:
        B, generator = len(outer), self.generator
        mean, factor = self._modes(outer)
        noise = torch.randn(DRAWS, B, self.n, self.L, 1, generator=generator, dtype=torch.float64)
        noise = noise / chi((DRAWS, B, self.n), FREEDOM, generator)[..., None, None]
        z = mean + torch.linalg.solve_triangular(factor.mT, noise, upper=True).squeeze(-1)
        log_q = log_t(noise.square().sum((-2, -1)), self.L, FREEDOM) + factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        flat = self._points(outer.repeat(DRAWS, 1), z.flatten(0, 1))
        with torch.no_grad():
            local, outside = self.terms(flat)
        weights = settled(local.unflatten(0, (DRAWS, B)) - log_q)  # [K, B, n]
        total = weights.logsumexp(0).sum(-1) - self.n * math.log(DRAWS) + outside[:B]
        share = weights.softmax(0).nan_to_num(1 / DRAWS).movedim(0, -1).reshape(-1, DRAWS)
        chosen = torch.multinomial(share, 1, generator=generator).reshape(1, B, self.n, 1).expand(1, B, self.n, self.L)
        return settled(total), self._points(outer, z.gather(0, chosen)[0])

    def _points(self, outer: Tensor, z: Tensor) -> Tensor:
        flat = outer.new_zeros(len(outer), self.d)
        flat[:, self.outer] = outer
        flat[:, self.inner.reshape(-1)] = z.flatten(1)
        return flat

    def _modes(self, outer: Tensor) -> tuple[Tensor, Tensor]:
        """Modes [B, n, L] and Cholesky factors of the precision there [B, n, L, L]."""
        z = self.start.expand(len(outer), -1, -1)
        value, slope, precision = self._curved(outer, z)
        for _ in range(NEWTON):
            move = torch.cholesky_solve(slope.unsqueeze(-1), precision).squeeze(-1)
            decrement = (slope * move).sum(-1)
            if float((decrement > 1e-4).any(-1).double().mean()) <= LATE:
                break
            size = torch.ones_like(value)
            for _ in range(8):
                with torch.no_grad():
                    after = settled(self.terms(self._points(outer, z + size.unsqueeze(-1) * move))[0])
                worse = after < value - 1e-9
                if not bool(worse.any()):
                    break
                size = torch.where(worse, size / 3, size)
            z = z + torch.where(worse, 0.0, size).unsqueeze(-1) * move
            value, slope, precision = self._curved(outer, z)
        self.start = z.mean(0, keepdim=True)
        return z, precision

    def _curved(self, outer: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log-densities [B, n], slopes [B, n, L], and factors of the negative Hessians, their eigenvalues kept off 0."""
        with torch.enable_grad():
            z = z.detach().clone().requires_grad_()
            value = self.terms(self._points(outer, z))[0]
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
