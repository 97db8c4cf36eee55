"""Programs as a user would write them: each a few lines of Pyro, and nothing of ours in them."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

K, D = 2, 3


def rows(x, size):
    return pyro.plate("data", size if x is None else len(x))


# ------------------------------------------------------------- mixtures of one family each, x [n, 3], two components


def simplex(name="weights", size=K):
    return pyro.param(name, torch.full((size,), 1.0 / size), constraint=constraints.simplex)


def positive(name, *shape):
    return pyro.param(name, lambda: 0.5 + torch.rand(shape), constraint=constraints.positive)


def real(name, *shape):
    return pyro.param(name, lambda: torch.randn(shape))


def share(name, *shape):
    return pyro.param(name, lambda: 0.2 + 0.6 * torch.rand(shape), constraint=constraints.unit_interval)


def cholesky(name, *shape):
    return pyro.param(name, lambda: torch.eye(D).expand(*shape, D, D).clone(), constraint=constraints.lower_cholesky)


def definite(name, *shape):
    return pyro.param(name, lambda: torch.eye(D).expand(*shape, D, D).clone(), constraint=constraints.positive_definite)


def poisson(x=None, size=None):
    weights, rates = simplex(), positive("rates", K, D)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.Poisson(rates[z]).to_event(1), obs=x)


def bernoulli(x=None, size=None):
    weights, probs = simplex(), share("probs", K, D)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.Bernoulli(probs[z]).to_event(1), obs=x)


def bernoulli_logits(x=None, size=None):
    weights, logits = simplex(), real("logits", K, D)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.Bernoulli(logits=logits[z]).to_event(1), obs=x)


def exponential(x=None, size=None):
    weights, rates = simplex(), positive("rates", K, D)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.Exponential(rates[z]).to_event(1), obs=x)


def categorical(x=None, size=None):
    weights = simplex()
    probs = pyro.param("probs", lambda: torch.rand(K, D, 4).softmax(-1), constraint=constraints.simplex)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.Categorical(probs[z]).to_event(1), obs=x)


def categorical_logits(x=None, size=None):
    weight_logits, logits = real("weight_logits", K), real("logits", K, D, 4)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(logits=weight_logits))
        return pyro.sample("x", dist.Categorical(logits=logits[z]).to_event(1), obs=x)


def normal(x=None, size=None):
    weights, locs, scales = simplex(), real("locs", K, D), positive("scales", K, D)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.Normal(locs[z], scales[z]).to_event(1), obs=x)


def normal_one_scale(x=None, size=None):
    weights, locs, scale = simplex(), real("locs", K, D), positive("scale")
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.Normal(locs[z], scale).to_event(1), obs=x)


def normal_one_loc(x=None, size=None):
    weights, loc, scales = simplex(), real("loc", D), positive("scales", K, D)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.Normal(loc, scales[z]).to_event(1), obs=x)


def mvn_tril(x=None, size=None):
    weights, locs, trils = simplex(), real("locs", K, D), cholesky("trils", K)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.MultivariateNormal(locs[z], scale_tril=trils[z]), obs=x)


def mvn_covariance(x=None, size=None):
    weights, locs, covariances = simplex(), real("locs", K, D), definite("covariances", K)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.MultivariateNormal(locs[z], covariance_matrix=covariances[z]), obs=x)


def mvn_precision(x=None, size=None):
    weights, locs, precisions = simplex(), real("locs", K, D), definite("precisions", K)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.MultivariateNormal(locs[z], precision_matrix=precisions[z]), obs=x)


def mvn_tied(x=None, size=None):
    weights, locs, tril = simplex(), real("locs", K, D), cholesky("tril")
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.MultivariateNormal(locs[z], scale_tril=tril), obs=x)


def mvn_one_loc(x=None, size=None):
    weights, loc, trils = simplex(), real("loc", D), cholesky("trils", K)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.MultivariateNormal(loc, scale_tril=trils[z]), obs=x)


# ----------------------------------------------------------------------------- families that no kernel of ours serves


def student(x=None, size=None):
    weights, locs, scales = simplex(), real("locs", K, D), positive("scales", K, D)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.StudentT(4.0, locs[z], scales[z]).to_event(1), obs=x)


def gamma(x=None, size=None):
    weights, shapes, rates = simplex(), positive("shapes", K, D), positive("rates", K, D)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.Gamma(shapes[z], rates[z]).to_event(1), obs=x)


def negative_binomial(x=None, size=None):
    weights, counts, probs = simplex(), positive("counts", K, D), share("probs", K, D)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.NegativeBinomial(counts[z], probs[z]).to_event(1), obs=x)


def von_mises(x=None, size=None):
    weights, locs, concentrations = simplex(), real("locs", K, D), positive("concentrations", K, D)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.VonMises(locs[z], concentrations[z]).to_event(1), obs=x)


# ---------------------------------------------------------------------------------------------- other discrete latents


def two_sites(x=None, size=None):
    """z2 depends on z1, and x on both; x [n, 3]."""
    first = simplex("first", 2)
    second = pyro.param("second", torch.full((2, 3), 1.0 / 3), constraint=constraints.simplex)
    locs, scale = real("locs", 2, 3, D), positive("scale", D)
    with rows(x, size):
        z1 = pyro.sample("z1", dist.Categorical(first))
        z2 = pyro.sample("z2", dist.Categorical(second[z1]))
        return pyro.sample("x", dist.Normal(locs[z1, z2], scale).to_event(1), obs=x)


def causes(x=None, size=None):
    """Three causes in a plate inside `data`, each on or off; x [n, 3] is the sum of the effects of those that are on."""
    probs, effects, scale = share("probs", 3), real("effects", 3, D), positive("scale", D)
    with rows(x, size):
        with pyro.plate("causes", 3):
            on = pyro.sample("on", dist.Bernoulli(probs.unsqueeze(-1)))  # [3, n]
        loc = (on.unsqueeze(-1) * effects.unsqueeze(-2)).sum(-3)  # [n, 3]
        return pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)


def causes_apart(x=None, size=None):
    """The same, with the causes' dimension kept: draws of many causes can go through it side by side."""
    probs, effects, scale = share("probs", 3), real("effects", 3, D), positive("scale", D)
    with rows(x, size):
        with pyro.plate("causes", 3):
            on = pyro.sample("on", dist.Bernoulli(probs.unsqueeze(-1)))  # [3, n]
        loc = (on.unsqueeze(-1) * effects.unsqueeze(-2)).sum(-3, keepdim=True)  # [1, n, 3]
        return pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)


