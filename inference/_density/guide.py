"""The Gaussians at the modes as a Pyro guide q(a, z | x), one for each row of the data they were found for."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import transforms

from inference._density.local import LocalDensity, Place
from inference._density.newton import Modes
from zoo._program.structure import Site, Structure


def refusal(density: LocalDensity) -> str | None:
    """Why the modes of `density` cannot be written as a guide, or None."""
    for place in density.sites:
        if place.fixed is None:
            return f"the support of '{place.site.name}' may differ from row to row"
    for site in density.structure.discrete_locals:
        if site.inner > 1 or site.event_shape or site.family not in ("Bernoulli", "Categorical"):
            return f"the discrete site '{site.name}' ({site.family}) is not one choice per row"
    return None


class ModeGuide(torch.nn.Module):
    """`guide(x, rows=rows)` draws the local latents of the rows `rows` (a slice or indices; None: all) of `density`'s data.

    Sites come one by one: the discrete ones from q(a | x), then each continuous one from its normal given those before it, so
    that together they have the Gaussian's full covariance; but the values of one site in a plate inside `data` are drawn
    independently given the sites before. Where a row has several modes each site's is the mixture of their normals, by
    what the sites before leave of each mode's weight. It holds no parameters: other θ or other data want modes of their own.
    """

    by_row = True
    recipe: dict[str, object] | None = None  # it is found again, not read from a file

    def __init__(self, density: LocalDensity, modes: Modes) -> None:
        super().__init__()
        self.sites, self.structure, self.assignments = density.sites, density.structure, density.assignments
        self.modes, self.M = modes, modes.each

    def forward(self, x: Tensor | None = None, size: int | None = None, rows: Any = None) -> None:
        """Draw every local latent; nothing is read off x but its length."""
        q = self.modes if rows is None else self.modes.rows(rows)
        n, M = len(q.mean), self.M
        with pyro.plate("data", n, dim=self.structure.data_dim):
            chosen = self._draw_discrete(q)  # [T, n], T draws of each row
            index = torch.arange(n, device=q.mean.device)[:, None]
            column = chosen.unsqueeze(-1) * M + torch.arange(M, device=index.device)  # [T, n, M]
            share = q.log_evidence_each[index, column].log_softmax(-1)  # of each mode, given the sites before
            mean, tril = q.mean[index, column], q.scale_tril[index, column]  # [T, n, M, L], [T, n, M, L, L]
            white = mean.new_zeros(*mean.shape[:-1], 0, 1)
            for place in self.sites:
                here = slice(0, place.part.start)
                loc = mean[..., place.part] + (tril[..., place.part, here] @ white).squeeze(-1)
                own = tril[..., place.part, place.part]
                z = self._draw(place, loc, own, share).unsqueeze(2)
                solved = torch.linalg.solve_triangular(own, (z - loc).unsqueeze(-1), upper=False)
                white = torch.cat([white.expand(*solved.shape[:-2], *white.shape[-2:]), solved], -2)
                if M > 1:
                    log_det = own.diagonal(dim1=-2, dim2=-1).log().sum(-1)
                    share = (share - 0.5 * solved.square().sum((-2, -1)) - log_det).log_softmax(-1)

    def _draw_discrete(self, q: Modes) -> Tensor:
        """The assignment [T, n] that the discrete sites were drawn to make."""
        each = q.log_evidence_each.unflatten(1, (-1, self.M)).logsumexp(-1)
        left = each.log_softmax(1).unsqueeze(0)  # [T, n, A]: −inf where a site before speaks against it
        for site in self.structure.discrete_locals:
            values, code = self.assignments[site.name].reshape(-1).unique(return_inverse=True)
            parts = [left.masked_fill(code != v, -torch.inf).logsumexp(-1) for v in range(len(values))]
            logits = torch.stack(parts, -1)
            value = pyro.sample(site.name, _choice(site, values, self._batch(logits)))
            same = self._flat(value.unsqueeze(-1), None)[..., 0, None] == values[code]
            left = left.masked_fill(~same, -torch.inf)
        return left.argmax(-1)

    def _batch(self, parameter: Tensor) -> Tensor:
        """[T, n, …] → [T, 1, …, n, 1, …, …], the data in their dimension; without T where there is one draw."""
        T, n, *rest = parameter.shape
        right = -1 - self.structure.data_dim
        left = self.structure.max_plate_nesting - 1 - right
        lead = (T, *(1,) * left) if T > 1 else ()
        return parameter.reshape(*lead, n, *(1,) * right, *rest)

    def _flat(self, value: Tensor, place: Place | None) -> Tensor:
        """A drawn value in free coordinates [T, n, numbers]: the opposite of `_batch`, and of `Place.shaped`."""
        if place is None:
            plates, data, event = (1,) * (-1 - self.structure.data_dim), 0, 1
        else:
            plates, data, event = place.plates, place.data, len(place.free)
        lead = value.dim() - event - 1 - len(plates)
        moved = value.movedim(lead + data, lead)
        return moved.reshape(math.prod(value.shape[:lead]), moved.shape[lead], -1)

    def _draw(self, place: Place, loc: Tensor, tril: Tensor, share: Tensor) -> Tensor:
        """Sample a site, Σ_m share_m N(loc_m, tril_m tril_mᵀ); its free numbers [T, n, numbers].

        `loc` [T, n, M, numbers], `tril` [T or 1, n, M, numbers, numbers], `share` [T, n, M] in logarithms.
        """
        site, copies, one = place.site, math.prod(place.plates), math.prod(place.free)
        M = share.shape[2]
        if copies > 1:  # each copy by itself: its own block of the covariance
            blocks = (tril @ tril.mT).reshape(*tril.shape[:3], copies, one, copies, one).diagonal(dim1=3, dim2=5)
            tril = torch.linalg.cholesky(blocks.movedim(-1, 3))
        loc, tril = self._in_place(loc, place, one), self._in_place(tril, place, one, one)
        if place.free:
            fn: dist.TorchDistribution = dist.MultivariateNormal(loc, scale_tril=tril)
        else:
            fn = dist.Normal(loc[..., 0], tril[..., 0, 0])
        logits = self._in_place(share.unsqueeze(-1).expand(-1, -1, -1, copies), place)
        fn = dist.MixtureSameFamily(dist.Categorical(logits=logits), fn) if M > 1 else _without_modes(fn)
        parts: list[transforms.Transform] = []
        if len(place.free) > 1:
            parts.append(transforms.ReshapeTransform(torch.Size([one]), torch.Size(place.free)))
        fixed = place.fixed
        assert fixed is not None
        parts += [] if place.real else [fixed]
        with _plates(site, self.structure):
            value = pyro.sample(site.name, dist.TransformedDistribution(fn, parts) if parts else fn)
        free = value if place.real else fixed.inv(value)
        return self._flat(free, place)

    def _in_place(self, parameter: Tensor, place: Place, *event: int) -> Tensor:
        """[T, n, M, …] → [T, …, plates with the data in their place, M, event], without T where there is one draw."""
        T, n, M = parameter.shape[:3]
        plates = len(place.plates)
        full = parameter.reshape(T, n, M, *place.plates, *event).movedim(2, 2 + plates).movedim(1, 1 + place.data)
        spare = (1,) * (self.structure.max_plate_nesting - 1 - plates)
        return full.reshape(T, *spare, *full.shape[1:]) if T > 1 else full[0]


def _without_modes(fn: dist.TorchDistribution) -> dist.TorchDistribution:
    """A normal whose last batch dimension, of the modes, is 1, without that dimension."""
    if isinstance(fn, dist.Normal):
        return dist.Normal(fn.loc[..., 0], fn.scale[..., 0])
    return dist.MultivariateNormal(fn.loc[..., 0, :], scale_tril=fn.scale_tril[..., 0, :, :])


def _choice(site: Site, values: Tensor, logits: Tensor) -> dist.TorchDistribution:
    """A discrete site's distribution over its `values`, ascending."""
    if site.family == "Categorical":
        return dist.Categorical(logits=logits)
    return dist.Bernoulli(logits=logits[..., 1] - logits[..., 0])


def _plates(site: Site, structure: Structure) -> contextlib.ExitStack:
    """The plates inside `data` that a site stands in, under names of the guide's own."""
    stack = contextlib.ExitStack()
    for dim, size in site.inner_dims:
        stack.enter_context(pyro.plate(f"{site.name}_plate_{-dim}", size, dim=dim))
    return stack
