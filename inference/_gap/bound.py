"""The ELBO of each row as a function of the row's own q: exactly where that can be done, else by draws."""

from __future__ import annotations

import math

import pyro
import torch
from torch import Tensor

import guides
from inference._gap.own import Own, centred
from inference._gap.search import Climbed, climb
from inference._method.task import Task
from inference._training import elbo
from inference._training.fixed_draws import FixedDraws, Noise
from zoo._program.trace import nodes_of

TOL, EXACT_TOL = 1e-5, 1e-9  # nats a row, at which a climb has ended: of a bound with noise, and without
FAR = 2.0  # of a start from the guide's own q, in its standard deviations
PRIORS = 2  # starts at draws from the prior
EVALUATIONS = 400  # of a climb, at most
LEAST, MOST = 256, 1024  # draws on which a climb is made,
PER_NUMBER = 8  # and for each of the numbers that are sought
EVALUATED = 1000  # draws that tell what was reached
WORK = 2**32  # numbers, of which an evaluation's draws are made
Moments = tuple[Tensor, Tensor]  # of each row [n], and its standard error [n]


class RowBounds(FixedDraws):
    """log p(x_i, z) − log q_i(z) of all rows for given noise, discrete latents summed out under q.

    `exact`: no noise is left in the ELBO, since the log joint is quadratic in a normal z, or all latents are summed out.
    Raises `NotImplementedError` where the bound has no derivative in q.
    """

    def __init__(self, task: Task, own: Own) -> None:
        self.own = own
        super().__init__(task, own)
        quadratic = task.structure.linear_gaussian and self._affine()
        self.fixed = self._sigma_points() if quadratic else {}
        self.exact = quadratic or not self.shapes

    def _drawn(self) -> Tensor:
        return self.bound.each(slice(None), self.task.x)[0]

    def _summed(self) -> Tensor:
        return elbo.summed(self.task, self.own, self.tables, slice(None), self.task.x)[0].sum(0)

    def _check(self) -> None:
        if self.shapes:
            super()._check()

    def _affine(self) -> bool:
        """Whether the draw of all sites together is affine in the noise: q of no site depends on another's draw."""
        alone = len(self.shapes) == 1 or (isinstance(self.own.guide, guides.Derived) and self.own.guide.by_row)
        return alone and not self.own.transformed

    def _sigma_points(self) -> Noise:
        """2 L draws ±√L e_l of the L numbers of a row, of mean 0 and covariance 1: they integrate what is quadratic exactly."""
        axes = {k: len(shape) - self.own.right[k] for k, shape in self.shapes.items()}
        ahead = {k: (*shape[: axes[k] - 1], *shape[axes[k] :]) for k, shape in self.shapes.items()}  # without the rows
        sizes = [math.prod(shape) for shape in ahead.values()]
        L = sum(sizes)
        points = torch.cat([torch.eye(L), -torch.eye(L)]).to(self.task.x.dtype) * math.sqrt(L)
        out = {}
        for (name, shape), part in zip(ahead.items(), points.split(sizes, 1), strict=True):
            part = part.reshape(2 * L, *shape).unsqueeze(axes[name])
            out[name] = part.expand(2 * L, *self.shapes[name])
        return out

    # --------------------------------------------------------------------------------------------------------- values

    def moments(self, numbers: Tensor, noise: Noise) -> Moments:
        """The mean over draws at q of the rows' `numbers` [n, P], and its standard error [n]."""
        return self._moments(self.each(numbers, noise))

    def gained(self, numbers: Tensor, others: Tensor, noise: Noise) -> Moments:
        """The same of what `others` have more than `numbers`, on the same draws."""
        return self._moments(self.each(others, noise) - self.each(numbers, noise))

    def _moments(self, each: Tensor) -> Moments:
        if self.exact:
            return each.mean(0), torch.zeros_like(each[0])
        one, other = each.chunk(2)  # of opposite signs
        pairs = 0.5 * (one + other)
        return pairs.mean(0), pairs.std(0) / len(pairs) ** 0.5

    @torch.no_grad()
    def each(self, numbers: Tensor, noise: Noise) -> Tensor:
        """The bound [draws, n] at q of the rows' `numbers` [n, P]; one draw where there is no noise."""
        self.own.numbers = numbers
        return self.all_values(noise) if noise else self.one().unsqueeze(0)

    def slopes(self, numbers: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """The mean over draws [n] and its gradient [n, P]."""
        draws = len(next(iter(noise.values()))) if noise else 1
        total, slope = numbers.new_zeros(len(numbers)), torch.zeros_like(numbers)
        for some in self.chunks(noise) if noise else [noise]:
            with torch.enable_grad():
                self.own.numbers = place = numbers.detach().requires_grad_()
                value = self.values(some).sum(0) if some else self.one()
                slope += torch.autograd.grad(value.sum(), place)[0]
            total = total + value.detach()
        return total / draws, slope / draws

    # --------------------------------------------------------------------------------------------------------- search

    def independent(self, draws: int, generator: torch.Generator) -> Noise:
        """Draws of their own, in pairs with opposite signs; those that are exact where there are such."""
        if self.exact:
            return self.fixed
        half = self.draw(max(1, draws // 2), generator, plain=True)
        return {k: torch.cat([v, -v]) for k, v in half.items()}

    def draws(self) -> tuple[int, int]:
        """How many draws to climb on, and to tell by what was reached."""
        most = max(LEAST, WORK // max(1, self.width) // EVALUATIONS)
        return min(most, MOST, max(LEAST, PER_NUMBER * self.own.size)), min(max(LEAST, most), EVALUATED)

    def best(self, noise: Noise, generator: torch.Generator) -> Climbed:
        """The best q that climbs from several starts reach, on these draws."""
        found: Climbed | None = None
        for start in self._starts(generator):
            climbed = climb(lambda v: self.slopes(v, noise), start, EXACT_TOL if self.exact else TOL, EVALUATIONS)
            found = climbed if found is None else found.better(climbed)
        assert found is not None
        return found

    @torch.no_grad()
    def _starts(self, generator: torch.Generator) -> list[Tensor]:
        """Numbers [n, P] to begin at: the guide's own q; far from it; its normals mirrored at 0; at draws from the prior."""
        own = torch.zeros(len(self.task.x), self.own.size, dtype=self.task.x.dtype)
        away = torch.randn(own.shape, generator=generator, dtype=torch.float64).to(own.dtype)
        out = [own, FAR * away]
        self.own.numbers = own
        with self.task.program.settings(), torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            q = nodes_of(pyro.poutine.trace(self.own).get_trace(self.task.x))
            priors = [nodes_of(self.task.program.trace(self.task.x)) for _ in range(PRIORS)]
        for place in [None, *priors]:
            numbers = own.clone()
            for name, part in self.own.parts.items():
                site = None if place is None else place[name]["value"]
                centre = centred(q[name]["fn"], site)
                if centre is not None:
                    numbers[:, part.start : part.start + centre.shape[1]] = centre
            out.append(numbers)
        return out
