"""Points of the global latents of an exact program, their density by its engine: another look at what `Target` says."""

from __future__ import annotations

import torch
from torch import Tensor

from inference._globals.target import Values
from inference._method.task import Task
from inference._numerics.coordinates import Coordinates
from inference._numerics.definite import NotDefinite
from inference._sampling.nested import settled


class EnginePoints:
    """log p(x, u; θ), u [B, d] the global latents in their coordinates; the engine sums out the local ones."""

    def __init__(self, task: Task, coordinates: Coordinates) -> None:
        self.task, self.coordinates, self.d = task, coordinates, coordinates.d

    def log_density(self, flat: Tensor) -> Tensor:
        """[B] nats; −∞ where it is no number."""
        return settled(torch.stack([self.of_one(u) for u in flat]))

    def of_one(self, u: Tensor) -> Tensor:
        """The log-density of one point [d]."""
        evidence, prior = self.task.engine.log_evidence(None, self.coordinates.unflatten(u), every_row=True)
        return evidence + prior + self.coordinates.log_abs_det(u)

    def values(self, flat: Tensor, alone: bool = False) -> tuple[Values, Tensor]:
        """Site → its values [B, …], and the log-determinant of the map to them [B]."""
        return self.coordinates.unflatten(flat), self.coordinates.log_abs_det(flat)

    def flat_of(self, values: Values) -> Tensor:
        """The points [B, d] that stand for values; not finite where they are outside their supports."""
        transforms = self.coordinates.transforms
        with NotDefinite():
            parts = [transforms[n].inv(values[n]).reshape(len(values[n]), -1) for n in self.coordinates.sizes]
        return torch.cat(parts, 1)

    def axes(self) -> list[tuple[str, int, int]]:
        """Every axis of the values that may number labels: site, axis from the right, size."""
        values = self.coordinates.unflatten(torch.zeros(self.d, dtype=self.task.x.dtype))
        return [(n, axis, v.shape[axis]) for n, v in values.items() for axis in range(-v.dim(), 0)]
