"""Hessians from few products against all columns, and Laplace's method on long chains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import profit_programs as programs
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from helpers import task_of

from inference import importance
from inference._density import newton, sparse
from inference._density.local import LocalDensity


def second_order(x=None, size=None):
    """Two numbers a step; a step depends on the two before it, and an observation on its own."""
    with user.rows(x, size):
        z, out = [], []
        for t in range(12):
            before = sum(z[-2:]) if z else torch.zeros(2)
            z.append(pyro.sample(f"z{t}", dist.Normal(before.sin(), 0.5).to_event(1)))
            seen = None if x is None else x[:, t]
            out.append(pyro.sample(f"x{t}", dist.Poisson(z[t].prod(-1).exp()), obs=seen))
        return torch.stack(out, -1)


def density_of(model, x):
    task = task_of(model, x)
    return task, LocalDensity(task.program, task.structure, task.x)


@pytest.mark.parametrize(("model", "products"), [(programs.volatility(12), 3), (second_order, 10)])
def test_few_products_give_the_whole_hessian(model, products):
    _, density = density_of(model, np.random.default_rng(0).poisson(1.0, (3, 12)))
    assert density.pattern.seeds.shape == (products, density.L)
    z, a = torch.randn(3, density.L, dtype=torch.float64), torch.zeros(3, dtype=torch.long)
    few = newton.derivatives(density, z, a)
    density.pattern = None
    for one, other in zip(few, newton.derivatives(density, z, a), strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_where_there_is_nothing_to_save_there_is_no_pattern():
    assert density_of(programs.volatility(4), np.ones((3, 4)))[1].pattern is None


def test_a_wrong_graph_is_noticed():
    task, density = density_of(programs.volatility(12), np.ones((3, 12)))
    lost = tuple(replace(s, parents=()) if s.name == "h5" else s for s in task.structure.sites)
    density.pattern = sparse.pattern(replace(task.structure, sites=lost), density.sites)
    with pytest.raises(ArithmeticError, match="found not to join"):
        newton.derivatives(density, torch.zeros(3, 12, dtype=torch.float64), torch.zeros(3, dtype=torch.long))


@pytest.mark.full
def test_importance_at_the_modes_of_a_long_chain():
    rng, T = np.random.default_rng(0), 60
    x = np.exp(0.4 * np.sin(np.arange(T) / 7)) * rng.normal(size=(2, T))
    task = task_of(programs.volatility(T), x)
    task.learn = False
    torch.manual_seed(0)
    fit = importance.fit(task, proposal="laplace", samples=2000)
    truth = programs.volatility_truth(x).sum()
    assert fit.claimed.kind == "estimate" and abs(fit.claimed.value - truth) < 4 * fit.claimed.se
