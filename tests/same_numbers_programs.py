"""Programs and a guide as a user would write them, for the requests of same_numbers.py: many kinds of site in few programs."""

from __future__ import annotations

import os

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints


def rows(x, size):
    return pyro.plate("data", size if x is None else len(x))


def positive(name, value):
    return pyro.param(name, torch.as_tensor(value), constraint=constraints.positive)


def poisson(x=None, size=None, *, components: int = 2):
    weights = pyro.param("weights", torch.full((components,), 1.0 / components), constraint=constraints.simplex)
    rates = pyro.param("rates", lambda: 0.5 + 4 * torch.rand(components, 3), constraint=constraints.positive)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.Poisson(rates[z]).to_event(1), obs=x)


class Regressions(PyroModule):
    def __init__(self, *, components: int = 2):
        super().__init__()
        self.weights = PyroParam(torch.full((components,), 1.0 / components), constraints.simplex)
        self.slopes, self.offsets = nn.Parameter(torch.randn(components)), nn.Parameter(torch.zeros(components))
        self.scales = PyroParam(torch.ones(components), constraints.positive)

    def forward(self, x=None, size=None):
        u = torch.zeros(size) if x is None else x[:, 0]
        with rows(x, size):
            z = pyro.sample("z", dist.Categorical(self.weights))
            loc = self.offsets[z] + self.slopes[z] * u
            y = pyro.sample("y", dist.Normal(loc, self.scales[z]), obs=None if x is None else x[:, 1])
        return torch.stack([u, y], 1)


def causes(x=None, size=None):
    probs = pyro.param("probs", torch.tensor([0.3, 0.5, 0.6]), constraint=constraints.unit_interval)
    effects = pyro.param("effects", torch.linspace(-1.0, 2.0, 12).reshape(3, 4).sin())
    scale = positive("scale", [1.0, 0.8, 0.9, 1.1])
    with rows(x, size):
        on = [pyro.sample(f"on{i}", dist.Bernoulli(probs[i])) for i in range(3)]
        loc = torch.stack(on, -1) @ effects
        return pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)


def factor_mixture(x=None, size=None):
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    W = pyro.param("W", torch.linspace(-1.0, 1.5, 8).reshape(2, 4, 1))
    locs = pyro.param("locs", torch.stack([torch.zeros(4), 2 * torch.ones(4)]))
    noise = positive("noise", [0.7, 0.7, 0.7, 0.7])
    with rows(x, size):
        k = pyro.sample("k", dist.Categorical(weights))
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        mean = (W[k] @ z.unsqueeze(-1)).squeeze(-1) + locs[k]
        return pyro.sample("x", dist.Normal(mean, noise).to_event(1), obs=x)


def hierarchy(x=None, size=None):
    rates = pyro.sample("rates", dist.Gamma(torch.tensor([2.0, 2.0, 2.0]), 1.0).to_event(1))
    with rows(x, size):
        return pyro.sample("x", dist.Poisson(rates).to_event(1), obs=x)


def intercept(x=None, size=None):
    level, spread, noise = pyro.param("level", torch.tensor(0.5)), positive("spread", 0.8), positive("noise", 0.9)
    with rows(x, size):
        effect = pyro.sample("effect", dist.Normal(level, spread))
        loc = effect.unsqueeze(-1).expand(*effect.shape, 4)
        return pyro.sample("x", dist.Normal(loc, noise).to_event(1), obs=x)


def guide(x=None, size=None):
    a, b = pyro.param("a", torch.tensor(0.5)), pyro.param("b", torch.tensor(0.1))
    s = positive("s", 0.5)
    with rows(x, size):
        pyro.sample("effect", dist.Normal(a * x.nan_to_num(0.0).mean(-1) + b, s))


calls = 0


def stoppable(x=None, size=None):
    """Stops as if by Ctrl-C at the call that an environment variable says."""
    global calls
    calls += 1
    if calls == int(os.environ.get("ZOO_STOP_AT", "0")):
        raise KeyboardInterrupt
    shape, rate = positive("shape", [1.0, 1.5, 2.0]), positive("rate", [1.0, 1.0, 1.0])
    with rows(x, size):
        intensity = pyro.sample("intensity", dist.Gamma(shape, rate).to_event(1))
        return pyro.sample("x", dist.Poisson(intensity).to_event(1), obs=x)


# ------------------------------------------------------------------------------- mixtures with sites of many families


def columns(x, *which):
    return None if x is None else x[:, which] if len(which) > 1 else x[:, which[0]]


def start(name, value, constraint=constraints.real):
    return pyro.param(name, torch.as_tensor(value), constraint=constraint)


def families(x=None, size=None):
    """Columns: two counts, two bits, a class of three, a waiting time, two numbers."""
    weights = start("weights", [0.5, 0.5], constraints.simplex)
    rates = start("rates", [[1.0, 2.0], [4.0, 1.0]], constraints.positive)
    logits = start("logits", [[0.5, -0.5], [-1.0, 1.0]])
    classes = start("classes", [[0.2, 0.3, 0.5], [0.4, 0.3, 0.3]], constraints.simplex)
    waits = start("waits", [1.0, 0.5], constraints.positive)
    locs = start("locs", [[0.0, 0.0], [2.0, 2.0]])
    scale = start("scale", [1.0, 1.0], constraints.positive)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        a = pyro.sample("a", dist.Poisson(rates[z]).to_event(1), obs=columns(x, 0, 1))
        b = pyro.sample("b", dist.Bernoulli(logits=logits[z]).to_event(1), obs=columns(x, 2, 3))
        c = pyro.sample("c", dist.Categorical(classes[z]), obs=columns(x, 4))
        d = pyro.sample("d", dist.Exponential(waits[z]), obs=columns(x, 5))
        e = pyro.sample("e", dist.Normal(locs[z], scale).to_event(1), obs=columns(x, 6, 7))
    return torch.cat([a, b, c.unsqueeze(-1), d.unsqueeze(-1), e], -1)


