"""Bernoulli: each entry is 0 or 1."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from inference._families._elementwise import Elementwise, inside
from inference._families._family import Params


class Bernoulli(Elementwise):
    distribution = dist.Bernoulli
    parameters = {"probs": constraints.unit_interval, "logits": constraints.real}
    one_of = ("probs", "logits")
    priors = {"probs": (dist.Beta,)}
    bordered = True

    def natural(self, params: Params) -> tuple[list[Tensor], Tensor]:
        logits = params["logits"] if "logits" in params else torch.logit(inside(params["probs"]))
        return [logits], torch.nn.functional.softplus(logits)

    def mean_to(self, name: str, mean: Tensor) -> Tensor:
        return torch.logit(inside(mean)) if name == "logits" else mean
