"""The local latents that were summed or integrated out, drawn given each draw of the others, and their posterior moments."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from inference._mcmc.posterior import Posterior

Values = dict[str, Tensor]


@dataclass
class Conditional:
    """Site → draws [B, n, …], moments [n, …], probabilities [n, values], all averaged over the B draws of the others."""

    draws: Values = field(default_factory=dict)
    means: Values = field(default_factory=dict)
    deviations: Values = field(default_factory=dict)
    probabilities: Values = field(default_factory=dict)


@dataclass
class _Sums:
    weights: Tensor  # [n, A]
    first: Tensor  # of z [n, L]
    second: Tensor  # of z² [n, L]


def conditional(posterior: Posterior, flat: Tensor, generator: torch.Generator) -> Conditional:
    """One draw of what was summed out given each of the points flat [B, d]."""
    n, A, L = len(posterior.x), posterior.A, posterior.L
    if A == 1 and not L:
        return Conditional()
    sums = _Sums(flat.new_zeros(n, A), flat.new_zeros(n, L), flat.new_zeros(n, L))
    parts = [_some(posterior, flat[some], generator, sums) for some in posterior.chunks(len(flat))]
    draws = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    B = len(flat)
    mean = sums.first / B
    deviation = (sums.second / B - mean.square()).clamp(min=0).sqrt()
    natural = posterior.layout.natural
    return Conditional(
        draws=draws,
        means={k: v[0] for k, v in natural(mean.unsqueeze(0)).items()},
        deviations={k: v[0] for k, v in natural(deviation.unsqueeze(0)).items()},
        probabilities=_marginals(posterior, sums.weights / B),
    )


def _some(posterior: Posterior, flat: Tensor, generator: torch.Generator, sums: _Sums) -> Values:
    terms = posterior.terms(flat)
    B, A, n = terms.local.shape
    weights = terms.local.detach().softmax(1).movedim(1, 2)  # [B, n, A]
    sums.weights += weights.sum(0)
    chosen = torch.multinomial(weights.reshape(B * n, A), 1, generator=generator).reshape(B, n)
    axes, out = posterior.structure.axes, Values()
    for site in posterior.structure.discrete_locals:
        table = axes.by_datum(posterior.tables[site.name], site)[:, 0]  # [A, inner plates, event]
        out[site.name] = table[chosen]
    if terms.mean is None or terms.factor is None:
        return out
    mean, factor = terms.mean.detach().movedim(1, 2), terms.factor.detach().movedim(1, 2)  # [B, n, A, L], …
    root = torch.linalg.inv(factor).mT  # of the covariance
    variance = root.square().sum(-1)
    each = weights.unsqueeze(-1)
    sums.first += (each * mean).sum((0, 2))
    sums.second += (each * (mean.square() + variance)).sum((0, 2))
    L = mean.shape[-1]
    at = chosen[..., None, None].expand(B, n, 1, L)
    noise = torch.randn(B, n, L, 1, generator=generator, dtype=torch.float64)
    spread = (root.gather(2, at.unsqueeze(-1).expand(B, n, 1, L, L))[:, :, 0] @ noise).squeeze(-1)
    z = mean.gather(2, at)[:, :, 0] + spread
    return out | posterior.layout.natural(z)


def _marginals(posterior: Posterior, weights: Tensor) -> Values:
    """Discrete site with one value a row → p(value) [n, values], from p(a) [n, A]."""
    out = {}
    for site in posterior.structure.discrete_locals:
        if site.inner == 1 and not site.event_shape:
            values, index = posterior.tables[site.name].reshape(-1).unique(return_inverse=True)
            out[site.name] = weights.new_zeros(len(weights), len(values)).index_add(1, index, weights)
    return out
