"""Programs to calibrate methods on: posteriors that a method has exactly, and such as it cannot have."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch


def rows(x, size):
    return pyro.plate("data", size if x is None else len(x))


def counts(x=None, size=None):
    """Conjugate: one rate for all rows."""
    rate = pyro.sample("rate", dist.Gamma(3.0, 1.0))
    with rows(x, size):
        return pyro.sample("x", dist.Poisson(rate), obs=x)


def more_counts(x=None, size=None):
    """The same with a higher rate."""
    rate = pyro.sample("rate", dist.Gamma(6.0, 1.0))
    with rows(x, size):
        return pyro.sample("x", dist.Poisson(rate), obs=x)


def levels(x=None, size=None):
    """Jointly normal: a level of each row around one of all."""
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    with rows(x, size):
        z = pyro.sample("z", dist.Normal(a, 1.0))
        return pyro.sample("x", dist.Normal(z.unsqueeze(-1), torch.tensor([0.5, 1.0])).to_event(1), obs=x)


def states(x=None, size=None):
    """A discrete latent in each row, at a fixed θ."""
    loc = pyro.param("loc", torch.tensor([-1.0, 0.5, 2.0]))
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        return pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def twins(x=None, size=None):
    """Two latents of which the data tell the sum alone: their posterior is strongly correlated."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with rows(x, size):
        return pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)


def skewed(x=None, size=None):
    """A count a row whose logarithm of the rate is normal: few counts say only that it is low."""
    with rows(x, size):
        z = pyro.sample("z", dist.Normal(-1.0, 2.0))
        return pyro.sample("x", dist.Poisson(z.exp()), obs=x)


def spread(x=None, size=None):
    """Rows around an unknown mean with an unknown spread."""
    mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with rows(x, size):
        return pyro.sample("x", dist.Normal(mean, scale), obs=x)
