"""Programs that observe scalars, as Pyro's tutorials write them: x is [n], and a table of one column is handed over so."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch.distributions import constraints


def rows(x, size):
    return pyro.plate("data", size if x is None else len(x))


def tutorial(x=None, size=None):
    """https://pyro.ai/examples/gmm.html"""
    weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
    with rows(x, size):
        z = pyro.sample("assignment", dist.Categorical(weights))
        return pyro.sample("obs", dist.Normal(locs[z], scale), obs=x)


def mixture(x=None, size=None):
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    rates = pyro.param("rates", torch.tensor([1.0, 5.0]), constraint=constraints.positive)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.Poisson(rates[z]), obs=x)


def mixture_of_columns(x=None, size=None):
    """The same, for x [n, 1]."""
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    rates = pyro.param("rates", torch.tensor([1.0, 5.0]), constraint=constraints.positive)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.Poisson(rates[z].unsqueeze(-1)).to_event(1), obs=x)


def level(x=None, size=None):
    mean = pyro.param("mean", torch.tensor(0.0))
    noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
    with rows(x, size):
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        return pyro.sample("x", dist.Normal(z, noise), obs=x)


def bent(x=None, size=None):
    """No posterior of it is Gaussian."""
    with rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z + 0.3 * z**2, 0.5), obs=x)


class Built(PyroModule):
    """Built on the data, as it takes them."""

    def __init__(self, x):
        super().__init__()
        assert x.dim() == 1
        self.mean = PyroParam(x.nanmean())

    def forward(self, x=None, size=None):
        with rows(x, size):
            return pyro.sample("x", dist.Normal(self.mean, 1.0), obs=x)
