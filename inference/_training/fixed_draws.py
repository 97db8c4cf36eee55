"""The bound with its random numbers held fixed: a plain function of θ and the guide, many draws at once.

A Gaussian guide draws z = m + s ε. With ε fixed the mean over draws is deterministic, so that L-BFGS climbs it and has a test
of convergence; what is left of the noise is told by climbing again with twice as many draws (Giordano, Ingram & Broderick
2024; Burroni, Domke & Sheldon 2023). Each draw runs the program by itself under `torch.vmap`, which gives the program the
shapes that it has for one draw, so that it may index a global latent by a local one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import TransformedDistribution

from guides import Derived
from inference._method.task import Task
from inference._numerics.weighted import weighed
from inference._training import elbo
from zoo._program.trace import Node

NUMBERS = 2**22  # in the largest temporary of an evaluation
Noise = dict[str, Tensor]  # site → its standard normal numbers [draws, …]


class Given(Messenger):
    """Draws the Gaussian sites of a guide from given standard normal numbers; without any, notes how many each site takes."""

    def __init__(self, noise: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.noise = noise
        self.shapes: dict[str, torch.Size] = {}

    def _pyro_sample(self, msg: Node) -> None:
        if msg["is_observed"] or msg["done"] or type(msg["fn"]).__name__ == "_Subsample":
            return
        base = _normal(msg["fn"])
        shape = self.shapes[msg["name"]] = base.loc.shape
        noise = base.loc.new_zeros(shape) if self.noise is None else self.noise[msg["name"]]
        msg["value"], msg["done"] = _placed(msg["fn"], noise), True


def _normal(fn: object) -> dist.Normal | dist.MultivariateNormal:
    """The normal at the bottom of a distribution; raises `NotImplementedError` where there is none."""
    while isinstance(fn, TransformedDistribution | dist.Independent):
        fn = fn.base_dist
    if not isinstance(fn, dist.Normal | dist.MultivariateNormal):
        raise NotImplementedError(f"{type(fn).__name__} is not drawn from standard normal numbers")
    return fn


def _placed(fn: object, noise: Tensor) -> Tensor:
    """The draw of `fn` that the standard normal numbers `noise` make."""
    if isinstance(fn, TransformedDistribution):
        value = _placed(fn.base_dist, noise)
        for transform in fn.transforms:
            value = transform(value)
        return value
    if isinstance(fn, dist.Independent):
        return _placed(fn.base_dist, noise)
    if isinstance(fn, dist.MultivariateNormal):
        return fn.loc + (fn.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
    assert isinstance(fn, dist.Normal)
    return fn.loc + fn.scale * noise


class FixedDraws:
    """The bound of all data for given noise, nats in total; `particles` > 1: importance-weighted in the local latents, whose
    mean over draws of the globals is then a bound, and each draw a weight of the globals alone.

    Raises `NotImplementedError` where a guide's draws are not Gaussian or the program does not run under `torch.vmap`.
    """

    def __init__(self, task: Task, guide: torch.nn.Module, particles: int = 1) -> None:
        self.task, self.guide, self.weighted = task, guide, particles > 1
        structure = task.structure
        if structure.discrete_locals:
            if not elbo.sums_out(structure, task.limit):
                raise NotImplementedError("the discrete latents are drawn")
            self.tables = elbo.joint_tables(task)
            self.one: Callable[[], Tensor] = self._summed
        else:
            self.bound = elbo.Bound(task, guide, particles)
            self.one = self._drawn
        self.width = task.x.numel() * self._assignments() * particles  # numbers in one draw
        with torch.no_grad(), pyro.validation_enabled(False):
            probe = Given()
            with probe:
                self.one()
            self.shapes = probe.shapes
            self._check()

    def _assignments(self) -> int:
        return len(next(iter(self.tables.values()))) if self.task.structure.discrete_locals else 1

    def _check(self) -> None:
        """Side by side, draws must give what they give one by one."""
        noise = self.draw(2, torch.Generator().manual_seed(0))
        try:
            together = self.values(noise)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise NotImplementedError(f"draws cannot be made side by side: {error}") from error
        alone = torch.stack([self._lane({k: v[i] for k, v in noise.items()}) for i in range(2)])
        if not torch.allclose(together, alone, rtol=1e-3 if alone.dtype == torch.float32 else 1e-8, equal_nan=True):
            raise NotImplementedError("draws made side by side depend on each other")

    # --------------------------------------------------------------------------------------------------------- values

    def draw(self, draws: int, generator: torch.Generator, plain: bool = False) -> Noise:
        """Standard normal numbers for an even number of draws: half of them, and their mirror images, with a variance of
        exactly one, so that the bound of a Gaussian posterior has hardly any noise. `plain`: independent ones."""
        out = {}
        for name, shape in self.shapes.items():
            if plain:
                out[name] = torch.randn(draws, *shape, generator=generator, dtype=torch.float64).to(self.task.x.dtype)
                continue
            half = torch.randn(draws // 2, *shape, generator=generator, dtype=torch.float64).to(self.task.x.dtype)
            if draws >= 8:
                half = half / half.square().mean(0).sqrt()
            out[name] = half
        if plain:
            return out
        self._whiten(out)
        return {name: torch.cat([half, -half]) for name, half in out.items()}

    def _whiten(self, half: Noise) -> None:
        """Give the numbers of a joint q of the globals a covariance of exactly one too, where there are draws enough."""
        if not isinstance(self.guide, Derived) or self.guide.globals_covariance == "diagonal":
            return
        names = [n for n in self.guide.bijections if n in half]
        together = torch.cat([half[n].flatten(1) for n in names], 1) if names else torch.zeros(0, 0)
        if not 0 < 2 * together.shape[1] <= len(together):
            return
        factor = torch.linalg.cholesky(together.mT @ together / len(together))
        white = torch.linalg.solve_triangular(factor, together.mT, upper=False).mT
        for name, part in zip(names, white.split([half[n][0].numel() for n in names], 1), strict=True):
            half[name] = part.reshape(half[name].shape)

    def values(self, noise: Noise) -> Tensor:
        """The bound [draws], nats, differentiable."""
        with pyro.validation_enabled(False):
            return torch.vmap(self._lane)(noise)

    def chunks(self, noise: Noise) -> Iterator[Noise]:
        """As many draws at a time as fit in memory."""
        size = max(1, NUMBERS // self.width)
        names = list(noise)
        for parts in zip(*(noise[n].split(size) for n in names), strict=True):
            yield dict(zip(names, parts, strict=True))

    @torch.no_grad()
    def all_values(self, noise: Noise) -> Tensor:
        """The bound [draws], nats."""
        return torch.cat([self.values(some) for some in self.chunks(noise)])

    def _lane(self, noise: Noise) -> Tensor:
        with Given(noise):
            return self.one()

    def _drawn(self) -> Tensor:
        """The bound for one draw of all latents."""
        return self.bound.surrogate(slice(None), self.task.x) * self.task.count

    def _summed(self) -> Tensor:
        """The bound for one draw of the globals, the discrete local latents summed out under the guide (or, where weighted,
        summed exactly)."""
        task, rows = self.task, slice(None)
        gain, outside = elbo.summed(task, self.guide, self.tables, rows, task.x, self.weighted)
        return (gain if task.weights is None else weighed(gain.sum(0), task.weights, rows)).sum() + outside