def pixels(x=None, size=None):
    """The entries of a datum in a plate of their own; x [n, 3]."""
    weights, probs = simplex(), share("probs", K, D)
    n = size if x is None else len(x)
    with pyro.plate("data", n, dim=-2):
        z = pyro.sample("z", dist.Categorical(weights))  # [n, 1]
        with pyro.plate("pixels", D, dim=-1):
            return pyro.sample("x", dist.Bernoulli(probs[z.squeeze(-1)]), obs=x)


def pixels_left(x=None, size=None):
    """The same with Pyro's own choice of dimensions: the inner plate's is left of the data's, and x is transposed."""
    weights, probs = simplex(), share("probs", K, D)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))  # [n]
        with pyro.plate("pixels", D):
            chosen = probs[z, torch.arange(D).unsqueeze(-1)]  # [3, n]
            return pyro.sample("x", dist.Bernoulli(chosen), obs=None if x is None else x.mT).mT


def regressions(x=None, size=None):
    """A mixture of straight lines: x [n, 2] is (u, y), and y's mean differs from row to row."""
    weights, slopes, offsets, scales = simplex(), real("slopes", K), real("offsets", K), positive("scales", K)
    u = torch.zeros(size) if x is None else x[:, 0]
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        y = pyro.sample("y", dist.Normal(offsets[z] + slopes[z] * u, scales[z]), obs=None if x is None else x[:, 1])
    return torch.stack([u, y], 1)


# ------------------------------------------------------------------------------------------------- continuous latents


def counts(x=None, size=None):
    """A rate for each datum, integrated out: x [n, 1] is negative binomial."""
    shape, rate = positive("shape"), positive("rate")
    with rows(x, size):
        intensity = pyro.sample("intensity", dist.Gamma(shape, rate))
        return pyro.sample("x", dist.Poisson(intensity.unsqueeze(-1)).to_event(1), obs=x)


def one_factor(x=None, size=None):
    """x [n, 3] is normal with one common factor."""
    direction, loc, scale = real("direction", D), real("loc", D), positive("scale", D)
    with rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(loc + z.unsqueeze(-1) * direction, scale).to_event(1), obs=x)


# ---------------------------------------------------------------------------------------------------- global latents


def normal_mean(x=None, size=None):
    """mean ~ N(1, 2²), x | mean ~ N(mean, 0.7²); x [n, 1]."""
    mean = pyro.sample("mean", dist.Normal(1.0, 2.0))
    with rows(x, size):
        return pyro.sample("x", dist.Normal(mean.unsqueeze(-1), 0.7).expand([1]).to_event(1), obs=x)


def coin(x=None, size=None):
    """p ~ Beta(2, 3), x | p ~ Bernoulli(p); x [n, 1]."""
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    with rows(x, size):
        return pyro.sample("x", dist.Bernoulli(p).expand([1]).to_event(1), obs=x)


# ----------------------------------------------------------------------------------------------------- forms of a model


class Mixture(PyroModule):
    """A PyroModule; `Mixture(x, components=2)`."""

    def __init__(self, x, *, components: int = 2):
        super().__init__()
        self.weights = PyroParam(torch.full((components,), 1.0 / components), constraints.simplex)
        self.rates = PyroParam(x.nanmean(0) * torch.linspace(0.5, 1.5, components)[:, None], constraints.positive)

    def forward(self, x=None, size=None):
        with rows(x, size):
            z = pyro.sample("z", dist.Categorical(self.weights))
            return pyro.sample("x", dist.Poisson(self.rates[z]).to_event(1), obs=x)


class Decoder(PyroModule):
    """A PyroModule with a network in it; takes no data."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.weights = PyroParam(torch.full((K,), 1.0 / K), constraints.simplex)
        self.embedding = nn.Parameter(torch.randn(K, 2))
        self.network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, D))

    def forward(self, x=None, size=None):
        with rows(x, size):
            z = pyro.sample("z", dist.Categorical(self.weights))
            return pyro.sample("x", dist.Normal(self.network(self.embedding[z]), 1.0).to_event(1), obs=x)


class Plain(nn.Module):
    """A plain nn.Module whose forward is the program."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.heads = nn.Linear(K, D)

    def forward(self, x=None, size=None):
        with rows(x, size):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
            loc = self.heads(nn.functional.one_hot(z, K).to(self.heads.weight.dtype))
            return pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


instance = Decoder()
