"""A program that is linear in its continuous latents, read off its own traces: x = B z + b + noise at each normal site."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyro
import torch
from torch import Tensor

from inference._exact.engine import Values
from inference._exact.gaussian import Gaussian
from inference._exact.latent_program import FAR, LatentProgram
from inference._exact.reading import local_nodes
from inference._families import _gaussian as families
from inference._families._family import Family, Params
from inference._families._registry import family_of, parameters_of
from inference._numerics.replayed import Replayed
from inference._numerics.threads import one_thread
from zoo._data import blockwise
from zoo._program.program import Program
from zoo._program.structure import Structure
from zoo._program.trace import global_log_prob, is_plain

REPLAYED = 6  # runs of the program from which on its record pays for itself


@dataclass
class Sites:
    """The local sites at one setting of the parameters."""

    gaussians: list[Gaussian]
    others: dict[str, Params]  # site that is not normal → its parameters
    log_prior: Tensor  # of the globals, nats
    rest: list[Tensor] = field(default_factory=list)  # what else parameters enter


@dataclass
class SiteData:
    """What each site that has data observes, by the site's name."""

    N: int
    missing: bool  # whether any entry of x is
    values: dict[str, Tensor]  # observed sites [N, E]; discrete latents [A, E]
    families: dict[str, Family]  # of those sites in `values` that have one
    centers: dict[str, Tensor]  # observed site → its column means [E]
    spreads: dict[str, Tensor]  # and their standard deviations

    def centered(self, name: str, rows: slice) -> Tensor:
        """A site's data less their column means [n, E], 0 where unobserved: moments about 0 would lose digits."""
        x = self.values[name][rows] - self.centers[name]
        return x.nan_to_num(0.0) if self.missing else x


@torch.no_grad()
def site_data(latent: LatentProgram) -> SiteData | None:
    """What the sites observe; None where a site's parameters differ from row to row, so that `LinearModel` cannot be."""
    if latent.structure.max_plate_nesting != 1 or latent.program.completes:
        return None
    nodes = local_nodes(latent.probed())
    if not all(is_plain(n) and parameters_of(n["fn"], latent.A * (latent.L + 1)) is not None for n in nodes):
        return None
    out = SiteData(latent.N, blockwise.any_missing(latent.x), {}, {}, {}, {})
    for node in nodes:
        name, family = node["name"], family_of(node["fn"])
        assert family is not None  # it has parameters
        if name in latent.assignments:
            out.values[name] = latent.assignments[name].reshape(latent.A, -1).to(latent.x.dtype)
        elif name not in latent.layout.places:
            if out.missing and family.joint:
                return None
            value = latent.observed(node).reshape(latent.N, -1)
            out.values[name], out.centers[name] = value, blockwise.center(value, latent.weights)
            out.spreads[name] = blockwise.spread(value, out.centers[name], weights=latent.weights)
        if name in out.values:
            out.families[name] = family(out.values[name])
            if latent.weights is not None and name not in latent.assignments:
                out.families[name].weigh(out.values[name], latent.weights)
    return out


class LinearModel(LatentProgram):
    """The sites of a program that are the same for all rows, and the data that they observe."""

    def __init__(
        self, program: Program, structure: Structure, x: Tensor, data: SiteData, weights: Tensor | None = None
    ) -> None:
        super().__init__(program, structure, x, weights)
        self.data, self.N, self.families = data, data.N, data.families
        self._kinds: dict[str, type[Family]] = {}  # of all local sites that a run met
        self._replayed = Replayed(self._at, lambda values: {**values, **program.elsewhere()}, REPLAYED)

    def sites(self, parameters: Values | None = None, globals: Values | None = None) -> Sites:
        """The local sites at these values, from the program at z = 0 and at F along each of the L axes.

        For x = z_0 + 2 z_1 + 3 (E = 1, L = 2) the means there are 3, F + 3 and 2F + 3: b = 3, and B = [F, 2F] / F = [1, 2].
        """
        with one_thread():  # for two rows, threads would only wait for each other
            if torch.is_grad_enabled() or self.program.is_hiding:
                found, log_prior = self._points(parameters, globals)
            else:
                found, log_prior = self._replayed({**self.program.values(), **(parameters or {}), **(globals or {})})
        out = Sites([], {}, log_prior)
        for name, params in found.items():
            points, family = dict(params), self._kinds[name]
            if not issubclass(family, families.Gaussian):
                out.others[name] = {k: v[:, 0] for k, v in points.items()}
                continue
            loc = points.pop(family.location)  # [A, L+1, E]
            ((form, given),) = ((k, v[:, 0]) for k, v in points.items())
            out.gaussians.append(
                Gaussian(
                    name,
                    (loc[:, 1:] - loc[:, :1]).mT / FAR,
                    loc[:, 0],
                    family.root({form: given}),
                    family,
                    form,
                    given,
                    self.layout.places.get(name),
                )
            )
        return out

    def _points(self, parameters: Values | None, globals: Values | None) -> tuple[dict[str, Params], Tensor]:
        """Local site → its parameters [A, L+1, …] at the points of z; and the log prior of the globals."""
        trace, out = self.probed(parameters, globals), {}
        for node in local_nodes(trace):
            params, family = parameters_of(node["fn"], self.A * (self.L + 1), self.x.dtype), family_of(node["fn"])
            assert params is not None and family is not None
            self._kinds[node["name"]] = family
            out[node["name"]] = {k: v.reshape(self.A, self.L + 1, *v.shape[1:]) for k, v in params.items()}
        return out, torch.as_tensor(global_log_prob(trace))

    def _at(self, values: Values) -> tuple[dict[str, Params], Tensor]:
        own = self.program.constraints.keys()
        globals = {name: value for name, value in values.items() if name not in own}
        with pyro.validation_enabled(False):  # a check decides by values, which no record can
            return self._points({name: value for name, value in values.items() if name in own}, globals)
