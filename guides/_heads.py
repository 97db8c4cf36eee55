"""The parts of every guide: q for each kind of latent site, from a vector of numbers, and q of the global latents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import Transform, biject_to, constraints
from torch.nn.functional import softplus

from guides import _flow
from guides._flow import Part
from zoo._errors import Refusal
from zoo._program.parameters import localize
from zoo._program.slots import Slots
from zoo._program.structure import Site, Structure
from zoo._program.trace import is_real

Covariance = Literal["diagonal", "full"]
GlobalKind = Literal["diagonal", "full", "lowrank", "flow"]
Rows = Tensor | slice | None  # of a guide's data; None: all of them
Seen = Any  # what a guide's `look` makes of the data for its heads
LEAST_SCALE = 1e-6


def refusal(structure: Structure) -> str | None:
    """Why no guide can be derived for the program, or None."""
    for site in structure.local_latents:
        if site.inner > 1:
            return f"the local latent '{site.name}' is in a plate inside `data`; write a guide for it"
        if (
            site.discrete
            and not binary(site)
            and (site.event_shape or not isinstance(site.constraint, constraints.integer_interval))
        ):
            return f"there is no derived guide for the {site.family} site '{site.name}'; write a guide for it"
        if site.discrete and site.cardinality is None:
            return f"the support of '{site.name}' ({site.family}) cannot be listed for a guide; write a guide for it"
        if site.family == "Delta":
            return f"the latent '{site.name}' is a Delta, which has no density; use its value itself, or pyro.deterministic"
    return None


class Derived(PyroModule):
    """A guide that draws every latent of a structure; the subclass says what a local latent's q depends on.

    Discrete sites are drawn first, then the continuous ones in the reverse of the program's order.
    """

    begun = False  # whether q of the globals began at a covariance
    by_row = False  # whether it has to be told which rows of the data it gets
    recipe: dict[str, object]  # from which it can be rebuilt

    def __init__(
        self,
        structure: Structure,
        globals: Mapping[str, Tensor] | None,
        bijections: Mapping[str, Transform] | None,
        covariance: Covariance,
        globals_covariance: GlobalKind = "diagonal",
    ) -> None:
        super().__init__()
        if (reason := refusal(structure)) is not None:
            raise Refusal(reason)
        continuous = tuple(reversed(structure.continuous_locals))
        self.sites = (*structure.discrete_locals, *continuous)
        self.data_dim, self.covariance = structure.data_dim, covariance
        self.bijections = dict(bijections or {})
        self.free = nn.ParameterDict()
        for name, value in (globals or {}).items():
            u = self.bijections[name].inv(value.detach())
            self.free[f"{leaf(name)}_loc"] = nn.Parameter(u.clone())
            self.free[f"{leaf(name)}_log_scale"] = nn.Parameter(torch.full_like(u, -3.0))
        self.globals_covariance = globals_covariance
        d = sum(self.loc(name).numel() for name in self.bijections)
        if d and (globals_covariance == "flow" or (globals_covariance == "full" and d > 1)):
            self.free["globals_below"] = nn.Parameter(torch.zeros(d * (d - 1) // 2))
        if globals_covariance == "lowrank" and d:
            self.free["globals_factor"] = nn.Parameter(0.1 * torch.randn(d, round(d**0.5)))
        if globals_covariance == "flow" and d:
            self.free.update(_flow.parameters(d))

    @property
    def extras(self) -> dict[str, bool]:
        """Options that were chosen from the data, and that are kept for other data."""
        return {}

    def ready(self, x: Tensor) -> None:
        """Called at the end of `__init__`: takes the dtype of the data, and keeps parameters out of the global store."""
        self.to(x.dtype)
        localize(self)

    def forward(self, x: Tensor | None = None, size: int | None = None, rows: Rows = None) -> None:
        """Draw every latent given x [n, …], the rows `rows` of the guide's data."""
        if x is None:
            raise ValueError("a guide expects the data x, got None")
        self._draw_globals()
        if not self.sites:
            return
        seen = self.look(x, rows)
        drawn: list[Tensor] = []
        with pyro.plate("data", len(x), dim=self.data_dim):
            for site in self.sites:
                drawn.append(features(site, pyro.sample(site.name, self.density(site, seen, drawn))))

    def look(self, x: Tensor, rows: Rows) -> Seen:
        """What the heads see of the data."""
        raise NotImplementedError

    def density(self, site: Site, seen: Seen, drawn: list[Tensor]) -> dist.TorchDistribution:
        """q(site), given what was seen of the data and what was drawn before."""
        return posterior(site, self.head(site, seen, drawn), self.covariance)

    def head(self, site: Site, seen: Seen, drawn: list[Tensor]) -> Tensor:
        """The numbers that parametrise q of `site`, [batch…, outputs]; `drawn`: features of the sites drawn before."""
        raise NotImplementedError

    def last_layer(self, site: Site, center: Tensor, spread: Tensor) -> dict[Tensor, Tensor]:
        """Make q of a continuous site start at `center` with the standard deviation `spread` [numbers]. Returns the size of a
        step for each parameter that q is computed from; empty where the guide does not support it."""
        return {}

    def in_plates(self, values: Tensor) -> Tensor:
        """[n, k] with the data dimension where the program has it, [n, 1, …, k]: inner plates stand right of `data`."""
        if self.data_dim == -1:
            return values
        return values.reshape(len(values), *(1,) * (-1 - self.data_dim), -1)

    def _draw_globals(self) -> None:
        """One site after the other, each given the standard normal numbers of those before it: jointly one distribution."""
        tril, loc = self.globals_tril(), self.globals_loc()
        white = loc.new_zeros(0)
        for name, transform in self.bijections.items():
            shape = self.loc(name).shape
            if tril is None or not shape.numel():  # one weight alone has no free number
                pyro.sample(name, self.global_posterior(name))
                continue
            part = self._part(loc, tril, white, shape, transform)
            q = dist.TransformedDistribution(dist.Normal(loc.new_zeros(shape.numel()), 1.0).to_event(1), [part])
            own = part.inv(pyro.sample(name, q))
            white = torch.cat([white.expand(*own.shape[:-1], -1), own], -1)

    def _part(self, loc: Tensor, tril: Tensor, white: Tensor, shape: torch.Size, transform: Transform) -> Part:
        """The map from a site's standard normal numbers to its value, given the numbers of those before it."""
        flow = dict(self.free.items()) if self.globals_covariance == "flow" else None
        return Part(flow, loc, tril, white, shape, transform)

    @torch.no_grad()
    def moments(self, generator: torch.Generator, draws: int = 4096) -> tuple[Tensor, Tensor]:
        """Mean [d] and Cholesky factor [d, d] of q of the globals, unconstrained, by draws."""
        loc = self.globals_loc()
        found = self.globals_of(torch.randn(draws, len(loc), generator=generator, dtype=torch.float64).to(loc))
        flat = torch.cat([self.bijections[n].inv(v).reshape(draws, -1) for n, v in found.items()], 1)
        return flat.mean(0), torch.linalg.cholesky(torch.cov(flat.mT).reshape(len(loc), -1))

    @torch.no_grad()
    def globals_of(self, white: Tensor) -> dict[str, Tensor]:
        """The values that standard normal numbers [draws, d] make, site → [draws, …]."""
        tril, loc, out, start = self.globals_tril(), self.globals_loc(), {}, 0
        tril = self.scales().diag() if tril is None else tril
        for name, transform in self.bijections.items():
            shape = self.loc(name).shape
            stop = start + shape.numel()
            out[name] = self._part(loc, tril, white[:, :start], shape, transform)(white[:, start:stop])
            start = stop
        return out

    def loc(self, name: str) -> nn.Parameter:
        """The middle of q of a global latent, unconstrained."""
        return cast(nn.Parameter, self.free[f"{leaf(name)}_loc"])

    def log_scale(self, name: str) -> nn.Parameter:
        """Its scale's logarithm."""
        return cast(nn.Parameter, self.free[f"{leaf(name)}_log_scale"])

    def globals_loc(self) -> Tensor:
        """The middle of q of the globals [d], unconstrained."""
        return torch.cat([self.loc(name).reshape(-1) for name in self.bijections] or [torch.zeros(0)])

    def scales(self) -> Tensor:
        """Of q of the globals [d], unconstrained: of a covariance, of its factor's rows."""
        return torch.cat([self.log_scale(name).reshape(-1) for name in self.bijections]).exp()

    def globals_tril(self) -> Tensor | None:
        """The Cholesky factor [d, d] of q's covariance of the globals, unconstrained; None where it is diagonal."""
        if not {"globals_below", "globals_factor"} & set(self.free):
            return None
        scale = self.scales()
        d, eye = len(scale), torch.eye(len(scale), dtype=scale.dtype, device=scale.device)
        if "globals_factor" in self.free:
            factor = self.free["globals_factor"]
            return scale.unsqueeze(1) * torch.linalg.cholesky(eye + factor @ factor.mT)
        row, column = torch.tril_indices(d, d, -1)
        below = self.free["globals_below"].new_zeros(d * d).index_add(0, row * d + column, self.free["globals_below"])
        return scale.unsqueeze(1) * (below.reshape(d, d) + eye)

    @torch.no_grad()
    def begin_globals(self, mean: Tensor, tril: Tensor) -> None:
        """Let q of the globals be the normal with this mean [d] and Cholesky factor [d, d], unconstrained, or near it."""
        size, start = tril.diagonal(), 0
        if "globals_factor" in self.free:
            size, factor = _few_directions(tril @ tril.mT, self.free["globals_factor"].shape[1])
            self.free["globals_factor"].copy_(factor)
        for name in self.bijections:
            loc, log_scale = self.loc(name), self.log_scale(name)
            part = slice(start, start + loc.numel())
            loc.copy_(mean[part].reshape(loc.shape))
            log_scale.copy_(size[part].log().reshape(loc.shape))
            start = part.stop
        if "globals_below" in self.free:
            row, column = torch.tril_indices(len(mean), len(mean), -1)
            self.free["globals_below"].copy_((tril / size.unsqueeze(1))[row, column])
        self.begun = True

    def global_posterior(self, name: str) -> dist.TorchDistribution:
        """q(global latent), where they are independent."""
        loc, scale = self.loc(name), self.log_scale(name).exp()
        transform = self.bijections[name]
        q = dist.Normal(loc, scale).to_event(transform.domain.event_dim)
        q = dist.TransformedDistribution(q, [transform])
        return q.to_event(len(q.batch_shape))


