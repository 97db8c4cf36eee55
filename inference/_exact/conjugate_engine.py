"""The exact engine of conjugate continuous latents: Gamma rates under counts, Beta chances, Dirichlet shares.

Under an assignment a, log p(x_i, a, z) = k + Σ_l c_l · T(z_l), with one term for each latent value z_l and the statistics T of
its family (`zoo._reading.conjugate`). Its derivatives at two points give every c_l, and each z_l has the posterior with the
natural parameters c_l. Then log p(x_i, a) = log p(x_i, a, z) − Σ_l log q(z_l), the same for every z (Diaconis & Ylvisaker
1979).

For example z ~ Gamma(2, 1) and x ~ Poisson(3 z): at x = 4 the derivative is (2 − 1 + 4) / z − (1 + 3) = 5 / z − 4, so the
posterior is Gamma(6, 4).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from inference._exact.by_rows import CHUNK_NUMBERS, CHUNK_ROWS, LEAST_ROWS, ByDensity
from inference._exact.engine import MOST_SUMMED, Points, Rows, Statistics, Values
from inference._numerics.slices import fitting, slices
from inference._numerics.weighted import weighed
from zoo._errors import UsageError
from zoo._program.program import Program
from zoo._program.structure import Structure
from zoo._program.trace import global_log_prob
from zoo._reading.conjugate import NO_SLOPE, Parts

# at two points each: the first where nothing is known, the others amid the posterior that the one before found
LOOKS = 3


@dataclass
class NaturalPosterior:
    """q(a, z | x) of some rows: log p(x, a) [n, A], each site's coefficients [A, n, copies, m], and where they were found."""

    log_evidence: Tensor
    coefficients: dict[str, Tensor]
    points: tuple[Tensor, Tensor]  # [A, n, L]

    @property
    def weights(self) -> Tensor:
        return self.log_evidence.softmax(1)


@dataclass
class NaturalPosteriors(Statistics):
    """What an E-step leaves: the posterior of each chunk of rows, and the weights [n, A] of its assignments."""

    posterior: list[tuple[NaturalPosterior, Tensor]]


