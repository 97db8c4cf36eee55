"""Deep Markov model: a state that moves by a network from step to step, and turns bits on by another.

Generative story of a series x [T, D] (Krishnan, Shalit & Sontag 2017):

    z_1 ~ N(μ(z_0), diag σ²(z_0))                 from a learned z_0
    z_t | z_{t−1} ~ N(μ(z_{t−1}), diag σ²(z_{t−1}))
    x_td | z_t ~ Bernoulli(σ(f_d(z_t)))

The transition is gated: μ(z) = (1 − g) ⊙ (A z + b) + g ⊙ h, where the network h proposes a new state, the gate g in (0, 1)
says in which numbers it is taken, and A begins at the identity: at first a state stays. With `transition=linear` it is a
linear Gaussian state space under Bernoulli data. A series may end early: its last steps are NaN.

With `priors=True` the networks' weights ~ N(0, 1 / inputs) and biases ~ N(0, 1) (Neal 1996), of the bits' logits 2.5 times as
wide and about the share of ones (Gelman et al. 2008); z_0 ~ N(0, I), and a linear transition's σ is half-normal of 1.
"""

from __future__ import annotations

from typing import Annotated, Literal, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from zoo._errors import UsageError
from zoo._nets.drawn import LOGITS, Drawn, Network, drawn
from zoo._options import Count, Used
from zoo._program.parameters import WithPriors

Linear = cast(type[nn.Linear], PyroModule[nn.Linear])
Sequential = cast(type[nn.Sequential], PyroModule[nn.Sequential])
LEAST_SCALE = 0.01


class Model(WithPriors):
    """`Model(x, latents=10, hidden=50, emission=50, transition="gated", priors=False)` for series of bits x [n, T, D].

    - `latents`: numbers in a state, L.
    - `hidden`: width of the transition's networks.
    - `emission`: width of the network from a state to the bits, which has two layers.
    - `transition`: a `gated` network, or a `linear` map.
    - `priors`: draw the weights and all else that is learned from priors, so that they have a posterior.

    Raises `UsageError` for data that are not series of 0 and 1.
    """

    nets: tuple[str, ...] = ()

    def __init__(
        self,
        x: Tensor,
        *,
        latents: Count = 10,
        hidden: Annotated[Count, Used(transition="gated")] = 50,
        emission: Count = 50,
        transition: Literal["gated", "linear"] = "gated",
        priors: bool = False,
    ) -> None:
        super().__init__()
        if x.dim() != 3 or not bool(((x == 0) | (x == 1) | x.isnan()).all()):
            raise UsageError(
                f"deep_markov expects series of 0 and 1 (n × T × D), got shape {tuple(x.shape)} and numbers from "
                f"{float(x.nan_to_num(0).min()):g} to {float(x.nan_to_num(0).max()):g}; NaN is not observed."
            )
        L, D = latents, x.shape[2]
        self.T, self.priors, self.gated = x.shape[1], priors, transition == "gated"
        self.begin("first", torch.zeros(L), constraints.real)  # z_0
        stay = Linear(L, L)
        nn.init.eye_(stay.weight)
        nn.init.zeros_(stay.bias)
        self._add("stay", stay)
        if self.gated:
            self._add("gate", Sequential(Linear(L, hidden), nn.ReLU(), Linear(hidden, L), nn.Sigmoid()))
            self._add("propose", Sequential(Linear(L, hidden), nn.ReLU(), Linear(hidden, L)))
            self._add("spread", Sequential(nn.ReLU(), Linear(L, L)))
        else:
            self.begin("scales", torch.ones(L), constraints.positive)
        last = Linear(emission, D)
        net = Sequential(Linear(L, emission), nn.ReLU(), Linear(emission, emission), nn.ReLU(), last)
        with torch.no_grad():
            last.bias.copy_(x.flatten(0, 1).nanmean(0).nan_to_num(0.5).clamp(0.001, 0.999).logit())
        self._add("emission", net, LOGITS)

    def _add(self, name: str, net: nn.Module, width: float = 1.0) -> None:
        self.nets = (*self.nets, name)
        setattr(self, name, Drawn(net, width) if self.priors else net)

    def prior(self, name: str, start: Tensor) -> dist.TorchDistribution:
        if name == "first":
            return dist.Normal(torch.zeros_like(start), 1.0).to_event(1)
        return dist.HalfNormal(torch.ones_like(start)).to_event(1)

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """The program: x [n, T, D], or None to simulate `size` series. Returns x [n, T, D]."""
        theta, steps = self.theta(), []
        nets = {name: drawn(getattr(self, name), name) for name in self.nets}
        with pyro.plate("data", size if x is None else len(x)):
            z = theta["first"]
            for t in range(self.T if x is None else x.shape[1]):
                z = pyro.sample(f"z_{t}", self._move(z, nets, theta))  # [n, L]
                bits = dist.Bernoulli(logits=nets["emission"](z)).to_event(1)
                steps.append(pyro.sample(f"x_{t}", bits, obs=None if x is None else x[:, t]))
        return torch.stack(steps, -2)

    def _move(self, z: Tensor, nets: dict[str, Network], theta: dict[str, Tensor]) -> dist.TorchDistribution:
        """The next state's distribution, given a state [..., L]."""
        if not self.gated:
            return dist.Normal(nets["stay"](z), theta["scales"]).to_event(1)
        gate, proposed = nets["gate"](z), nets["propose"](z)
        loc = (1 - gate) * nets["stay"](z) + gate * proposed
        return dist.Normal(loc, softplus(nets["spread"](proposed)) + LEAST_SCALE).to_event(1)
