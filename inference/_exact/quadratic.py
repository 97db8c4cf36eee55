"""The exact engine of any program whose log joint is quadratic in its continuous latents, row by row, by autograd.

For programs whose rows differ in their parameters. Gradient g and Hessian −P of the log joint at z = 0 give the posterior
N(P⁻¹ g, P⁻¹) under each assignment, and log p(x) = log p(x, m) + (L/2) log 2π − ½ log det P at its mean m.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from inference._exact.by_rows import CHUNK_NUMBERS, CHUNK_ROWS, LEAST_ROWS, ByDensity
from inference._exact.engine import MOST_SUMMED, Plan, Rows, Values
from inference._exact.gaussian import solid
from inference._exact.moments import Posterior, Posteriors
from inference._exact.normal_engine import LOG_2PI, NormalEngine
from inference._numerics.slices import fitting, slices
from inference._numerics.weighted import weighed
from zoo._program.program import Program
from zoo._program.structure import Structure
from zoo._program.trace import global_log_prob

# rows, parameters, globals ↦ posterior mean [n, A, L], root S of the covariance [n, A, L, L], ½ log det P [n, A]
SquareRoots = Callable[[slice, Values | None, Values | None], tuple[Tensor, Tensor, Tensor]]


class Quadratic(ByDensity[Posteriors], NormalEngine[Posteriors, Plan]):
    """`square_roots`: where the sites can be read, what gives the posterior also where P is nearly singular."""

    def __init__(
        self,
        program: Program,
        structure: Structure,
        x: Tensor,
        weights: Tensor | None = None,
        square_roots: SquareRoots | None = None,
    ) -> None:
        super().__init__(program, structure, x, weights)
        self._square_roots = square_roots

    def log_prior(self, parameters: Values | None = None, globals: Values | None = None) -> Tensor:
        return global_log_prob(self.trace(self._probe, self.origin(), parameters, globals, raw=True))

    def chunks(self) -> Iterator[slice]:
        """Slices of rows whose temporaries stay small."""
        per_row = self.A * (self.x[0].numel() + (self.L + 1) ** 2) * (2 * self.L + 1)
        return slices(self.N, fitting(CHUNK_NUMBERS, per_row, LEAST_ROWS, CHUNK_ROWS))

    def posteriors(
        self, parameters: Values | None = None, globals: Values | None = None
    ) -> Iterator[tuple[slice, Posterior]]:
        for rows in self.chunks():
            yield rows, self.posterior(rows, parameters, globals)

    def posterior(self, rows: slice, parameters: Values | None = None, globals: Values | None = None) -> Posterior:
        x, n, keep = self.x[rows], rows.stop - rows.start, torch.is_grad_enabled()
        with torch.enable_grad():
            z = torch.zeros(self.A, n, self.L, dtype=x.dtype, requires_grad=True)
            value = self.log_joint(x, z, parameters, globals)
            (gradient,) = torch.autograd.grad(value.sum(), z, create_graph=True)
            columns = [
                torch.autograd.grad(gradient[..., k].sum(), z, create_graph=keep, retain_graph=True)[0]
                for k in range(self.L)
            ]
        precision = -torch.stack(columns, -1)
        if not keep:
            value, gradient = value.detach(), gradient.detach()
        precision = (precision + precision.mT) / 2
        if not keep and not solid(precision):
            return self._delicate(rows, precision, parameters, globals)
        factor = torch.linalg.cholesky(precision)
        mean = torch.cholesky_solve(gradient.unsqueeze(-1), factor).squeeze(-1)
        at_mean = value + 0.5 * (gradient * mean).sum(-1)
        if not keep:  # once more at the mean itself, where nothing cancels
            at_mean = self.log_joint(x, mean, parameters, globals).detach()
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_p = at_mean + 0.5 * self.L * LOG_2PI - log_det
        return Posterior(log_p.mT, mean.movedim(0, 1), torch.cholesky_inverse(factor).movedim(0, 1))

    @torch.no_grad()
    def _delicate(self, rows: slice, precision: Tensor, parameters: Values | None, globals: Values | None) -> Posterior:
        """The same where the precision [A, n, L, L] is nearly singular, so that its own digits do not suffice.

        Mean and root come from the sites' residuals where sites can be read, and the density there from the program itself.
        Otherwise Newton steps correct the mean, and `delicate` says that the determinant has lost digits.
        """
        x, n = self.x[rows], rows.stop - rows.start
        if self._square_roots is not None:
            mean, root, half = self._square_roots(rows, parameters, globals)
        else:
            self.delicate = True
            factor = torch.linalg.cholesky(precision)
            mean = x.new_zeros(self.A, n, self.L)
            for _ in range(3):
                with torch.enable_grad():
                    z = mean.detach().requires_grad_()
                    (slope,) = torch.autograd.grad(self.log_joint(x, z, parameters, globals).sum(), z)
                mean = mean + torch.cholesky_solve(slope.unsqueeze(-1), factor).squeeze(-1)
            mean, half = mean.movedim(0, 1), factor.diagonal(dim1=-2, dim2=-1).log().sum(-1).mT
            root = torch.linalg.inv(factor).mT.movedim(0, 1)
        at_mean = self.log_joint(x, mean.movedim(0, 1).contiguous(), parameters, globals).mT
        return Posterior(at_mean + 0.5 * self.L * LOG_2PI - half, mean, root @ root.mT, root)

    # ----------------------------------------------------------------------------------------------------- M-step

    @torch.no_grad()
    def e_step(self, globals: Values | None = None, responsibilities: Rows | None = None) -> Posteriors:
        found, per_datum = self.look(globals), []
        found.counts = self.x.new_zeros(self.A)
        for rows, posterior in self.posteriors(None, globals):
            per_datum.append(weighed(posterior.log_evidence.logsumexp(1), self.weights, rows))
            if self.N > MOST_SUMMED:
                per_datum[-1] = per_datum[-1].sum(0, keepdim=True)
            weights = posterior.weights if responsibilities is None else responsibilities[rows]
            found.counts += weighed(weights, self.weights, rows).sum(0)
            if responsibilities is not None:
                posterior.log_evidence = weights.clamp(min=1e-300).log()
            found.posterior.append(posterior)
        found.per_datum = torch.cat(per_datum)
        return found

    def look(self, globals: Values | None = None) -> Posteriors:
        nothing = self.x.new_zeros(0)
        return Posteriors(nothing, nothing, self.log_prior(None, globals).detach(), {}, [])

    def expected(
        self, stats: Posteriors, parameters: Values, globals: Values, responsibilities: Rows | None = None
    ) -> Tensor:
        # by sigma points: the mean of a quadratic over m ± √L S e_l is its expectation under N(m, S Sᵀ)
        L, total = self.L, self.log_prior(parameters, globals)
        for rows, posterior in zip(self.chunks(), stats.posterior, strict=True):
            tril = posterior.tril() * L**0.5  # [n, A, L, L]
            steps = torch.cat([tril.mT, -tril.mT], -2)  # [n, A, 2L, L]
            points = (posterior.mean.unsqueeze(-2) + steps).permute(1, 2, 0, 3)  # [A, 2L, n, L]
            n = rows.stop - rows.start
            value = self.log_joint(self.x[rows], points.reshape(-1, n, L), parameters, globals)
            mean = value.reshape(self.A, 2 * L, n).mean(1)  # [A, n]
            total = total + (weighed(posterior.weights, self.weights, rows).mT * mean).sum()
        return total
