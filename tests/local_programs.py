"""Programs whose continuous local latents have no exact posterior, with truths by quadrature; none is in the library."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import special, stats
from torch.distributions import constraints

SCALE = 1.2


def rows(x, size):
    return pyro.plate("data", size if x is None else len(x))


def counts(x=None, size=None):
    """z ~ N(0, s²), x | z ~ Poisson(eᶻ); x [n, 1]."""
    s = pyro.param("s", torch.tensor(SCALE), constraint=constraints.positive)
    with rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, s))
        return pyro.sample("x", dist.Poisson(z.exp().unsqueeze(-1)).to_event(1), obs=x)


LOADINGS = np.array([[1.5, -0.5], [-1.0, 0.8], [0.3, 1.2], [0.7, 0.7], [-1.1, -0.2], [0.2, -1.4]])


def logistic(x=None, size=None):
    """z ~ N(0, I₂), x | z ~ Bernoulli(logits W z); x [n, 6] of 0 and 1."""
    W = pyro.param("W", torch.tensor(LOADINGS, dtype=torch.get_default_dtype()))
    with rows(x, size):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        return pyro.sample("x", dist.Bernoulli(logits=z @ W.mT).to_event(1), obs=x)


def bent(x=None, size=None):
    """A mixture of two curves: k ~ Categorical, z ~ N(0, 1), x | k, z ~ N(c_k + tanh(w_k z), 0.3²); x [n, 2]."""
    pi = pyro.param("pi", torch.tensor([0.35, 0.65]), constraint=constraints.simplex)
    centers = pyro.param("centers", torch.tensor([[0.0, 0.0], [1.0, 0.5]]))
    slopes = pyro.param("slopes", torch.tensor([[0.8, 0.3], [0.2, -0.9]]))
    with rows(x, size):
        k = pyro.sample("k", dist.Categorical(pi))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        mean = centers[k] + (slopes[k] * z.unsqueeze(-1)).tanh()
        return pyro.sample("x", dist.Normal(mean, 0.3).to_event(1), obs=x)


def several(x=None, size=None):
    """Two discrete sites and three continuous ones, two of them constrained; x [n, 3]."""
    with rows(x, size):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
        b = pyro.sample("b", dist.Bernoulli(torch.where(k == 0, 0.2, 0.6)))
        rate = pyro.sample("rate", dist.Gamma(2.0 + k, 1.0))
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
        mean = torch.stack([rate, z[..., 0].tanh() + b, z[..., 1] * share[..., 0]], -1)
        return pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)


def in_a_plate(x=None, size=None):
    """A latent a datum and one for each of its three counts; x [n, 3]."""
    with pyro.plate("data", size if x is None else len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(0.5, 1.0))
        with pyro.plate("repeats", 3, dim=-1):
            u = pyro.sample("u", dist.Normal(z, 0.5))
            return pyro.sample("x", dist.Poisson(u.exp()), obs=x)


def nested_bounds(x=None, size=None):
    """A support that depends on the latent before: a ~ U(0, 3), b ~ U(a, a + 1); x [n, 2]."""
    with rows(x, size):
        a = pyro.sample("a", dist.Uniform(0.0, 3.0))
        b = pyro.sample("b", dist.Uniform(a, a + 1.0))
        return pyro.sample("x", dist.Normal(torch.stack([a, b], -1), 0.3).to_event(1), obs=x)


def both_kinds(x=None, size=None):
    """A global latent beside local ones that are not exact."""
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with rows(x, size):
        z = pyro.sample("z", dist.Normal(level, 1.0))
        return pyro.sample("x", dist.Poisson(z.exp().unsqueeze(-1)).to_event(1), obs=x)


def unbounded_choice(x=None, size=None):
    """A discrete latent with no end to its support."""
    with rows(x, size):
        k = pyro.sample("k", dist.Poisson(2.0))
        z = pyro.sample("z", dist.Normal(k, 1.0))
        return pyro.sample("x", dist.Normal(z.tanh().unsqueeze(-1), 0.3).to_event(1), obs=x)


# ---------------------------------------------------------------------------------------------------------- truths


def counts_truth(x: np.ndarray, s: float = SCALE) -> np.ndarray:
    """log p(x_i) [n] by the trapezium rule."""
    z = np.linspace(-10 * s, 10 * s + 5, 8001)
    joint = stats.poisson.logpmf(x[:, :1], np.exp(z)) + stats.norm.logpdf(z, 0, s)
    return special.logsumexp(joint, axis=1) + np.log(z[1] - z[0])


def logistic_truth(x: np.ndarray) -> np.ndarray:
    """log p(x_i) [n] on a grid over both latents."""
    line = np.linspace(-7, 7, 141)
    z = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    logits = z @ LOADINGS.T
    prior = stats.norm.logpdf(z).sum(1)
    signs = 2 * x - 1
    likelihood = np.where(np.isnan(x)[:, None], 0.0, -np.logaddexp(0.0, -np.nan_to_num(signs)[:, None] * logits)).sum(2)
    return special.logsumexp(likelihood + prior, axis=1) + 2 * np.log(line[1] - line[0])


def bent_joint(x: np.ndarray) -> np.ndarray:
    """log p(x_i, k) [n, 2] by the trapezium rule."""
    z = np.linspace(-9, 9, 8001)
    pi, centers = np.array([0.35, 0.65]), np.array([[0.0, 0.0], [1.0, 0.5]])
    slopes = np.array([[0.8, 0.3], [0.2, -0.9]])
    out = []
    for k in range(2):
        mean = centers[k] + np.tanh(slopes[k] * z[:, None])  # [z, 2]
        density = stats.norm.logpdf(x[:, None], mean, 0.3)
        density = np.where(np.isnan(density), 0.0, density).sum(2)
        out.append(np.log(pi[k]) + special.logsumexp(density + stats.norm.logpdf(z), axis=1) + np.log(z[1] - z[0]))
    return np.stack(out, 1)


def draw_counts(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.poisson(np.exp(SCALE * rng.normal(size=(n, 1)))).astype(float)


def draw_logistic(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.random((n, 6)) < special.expit(rng.normal(size=(n, 2)) @ LOADINGS.T)).astype(float)


def draw_bent(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    k, z = rng.random(n) < 0.65, rng.normal(size=(n, 1))
    mean = np.where(k[:, None], np.array([1.0, 0.5]) + np.tanh([0.2, -0.9] * z), np.tanh([0.8, 0.3] * z))
    return mean + 0.3 * rng.normal(size=(n, 2))
