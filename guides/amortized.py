"""Amortized guide derived from a structure: a network of x (and of which entries were seen) gives q(z | x).

Kingma & Welling 2014; Dayan et al. 1995. One head for each local latent: Categorical or Bernoulli for discrete sites, a
diagonal Gaussian in unconstrained coordinates for continuous ones. Global latents get a Gaussian that depends on no datum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import biject_to

from zoo._errors import Refusal
from zoo._program import localize
from zoo._structure import Site, Structure


def refusal(structure: Structure) -> str | None:
    """Why no such guide can be made for the program, or None."""
    for site in structure.local_latents:
        if site.inner > 1:
            return f"the local latent '{site.name}' stands in a plate inside `data`; write a guide for it"
        if site.discrete and not _binary(site) and (site.event_shape or not site.support.startswith("IntegerInterval")):
            return f"there is no amortized guide for the {site.family} site '{site.name}'; write a guide for it"
    return None


class Guide(PyroModule):
    """`Guide(structure, x, globals, supports)`, called like a model: `guide(x, size)`.

    - `x` [N, …]: the data, for the scale of the encoder's input; NaN where unobserved.
    - `globals`: name → a value to begin at, constrained; `bijections`: name → the map from free numbers onto its support.
    - `hidden`: widths of the encoder's layers.
    """

    def __init__(
        self,
        structure: Structure,
        x: Tensor,
        globals: Mapping[str, Tensor] | None = None,
        bijections: Mapping[str, Any] | None = None,
        *,
        hidden: tuple[int, ...] = (64, 64),
    ) -> None:
        super().__init__()
        if (reason := refusal(structure)) is not None:
            raise Refusal(reason)
        self.sites = structure.local_latents
        self.data_dim, self.hidden = structure.data_dim, tuple(hidden)
        flat = x.reshape(len(x), -1)
        center = flat.nanmean(0).nan_to_num(0.0)
        spread = (flat - center).square().nanmean(0).sqrt()
        self.register_buffer("center", center)
        self.register_buffer("spread", torch.where(spread > 0, spread, torch.ones_like(spread)))
        self.sees_mask = bool(x.isnan().any())
        width = flat.shape[1] * (2 if self.sees_mask else 1)
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Linear(width, size), nn.Tanh()]
            width = size
        self.encoder = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({_key(s): nn.Linear(width, _outputs(s)) for s in self.sites})
        self.bijections = dict(bijections or {})
        self.free = nn.ParameterDict()
        for name, value in (globals or {}).items():
            u = self.bijections[name].inv(value.detach())
            self.free[f"{name}_loc"] = nn.Parameter(u.clone())
            self.free[f"{name}_log_scale"] = nn.Parameter(torch.full_like(u, -3.0))
        self.to(x.dtype)
        localize(self)

    def forward(self, x: Tensor | None = None, size: int | None = None) -> None:
        """Draw every latent given x [n, …]."""
        if x is None:
            raise ValueError("an amortized guide needs data to look at")
        for name in self.bijections:
            pyro.sample(name, self.global_posterior(name))
        if not self.sites:
            return
        heads = self.encode(x)
        with pyro.plate("data", len(x), dim=self.data_dim):
            for site in self.sites:
                head = heads[site.name].reshape(len(x), *(1,) * (-1 - self.data_dim), -1)  # plates right of `data`
                pyro.sample(site.name, self.posterior(site, head))

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        """Site → the numbers that parametrise its q, [n, outputs]."""
        flat = (x.reshape(len(x), -1) - self.center) / self.spread
        seen = ~flat.isnan()
        flat = flat.nan_to_num(0.0)
        h = self.encoder(torch.cat([flat, seen.to(flat.dtype)], 1) if self.sees_mask else flat)
        return {s.name: self.heads[_key(s)](h) for s in self.sites}

    @staticmethod
    def posterior(site: Site, head: Tensor) -> dist.TorchDistribution:
        """q(site | x) with the batch shape of `head`, [n] or [n, 1, …]."""
        if site.discrete and _binary(site):
            q = dist.Bernoulli(logits=head.reshape(*head.shape[:-1], *site.event_shape))
            return q.to_event(len(site.event_shape))
        if site.discrete:
            return dist.Categorical(logits=head)
        shape = free_shape(site)
        loc, log_scale = head.reshape(*head.shape[:-1], *shape, 2).unbind(-1)
        q = dist.Normal(loc, torch.nn.functional.softplus(log_scale) + 1e-6).to_event(len(shape))
        return q if site.support == "Real" else dist.TransformedDistribution(q, [biject_to(site.constraint)])

    def global_posterior(self, name: str) -> dist.TorchDistribution:
        """q(global latent)."""
        loc, scale = self.free[f"{name}_loc"], self.free[f"{name}_log_scale"].exp()
        transform = self.bijections[name]
        event = transform.domain.event_dim
        q = dist.Normal(loc, scale).to_event(event)
        q = dist.TransformedDistribution(q, [transform])
        return q.to_event(len(q.batch_shape))


def _binary(site: Site) -> bool:
    return site.family == "Bernoulli"


def _key(site: Site) -> str:
    return site.name.replace(".", "_")  # nn.ModuleDict takes no dots


def free_shape(site: Site) -> tuple[int, ...]:
    """The shape of one value of the site in unconstrained coordinates."""
    if site.discrete:
        return site.event_shape
    return tuple(biject_to(site.constraint).inverse_shape(torch.Size(site.event_shape)))


def _outputs(site: Site) -> int:
    size = math.prod(free_shape(site))
    if not site.discrete:
        return 2 * size
    return size if _binary(site) else int(site.cardinality or 0)
