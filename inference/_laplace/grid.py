"""A density of a few numbers on a regular grid about its mode, wherever it is not negligible: its integral, moments, draws.

The grid is laid along the eigenvectors of the Hessian at the mode, in standard deviations, and grows from the mode as long as
its neighbours are within some nats of it (Rue, Martino & Chopin 2009, §3.1). Where a density and its tails are smooth the
sum over such a grid is its integral to many digits. Between the points it is taken by value, slope and the curvature at the
mode, and a grid that a density is too narrow or too bent for shows at draws from there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from inference._numerics import definite
from inference._numerics.peak import Density

STEPS = (0.5, 0.75, 1.0)  # standard deviations between points, in one, two and three dimensions
DEEP = 10.0  # nats below the mode at which a density is negligible
FARTHEST = 60  # steps from the mode
MOST_POINTS = 4000
CANDIDATES = 20_000  # draws by cells, of which some are taken by their weights
CHECKED = 400  # draws by which a grid is checked
EVEN = 0.5  # the least share of them that is effective
ERRORS, OFF = 4.0, 0.03  # standard errors and nats that the integral may be off


class Endless(ArithmeticError):
    """The density does not fall along some way: it may have no integral."""

    def __init__(self, flat: Tensor, fallen: float) -> None:
        super().__init__(f"the density has fallen by {fallen:.2g} nats alone at the end of the grid")
        self.flat = flat


@dataclass
class Grid:
    """Points ξ [K, d] of a grid in standard deviations, and the density f there; u = mode + ξ Fᵀ."""

    mode: Tensor
    factor: Tensor  # F [d, d]
    step: float
    points: Tensor
    values: Tensor  # f [K]
    slopes: Tensor  # of f in ξ [K, d]

    @property
    def log_integral(self) -> float:
        """log ∫ exp f(u) du."""
        d = len(self.mode)
        cell = d * torch.tensor(self.step).log().item() + float(torch.linalg.slogdet(self.factor)[1])
        return float(self.values.logsumexp(0)) + cell

    def weighted(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Candidates u [M, d] and their weights [M], which sum to 1."""
        cell, away, log_weight = self._candidates(generator)
        return self._at(cell, away), log_weight.softmax(0)

    @torch.no_grad()
    def holds(self, densities: Density, generator: torch.Generator) -> bool:
        """Whether draws by the grid have the density that it takes them for, and their weights confirm the integral."""
        cell, away, log_weight = self._candidates(generator)
        some = torch.multinomial(log_weight.softmax(0), CHECKED, replacement=True, generator=generator)
        found = _looked(densities, self._at(cell[some], away[some]))[0]
        weight = (found - self.values[cell[some]] - log_weight[some]).exp()
        mean, effective = weight.mean(), weight.sum().square() / weight.square().sum().clamp(min=1e-300)
        error = (weight.var() / CHECKED).sqrt() / mean
        off = mean.log() + log_weight.logsumexp(0) - math.log(CANDIDATES)
        return bool(effective > EVEN * CHECKED) and bool(off.abs() < OFF + ERRORS * error)

    def _candidates(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Cells [M], places in them [M, d], and the log-density there, less that at the cells' points [M]."""
        share = self.values.softmax(0).cumsum(0)
        places = (torch.arange(CANDIDATES) + torch.rand(1, generator=generator)).to(share.dtype) / CANDIDATES
        cell = torch.searchsorted(share, places).clamp(max=len(share) - 1)
        noise = torch.rand(CANDIDATES, len(self.mode), generator=generator, dtype=torch.float64).to(share.dtype)
        away = (noise - 0.5) * self.step
        return cell, away, (self.slopes[cell] * away).sum(1) - away.square().sum(1) / 2

    def _at(self, cell: Tensor, away: Tensor) -> Tensor:
        return self.mode + (self.points[cell] + away) @ self.factor.mT


def explore(densities: Density, mode: Tensor, hessian: Tensor) -> Grid | None:
    """The grid of a density about its mode [d], with minus its Hessian there; None where it takes too many points.

    `densities`: of points [B, d] side by side. Raises `Endless` where the density does not fall.
    """
    d = len(mode)
    scaled, size = definite.unit_diagonal(hessian)
    lengths, vectors = definite.eigen(scaled)
    factor = vectors / lengths.clamp(min=1e-6).sqrt() / size.unsqueeze(1)
    step = STEPS[d - 1]
    found: dict[tuple[int, ...], tuple[float, Tensor]] = {}
    best, layer = -torch.inf, [(0,) * d]
    while layer:  # the neighbours of the last points that are near enough to the best
        flat = mode + step * torch.tensor(layer, dtype=mode.dtype) @ factor.mT
        values, slopes = _looked(densities, flat)
        found |= {index: (v, g) for index, v, g in zip(layer, values.tolist(), slopes @ factor, strict=True)}
        best = max(best, float(values.max()))
        for index, value, u in zip(layer, values.tolist(), flat, strict=True):
            if value < best - DEEP or max(map(abs, index)) < FARTHEST:
                continue
            if best - value < 0.5 * d * math.log(
                step * FARTHEST
            ):  # a density that has an integral falls by d log r at least
                raise Endless(u, best - value)
            return None
        if len(found) > MOST_POINTS:
            return None
        near = [index for index in layer if found[index][0] >= best - DEEP]
        around = {(*i[:k], i[k] + way, *i[k + 1 :]) for i in near for k in range(d) for way in (-1, 1)}
        layer = sorted(around - found.keys())
    points = step * torch.tensor(list(found), dtype=mode.dtype)
    values = torch.tensor([v for v, _ in found.values()], dtype=mode.dtype)
    slopes = torch.stack([g for _, g in found.values()])
    return Grid(mode, factor, step, points, values, slopes)


def _looked(densities: Density, flat: Tensor) -> tuple[Tensor, Tensor]:
    """Values [B] and gradients [B, d]; −∞ where there is no density."""
    flat = flat.detach().requires_grad_()
    try:
        with torch.enable_grad():
            values = densities(flat)
            (slopes,) = torch.autograd.grad(values.sum(), flat)
    except (ValueError, ArithmeticError, torch.linalg.LinAlgError):
        if len(flat) == 1:
            return flat.new_full((1,), -torch.inf), torch.zeros_like(flat)
        parts = [_looked(densities, u) for u in flat.split(1)]
        return torch.cat([v for v, _ in parts]), torch.cat([g for _, g in parts])
    good = values.isfinite() & slopes.isfinite().all(1)
    return values.detach().masked_fill(~good, -torch.inf), torch.where(good.unsqueeze(1), slopes, 0.0)
