"""Amortized guide: a network of x (and of which entries were seen) gives q(z | x), for any program with local latents.

Kingma & Welling 2014; Dayan et al. 1995. One head for each local latent: Categorical or Bernoulli for discrete sites, a
Gaussian in unconstrained coordinates for continuous ones. Every head also gets the latents drawn before it, so
that q(z1, z2 | x) = q(z1 | x) q(z2 | x, z1). Global latents get a Gaussian that does not depend on x.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import Transform

from guides._heads import Covariance, Derived, GlobalKind, Rows, begin_at, join, key, outputs, refusal, spread, width
from zoo._program.missing import holds_nan
from zoo._program.slots import slots
from zoo._program.structure import Site, Structure

__all__ = ["Guide", "refusal"]

# PyroModules, so that reading them needs no parameter statement per layer, which would take a millisecond a step
_Sequential = cast(type[nn.Sequential], PyroModule[nn.Sequential])
_Table = cast(type[nn.ModuleDict], PyroModule[nn.ModuleDict])
NEUTRAL = (0.0, math.log(math.e - 1))  # a logit, or a mean with what softplus makes 1 of


class Guide(Derived):
    """`Guide(structure, x, globals, bijections, hidden=(64, 64), covariance="diagonal")`, called like a model.

    - `x` [N, …]: the data, for the scale of the encoder's input; NaN where unobserved.
    - `globals`: name → a starting value, constrained; `bijections`: name → the map from free numbers onto its support.
    - `hidden`: widths of the encoder's layers; `covariance`: of each Gaussian q, `diagonal` or `full`.
    - `globals_covariance`: of the joint q of all global latents: `diagonal`, `full`, `lowrank`, or a `flow` in its place.
    - `sees_mask`: whether the encoder is told which entries were seen; when None, if any of x is missing.
    - `scaled`: whether columns are divided by their standard deviations; when None, unless x is binary or in [0, 1].
    """

    def __init__(
        self,
        structure: Structure,
        x: Tensor,
        globals: Mapping[str, Tensor] | None = None,
        bijections: Mapping[str, Transform] | None = None,
        *,
        hidden: tuple[int, ...] = (64, 64),
        covariance: Covariance = "diagonal",
        globals_covariance: GlobalKind = "diagonal",
        sees_mask: bool | None = None,
        scaled: bool | None = None,
    ) -> None:
        super().__init__(structure, globals, bijections, covariance, globals_covariance)
        flat = x.reshape(len(x), -1)
        center = flat.nanmean(0).nan_to_num(0.0)
        self.register_buffer("center", center)
        self.register_buffer("spread", spread(flat, center))
        self.scaled = bool((self.spread != 1).any()) if scaled is None else scaled
        self.sees_mask = bool(x.isnan().any()) if sees_mask is None else sees_mask
        self.entries = flat.shape[1]
        self.encoder, size = self.make_encoder(2 if self.sees_mask else 1, hidden)
        heads, before = {}, 0
        whole = {s.name for s in structure.observed if math.prod(s.event_shape) == self.entries}
        self.gathered = {s.name for s in self.sites if s.completes in whole}
        for site in self.sites:
            numbers = outputs(site, covariance)
            if site.name in self.gathered:  # numbers for every entry of x: a slot means another entry in every row
                numbers = numbers // width(site) * self.entries
            heads[key(site)] = _head(size, before, numbers)
            before += width(site)
        self.heads = _Table(heads)
        self.ready(x)

    def make_encoder(self, planes: int, hidden: tuple[int, ...]) -> tuple[nn.Module, int]:
        """The network of x, and of which entries were seen where there are two `planes` [n, planes · entries]; its features."""
        layers: list[nn.Module] = []
        size = planes * self.entries
        for wide in hidden:
            layers += [nn.Linear(size, wide), nn.Tanh()]
            size = wide
        return _Sequential(*layers), size

    @property
    def extras(self) -> dict[str, bool]:
        """The encoder's shape."""
        return {"sees_mask": self.sees_mask, "scaled": self.scaled}

    def look(self, x: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Features [n, 1, …, hidden] of x [n, …], a missing entry at its column's mean; and x itself, flat."""
        whole = x.reshape(len(x), -1)
        flat = whole - self.center
        if self.scaled:
            flat = flat / self.spread
        if self.sees_mask:
            flat = torch.cat([flat.nan_to_num(0.0), (~flat.isnan()).to(flat.dtype)], 1)
        elif holds_nan(flat):
            flat = flat.nan_to_num(0.0)
        return self.in_plates(self.encoder(flat)), whole

    @torch.no_grad()
    def last_layer(self, site: Site, center: Tensor, spread: Tensor) -> dict[Tensor, Tensor]:
        """See `Derived`."""
        if site.name in self.gathered:
            return {}
        offset, unit = begin_at(site, self.covariance, center, spread)
        head = cast(nn.Linear | nn.Sequential, self.heads[key(site)])
        layer = cast(nn.Linear, head if isinstance(head, nn.Linear) else head[-1])
        layer.weight.mul_(unit.unsqueeze(1))
        layer.bias.mul_(unit).add_(offset)
        return {layer.weight: unit.unsqueeze(1).expand_as(layer.weight), layer.bias: unit}

    def head(self, site: Site, seen: tuple[Tensor, Tensor], drawn: list[Tensor]) -> Tensor:
        """[batch…, outputs] from the features and what was drawn before."""
        found = self.heads[key(site)](join([seen[0], *drawn]))
        if site.name not in self.gathered:
            return found
        index, real = (self.in_plates(v).unsqueeze(-2) for v in slots(seen[1], width(site)))
        groups = found.unflatten(-1, (-1, self.entries))  # [batch…, numbers an entry, entries]
        chosen = groups.gather(-1, index.expand(*groups.shape[:-1], index.shape[-1]))
        # a slot left over is drawn as its reference draws it: a fair coin, or N(0, 1)
        neutral = chosen.new_tensor(NEUTRAL[: groups.shape[-2]]).unsqueeze(-1)
        return torch.where(real, chosen, neutral).flatten(-2)


def _head(features: int, before: int, size: int) -> nn.Module:
    if not before:
        return nn.Linear(features, size)
    return nn.Sequential(nn.Linear(features + before, features), nn.Tanh(), nn.Linear(features, size))