class ConjugateEngine(ByDensity[NaturalPosteriors]):
    """The exact posterior of conjugate local latents, under each joint value of the discrete ones."""

    def __init__(self, program: Program, structure: Structure, x: Tensor, weights: Tensor | None = None) -> None:
        super().__init__(program, structure, x, weights)
        self.parts = Parts.of(self.layout, {s.name: s.family for s in structure.continuous_locals})

    def log_prior(self, parameters: Values | None = None, globals: Values | None = None) -> Tensor:
        points = self.parts.first(self.x.new_ones(self.A, 2, self.L))[0]
        return global_log_prob(self.trace(self._probe, points, parameters, globals, raw=True))

    def chunks(self) -> Iterator[slice]:
        """Slices of rows whose temporaries stay small."""
        per_row = 8 * self.A * (self.x[0].numel() + self.L)
        return slices(self.N, fitting(CHUNK_NUMBERS, per_row, LEAST_ROWS, CHUNK_ROWS))

    def posterior(
        self, rows: slice, parameters: Values | None = None, globals: Values | None = None
    ) -> NaturalPosterior:
        """q(a, z | x) of `rows`. Differentiable where gradients are on."""
        x, keep = self.x[rows], torch.is_grad_enabled()

        def joint(z: Tensor) -> Tensor:
            return self.log_joint(x, z, parameters, globals)

        one, other = self.parts.first(self.x.new_ones(self.A, len(x), self.L))
        for _ in range(LOOKS - 1):
            value, c = self.parts.coefficients(joint, one, other)
            if not all(bool(v.isfinite().all()) for v in c.values()) and bool(value.isfinite().all()):
                raise UsageError(f"the posterior of {', '.join(map(repr, c))} is not found: {NO_SLOPE}.")
            one, other = self.parts.near({k: v.detach() for k, v in c.items()})
        value, c = self.parts.coefficients(joint, one, other, keep)
        return NaturalPosterior((value - self.parts.log_density(c, one)).mT, c, (one, other))

    def posteriors(
        self, parameters: Values | None = None, globals: Values | None = None
    ) -> Iterator[tuple[slice, NaturalPosterior]]:
        """The same of a chunk of rows at a time."""
        for rows in self.chunks():
            yield rows, self.posterior(rows, parameters, globals)

    @torch.no_grad()
    def draw(self, responsibilities: Tensor | None, draws: int, globals: Values | None = None) -> dict[str, Tensor]:
        pieces = []
        for rows, posterior in self.posteriors(None, globals):
            n = rows.stop - rows.start
            weights = posterior.weights if responsibilities is None else responsibilities[rows]
            chosen = torch.multinomial(weights, draws, replacement=True).mT  # [draws, n]
            values = {}
            for name, c in posterior.coefficients.items():
                some = c[chosen, torch.arange(n)]  # [draws, n, copies, m]
                values[name] = self.parts.families[name].distribution(some).sample()
            one = {k: v.reshape(self.A, -1).squeeze(-1)[chosen] for k, v in self.assignments.items()}
            pieces.append({**one, **self.layout.natural(self.parts.joined(values))})
        return {k: torch.cat([p[k] for p in pieces], 1) for k in pieces[0]}

    @torch.no_grad()
    def summary(self, globals: Values | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        out = self.x.new_empty(2, 1, self.N, self.L)
        for rows, posterior in self.posteriors(None, globals):
            weights = posterior.weights.mT.unsqueeze(-1)  # [A, n, 1]
            each = {k: self.parts.families[k].distribution(c) for k, c in posterior.coefficients.items()}
            means = self.parts.joined({k: q.mean for k, q in each.items()})
            squares = self.parts.joined({k: q.variance + q.mean.square() for k, q in each.items()})
            mean = (weights * means).sum(0)
            out[0, 0, rows] = mean
            out[1, 0, rows] = ((weights * squares).sum(0) - mean.square()).clamp(min=0).sqrt()
        means_of, deviations = ({k: v[0] for k, v in self.layout.natural(part).items()} for part in out)
        return means_of, deviations

    def points(self, rows: slice, globals: Values | None = None) -> Points:
        raise NotImplementedError("expectations under a conjugate posterior are not taken by points: draw from it")

    # ---------------------------------------------------------------------------------------------------- learning

    @torch.no_grad()
    def e_step(self, globals: Values | None = None, responsibilities: Rows | None = None) -> NaturalPosteriors:
        found, per_datum = self.look(globals), []
        found.counts = self.x.new_zeros(self.A)
        for rows, posterior in self.posteriors(None, globals):
            each = weighed(posterior.log_evidence.logsumexp(1), self.weights, rows)
            per_datum.append(each.sum(0, keepdim=True) if self.N > MOST_SUMMED else each)
            weights = posterior.weights if responsibilities is None else responsibilities[rows]
            weights = weighed(weights, self.weights, rows)
            found.counts += weights.sum(0)
            found.posterior.append((posterior, weights))
        found.per_datum = torch.cat(per_datum)
        return found

    def look(self, globals: Values | None = None) -> NaturalPosteriors:
        nothing = self.x.new_zeros(0)
        return NaturalPosteriors(nothing, nothing, self.log_prior(None, globals).detach(), {}, [])

    def expected(
        self, stats: NaturalPosteriors, parameters: Values, globals: Values, responsibilities: Rows | None = None
    ) -> Tensor:
        # log p(x, a, z; θ) = its value at a point + Σ c(θ) · (T(z) − T there), whose mean needs E[T] alone
        total = self.log_prior(parameters, globals)
        for rows, (posterior, weights) in zip(self.chunks(), stats.posterior, strict=True):
            x, one = self.x[rows], posterior.points[0]
            joint = partial(self.log_joint, x, parameters=parameters, globals=globals)
            value, c = self.parts.coefficients(joint, *posterior.points, keep=True)
            at = self.parts.statistics(one)
            steps = {k: self.parts.families[k].expected(v) - at[k] for k, v in posterior.coefficients.items()}
            total = total + (weights.mT * (value + self.parts.sum_of(c, steps))).sum()
        return total
