"""A climb by numbers ends at the same optimum in any units of the data, and never says "converged" short of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

from inference import run
from inference._exact import numeric

N = 200


class Experts(PyroModule):
    """Two regressions of y on u, and a gate on u that starts at 0; u in a unit of its own."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        s, self.r = float(x[:, 0].std()), 1 / float(x[:, 1].std())
        self.gate = PyroParam(torch.zeros(()), constraints.real)
        self.offset = PyroParam(torch.zeros(()), constraints.real)
        self.slopes = PyroParam(torch.tensor([-1.0, 1.0]) * s * self.r, constraints.real)
        self.offsets = PyroParam(torch.tensor([-0.1, 0.1]) * s, constraints.real)
        self.scales = PyroParam(torch.ones(2) * s, constraints.positive)

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        u = torch.randn(size or 1) / self.r if x is None else x[:, 1]
        with pyro.plate("data", len(u)):
            against = self.gate * u + self.offset
            z = pyro.sample("z", dist.Categorical(logits=torch.stack([torch.zeros_like(against), against], -1)))
            y = dist.Normal(self.offsets[z] + self.slopes[z] * u, self.scales[z])
            return torch.stack([pyro.sample("y", y, obs=None if x is None else x[:, 0]), u], -1)


def found(y_unit: float, u_unit: float) -> Any:
    random = np.random.default_rng(0)
    u = random.normal(size=N)
    first = random.random(N) < 1 / (1 + np.exp(-2.5 * u))
    y = np.where(first, 1 + 2 * u, -1 - 0.5 * u) + 0.3 * random.normal(size=N)
    fit = run(Experts, data=np.stack([y * y_unit, u * u_unit], 1), method="em")
    return fit.converged, fit.claimed.value + N * np.log(y_unit)


@pytest.fixture(scope="module")
def best() -> float:
    converged, value = found(1.0, 1.0)
    assert converged
    return float(value)


@pytest.mark.parametrize(("y_unit", "u_unit"), [(1e-5, 1.0), (1e5, 1.0), (1.0, 1e4), (1e4, 1e-4)])
def test_the_optimum_is_the_same_in_any_units(best: float, y_unit: float, u_unit: float) -> None:
    converged, value = found(y_unit, u_unit)
    assert converged
    assert value == pytest.approx(best, abs=1e-3)


def test_converged_is_not_said_where_the_units_hold_a_parameter_still(
    best: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(height: Callable[[Tensor], Tensor], flat: Tensor, sizes: list[int]) -> None:
        return None

    monkeypatch.setattr(numeric, "_units", none)
    converged, value = found(1e-5, 1.0)
    assert not converged or value == pytest.approx(best, abs=1e-3)
