"""Users' linear-Gaussian programs, and near misses; none of them is in the library."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

D, L = 5, 2


def rows(x, size):
    return pyro.plate("data", size if x is None else len(x))


def weights():
    return torch.linspace(-1.0, 1.5, D * L).reshape(D, L)


def standard(name="z", size=L):
    return pyro.sample(name, dist.Normal(torch.zeros(size), 1.0).to_event(1))


def noise(*shape):
    return pyro.param("noise", torch.full(shape, 0.7), constraint=constraints.positive)


def mixture_of_factor_analysers(x=None, size=None):
    pi = pyro.param("pi", torch.tensor([0.3, 0.7]), constraint=constraints.simplex)
    W = pyro.param("W", torch.stack([weights(), -weights().flip(0)]))
    mu = pyro.param("mu", torch.stack([torch.zeros(D), 3 * torch.ones(D)]))
    with rows(x, size):
        k = pyro.sample("k", dist.Categorical(pi))
        z = standard()
        mean = (W[k] @ z.unsqueeze(-1)).squeeze(-1) + mu[k]
        return pyro.sample("x", dist.Normal(mean, noise(D)).to_event(1), obs=x)


def random_intercept(x=None, size=None):
    level = pyro.param("level", torch.tensor(1.0))
    spread = pyro.param("spread", torch.tensor(0.8), constraint=constraints.positive)
    with rows(x, size):
        effect = pyro.sample("effect", dist.Normal(0.0, spread))
        return pyro.sample(
            "x", dist.Normal((level + effect).unsqueeze(-1).expand(*effect.shape, D), noise()).to_event(1), obs=x
        )


def random_intercept_in_a_plate(x=None, size=None):
    level = pyro.param("level", torch.tensor(1.0))
    spread = pyro.param("spread", torch.tensor(0.8), constraint=constraints.positive)
    with pyro.plate("data", size if x is None else len(x), dim=-2):
        effect = pyro.sample("effect", dist.Normal(level, spread))
        with pyro.plate("repeats", D, dim=-1):
            return pyro.sample("x", dist.Normal(effect, noise()), obs=x)


def two_latents_that_add(x=None, size=None):
    W = pyro.param("W", weights())
    with rows(x, size):
        z = standard()
        u = pyro.sample("u", dist.Normal(0.5 * z[..., 0], 0.4))
        return pyro.sample("x", dist.Normal(z @ W.mT + u.unsqueeze(-1), noise(D)).to_event(1), obs=x)


def correlated_noise(x=None, size=None):
    W = pyro.param("W", weights())
    mu = pyro.param("mu", torch.zeros(D))
    tril = pyro.param("tril", torch.eye(D) + 0.1 * torch.ones(D, D).tril(-1), constraint=constraints.lower_cholesky)
    with rows(x, size):
        z = standard()
        return pyro.sample("x", dist.MultivariateNormal(z @ W.mT + mu, scale_tril=tril), obs=x)


def rows_of_their_own_noise(x=None, size=None):
    """Heteroscedastic: the last column says how noisy the others are."""
    W = pyro.param("W", weights()[: D - 1])
    with rows(x, size):
        z = standard()
        y = x if x is not None else torch.ones(size, D)
        scale = (0.5 + y[:, -1:].abs()).expand(-1, D - 1)
        seen = None if x is None else x[:, :-1]
        out = pyro.sample("y", dist.Normal(z @ W.mT, scale).to_event(1), obs=seen)
        return torch.cat([out, y[:, -1:]], -1)


def decoder(curve, size=1.0):
    """x | z ~ N(curve(size · W z) / size, noise²)."""

    def program(x=None, size_=None, *, size=None):
        with rows(x, size):
            z = standard()
            mean = curve(scale * (z @ weights().mT)) / scale
            return pyro.sample("x", dist.Normal(mean, noise(D)).to_event(1), obs=x)

    scale = size
    return program


def variance_of_z(x=None, size=None):
    with rows(x, size):
        z = standard()
        scale = noise(D) * (1 + 0.01 * z[..., :1].square())
        return pyro.sample("x", dist.Normal(z @ weights().mT, scale).to_event(1), obs=x)


def student(x=None, size=None):
    with rows(x, size):
        z = standard()
        return pyro.sample("x", dist.StudentT(5.0, z @ weights().mT, noise(D)).to_event(1), obs=x)


def half_normal(x=None, size=None):
    with rows(x, size):
        z = pyro.sample("z", dist.HalfNormal(torch.ones(L)).to_event(1))
        return pyro.sample("x", dist.Normal(z @ weights().mT, noise(D)).to_event(1), obs=x)
