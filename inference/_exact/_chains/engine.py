"""The exact engine of a program with many normal latents of which each meets few others: a chain, a tree, several chains.

Its M-step is that of `linear_mstep`, from sums over all sites that share parameters (`alike`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference._exact import copies, linear_mstep
from inference._exact._chains import alike, solve
from inference._exact._chains.posterior import At, ByElimination, ChainMoments, ChainPosterior
from inference._exact._chains.sites import Seen
from inference._exact._sums.alike import unlike
from inference._exact.engine import MOST_SUMMED, Rows, Values
from inference._exact.linear_model import SiteData, Sites
from inference._families._family import Params
from inference._numerics.weighted import weighed
from zoo._errors import UsageError
from zoo._program.trace import global_log_prob


class Chains(ByElimination):
    """The posterior by elimination, and sums over all sites that share parameters."""

    @cached_property
    def classes(self) -> list[alike.Class]:
        """Sites that share parameters, found at random values of θ."""
        looks = []
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(21)
            for number, values in enumerate(copies.places(self.program)):
                try:
                    looks.append(self.at(values).seen)
                except (ValueError, RuntimeError):
                    if number == 0:
                        raise
        return alike.classes(self.graph.groups, looks, [self._is_closed(k) for k in range(len(self.values))])

    def _is_closed(self, k: int) -> bool:
        """Whether sums over rows are all that an M-step needs of a group."""
        g, values = self.graph.groups[k], self.values[k]
        if g.by_row:
            return False
        if values is None or not g.family.joint:
            return True
        missing = values.isnan()
        return not bool((missing.any(-1) & ~missing.all(-1)).any())

    @cached_property
    def _loose(self) -> list[int]:
        """The other groups."""
        return [k for k in range(len(self.values)) if not self._is_closed(k)]

    @cached_property
    def data(self) -> SiteData:
        """What `linear_mstep` asks of the data: nothing is centred, and a latent class is measured in its own units."""
        out = SiteData(self.N, self.missing, {}, self.families, {}, {})
        for c, g in zip(self.classes, self.sites().gaussians, strict=True):
            own = (g.scale if g.diagonal else g.scale.square().sum(-1).sqrt()).detach().amax(0)
            values = [v for k, _, _ in c.parts if (v := self.values[k]) is not None]
            if values:
                flat = torch.cat([v.flatten(0, 1) for v in values])
                spread = (flat - flat.nanmean(0)).square().nanmean(0).sqrt().nan_to_num(1.0)
                own = torch.where(spread > 0, spread, torch.ones_like(spread))
            out.centers[c.name], out.spreads[c.name] = torch.zeros_like(own), own
        return out

    def sites(self, parameters: Values | None = None, globals: Values | None = None) -> Sites:
        """Each class of sites as one."""
        return self._sites(self._trace(self._probe, parameters, globals))

    def _sites(self, trace: Trace) -> Sites:
        P = len(self._probe)
        firsts = [self._seen(trace, [first for _, _, first in c.parts], P) for c in self.classes]
        loose = self._seen(trace, [self.graph.groups[k] for k in self._loose], P)
        return self._as_sites(firsts, loose, self._params(trace), global_log_prob(trace))

    def _as_sites(
        self, firsts: Sequence[Sequence[Seen]], loose: Sequence[Seen], params: dict[str, Params], log_prior: Tensor
    ) -> Sites:
        gaussians = [alike.as_site(c, each, self.graph.groups) for c, each in zip(self.classes, firsts, strict=True)]
        rest = [v for s in loose for v in (s.coefficients, s.offset, s.given)]
        return Sites(gaussians, params, log_prior, rest)

    @torch.no_grad()
    def e_step(self, globals: Values | None = None, responsibilities: Rows | None = None) -> ChainMoments:
        at, per_datum = self.at(None, globals), list[Tensor]()
        firsts, loose = alike.firsts(self.classes, at.seen), [at.seen[k] for k in self._loose]
        found = self._nothing(self._as_sites(firsts, loose, at.others, at.log_prior), globals)
        found.counts, sums = self.x.new_zeros(self.A), dict[int, alike.Sums]()
        if not alike.hold(self.classes, at.seen):
            raise UsageError(unlike(self.program.name))
        for rows in self.chunks():
            here = self._of_rows(rows, at, None, globals)
            posterior = self._posterior(rows, here)
            per_datum.append(weighed(posterior.log_evidence.logsumexp(1), self.weights, rows))
            if self.N > MOST_SUMMED:
                per_datum[-1] = per_datum[-1].sum(0, keepdim=True)
            weights = posterior.weights if responsibilities is None else responsibilities[rows]
            weights = weighed(weights, self.weights, rows)
            found.counts += weights.sum(0)
            self._collect(found, sums, rows, here, posterior, weights)
        for c, g in zip(self.classes, found.seen.gaussians, strict=True):
            found.sites[c.name] = alike.summed(c, [sums[k] for k, _, _ in c.parts], g)
        for name, params in found.seen.others.items():
            if name in self.assignments:
                family = self.families[name]
                found.sites[name] = family.statistics(family.terms(self._others[name]), found.counts.diag(), params)
        found.per_datum = torch.cat(per_datum)
        return found

    def _collect(
        self,
        found: ChainMoments,
        sums: dict[int, alike.Sums],
        rows: slice,
        at: At,
        posterior: ChainPosterior,
        weights: Tensor,
    ) -> None:
        mean, (R, M) = posterior.mean, posterior.mean.shape[2:]
        covariances = solve.of_groups(self.steps, solve.covariances(posterior.solved))
        w = weights.mT.reshape(1, self.A, R, M, 1)
        for c in self.classes:
            for k, _, _ in c.parts:
                g = self.graph.groups[k]
                J, r = self._raw(k, rows, at.seen[k], R)
                z = mean[g.columns].movedim(1, -2)
                mask = self._mask(k, rows, R)  # [S, R, M, E]
                if mask is not None and g.family.joint:
                    mask = mask[..., :1]
                each = w.expand(len(g.names), *w.shape[1:]) if mask is None else w * mask.unsqueeze(1)
                new = alike.site_sums(g, J, r - J @ z, z[..., g.own :, :], covariances[k], each)
                old = sums.get(k)
                sums[k] = new if old is None else {name: old[name] + v for name, v in new.items()}
        if self._loose:
            found.loose.append((rows, w, mean, [covariances[k] for k in self._loose]))
        for name, params in found.seen.others.items():
            if name not in self.assignments:
                family = self.families[name]
                found.add(name, family.statistics(family.terms(self._others[name][rows]), weights, params))

    def look(self, globals: Values | None = None) -> ChainMoments:
        return self._nothing(self.sites(None, globals), globals)

    def _nothing(self, sites: Sites, globals: Values | None) -> ChainMoments:
        nothing = self.x.new_zeros(0)
        return ChainMoments(nothing, nothing, sites.log_prior.detach(), {}, sites, nothing, globals=globals or {})

    def expected(
        self, stats: ChainMoments, parameters: Values, globals: Values, responsibilities: Rows | None = None
    ) -> Tensor:
        total, at = linear_mstep.expected(self, stats, parameters, globals), None
        for rows, w, mean, covariances in stats.loose:
            at = at or self.at(parameters, globals)
            whites = self._whitened(rows, self._of_rows(rows, at, parameters, globals), mean.shape[2])
            for k, C in zip(self._loose, covariances, strict=True):
                white = whites[k]
                spread = ((white.J @ C) * white.J).sum((0, -2, -1)).unsqueeze(-1)  # [A, R, 1]
                density = white.constant.unsqueeze(-1) - 0.5 * spread
                density = density - 0.5 * self._residual(self.graph.groups[k], white, mean).square().sum((0, -2))
                total = total + (w[0, ..., 0] * density).sum()
        return total
