"""Exact posterior and evidence of a program whose log joint is quadratic in its continuous local latents.

Given each joint value of the discrete local latents (if there are any) the posterior of the continuous ones, z, is normal.
Where every site's parameters are the same for all rows, the program is run at z = 0 and at the L unit vectors: that shows
each normal site's mean B z + b and its scale, and everything goes by matrix products over chunks of rows, O(N·D·L) a pass;
the L × L system is solved once for all rows with the same missingness pattern. Otherwise gradient and Hessian of the log
joint by autograd give the posterior row by row, and log p(x) = log p(x, m) + (L/2) log 2π − ½ log det P at its mean m.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from inference._exact.enumeration import MOST_SUMMED, Assignments, Rows
from inference._exact.gaussian import CONDITION, Gaussian, condition, least_squares, scale_of, solid
from inference._exact.moments import Moments, Posterior
from inference._families._all import family_of, parameters_of
from inference._families._family import Family, Params
from zoo import _columns
from zoo._program.latents import Layout, joint_values
from zoo._program.program import Program
from zoo._program.structure import Structure
from zoo._program.trace import global_log_prob, is_plain, local_log_prob

Values = Mapping[str, Tensor]
CHUNK_NUMBERS = 2**20
LOG_2PI = math.log(2 * math.pi)


class LinearGaussian(Assignments):
    """The exact engine of `program` for data `x` [N, …]; the same calls as `Enumeration`."""

    def __init__(self, program: Program, structure: Structure, x: Tensor) -> None:
        self.program, self.structure, self.x = program, structure, x
        self.N, self.A = len(x), structure.assignments
        self._probe = x[[0, -1]].nan_to_num(0.0)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            by_name = {n["name"]: n for n in self._locals(program.trace(self._probe, raw=True))}
        dims = structure.data_dim, structure.max_plate_nesting
        self.assignments = joint_values(by_name, [s.name for s in structure.discrete_locals], *dims)
        self.layout = Layout(by_name, [s.name for s in structure.continuous_locals], *dims)
        self.L = self.layout.L
        self.missing = _columns.any_missing(x)
        self.values: dict[str, Tensor] = {}
        self.families: dict[str, Family] = {}
        self.centers: dict[str, Tensor] = {}
        self.spreads: dict[str, Tensor] = {}
        self.delicate = False  # whether a determinant lost digits
        self.fast = structure.max_plate_nesting == 1 and not program.completes and self._can_be_fast()
        self.size = self.N * self.A if self.fast else math.inf  # what one pass over the data costs

    @torch.no_grad()
    def _can_be_fast(self) -> bool:
        """Collect what each site observes; False when a site's parameters differ from row to row."""
        nodes = self._locals(self._trace(self._probe, self._units(), raw=True))
        if not all(is_plain(n) and parameters_of(n["fn"], self.A * (self.L + 1)) is not None for n in nodes):
            return False
        for node in nodes:
            name = node["name"]
            if name in self.assignments:
                self.values[name] = self.assignments[name].reshape(self.A, -1).to(self.x.dtype)
            elif name not in self.layout.places:
                observed = self._gather(node, lambda x: self._trace(x, self._units(), raw=True))
                self.values[name] = observed.reshape(self.N, -1)
                if self.missing and "MultivariateNormal" in type(node["fn"]).__name__:
                    return False
                self.centers[name] = _columns.center(self.values[name])
                self.spreads[name] = _columns.spread(self.values[name], self.centers[name])
            family = family_of(node["fn"])
            if family is not None and name in self.values:
                self.families[name] = family(self.values[name])
        return True

    def _units(self) -> Tensor:
        """z = 0 and the unit vectors, under each assignment: [A·(L+1), 1, L]."""
        points = torch.cat([torch.zeros(1, self.L), torch.eye(self.L)]).to(self.x.dtype)
        return points.repeat(self.A, 1).unsqueeze(1)

    def _trace(
        self,
        x: Tensor,
        z: Tensor,
        parameters: Values | None = None,
        globals: Values | None = None,
        raw: bool = False,
    ) -> Any:
        """The program at z [A·T, n or 1, L]: T points under each assignment."""
        T = len(z) // self.A
        discrete = {k: v.repeat_interleave(T, 0) for k, v in self.assignments.items()}
        latents = {**discrete, **self.layout.unflatten(z), **(globals or {})}
        return self.program.trace(x, parameters=parameters, latents=latents, raw=raw)

    # ------------------------------------------------------------------------------------------------ the model, seen

    def sites(
        self, parameters: Values | None = None, globals: Values | None = None
    ) -> tuple[list[Gaussian], dict[str, Params], Tensor]:
        """The normal sites, the parameters of the others, and the log prior of the globals; where `fast`."""
        trace = self._trace(self._probe, self._units(), parameters, globals, raw=True)
        gaussians, others = [], {}
        for node in self._locals(trace):
            params = parameters_of(node["fn"], self.A * (self.L + 1), self.x.dtype)
            assert params is not None
            points = {k: v.reshape(self.A, self.L + 1, *v.shape[1:]) for k, v in params.items()}
            if "loc" not in points:
                others[node["name"]] = {k: v[:, 0] for k, v in points.items()}
                continue
            loc = points.pop("loc")  # [A, L+1, E]
            ((form, given),) = ((k, v[:, 0]) for k, v in points.items())
            gaussians.append(
                Gaussian(
                    node["name"],
                    (loc[:, 1:] - loc[:, :1]).mT,
                    loc[:, 0],
                    scale_of(form, given),
                    form,
                    given,
                    self.layout.places.get(node["name"]),
                )
            )
        return gaussians, others, global_log_prob(trace)

    def views(self, parameters: Values | None = None, globals: Values | None = None) -> tuple[list[Any], Tensor]:
        """No views, and the log prior of the globals."""
        return [], global_log_prob(self._trace(self._probe, self._units(), parameters, globals, raw=True))

    def chunks(self) -> Iterator[slice]:
        """Slices of rows whose temporaries stay small."""
        width = max([v.shape[-1] for v in self.values.values()], default=self.x[0].numel())
        per_row = self.A * (width + (self.L + 1) ** 2) * (1 if self.fast else 2 * self.L + 1)
        rows = max(16, min(8192, CHUNK_NUMBERS // per_row))
        for start in range(0, self.N, rows):
            yield slice(start, min(start + rows, self.N))

    # ------------------------------------------------------------------------------------------------ posterior

    def posterior(
        self, rows: slice, seen: Any, parameters: Values | None = None, globals: Values | None = None
    ) -> Posterior:
        """q(a, z | x) of `rows`; `seen` is what `sites` returned, or None for the general way. Differentiable."""
        if seen is None:
            return self._general(rows, parameters, globals)
        gaussians, others, _ = seen
        posterior = self._normal(rows, gaussians)
        for name, params in others.items():
            latent = name in self.assignments
            log_prob = self.families[name].log_prob(self.values[name] if latent else self.values[name][rows], params)
            posterior.log_evidence = posterior.log_evidence + (log_prob.diagonal() if latent else log_prob)
        return posterior

    def _normal(self, rows: slice, gaussians: list[Gaussian]) -> Posterior:
        n, masks = rows.stop - rows.start, self._masks(rows, gaussians)
        precision, linear = self._information(rows, gaussians, masks)  # [U, A, L, L], [n, A, L]
        which, root = masks[2], None
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
            log_p = log_p + self._density_at(g, rows, mean, masks[0].get(g.name))
        if len(inverse) > 1:
            inverse, root = inverse[which], None if root is None else root[which]
        return Posterior(log_p, mean, inverse, root)

    def _by_square_roots(self, rows: slice, gaussians: list[Gaussian], masks: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Mean [n, A, L], root of the covariance [U, A, L, L], ½ log det P [U, A]: least squares of whitened residuals."""
        jacobian, right = [], []  # [U, A, E, L], [n, A, E]
        for g in gaussians:
            away = -g.coefficients if g.place is None else g.selected(self.L) - g.coefficients
            white, mask = g.whitened(away), masks[1].get(g.name)
            jacobian.append(white.unsqueeze(0) if mask is None else white * mask[:, None, :, None])
            if g.place is None:
                offset = (self._centered(g.name, rows).unsqueeze(1) - (g.offset - self.centers[g.name])).neg()
                if g.name in masks[0]:
                    offset = offset * masks[0][g.name].unsqueeze(1)
            else:
                offset = g.offset.unsqueeze(0).expand(rows.stop - rows.start, -1, -1)
            right.append(g.whitened(offset.movedim(0, -1)).movedim(-1, 0))
        patterns = max(len(j) for j in jacobian)
        J = torch.cat([j.expand(patterns, -1, -1, -1) for j in jacobian], 2)
        return least_squares(J, torch.cat(right, 2), masks[2])

    def _masks(self, rows: slice, gaussians: list[Gaussian]) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Site → 1.0 where seen [n, E]; site → the same for each distinct pattern [U, E]; each row's pattern [n]."""
        if not self.missing:
            return {}, {}, torch.zeros(0, dtype=torch.long)
        names = [g.name for g in gaussians if g.place is None]
        seen = {name: ~self.values[name][rows].isnan() for name in names}
        unique, which = torch.unique(torch.cat(list(seen.values()), 1), dim=0, return_inverse=True)
        parts = torch.split(unique.to(self.x.dtype), [seen[n].shape[1] for n in names], dim=1)
        return {k: v.to(self.x.dtype) for k, v in seen.items()}, dict(zip(names, parts, strict=True)), which

    def _information(self, rows: slice, gaussians: list[Gaussian], masks: Any) -> tuple[Tensor, Tensor]:
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
            x = self._centered(g.name, rows)
            offset = g.offset - self.centers[g.name]
            if g.name not in masks[0]:
                precision = precision + g.coefficients.mT @ weighted
                linear = (
                    linear + torch.einsum("ne,ael->nal", x, weighted) - torch.einsum("ae,ael->al", offset, weighted)
                )
                continue
            outer = weighted.unsqueeze(-1) * g.coefficients.unsqueeze(-2)  # [A, E, L, L]
            precision = precision + torch.einsum("ue,aelm->ualm", masks[1][g.name], outer)
            linear = linear + torch.einsum("ne,ael->nal", x, weighted)
            linear = linear - torch.einsum("ne,ael->nal", masks[0][g.name], offset.unsqueeze(-1) * weighted)
        return precision.reshape(-1, self.A, self.L, self.L), linear.expand(rows.stop - rows.start, self.A, self.L)

    def _centered(self, name: str, rows: slice) -> Tensor:
        """A site's data less their column means [n, E], 0 where unobserved: moments about 0 would lose digits."""
        x = self.values[name][rows] - self.centers[name]
        return x.nan_to_num(0.0) if self.missing else x

    def _density_at(self, g: Gaussian, rows: slice, mean: Tensor, mask: Tensor | None) -> Tensor:
        """log N of the site at z = its posterior mean [n, A]: a residual, which does not cancel as x² − m² would."""
        fitted = torch.einsum("nal,ael->nae", mean, g.coefficients)
        if g.place is None:
            fitted = fitted + (g.offset - self.centers[g.name])
            residual = self._centered(g.name, rows).unsqueeze(1) - fitted
        else:
            residual = mean[..., g.place] - fitted - g.offset
        if not g.diagonal:
            white = torch.linalg.solve_triangular(g.scale, residual.permute(1, 2, 0), upper=False)
            return -0.5 * white.square().sum(1).mT - g.log_det() - 0.5 * residual.shape[-1] * LOG_2PI
        squares = (residual / g.scale).square()
        if mask is None:
            return -0.5 * squares.sum(-1) - g.log_det() - 0.5 * residual.shape[-1] * LOG_2PI
        half = torch.einsum("nae,ne->na", squares, mask)
        return -0.5 * half - mask @ g.scale.log().mT - 0.5 * LOG_2PI * mask.sum(1, keepdim=True)

    def _general(self, rows: slice, parameters: Values | None, globals: Values | None) -> Posterior:
        """By autograd: value, gradient and Hessian of the log joint at z = 0 [n, A, …]."""
        x, n, keep = self.x[rows], rows.stop - rows.start, torch.is_grad_enabled()
        with torch.enable_grad():
            z = torch.zeros(self.A, n, self.L, dtype=x.dtype, requires_grad=True)
            value = self._log_joint(x, z, parameters, globals)
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
            at_mean = self._log_joint(x, mean, parameters, globals).detach()
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
        if self.fast:
            gaussians, _, _ = self.sites(parameters, globals)
            masks = self._masks(rows, gaussians)
            mean, root, half = self._by_square_roots(rows, gaussians, masks)
            if len(half) > 1:
                root, half = root[masks[2]], half[masks[2]]
        else:
            self.delicate = True
            factor = torch.linalg.cholesky(precision)
            mean = x.new_zeros(self.A, n, self.L)
            for _ in range(3):
                with torch.enable_grad():
                    z = mean.detach().requires_grad_()
                    (slope,) = torch.autograd.grad(self._log_joint(x, z, parameters, globals).sum(), z)
                mean = mean + torch.cholesky_solve(slope.unsqueeze(-1), factor).squeeze(-1)
            mean, half = mean.movedim(0, 1), factor.diagonal(dim1=-2, dim2=-1).log().sum(-1).mT
            root = torch.linalg.inv(factor).mT.movedim(0, 1)
        at_mean = self._log_joint(x, mean.movedim(0, 1).contiguous(), parameters, globals).mT
        return Posterior(at_mean + 0.5 * self.L * LOG_2PI - half, mean, root @ root.mT, root)

    def _log_joint(self, x: Tensor, z: Tensor, parameters: Values | None, globals: Values | None) -> Tensor:
        """log p(x_i, a, z) [A·T, n] at z [A·T, n, L]."""
        trace = self._trace(x, z, parameters, globals)
        value = local_log_prob(trace, self.structure.data_dim, len(x))
        return value.reshape(-1, len(x)).expand(len(z), len(x))

    # ------------------------------------------------------------------------------------------------ evidence

    def _seen(self, parameters: Values | None, globals: Values | None) -> Any:
        return self.sites(parameters, globals) if self.fast else None

    def log_evidence(self, parameters: Values | None = None, globals: Values | None = None) -> tuple[Tensor, Tensor]:
        """(Σ_i log p(x_i | θ, globals), log p(globals)), both differentiable, nats."""
        seen = self._seen(parameters, globals)
        total: Any = 0.0
        for rows in self.chunks():
            total = total + self.posterior(rows, seen, parameters, globals).log_evidence.logsumexp(1).sum()
        return total, self._log_prior(seen, parameters, globals)

    def _log_prior(self, seen: Any, parameters: Values | None, globals: Values | None) -> Tensor:
        return seen[2] if seen is not None else self.views(parameters, globals)[1]

    @torch.no_grad()
    def per_datum(self, parameters: Values | None = None, globals: Values | None = None, own: bool = False) -> Tensor:
        """log p(x_i | θ, globals) [N], nats. `own`: by the sites' own `log_prob`, as a check on the matrix products."""
        seen, out = None if own else self._seen(parameters, globals), self.x.new_empty(self.N)
        for rows in self.chunks():
            out[rows] = self.posterior(rows, seen, parameters, globals).log_evidence.logsumexp(1)
        return out

    @torch.no_grad()
    def e_step(self, globals: Values | None = None, responsibilities: Rows | None = None) -> Moments:
        """Expected sufficient statistics and log p(x_i), in one pass over the data.

        `responsibilities` [N, A]: use these for the discrete latents, in place of their posterior.
        """
        seen, L = self._seen(None, globals), self.L
        counts, zz = self.x.new_zeros(self.A), self.x.new_zeros(self.A, L + 1, L + 1)
        log_prior = self._log_prior(seen, None, globals).detach()
        moments = Moments(counts, self.x.new_zeros(0), log_prior, seen, zz, {}, None if self.fast else [])
        per_datum = []
        for rows in self.chunks():
            posterior = self.posterior(rows, seen, None, globals)
            per_datum.append(posterior.log_evidence.logsumexp(1))
            if self.N > MOST_SUMMED:
                per_datum[-1] = per_datum[-1].sum(0, keepdim=True)
            weights = posterior.weights if responsibilities is None else responsibilities[rows]
            counts += weights.sum(0)
            if moments.posterior is not None:
                if responsibilities is not None:
                    posterior.log_evidence = weights.clamp(min=1e-300).log()
                moments.posterior.append(posterior)
            else:
                self.collect(moments, rows, seen, posterior, weights)
        for name, value in self.values.items():
            if name in self.assignments:
                params = seen[1][name]
                moments.sites[name] = self.families[name].statistics(value, counts.diag(), params)
        moments.per_datum = torch.cat(per_datum)
        return moments

    def collect(self, moments: Moments, rows: slice, seen: Any, posterior: Posterior, weights: Tensor) -> None:
        """Add to `moments` what the posterior of some rows gives."""
        n, L = len(weights), self.L
        extended = torch.cat([posterior.mean, posterior.mean.new_ones(n, self.A, 1)], -1)  # z̃ [n, A, L+1]
        weighted = weights.unsqueeze(-1) * extended
        zz = torch.einsum("nal,nam->alm", weighted, extended)
        if len(posterior.covariance) == 1:
            zz[:, :L, :L] += weights.sum(0)[:, None, None] * posterior.covariance[0]
        else:
            zz[:, :L, :L] += torch.einsum("na,nalm->alm", weights, posterior.covariance)
        moments.zz += zz
        for g in seen[0]:
            if g.place is None:
                moments.add(g.name, self._site_moments(g, rows, posterior, weights, extended, weighted))
        for name, params in seen[1].items():
            if name not in self.assignments:
                moments.add(name, self.families[name].statistics(self.values[name][rows], weights, params))

    def _site_moments(
        self, g: Gaussian, rows: slice, posterior: Posterior, weights: Tensor, extended: Tensor, weighted: Tensor
    ) -> dict[str, Tensor]:
        """Σ w x z̃ᵀ [A, E, L+1] and Σ w x² [A, E] (or x xᵀ), x centred; with holes also Σ w z̃ z̃ᵀ for each column."""
        x = self._centered(g.name, rows)
        out = {"xz": torch.einsum("ne,nal->ael", x, weighted)}
        if g.diagonal:
            out["xx"] = weights.mT @ x.square()
        else:
            out["xx"] = torch.einsum("na,ne,nf->aef", weights, x, x)
        if self.missing:
            L = self.L
            second = weighted.unsqueeze(-1) * extended.unsqueeze(-2)  # [n, A, L+1, L+1]
            second[..., :L, :L] += weights[:, :, None, None] * posterior.covariance
            mask = (~self.values[g.name][rows].isnan()).to(x.dtype)
            flat = mask.mT @ second.reshape(len(x), -1)
            out["zz"] = flat.reshape(-1, self.A, L + 1, L + 1).movedim(0, 1)  # [A, E, L+1, L+1]
        return out

    # ------------------------------------------------------------------------------------------------ what it means

    @torch.no_grad()
    def responsibilities(self, parameters: Values | None = None, globals: Values | None = None) -> Tensor:
        """p(a | x_i) [N, A]."""
        seen, out = self._seen(parameters, globals), self.x.new_empty(self.N, self.A)
        for rows in self.chunks():
            out[rows] = self.posterior(rows, seen, parameters, globals).weights
        return out

    @torch.no_grad()
    def draw(self, responsibilities: Tensor | None, draws: int, globals: Values | None = None) -> dict[str, Tensor]:
        """Site → exact posterior draws [draws, N, …] of every local latent, discrete and continuous together.

        `responsibilities` [N, A]: None works them out.
        """
        seen, pieces = self._seen(None, globals), []
        for rows in self.chunks():
            posterior, n = self.posterior(rows, seen, None, globals), rows.stop - rows.start
            weights = posterior.weights if responsibilities is None else responsibilities[rows]
            chosen = torch.multinomial(weights, draws, replacement=True).mT  # [draws, n]
            tril = posterior.tril().expand(n, self.A, self.L, self.L)
            index = torch.arange(n)
            noise = torch.randn(draws, n, self.L, 1, dtype=self.x.dtype)
            z = posterior.mean[index, chosen] + (tril[index, chosen] @ noise).squeeze(-1)
            one = {k: v.reshape(self.A, -1).squeeze(-1)[chosen] for k, v in self.assignments.items()}
            pieces.append({**one, **self.layout.natural(z)})
        return {k: torch.cat([p[k] for p in pieces], 1) for k in pieces[0]}

    @torch.no_grad()
    def summary(self, globals: Values | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Posterior mean and standard deviation of each continuous local latent, site → [N, …]."""
        seen, out = self._seen(None, globals), self.x.new_empty(2, 1, self.N, self.L)
        for rows in self.chunks():
            posterior = self.posterior(rows, seen, None, globals)
            weights = posterior.weights.unsqueeze(-1)
            mean = (weights * posterior.mean).sum(1)
            variance = posterior.covariance.diagonal(dim1=-2, dim2=-1) + posterior.mean.square()
            out[0, 0, rows] = mean
            out[1, 0, rows] = ((weights * variance).sum(1) - mean.square()).clamp(min=0).sqrt()
        mean, deviation = ({k: v[0] for k, v in self.layout.natural(each).items()} for each in out)
        return mean, deviation