def _few_directions(covariance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Scales s [d] and F [d, rank] with diag(s) (I + F Fᵀ) diag(s) near a covariance: its correlations' first directions."""
    deviations = covariance.diagonal().sqrt()
    values, vectors = torch.linalg.eigh(covariance / deviations.unsqueeze(1) / deviations)
    rest = values[:-rank].mean().clamp(min=1e-6) if rank < len(values) else values[0].clamp(min=1e-6)
    factor = vectors[:, -rank:] * (values[-rank:] / rest - 1).clamp(min=0).sqrt()
    return deviations * rest.sqrt(), factor


def posterior(site: Site, head: Tensor, covariance: Covariance = "diagonal") -> dist.TorchDistribution:
    """q(site) with the batch shape of `head`, [n] or [n, 1, …]."""
    if site.discrete and binary(site):
        q = dist.Bernoulli(logits=head.reshape(*head.shape[:-1], *site.event_shape))
        return q.to_event(len(site.event_shape)) if site.completes is None else Slots(q, 1)
    if site.discrete:
        return dist.Categorical(logits=head)
    shape = free_shape(site)
    if full(site, covariance):
        L = shape[0]
        loc, spread, below = head.split([L, L, L * (L - 1) // 2], -1)
        tril = (softplus(spread) + LEAST_SCALE).diag_embed()
        row, column = torch.tril_indices(L, L, -1)
        tril = tril.flatten(-2).index_add(-1, row * L + column, below).reshape(tril.shape)
        q = dist.MultivariateNormal(loc, scale_tril=tril)
    else:
        loc, spread = head.chunk(2, -1)
        loc, spread = (v.reshape(*head.shape[:-1], *shape) for v in (loc, spread))
        q = dist.Normal(loc, softplus(spread) + LEAST_SCALE).to_event(len(shape))
    return q if is_real(site.constraint) else dist.TransformedDistribution(q, [biject_to(site.constraint)])


def begin_at(site: Site, covariance: Covariance, center: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """What to add to a head's numbers [outputs] so that q(site) starts at `center` and `spread`, and their units."""
    numbers = outputs(site, covariance)
    offset, unit = center.new_zeros(numbers), center.new_ones(numbers)
    L = len(center)
    offset[:L], unit[:L] = center, spread
    offset[L : 2 * L] = spread + (-(-spread).expm1()).log()  # softplus of it is the spread
    unit[L : 2 * L] = spread.clamp(min=1.0)
    if numbers > 2 * L:
        row, _ = torch.tril_indices(L, L, -1)
        unit[2 * L :] = spread[row]
    return offset, unit


def full(site: Site, covariance: Covariance) -> bool:
    """Whether q of the site has a covariance matrix: only a vector of free numbers can."""
    return covariance == "full" and not site.discrete and site.completes is None and len(free_shape(site)) == 1


def features(site: Site, value: Tensor) -> Tensor:
    """A drawn value as numbers for a network, [batch…, k]."""
    if site.discrete and not binary(site):
        return (value.long().unsqueeze(-1) == torch.arange(width(site))).to(torch.get_default_dtype())
    if not site.discrete and not is_real(site.constraint):
        value = biject_to(site.constraint).inv(value)
    return value.reshape(*value.shape[: value.dim() - len(free_shape(site))], -1)


def width(site: Site) -> int:
    """How many numbers `features` makes of a value."""
    return int(site.cardinality or 0) if site.discrete and not binary(site) else math.prod(free_shape(site))


def outputs(site: Site, covariance: Covariance) -> int:
    """How many numbers parametrise q of the site."""
    size = math.prod(free_shape(site))
    if full(site, covariance):
        return 2 * size + size * (size - 1) // 2
    if site.discrete:
        return size if binary(site) else int(site.cardinality or 0)
    return 2 * size


def join(parts: list[Tensor]) -> Tensor:
    """Concatenate features along the last dimension; their batch shapes broadcast (an enumerated value has more)."""
    if len(parts) == 1:
        return parts[0]
    batch = torch.broadcast_shapes(*(p.shape[:-1] for p in parts))
    return torch.cat([p.expand(*batch, p.shape[-1]) for p in parts], -1)


def binary(site: Site) -> bool:
    """Whether each entry of the site is 0 or 1."""
    return site.family == "Bernoulli"


def leaf(name: str) -> str:
    """A site's name as torch's dictionaries of parameters and modules take it, without dots: no two names become one."""
    return name.replace(".", "/")


def key(site: Site) -> str:
    """The site's name, as `leaf` makes it."""
    return leaf(site.name)


def free_shape(site: Site) -> tuple[int, ...]:
    """The shape of one value of the site in unconstrained coordinates."""
    if site.discrete:
        return site.event_shape
    return tuple(biject_to(site.constraint).inverse_shape(torch.Size(site.event_shape)))


def spread(flat: Tensor, center: Tensor) -> Tensor:
    """What to divide each column by: its standard deviation. Binary data and intensities keep their units: a pixel that is
    hardly ever on would else be the loudest."""
    found = (flat - center).square().nanmean(0).sqrt()
    binary = ((flat == 0) | (flat == 1) | flat.isnan()).all(0)
    intensities = ((flat >= 0) & (flat <= 1) | flat.isnan()).all()
    return torch.where((found > 0) & ~binary & ~intensities, found, torch.ones_like(found))
