"""The exact engine of a program that is linear in its normal latents, by matrix products over chunks of rows.

Given each joint value of the discrete local latents (if there are any) the posterior of the continuous ones, z, is normal.
`LinearModel` reads each normal site's mean B z + b and its scale off the program. A pass over the data is O(N·D·L), and the
L × L system is solved once for all rows with the same missingness pattern.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from inference._exact import linear_mstep
from inference._exact.by_rows import CHUNK_NUMBERS, CHUNK_ROWS, LEAST_ROWS, ByMoments
from inference._exact.engine import MOST_SUMMED, Rows, Values
from inference._exact.gaussian import CONDITION, Gaussian, condition, least_squares
from inference._exact.linear_model import LinearModel, Sites
from inference._exact.linear_mstep import LinearPlan
from inference._exact.moments import Moments, Posterior
from inference._exact.normal_engine import LOG_2PI, NormalEngine
from inference._exact.quadratic import Quadratic
from inference._numerics import ranks
from inference._numerics.slices import fitting, slices
from inference._numerics.weighted import weighed


@dataclass
class Masks:
    """Which entries were observed. Rows [1, 2], [nan, 3], [4, 5] have the patterns [0, 1] and [1, 1]; `which` is [1, 0, 1]."""

    rows: dict[str, Tensor]  # site → 1.0 where seen [n, E]; nothing where no data are missing
    patterns: dict[str, Tensor]  # site → the same for each distinct pattern [U, E]
    which: Tensor  # [n] each row's pattern


class LinearGaussian(LinearModel, ByMoments[Moments], NormalEngine[Moments, LinearPlan]):
    """q(a, z | x) from the sites that `LinearModel` reads, and the sums over all rows that its M-step needs."""

    @property
    def size(self) -> float:
        return self.N * self.A

    @cached_property
    def _own(self) -> Quadratic:
        """The same posterior from the program's own density alone."""
        return Quadratic(self.program, self.structure, self.x, self.weights, self._square_roots)

    def log_prior(self, parameters: Values | None = None, globals: Values | None = None) -> Tensor:
        return self.sites(parameters, globals).log_prior

    def chunks(self) -> Iterator[slice]:
        """Slices of rows whose temporaries stay small."""
        width = max((v.shape[-1] for v in self.data.values.values()), default=self.x[0].numel())
        per_row = self.A * (width + (self.L + 1) ** 2)
        return slices(self.N, fitting(CHUNK_NUMBERS, per_row, LEAST_ROWS, CHUNK_ROWS))

    def log_evidence(
        self, parameters: Values | None = None, globals: Values | None = None, every_row: bool = False
    ) -> tuple[Tensor, Tensor]:
        sites = self.sites(parameters, globals)
        total: Tensor | float = 0.0
        for rows in self.chunks():
            found = self._posterior(rows, sites).log_evidence.logsumexp(1)
            total = total + weighed(found, self.weights, rows).sum()
        return torch.as_tensor(total), sites.log_prior

    @torch.no_grad()
    def per_datum(self, parameters: Values | None = None, globals: Values | None = None, own: bool = False) -> Tensor:
        return self._own.per_datum(parameters, globals) if own else super().per_datum(parameters, globals)

    # ------------------------------------------------------------------------------------------------ posterior

    def posteriors(
        self, parameters: Values | None = None, globals: Values | None = None
    ) -> Iterator[tuple[slice, Posterior]]:
        sites = self.sites(parameters, globals)
        for rows in self.chunks():
            yield rows, self._posterior(rows, sites)

    def posterior(self, rows: slice, parameters: Values | None = None, globals: Values | None = None) -> Posterior:
        return self._posterior(rows, self.sites(parameters, globals))

    def _posterior(self, rows: slice, sites: Sites) -> Posterior:
        posterior, values = self._normal(rows, sites.gaussians), self.data.values
        for name, params in sites.others.items():
            latent = name in self.assignments
            log_prob = self.families[name].log_prob(values[name] if latent else values[name][rows], params)
            posterior.log_evidence = posterior.log_evidence + (log_prob.diagonal() if latent else log_prob)
        return posterior

    def _normal(self, rows: slice, gaussians: list[Gaussian]) -> Posterior:
        n, masks = rows.stop - rows.start, self._masks(rows, gaussians)
        precision, linear = self._information(rows, gaussians, masks)  # [U, A, L, L], [n, A, L]
        which, root = masks.which, None
        factor, failed = torch.linalg.cholesky_ex(precision)
        inverse = None if bool(failed.any()) else torch.cholesky_inverse(factor)
        if inverse is None or condition(precision, inverse) > CONDITION:
            mean, root, log_det = self._by_square_roots(rows, gaussians, masks)
            inverse = root @ root.mT
        else:
            if len(inverse) == 1:
                mean = torch.einsum("nal,alm->nam", linear, inverse[0])
            else:
                mean = (inverse[which] @ linear.unsqueeze(-1)).squeeze(-1)
            log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # ½ log det P [U, A]
        log_p = 0.5 * self.L * LOG_2PI - (log_det if len(log_det) == 1 else log_det[which])
        log_p = log_p.expand(n, self.A)
        for g in gaussians:
            log_p = log_p + self._density_at(g, rows, mean, masks.rows.get(g.name))
        if len(inverse) > 1:
            inverse, root = inverse[which], None if root is None else root[which]
        return Posterior(log_p, mean, inverse, root)

    def _by_square_roots(self, rows: slice, gaussians: list[Gaussian], masks: Masks) -> tuple[Tensor, Tensor, Tensor]:
        """Mean [n, A, L], root of the covariance [U, A, L, L], ½ log det P [U, A]: least squares of whitened residuals."""
        jacobian, right = [], []  # [U, A, E, L], [n, A, E]
        for g in gaussians:
            away = -g.coefficients if g.place is None else g.selected(self.L) - g.coefficients
            white, mask = g.whitened(away), masks.patterns.get(g.name)
            jacobian.append(white.unsqueeze(0) if mask is None else white * mask[:, None, :, None])
            if g.place is None:
                offset = (self.data.centered(g.name, rows).unsqueeze(1) - (g.offset - self.data.centers[g.name])).neg()
                if g.name in masks.rows:
                    offset = offset * masks.rows[g.name].unsqueeze(1)
            else:
                offset = g.offset.unsqueeze(0).expand(rows.stop - rows.start, -1, -1)
            right.append(g.whitened(offset.movedim(0, -1)).movedim(-1, 0))
        patterns = max(len(j) for j in jacobian)
        J = torch.cat([j.expand(patterns, -1, -1, -1) for j in jacobian], 2)
        return least_squares(J, torch.cat(right, 2), masks.which)

    def _masks(self, rows: slice, gaussians: list[Gaussian]) -> Masks:
        if not self.data.missing:
            return Masks({}, {}, torch.zeros(0, dtype=torch.long))
        names = [g.name for g in gaussians if g.place is None]
        seen = {name: ~self.data.values[name][rows].isnan() for name in names}
        unique, which = torch.unique(torch.cat(list(seen.values()), 1), dim=0, return_inverse=True)
        parts = torch.split(unique.to(self.x.dtype), [seen[n].shape[1] for n in names], dim=1)
        return Masks({k: v.to(self.x.dtype) for k, v in seen.items()}, dict(zip(names, parts, strict=True)), which)

    def _information(self, rows: slice, gaussians: list[Gaussian], masks: Masks) -> tuple[Tensor, Tensor]:
        """The posterior's precision P [U, A, L, L] and precision times mean [n, A, L]."""
        precision: Tensor = torch.zeros((), dtype=self.x.dtype)
        linear: Tensor = torch.zeros((), dtype=self.x.dtype)
        for g in gaussians:
            if g.place is not None:
                away = g.selected(self.L) - g.coefficients
                weighted = g.precision_times(away)
                precision = precision + away.mT @ weighted
                linear = linear + (weighted.mT @ g.offset.unsqueeze(-1)).squeeze(-1)
                continue
            weighted = g.precision_times(g.coefficients)  # [A, E, L]
            x = self.data.centered(g.name, rows)
            offset = g.offset - self.data.centers[g.name]
            if g.name not in masks.rows:
                precision = precision + g.coefficients.mT @ weighted
                linear = (
                    linear + torch.einsum("ne,ael->nal", x, weighted) - torch.einsum("ae,ael->al", offset, weighted)
                )
                continue
            outer = weighted.unsqueeze(-1) * g.coefficients.unsqueeze(-2)  # [A, E, L, L]
            precision = precision + torch.einsum("ue,aelm->ualm", masks.patterns[g.name], outer)
            linear = linear + torch.einsum("ne,ael->nal", x, weighted)
            linear = linear - torch.einsum("ne,ael->nal", masks.rows[g.name], offset.unsqueeze(-1) * weighted)
        return precision.reshape(-1, self.A, self.L, self.L), linear.expand(rows.stop - rows.start, self.A, self.L)

    def _density_at(self, g: Gaussian, rows: slice, mean: Tensor, mask: Tensor | None) -> Tensor:
        """log N of the site at z = its posterior mean [n, A]: a residual, which does not cancel as x² − m² would."""
        fitted = torch.einsum("nal,ael->nae", mean, g.coefficients)
        if g.place is None:
            fitted = fitted + (g.offset - self.data.centers[g.name])
            residual = self.data.centered(g.name, rows).unsqueeze(1) - fitted
        else:
            residual = mean[..., g.place] - fitted - g.offset
        if not g.diagonal:
            white: Tensor = torch.linalg.solve_triangular(g.scale, residual.permute(1, 2, 0), upper=False)
            return -0.5 * white.square().sum(1).mT - g.log_det() - 0.5 * residual.shape[-1] * LOG_2PI
        squares = (residual / g.scale).square()
        if mask is None:
            return -0.5 * squares.sum(-1) - g.log_det() - 0.5 * residual.shape[-1] * LOG_2PI
        half = torch.einsum("nae,ne->na", squares, mask)
        return -0.5 * half - mask @ g.scale.log().mT - 0.5 * LOG_2PI * mask.sum(1, keepdim=True)

    def _square_roots(
        self, rows: slice, parameters: Values | None, globals: Values | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same for each row [n, A, …]: what `Quadratic` takes where its Hessian does not suffice."""
        gaussians = self.sites(parameters, globals).gaussians
        masks = self._masks(rows, gaussians)
        mean, root, half = self._by_square_roots(rows, gaussians, masks)
        return (mean, root[masks.which], half[masks.which]) if len(half) > 1 else (mean, root, half)

    # ----------------------------------------------------------------------------------------------------- M-step

    @torch.no_grad()
    def e_step(self, globals: Values | None = None, responsibilities: Rows | None = None) -> Moments:
        moments, per_datum = self._no_moments(globals), []
        for rows in ranks.mine(self.chunks(), self.N):
            posterior = self._posterior(rows, moments.seen)
            per_datum.append(weighed(posterior.log_evidence.logsumexp(1), self.weights, rows))
            if self.N > MOST_SUMMED:
                per_datum[-1] = per_datum[-1].sum(0, keepdim=True)
            weights = posterior.weights if responsibilities is None else responsibilities[rows]
            self._collect(moments, rows, posterior, weighed(weights, self.weights, rows))
        if ranks.size() > 1:
            per_datum = [torch.cat(per_datum).sum(0, keepdim=True)]
            sums = moments.counts, moments.zz, moments.sites, per_datum
            moments.counts, moments.zz, moments.sites, per_datum = ranks.total(sums, self.N)
        self._count(moments)
        moments.per_datum = torch.cat(per_datum)
        return moments

    @torch.no_grad()
    def sampled(self, draws: int, globals: Values | None = None) -> tuple[Moments, Tensor]:
        moments, shares = self._no_moments(globals), self.x.new_empty(self.N, self.A)
        for rows in self.chunks():
            found = Posterior.of_draws(*self._posterior(rows, moments.seen).draw(draws), self.A)
            shares[rows] = found.log_evidence.exp()
            self._collect(moments, rows, found, weighed(shares[rows], self.weights, rows))
        self._count(moments)
        return moments, shares

    def _count(self, moments: Moments) -> None:
        """The statistics of discrete latents, which are those of their values, each as often as it is expected."""
        for name, params in moments.seen.others.items():
            if name in self.assignments:
                values = self.data.values[name]
                family = self.families[name]
                moments.sites[name] = family.statistics(family.terms(values), moments.counts.diag(), params)

    def look(self, globals: Values | None = None) -> Moments:
        return self._no_moments(globals)

    def _no_moments(self, globals: Values | None) -> Moments:
        sites, L = self.sites(None, globals), self.L
        counts, zz = self.x.new_zeros(self.A), self.x.new_zeros(self.A, L + 1, L + 1)
        return Moments(counts, self.x.new_zeros(0), sites.log_prior.detach(), {}, sites, zz, globals=globals or {})

    @torch.no_grad()
    def moments_about(self, means: Tensor, variance: float, globals: Values | None = None) -> Moments:
        """What an E-step would leave if each row's latents were normal about `means` [N, L], as a start for EM (A = 1)."""
        moments, covariance = self._no_moments(globals), variance * torch.eye(self.L, dtype=means.dtype)
        for rows in self.chunks():
            weights = means.new_ones(rows.stop - rows.start, 1)
            posterior = Posterior(weights.log(), means[rows].unsqueeze(1), covariance.expand(1, 1, -1, -1))
            self._collect(moments, rows, posterior, weighed(weights, self.weights, rows))
        return moments

    def _collect(self, moments: Moments, rows: slice, posterior: Posterior, weights: Tensor) -> None:
        """Add to `moments` what the posterior of some rows gives."""
        n, L = len(weights), self.L
        moments.counts += weights.sum(0)
        extended = torch.cat([posterior.mean, posterior.mean.new_ones(n, self.A, 1)], -1)  # z̃ [n, A, L+1]
        weighted = weights.unsqueeze(-1) * extended
        zz = torch.einsum("nal,nam->alm", weighted, extended)
        if len(posterior.covariance) == 1:
            zz[:, :L, :L] += weights.sum(0)[:, None, None] * posterior.covariance[0]
        else:
            zz[:, :L, :L] += torch.einsum("na,nalm->alm", weights, posterior.covariance)
        moments.zz += zz
        for g in moments.seen.gaussians:
            if g.place is None:
                moments.add(g.name, self._site_moments(g, rows, posterior, weights, extended, weighted))
        for name, params in moments.seen.others.items():
            if name not in self.assignments:
                family = self.families[name]
                terms = family.terms(self.data.values[name][rows])
                moments.add(name, family.statistics(terms, weights, params))

    def _site_moments(
        self, g: Gaussian, rows: slice, posterior: Posterior, weights: Tensor, extended: Tensor, weighted: Tensor
    ) -> dict[str, Tensor]:
        """Σ w x z̃ᵀ [A, E, L+1] and Σ w x² [A, E] (or x xᵀ), x centred; with holes also Σ w z̃ z̃ᵀ for each column."""
        x = self.data.centered(g.name, rows)
        out = {"xz": torch.einsum("ne,nal->ael", x, weighted)}
        if g.diagonal:
            out["xx"] = weights.mT @ x.square()
        else:
            out["xx"] = torch.einsum("na,ne,nf->aef", weights, x, x)
        if self.data.missing:
            L = self.L
            second = weighted.unsqueeze(-1) * extended.unsqueeze(-2)  # [n, A, L+1, L+1]
            second[..., :L, :L] += weights[:, :, None, None] * posterior.covariance
            mask = (~self.data.values[g.name][rows].isnan()).to(x.dtype)
            flat = mask.mT @ second.reshape(len(x), -1)
            out["zz"] = flat.reshape(-1, self.A, L + 1, L + 1).movedim(0, 1)  # [A, E, L+1, L+1]
        return out

    def expected(
        self, stats: Moments, parameters: Values, globals: Values, responsibilities: Rows | None = None
    ) -> Tensor:
        return linear_mstep.expected(self, stats, parameters, globals)
