"""Sigmoid belief net: many binary causes, each of which may be on, and together they turn bits on.

Generative story (Neal 1992; trained by sampling in Mnih & Gregor 2014):

    z_ik ~ Bernoulli(σ(b_k))                      K causes that are independent before x is seen
    x_id | z_i ~ Bernoulli(σ(w_d·z_i + c_d))      and compete to explain it afterwards

With `layers=2` the causes have causes: z2_i ~ Bernoulli(σ(b)) and z_i | z2_i ~ Bernoulli(σ(V z2_i + b)). Every bit depends
on all causes of the layer above, so that log p(x) is a sum over all 2^K of their values.

With `priors=True` b ~ N(0, 2.5²), and w, V and c have the priors of logits of a network: w ~ N(0, 2.5² / K) and c about the
logit of the share of ones, ~ N(·, 2.5²) (Neal 1996; Gelman et al. 2008).
"""

from __future__ import annotations

from typing import Literal, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints

from zoo._errors import UsageError
from zoo._nets.drawn import LOGITS, Drawn, drawn
from zoo._options import Count
from zoo._program.parameters import WithPriors

Linear = cast(type[nn.Linear], PyroModule[nn.Linear])


class Model(WithPriors):
    """`Model(x, causes=30, layers=1, priors=False)` for binary data x [n, D].

    - `causes`: how many in each layer, K.
    - `layers`: how many layers of causes.
    - `priors`: draw the parameters from weak priors, so that they have a posterior.

    Parameters (shapes): `logits` [K] of the causes without causes; `below.weight` [D, K] and `below.bias` [D]; with two layers
    `between.weight` [K, K] and `between.bias` [K].

    Raises `UsageError` for data that are not a table of 0 and 1.
    """

    def __init__(self, x: Tensor, *, causes: Count = 30, layers: Literal[1, 2] = 1, priors: bool = False) -> None:
        super().__init__()
        if x.dim() != 2 or not bool(((x == 0) | (x == 1) | x.isnan()).all()):
            raise UsageError(
                f"sigmoid_belief_net expects a 2-D table (n × D) of 0 and 1, got shape {tuple(x.shape)} and numbers from "
                f"{float(x.nan_to_num(0).min()):g} to {float(x.nan_to_num(0).max()):g}. Binarise intensities (--binarize "
                "fixed, dynamic or a threshold)."
            )
        self.layers, self.priors = layers, priors
        self.begin("logits", torch.zeros(causes), constraints.real)
        between = Linear(causes, causes) if layers == 2 else None
        below = Linear(causes, x.shape[1])
        with torch.no_grad():
            below.bias.copy_(x.nanmean(0).nan_to_num(0.5).clamp(0.001, 0.999).logit())
        if between is not None:
            self.between = Drawn(between, LOGITS) if priors else between
        self.below = Drawn(below, LOGITS) if priors else below

    def prior(self, name: str, start: Tensor) -> dist.TorchDistribution:
        return dist.Normal(torch.zeros_like(start), LOGITS).to_event(1)

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """The program: x [n, D], or None to simulate `size` data. Returns x [n, D]."""
        logits, below = self.theta()["logits"], drawn(self.below, "below")  # [K]
        between = drawn(self.between, "between") if self.layers == 2 else None
        with pyro.plate("data", size if x is None else len(x)):
            if between is not None:
                logits = between(pyro.sample("z2", _bits(logits)))  # [n, K]
            z = pyro.sample("z", _bits(logits))
            return pyro.sample("x", _bits(below(z)), obs=x)


def _bits(logits: Tensor) -> dist.TorchDistribution:
    """Independent bits [..., K] with these logits."""
    return dist.Bernoulli(logits=logits).to_event(1)
