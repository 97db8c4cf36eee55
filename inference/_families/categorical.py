"""Categorical: each entry is one of K categories, counted from 0."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from inference._families._elementwise import blurred
from inference._families._family import Density, Family, Floor, Params, Pool, product, tiny
from zoo._data import blockwise


class Categorical(Family):
    """x [n, E] of category numbers; parameters [A, E, K]."""

    distribution = dist.Categorical
    parameters = {"probs": constraints.simplex, "logits": constraints.real_vector}
    one_of = ("probs", "logits")
    up_to_constant = ("logits",)
    priors = {"probs": (dist.Dirichlet,)}

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self.categories = int(max(rows.nan_to_num(0.0).max() for rows in blockwise.blocks(x))) + 1

    def width(self, entries: int, assignments: int) -> int:
        return max(entries * self.categories, assignments)

    def density(self, params: Params) -> Density:
        logits = self._log_probs(params)
        categories = logits.shape[-1]
        finite = logits.clamp(min=torch.finfo(logits.dtype).min).flatten(1)  # 0 · −inf is not a number
        return lambda x: (finite @ self._one_hot(*self._fill(x), categories).mT).mT

    def statistics(self, x: Tensor, weights: Tensor, params: Params) -> dict[str, Tensor]:
        categories = next(iter(params.values())).shape[-1]
        x, seen = self._fill(x)
        counts = weights.mT @ self._one_hot(x, seen, categories)
        return {"counts": counts.reshape(weights.shape[1], x.shape[1], categories)}

    def expected(self, stats: dict[str, Tensor], params: Params) -> Tensor:
        return product(stats["counts"], self._log_probs(params)).sum()

    def maximise(self, name: str, pool: Pool, stats: dict[str, Tensor], params: Params, floor: Floor) -> Tensor:
        categories = params[name].shape[-1]
        counts = pool.total(stats["counts"])
        if pool.prior is not None:
            counts = counts + pool.hyper("concentration") - 1
        counts = counts.reshape(-1, categories)
        total = counts.sum(1, keepdim=True)
        probs = counts / total.clamp(min=tiny(counts))
        # a category without rows keeps a weight that is positive, if only just: its logarithm stays finite
        smallest = tiny(counts)
        probs = probs.clamp(min=smallest) / probs.clamp(min=smallest).sum(1, keepdim=True)
        value = probs.log() if name == "logits" else probs
        return pool.fill(value.reshape(-1), (total > 0).expand_as(counts).reshape(-1))

    def blurred(self, stats: dict[str, Tensor], share: float) -> dict[str, Tensor]:
        return blurred(stats, stats["counts"].sum(-1), share)

    @staticmethod
    def _log_probs(params: Params) -> Tensor:
        return torch.log_softmax(params["logits"], -1) if "logits" in params else params["probs"].log()

    @staticmethod
    def _one_hot(x: Tensor, seen: Tensor | None, categories: int) -> Tensor:
        one_hot = torch.nn.functional.one_hot(x.long(), categories).to(x.dtype)
        return (one_hot if seen is None else one_hot * seen.unsqueeze(-1)).flatten(1)
