"""Programs with many discrete latents beside continuous ones, and chains, in plain Python; and their truths by other means."""

from __future__ import annotations

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import user_programs as user
from scipy.special import logsumexp
from scipy.stats import norm

MOVES = np.array([[0.8, 0.2], [0.3, 0.7]])
START = np.array([0.6, 0.4])


def count_hmm(T, levels=(0.2, 1.6), spread=0.7):
    """Counts of two regimes, and in each row an effect u that all its rates share: x_t ~ Poisson(exp(level[s_t] + u))."""

    def program(x=None, size=None):
        moves, start = torch.tensor(MOVES), torch.tensor(START)
        level = pyro.param("level", torch.tensor(levels))
        with user.rows(x, size):
            u = pyro.sample("u", dist.Normal(0.0, spread))
            s, out = None, []
            for t in range(T):
                s = pyro.sample(f"s{t}", dist.Categorical(start if s is None else moves[s]))
                rate = (level[s] + u).exp()
                out.append(pyro.sample(f"x{t}", dist.Poisson(rate), obs=None if x is None else x[:, t]))
            return torch.stack(out, -1)

    return program


def count_truth(x, levels=(0.2, 1.6), spread=0.7, points=400):
    """log p(x_i) [N], E[u | x] [N] and p(s_0 = 1 | x) [N]: the forward algorithm at each point of a grid of u."""
    u = np.linspace(-6, 6, points) * spread
    rate = np.exp(np.array(levels)[:, None] + u)  # [2, U]
    found = []
    for first in (slice(None), 1):
        weight = np.zeros(2)
        weight[first] = START[first]
        with np.errstate(divide="ignore"):
            alpha = np.broadcast_to(np.log(weight)[None, :, None], (len(x), 2, points))
        for t in range(x.shape[1]):
            if t:
                alpha = logsumexp(alpha[:, :, None] + np.log(MOVES)[:, :, None], axis=1)
            xt = x[:, t][:, None, None]
            alpha = alpha + xt * np.log(rate) - rate - np.array([[[_log_factorial(v)]] for v in x[:, t]])
        found.append(logsumexp(alpha, axis=1) + norm.logpdf(u, 0, spread) + np.log(u[1] - u[0]))
    total, one = logsumexp(found[0], axis=1), logsumexp(found[1], axis=1)
    return total, (np.exp(found[0] - total[:, None]) * u).sum(1), np.exp(one - total)


def _log_factorial(value):
    return np.log(np.arange(1, value + 1)).sum()


def switching(T, moves=MOVES, decay=(0.9, 0.3), noise=(0.3, 1.0), seen=0.5):
    """A linear-Gaussian chain whose coefficients are those of a regime: z_t = a[s_t] z_{t-1} + q[s_t] ε, x_t = z_t + r η."""

    def program(x=None, size=None):
        a, q = torch.tensor(decay), torch.tensor(noise)
        with user.rows(x, size):
            s, z, out = None, 0.0, []
            for t in range(T):
                s = pyro.sample(f"s{t}", dist.Categorical(torch.tensor(START) if s is None else torch.tensor(moves)[s]))
                z = pyro.sample(f"z{t}", dist.Normal(a[s] * z, q[s]))
                out.append(pyro.sample(f"x{t}", dist.Normal(z, seen), obs=None if x is None else x[:, t]))
            return torch.stack(out, -1)

    return program


def switching_truth(x, moves=MOVES, decay=(0.9, 0.3), noise=(0.3, 1.0), seen=0.5):
    """log p(x_i) [N], p(s_t = 1 | x) [N, T] and E[z_t | x] [N, T]: a Kalman smoother for each path of the regimes."""
    T = x.shape[1]
    logs, paths, means = [], [], []
    for path in itertools.product(range(2), repeat=T):
        log = np.log(START[path[0]]) + sum(np.log(moves[a, b]) for a, b in itertools.pairwise(path))
        each, mean = kalman(x, [decay[k] for k in path], [noise[k] for k in path], seen)
        logs.append(log + each)
        paths.append(path)
        means.append(mean)
    total = logsumexp(logs, axis=0)
    weight = np.exp(np.array(logs) - total)  # [paths, N]
    return total, np.einsum("pn,pt->nt", weight, np.array(paths)), np.einsum("pn,pnt->nt", weight, np.array(means))


