"""The density that global latents are weighed by, its points as values of the program, and where each row's latents stand."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import pyro
import torch
from pyro.distributions import constraints
from torch import Tensor

from inference._density.local import onto
from inference._mcmc.posterior import Place, Posterior
from inference._mcmc.recorded import Gradient
from inference._method.task import Task
from inference._numerics.definite import NotDefinite
from inference._sampling.nested import settled
from inference._sampling.weights import unmasked
from zoo._program.structure import Structure
from zoo._program.trace import altered, is_local, is_real, node_of, per_datum, sample_nodes, whole_shape

IMPROPER = ("ImproperUniform",)
EDGE = 100.0  # of a free coordinate of a support that has an edge: values of 1e-43 or 1e43
AT_THE_EDGE = 0.01  # of the posterior
Values = dict[str, Tensor]


def refusal(structure: Structure) -> str | None:
    """Why the density of all latents cannot be evaluated at many points, or None; half a sentence."""
    structure = structure.summed
    for site in structure.global_latents:
        if site.discrete:
            return f"the global latent '{site.name}' is discrete"
        if site.family in IMPROPER:
            return f"the prior of '{site.name}' is improper, so that log p(x) has no meaning"
    if structure.discrete_locals and not structure.by_row:
        return structure.reason
    for site in (*structure.global_latents, *structure.continuous_locals):
        if site.family == "Delta":
            return f"'{site.name}' is a Delta, which has no density: use its value itself, or pyro.deterministic"
        if site.completes and not structure.is_exact:
            return f"'{site.name}' stands for the missing entries of '{site.completes}'"
        try:
            onto(site.constraint)
        except NotImplementedError:
            return f"the support of '{site.name}' ({site.support}) has no unconstrained coordinates"
    return None


class Target:
    """log p(x, u; θ) of a task, u [B, d] the global latents and those local ones that are not summed or integrated out."""

    def __init__(self, task: Task, integrate: bool = True) -> None:
        """`integrate`: whether normal local latents that are exact given the globals are integrated out."""
        self.task = task.doubled()
        self.structure, self.program, self.x = self.task.structure, self.task.program, self.task.x
        self.posterior = Posterior(self.task, integrate and self.structure.linear_gaussian)
        self.d = self.posterior.d
        self._gradients: dict[int, Gradient] = {}
        self.generator = torch.Generator().manual_seed(task.seed)
        self.posterior.check(torch.rand(2, self.d, generator=self.generator, dtype=torch.float64) - 0.5)

    @torch.no_grad()
    def log_density(self, flat: Tensor) -> Tensor:
        """[B] nats; −∞ where it is no number."""
        parts = [self.posterior.log_density(flat[some]).detach() for some in self.posterior.chunks(len(flat))]
        return settled(torch.cat(parts))

    def each_row(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x_i, z_i | globals) [B, n] and log p(globals) [B]; differentiable."""
        found = self.posterior.terms(flat)
        return found.local.logsumexp(1), found.outside

    @cached_property
    def of_globals(self) -> Tensor:
        """The coordinates that are global."""
        return self._places([p for p in self.posterior.places if p.site.scope == "global"])

    @cached_property
    def of_rows(self) -> Tensor:
        """The coordinates of each row's own latents [n, L]."""
        parts = []
        for place in (p for p in self.posterior.places if p.site.scope == "local"):
            index = torch.arange(place.part.start, place.part.stop).reshape(place.shape)
            parts.append(index.movedim(self.row_axis(place), 0).reshape(len(self.x), -1))
        return torch.cat(parts, 1) if parts else torch.zeros(len(self.x), 0, dtype=torch.long)

    def row_axis(self, place: Place) -> int:
        """Which axis of a local site's free numbers is the rows', from the right."""
        transform = onto(place.site.constraint)
        lost = transform.codomain.event_dim - transform.domain.event_dim
        return self.structure.axes.row_dim(len(place.site.event_shape) - lost)

    @staticmethod
    def _places(places: list[Place]) -> Tensor:
        return torch.cat(
            [torch.arange(p.part.start, p.part.stop) for p in places] or [torch.zeros(0, dtype=torch.long)]
        )

    def gradient(self, like: Tensor) -> Gradient:
        """The density and its gradient at as many points as in `like` [B, d]; kept, since recording it takes a while."""
        if len(like) not in self._gradients:
            self._gradients[len(like)] = Gradient(self.posterior.log_density, like)
        found = self._gradients[len(like)]
        found.keep_if_right(like)
        return found

    def at_an_edge(self, flat: Tensor, share: Tensor) -> str | None:
        """Which site has draws flat [S, d], with weights [S] that sum to 1, so near an edge that its posterior is improper."""
        for place in self.posterior.places:
            far = ((flat[:, place.part].abs() > EDGE) & _has_an_edge(place)).any(1)
            if float(share[far].sum()) > AT_THE_EDGE:
                return (
                    f"the posterior seems improper: '{place.site.name}' runs to the edge of its support as far as numbers go. "
                    "Give it a prior that keeps it off the edge, or check the data for values that all are equal"
                )
        return None

    # ---------------------------------------------------------------------------------------------------------- values

    @torch.no_grad()
    def values(self, flat: Tensor, alone: bool = False) -> tuple[Values, Tensor]:
        """Site → its values as the program shapes them, [B, …], and the log-determinant of the map to them [B].

        `alone`: that of the global latents.
        """
        counted = {p.site.name for p in self.posterior.places if p.site.scope == "global" or not alone}

        def of_one(u: Tensor) -> Values:
            trace, free = self.posterior.run(u, self._integrated)
            found = {p.site.name: node_of(trace, p.site.name)["value"] for p in self.posterior.places}
            return found | {"": u.new_zeros(()) + sum(v.sum() for n, v in free.log_det.items() if n in counted)}

        found = self._each(of_one, flat)
        return found, found.pop("")

    @torch.no_grad()
    def flat_of(self, values: Values) -> Tensor:
        """The points [B, d] that stand for values; not finite where they are outside their supports."""
        names = list(values)

        def of_one(*given: Tensor) -> Values:
            layout = {} if self._integrated is None else self.posterior.layout.unflatten(self._integrated)
            latents = {**self.posterior.tables, **layout, **dict(zip(names, given, strict=True))}
            trace = self.program.trace(self.x, latents=latents)
            parts = []
            for place in self.posterior.places:
                node = node_of(trace, place.site.name)
                parts.append(onto(node["fn"].support).inv(node["value"].expand(whole_shape(node["fn"]))).reshape(-1))
            return {"": torch.cat(parts)}

        found: Tensor = self._each(of_one, *values.values())[""]
        return found

    @property
    def _integrated(self) -> Tensor | None:
        posterior = self.posterior
        return self.x.new_zeros(posterior.A, len(self.x), posterior.L) if posterior.L else None

    def _each(self, of: Callable[..., Values], *given: Tensor) -> Values:
        with pyro.validation_enabled(False), NotDefinite():
            chunks = list(self.posterior.chunks(len(given[0])))
            parts = [self.posterior.each(of, *(g[some] for g in given)) for some in chunks]
        return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}

    def axes(self) -> list[tuple[str, int, int]]:
        """Every axis of the values that may number labels: site, axis from the right, size; not the rows' own."""
        found, out = self.values(torch.zeros(1, self.d, dtype=torch.float64))[0], []
        for place in self.posterior.places:
            name, shape = place.site.name, found[place.site.name].shape[1:]
            rows = self.structure.axes.row_dim(len(place.site.event_shape)) if place.site.scope == "local" else None
            out += [(name, axis, shape[axis]) for axis in range(-len(shape), 0) if axis != rows]
        return out

    # ----------------------------------------------------------------------------------------------------------- prior

    def log_prior(self, flat: Tensor) -> Tensor:
        """log p(u) [B] of what the program draws u from, without scales and masks; differentiable."""
        with pyro.validation_enabled(False):
            found: tuple[Tensor, ...] = self.posterior.each(lambda u: (self._log_prior(u),), flat)
        return found[0]

    def _log_prior(self, u: Tensor) -> Tensor:
        trace, free = self.posterior.run(u, self._integrated)
        total, local = u.new_zeros(()), u.new_zeros(1, len(self.x))
        dim, depth = self.structure.data_dim, self.structure.max_plate_nesting
        mine = {p.site.name for p in self.posterior.places} | set(self.posterior.tables)
        for node in sample_nodes(trace):
            if node["name"] not in mine:
                continue
            own = altered(node, unmasked(node["fn"]))
            value, log_det = own["fn"].log_prob(node["value"]), free.log_det.get(node["name"])
            value = value if log_det is None else value + log_det
            if is_local(node):
                value = per_datum(own, value, dim, depth)
                local = local + value.reshape(-1, value.shape[-1])
            else:
                total = total + value.sum()
        return total + (local.logsumexp(0).sum() if self._has_rows else 0.0)

    @cached_property
    def _has_rows(self) -> bool:
        return any(p.site.scope == "local" for p in self.posterior.places)

    def prior(self, draws: int) -> Tensor | None:
        """Draws of u from the program [draws, d]; None where it cannot draw them."""
        try:
            return self.posterior.prior(draws, self.generator)
        except (NotImplementedError, RuntimeError, ValueError):
            return None


def _has_an_edge(place: Place) -> Tensor:
    """Which free coordinates of a site [numbers] lead to an edge of its support; along the others it goes on without end."""
    inner = place.site.constraint
    while isinstance(inner, constraints.independent):
        inner = inner.base_constraint
    out = torch.full(place.shape, not is_real(inner))
    if type(inner) is type(constraints.ordered_vector):
        out[..., 0] = False  # the first number itself
    return out.reshape(-1)