def normals(x=None, size=None):
    """The forms of a multivariate normal: columns 0, 1 by covariance; 2, 3 by precision; both pairs again, one scale_tril."""
    weights = start("weights", [0.5, 0.5], constraints.simplex)
    locs = start("locs", [[0.0, 0.5, 0.0, 0.5], [2.0, 2.5, 2.0, 2.5]])
    covariances = start("covariances", [[[1.0, 0.2], [0.2, 1.0]]] * 2, constraints.positive_definite)
    precisions = start("precisions", [[[1.0, 0.0], [0.0, 1.0]]] * 2, constraints.positive_definite)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        first = dist.MultivariateNormal(locs[z][..., :2], covariance_matrix=covariances[z])
        second = dist.MultivariateNormal(locs[z][..., 2:], precision_matrix=precisions[z])
        a = pyro.sample("a", first, obs=columns(x, 0, 1))
        b = pyro.sample("b", second, obs=columns(x, 2, 3))
    return torch.cat([a, b], -1)


def no_kernel(x=None, size=None):
    """Families whose M-step has no closed form."""
    weights = start("weights", [0.5, 0.5], constraints.simplex)
    shapes = start("shapes", [[1.0, 1.5, 2.0], [3.0, 2.0, 1.0]], constraints.positive)
    probs = start("probs", [[0.5, 0.4, 0.6], [0.6, 0.5, 0.4]], constraints.unit_interval)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.NegativeBinomial(shapes[z], probs[z]).to_event(1), obs=x)


class Network(PyroModule):
    """A network between a discrete latent and the data."""

    def __init__(self):
        super().__init__()
        self.weights = PyroParam(torch.tensor([0.4, 0.6]), constraints.simplex)
        self.embedding = nn.Parameter(torch.randn(2, 2))
        self.network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 4))
        self.scale = PyroParam(torch.ones(4), constraints.positive)

    def forward(self, x=None, size=None):
        with rows(x, size):
            z = pyro.sample("z", dist.Categorical(self.weights))
            return pyro.sample("x", dist.Normal(self.network(self.embedding[z]), self.scale).to_event(1), obs=x)


# ----------------------------------------------------------------------------------------------------- inner plates


def plate_left(x=None, size=None):
    """The entries of a datum in a plate to the left of `data`."""
    weights = start("weights", [0.5, 0.5], constraints.simplex)
    probs = start("probs", torch.linspace(0.2, 0.8, 32).reshape(2, 16), constraints.unit_interval)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        with pyro.plate("pixels", 16):
            chosen = probs[z, torch.arange(16).unsqueeze(-1)]
            return pyro.sample("x", dist.Bernoulli(chosen), obs=None if x is None else x.mT).mT


def plate_right(x=None, size=None):
    """A random intercept, the entries of a datum in a plate to the right of `data`."""
    level, spread, noise = start("level", 1.0), positive("spread", 0.8), positive("noise", 0.7)
    with pyro.plate("data", size if x is None else len(x), dim=-2):
        effect = pyro.sample("effect", dist.Normal(level, spread))
        with pyro.plate("repeats", 4, dim=-1):
            return pyro.sample("x", dist.Normal(effect, noise), obs=x)


def plate_of_causes(x=None, size=None):
    """Binary latents in a plate inside `data`; their number is kept as a dimension."""
    probs = start("probs", [0.3, 0.5, 0.6], constraints.unit_interval)
    effects, scale = start("effects", torch.linspace(-1.0, 2.0, 12).reshape(3, 4).cos()), positive("scale", [1.0] * 4)
    with rows(x, size):
        with pyro.plate("causes", 3):
            on = pyro.sample("on", dist.Bernoulli(probs.unsqueeze(-1)))  # [3, n]
        loc = (on.unsqueeze(-1) * effects.unsqueeze(-2)).sum(-3, keepdim=True)
        return pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)


# -------------------------------------------------------------------------------------------------- linear programs


def correlated_noise(x=None, size=None):
    """Two latents that add, noise with a covariance."""
    W, locs = start("W", torch.linspace(-1.0, 1.5, 4)), start("locs", [0.0, 0.5, 1.0, 1.5])
    tril = start("tril", torch.eye(4) + 0.1 * torch.ones(4, 4).tril(-1), constraints.lower_cholesky)
    with rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        u = pyro.sample("u", dist.Normal(0.5 * z, 0.4))
        loc = z.unsqueeze(-1) * W + u.unsqueeze(-1) + locs
        return pyro.sample("x", dist.MultivariateNormal(loc, scale_tril=tril), obs=x)


def own_noise(x=None, size=None):
    """The last column says how noisy the others are."""
    W = start("W", torch.linspace(-1.0, 1.5, 3))
    with rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        y = torch.ones(size, 4) if x is None else x
        scale = (0.5 + y[:, -1:].abs()).expand(-1, 3)
        out = pyro.sample("y", dist.Normal(z.unsqueeze(-1) * W, scale).to_event(1), obs=columns(x, 0, 1, 2))
        return torch.cat([out, y[:, -1:]], -1)


def unknown_mean(x=None, size=None):
    """A global latent with an exact posterior."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(4), 2.0).to_event(1))
    with rows(x, size):
        return pyro.sample("x", dist.Normal(mean, 0.7).to_event(1), obs=x)