def kalman(x, decay, noise, seen):
    """log p(x_i) [N] and E[z_t | x_i] [N, T] of z_t = decay_t z_{t-1} + noise_t ε (z_{-1} = 0), x_t = z_t + seen η."""
    T = x.shape[1]
    transition = np.eye(T)
    for t in range(1, T):
        transition[t] = decay[t] * transition[t - 1]
        transition[t, t] = 1
    prior = transition @ np.diag(np.square(noise)) @ transition.T
    whole = prior + seen**2 * np.eye(T)
    solved = np.linalg.solve(whole, x.T).T
    log_det = np.linalg.slogdet(whole)[1]
    return -0.5 * (np.einsum("nt,nt->n", x, solved) + log_det + T * np.log(2 * np.pi)), solved @ prior


def gaussian_chain(T, decay=0.9, noise=0.5, seen=0.4, late=False):
    """z_t = decay z_{t-1} + noise ε, x_t = z_t + seen η; `late`: all z come before the first x."""

    def program(x=None, size=None):
        with user.rows(x, size):
            z, out = [], []
            for t in range(T):
                z.append(pyro.sample(f"z{t}", dist.Normal(decay * (z[-1] if z else 0.0), noise)))
                if not late:
                    out.append(pyro.sample(f"x{t}", dist.Normal(z[t], seen), obs=None if x is None else x[:, t]))
            for t in range(T if late else 0):
                out.append(pyro.sample(f"x{t}", dist.Normal(z[t], seen), obs=None if x is None else x[:, t]))
            return torch.stack(out, -1)

    return program


def volatility(T, decay=0.95, noise=0.25):
    """Stochastic volatility: h_t = decay h_{t-1} + noise ε, x_t ~ N(0, exp(h_t))."""

    def program(x=None, size=None):
        with user.rows(x, size):
            h, out = None, []
            for t in range(T):
                h = pyro.sample(f"h{t}", dist.Normal(0.0, 0.5) if h is None else dist.Normal(decay * h, noise))
                out.append(pyro.sample(f"x{t}", dist.Normal(0.0, (h / 2).exp()), obs=None if x is None else x[:, t]))
            return torch.stack(out, -1)

    return program


def volatility_truth(x, decay=0.95, noise=0.25):
    """log p(x_i) [N] by the forward algorithm on a fine grid of h; NaN is unobserved."""
    h = np.linspace(-6, 6, 1201)
    step = h[1] - h[0]
    move = norm.pdf(h, decay * h[:, None], noise) * step
    out = []
    for row in x:
        alpha, total = norm.pdf(h, 0, 0.5) * step, 0.0
        for t, value in enumerate(row):
            alpha = alpha if t == 0 else alpha @ move
            alpha = alpha if np.isnan(value) else alpha * norm.pdf(value, 0, np.exp(h / 2))
            total += np.log(alpha.sum())
            alpha = alpha / alpha.sum()
        out.append(total)
    return np.array(out)


def two_chains(T, coupled=False):
    """Two chains of states that the same observations see; `coupled`: the second one's moves depend on the first."""

    def program(x=None, size=None):
        moves = torch.tensor([[[0.8, 0.2], [0.3, 0.7]], [[0.5, 0.5], [0.1, 0.9]]])
        with user.rows(x, size):
            a = b = torch.tensor(0)
            out = []
            for t in range(T):
                a = pyro.sample(f"a{t}", dist.Categorical(moves[0, a]))
                b = pyro.sample(f"b{t}", dist.Categorical(moves[a if coupled else 1, b]))
                out.append(
                    pyro.sample(f"x{t}", dist.Normal(1.0 * a + 0.7 * b, 1.0), obs=None if x is None else x[:, t])
                )
            return torch.stack(out, -1)

    return program
