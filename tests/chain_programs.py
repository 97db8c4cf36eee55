"""Programs with discrete latents too many to list, in plain Python, and their truths by other means."""

from __future__ import annotations

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import user_programs as user
from scipy.special import logsumexp
from scipy.stats import norm, poisson
from torch.distributions import constraints

SIMPLEX, POSITIVE = constraints.simplex, constraints.positive


def hmm(T, K, family="normal", seed=0):
    """A hidden Markov model of T steps and K states as a plain loop, at random θ."""
    rng = np.random.default_rng(seed)
    start, moves = rng.dirichlet(np.ones(K)), rng.dirichlet(np.ones(K), K)
    emission = {
        "normal": rng.normal(size=K) * 2,
        "poisson": rng.gamma(2.0, 3.0, size=K),
        "categorical": rng.dirichlet(np.ones(4), K),
    }[family]

    def program(x=None, size=None):
        p = pyro.param("p", torch.tensor(start), constraint=SIMPLEX)
        A = pyro.param("A", torch.tensor(moves), constraint=SIMPLEX)
        if family == "normal":
            b = pyro.param("b", torch.tensor(emission))
            s = pyro.param("s", torch.tensor(1.3), constraint=POSITIVE)
        else:
            b = pyro.param("b", torch.tensor(emission), constraint=POSITIVE if family == "poisson" else SIMPLEX)
        with user.rows(x, size):
            z, out = None, []
            for t in range(T):
                z = pyro.sample(f"z{t}", dist.Categorical(p if z is None else A[z]))
                if family == "normal":
                    fn = dist.Normal(b[z], s)
                else:
                    fn = dist.Poisson(b[z]) if family == "poisson" else dist.Categorical(b[z])
                out.append(pyro.sample(f"x{t}", fn, obs=None if x is None else x[:, t]))
            return torch.stack(out, -1)

    return program


def emissions(x, theta, family="normal"):
    """log p(x_t | z_t) [N, T, K]; 0 where x is missing."""
    b, seen = theta["b"], ~np.isnan(x)
    x = np.where(seen, x, 0.0)
    if family == "normal":
        out = norm.logpdf(x[..., None], b, theta["s"])
    elif family == "poisson":
        out = poisson.logpmf(x[..., None], b)
    else:
        out = np.log(b.T[x.astype(int)])
    return np.where(seen[..., None], out, 0.0)


def forward_backward(x, theta, family="normal", e=None):
    """log p(x_i) [N], p(z_t | x) [N, T, K] and Σ_t p(z_t, z_t+1 | x) [N, K, K] by the textbook's recursions."""
    e, A = emissions(x, theta, family) if e is None else e, np.log(theta["A"])
    N, T, K = e.shape
    alpha, beta = np.empty_like(e), np.zeros_like(e)
    alpha[:, 0] = np.log(theta["p"]) + e[:, 0]
    for t in range(1, T):
        alpha[:, t] = logsumexp(alpha[:, t - 1, :, None] + A, axis=1) + e[:, t]
    for t in range(T - 2, -1, -1):
        beta[:, t] = logsumexp(A + (e[:, t + 1] + beta[:, t + 1])[:, None], axis=2)
    total = logsumexp(alpha[:, -1], axis=1)
    each = np.exp(alpha + beta - total[:, None, None])
    pairs = np.zeros((N, K, K))
    for t in range(T - 1):
        pairs += np.exp(alpha[:, t, :, None] + A + (e[:, t + 1] + beta[:, t + 1])[:, None] - total[:, None, None])
    return total, each, pairs


def baum_welch(x, theta, iterations, family="normal"):
    """The log-likelihoods of so many iterations from θ, and the last θ."""
    seen, filled, found = ~np.isnan(x), np.nan_to_num(x), []
    for _ in range(iterations):
        total, each, pairs = forward_backward(x, theta, family)
        found.append(total.sum())
        weight = each * seen[..., None]
        n = weight.sum((0, 1))
        new = {"p": each[:, 0].mean(0), "A": pairs.sum(0) / pairs.sum((0, 2))[:, None]}
        if family == "categorical":
            hot = (filled[..., None] == np.arange(theta["b"].shape[1])) * seen[..., None]
            new["b"] = np.einsum("ntk,ntc->kc", weight, hot) / n[:, None]
        else:
            new["b"] = (weight * filled[..., None]).sum((0, 1)) / n
        if family == "normal":
            new["s"] = np.sqrt((weight * (filled[..., None] - new["b"]) ** 2).sum() / n.sum())
        theta = new
    return np.array(found), theta


def by_listing(log_joint, cards):
    """log Σ of exp log_joint(z) [N] over all joint values z."""
    return logsumexp([log_joint(z) for z in itertools.product(*map(range, cards))], axis=0)
