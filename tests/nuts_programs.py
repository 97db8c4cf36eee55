"""Programs with global latents whose posteriors are known by another route."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from benchmarks._references.programs import beta_binomial as coins
from benchmarks._references.programs import logistic_intercepts as logistic
from benchmarks._references.programs import normal_normal as normal_mean
from benchmarks._references.programs import rows
from benchmarks.peers.nuts import schools

__all__ = ["coins", "logistic", "normal_mean", "rows", "schools"]  # of the references and benchmarks


def dice(x=None, size=None):
    p = pyro.sample("p", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
    with rows(x, size):
        return pyro.sample("x", dist.Categorical(p), obs=x)


def centred(x=None, size=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with rows(x, size):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        return pyro.sample("x", dist.Normal(theta, 10.0), obs=x)


def two_means(x=None, size=None):
    mu = pyro.sample("mu", dist.Normal(torch.tensor([-2.0, 2.0]), 1.0).to_event(1))
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
        return pyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


def switching(x=None, size=None):
    """Each row is three steps of a chain with two states, which stays where it is with probability p."""
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with rows(x, size):
        z = pyro.sample("z0", dist.Bernoulli(0.5))
        seen = [z]
        for t in (1, 2):
            z = pyro.sample(f"z{t}", dist.Bernoulli(torch.where(z > 0, p, 1 - p)))
            seen.append(z)
        mean = torch.stack(torch.broadcast_tensors(*(2 * z - 1 for z in seen)), -1)
        return pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


def clusters(x=None, size=None):
    """A discrete and a normal local latent, and globals of several supports."""
    w = pyro.sample("w", dist.Dirichlet(torch.ones(2)))
    slope = pyro.sample("slope", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 0.5))
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(w))
        a = pyro.sample("a", dist.Normal(torch.tensor([-2.0, 2.0])[z], 1.0))
        return pyro.sample("x", dist.Normal(a.unsqueeze(-1) * slope, noise).to_event(1), obs=x)


def two_roots(x=None, size=None):
    """The posterior of `a` has modes near −5 and 5."""
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    with rows(x, size):
        return pyro.sample("x", dist.Normal(a**2, 1.0), obs=x)


def improper(x=None, size=None):
    """Nothing is known of `b`: its prior is taken away again."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    pyro.factor("flat", b**2 / 2)
    with rows(x, size):
        return pyro.sample("x", dist.Normal(a.unsqueeze(-1), torch.ones(1)).to_event(1), obs=x)


def moving_support(x=None, size=None):
    top = pyro.sample("top", dist.LogNormal(0.0, 0.5))
    low = pyro.sample("low", dist.Uniform(torch.zeros(()), top))
    with rows(x, size):
        return pyro.sample("x", dist.Normal(low, 1.0), obs=x)


def counted(x=None, size=None):
    k = pyro.sample("k", dist.Poisson(3.0))
    with rows(x, size):
        return pyro.sample("x", dist.Normal(k, 1.0), obs=x)
