"""What one Gaussian over the global latents does not see: modes where climbs from far apart end, and where walks from it go."""

from __future__ import annotations

import torch
from torch import Tensor

from inference._globals import modes, walked
from inference._globals.engine_points import EnginePoints
from inference._globals.labels import POINTS, Labels
from inference._globals.target import Target
from inference._method.fit import GlobalGaussian
from inference._method.summed import summed
from inference._method.task import Task

DRAWS = 1000
ONE_MODE = "the mode that the fit is of, one of several"  # what a claim is given
OTHERS = "the fit is of one mode: climbs from far apart end at others"


class OneGaussian:
    """Draws of a Gaussian, as points of the program's density."""

    def __init__(self, task: Task, q: GlobalGaussian) -> None:
        self.target, self.coordinates = Target(summed(task)), q.coordinates
        self.points = EnginePoints(task, q.coordinates)
        self.normal = torch.distributions.MultivariateNormal(q.mean.double(), scale_tril=q.scale_tril.double())
        generator = torch.Generator().manual_seed(task.seed)
        noise = torch.randn(DRAWS, len(q.mean), generator=generator, dtype=torch.float64)
        values = q.coordinates.unflatten(q.mean.double() + noise @ q.scale_tril.double().mT)
        flat = self.target.flat_of({n: v.double() for n, v in values.items()})
        self.flat = flat[flat.isfinite().all(1)]
        self.labels = Labels(self.target, self.flat[:POINTS])

    @torch.no_grad()
    def missed(self) -> float:
        """The share of the mass of modes that the Gaussian does not see."""
        some = self.flat[: modes.WEIGHED]
        return modes.missed(self.target, self.labels, some, self.target.log_density(some))

    @torch.no_grad()
    def beyond(self) -> float:
        """The share of walks from its weighted draws that end where weights are larger than any draw's."""
        if self.target.d != self.coordinates.d or not len(self.flat):
            return 0.0
        log_weights = self._weigh(self.flat)
        return (
            walked.beyond(self.target, self.flat, log_weights, self._weigh)
            if bool(log_weights.isfinite().any())
            else 0.0
        )

    def _weigh(self, flat: Tensor) -> Tensor:
        return self.target.log_density(flat) - self.labels.spread(self._log_q, flat)

    def _log_q(self, flat: Tensor) -> Tensor:
        """The Gaussian's log-density [B] in the coordinates of the points."""
        values, log_det = self.target.values(flat)
        u = self.points.flat_of(values)
        good = u.isfinite().all(1)
        u = torch.where(good.unsqueeze(1), u, 0.0)
        found = self.normal.log_prob(u) - self.coordinates.log_abs_det(u) + log_det
        return found.masked_fill(~good, -torch.inf)


def of_others(share: float) -> str:
    """The warning of a fit that misses so much of the mass."""
    return f"{OTHERS}, which hold about {share:.0%} of the posterior by Laplace's approximation. importance weighs all modes."
