"""Improper priors: served by what asks for no integral over them, refused by all else; ordered vectors; groups by an index."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import task_of
from pyro.distributions import constraints
from pyro.distributions.transforms import OrderedTransform

from inference import run
from inference._globals.target import Target
from zoo._errors import Refusal, UsageError
from zoo._program.describe import describe
from zoo._program.load import load


def rows(x, size):
    return pyro.plate("data", size if x is None else len(x))


def flat(x=None, size=None):
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()), infer={"init": torch.tensor(2.0)})
    scale = pyro.sample("scale", dist.ImproperUniform(constraints.positive, (), ()))
    with rows(x, size):
        return pyro.sample("x", dist.Normal(mu, scale), obs=x)


def masked(x=None, size=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0).mask(False))
    with rows(x, size):
        return pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def unused(x=None, size=None):
    pyro.sample("b", dist.ImproperUniform(constraints.real, (), ()))
    with rows(x, size):
        return pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def ordered(x=None, size=None):
    locs = pyro.param("locs", torch.tensor([-1.0, 1.0]), constraint=constraints.ordered_vector)
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
        return pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def grouped(x=None, size=None):
    n = size if x is None else len(x)
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("groups", 4):
        a = pyro.sample("a", dist.Normal(mu, 1.0))
    g = torch.zeros(n).long() if x is None else x[:, 1].long()
    with rows(x, size):
        y = pyro.sample("y", dist.Normal(a[g], 0.5), obs=None if x is None else x[:, 0])
    return torch.stack([y, g.to(y)], -1)


X = np.random.default_rng(3).normal(1.0, 2.0, size=40)


def test_a_flat_prior_begins_where_it_is_told_and_is_climbed():
    fit = run(flat, X, "em", quiet=True).fit
    assert fit.converged
    mu, scale = fit.parameters["mu"], fit.parameters["scale"]
    assert mu == pytest.approx(X.mean(), abs=1e-4) and scale == pytest.approx(X.std(), rel=1e-4)
    x = torch.as_tensor(X)[:, None]
    program = load(flat, x, {})
    assert float(program.trace(x).nodes["mu"]["value"]) == 2.0


def test_no_evidence_under_an_improper_prior():
    for program in (flat, masked):
        for method in ("laplace", "svi", "importance"):
            with pytest.raises(Refusal, match=r"improper.*Methods that can: em, nuts"):
                run(program, X, method, quiet=True)
        assert run(program, X, "em", quiet=True).verified.given  # log p(x) at the mode, and no integral
    x = torch.as_tensor(X)[:, None]
    assert describe(load(masked, x, {}), x).integrable == ""
    with pytest.raises(UsageError, match="no new data can be drawn"):
        load(flat, x, {}).trace(None, size=3)


@pytest.mark.full
def test_nuts_samples_flat_priors():
    """Flat in μ and σ: (μ − x̄) / √(SS / n (n − 2)) has Student's t distribution with n − 2 degrees of freedom."""
    found = run(flat, X, "nuts", chains=4, warmup=300, samples=500, seed=1, quiet=True)
    draws = found.fit.draws["mu"]
    t = (draws - X.mean()) / (X.std() / (len(X) - 2) ** 0.5)
    ess = min(found.fit.notes["ess_bulk"]["mu"], len(draws))
    assert found.fit.converged and found.verified.given
    assert abs(t.mean()) < 4 / ess**0.5 and t.var() == pytest.approx(38 / 36, rel=0.2)


@pytest.mark.full
def test_an_improper_posterior_is_not_called_converged():
    fit = run(unused, X, "nuts", chains=2, warmup=60, samples=60, max_depth=4, quiet=True).fit
    assert fit.converged is False and any("improper" in w for w in fit.warnings)


@pytest.mark.full
def test_a_scale_that_runs_away_is_told_of_chains_that_do_not_agree():
    """One row fixes no spread, so that its posterior has no integral."""

    def one(x=None, size=None):
        t = pyro.sample("t", dist.ImproperUniform(constraints.positive, (), ()))
        with rows(x, size):
            return pyro.sample("x", dist.Normal(0.0, (1 + t * t).sqrt()), obs=x)

    fit = run(one, np.array([[0.5]]), "nuts", warmup=200, samples=200).fit
    assert not fit.converged and any("'t' runs to the edge" in w for w in fit.warnings)


def test_a_discrete_global_latent_is_refused_with_what_to_do():
    def flipped(x=None, size=None):
        k = pyro.sample("k", dist.Bernoulli(0.4))
        with rows(x, size):
            return pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    with pytest.raises(Refusal, match="run it with 'k' fixed at each of its values"):
        run(flipped, np.ones((3, 1)), "nuts")


def test_one_chain_is_refused():
    with pytest.raises(UsageError, match="chains must be at least 2"):
        run(masked, X, "nuts", chains=1, quiet=True)


@pytest.mark.parametrize("method", ["em", "laplace"])
def test_ordered_parameters(method):
    """The larger cluster is the higher one, and the order is that of the values."""
    rng = np.random.default_rng(0)
    x = np.r_[rng.normal(-2, 1, 40), rng.normal(2, 1, 60)]
    fit = run(ordered, x, method, quiet=True).fit
    assert fit.converged and fit.parameters["locs"] == pytest.approx([-2, 2.2], abs=0.2)


def test_groups_by_a_column_are_integrated_out():
    rng = np.random.default_rng(1)
    g = rng.integers(0, 4, 30)
    x = np.c_[rng.normal(0.5 * g, 0.5), g]
    one, same = np.ones((4, 4)), np.eye(4)
    covariance = (9 * one + same)[g][:, g] + 0.25 * np.eye(30)
    truth = torch.distributions.MultivariateNormal(torch.zeros(30).double(), torch.as_tensor(covariance))
    wanted = float(truth.log_prob(torch.as_tensor(x[:, 0])))
    for method in ("em", "laplace"):
        assert run(grouped, x, method, quiet=True).fit.claimed.value == pytest.approx(wanted, abs=1e-6)


def test_a_number_far_from_zero_is_not_at_an_edge():
    """250 is no edge of the real line, nor of vectors in order; exp(−250) is one."""

    def far(x=None, size=None):
        mean = pyro.sample("mean", dist.Normal(torch.full((2,), 250.0), 1.0).to_event(1))
        order = dist.TransformedDistribution(
            dist.Normal(torch.tensor([250.0, 0.0]), 1.0).to_event(1), [OrderedTransform()]
        )
        pair = pyro.sample("pair", order)
        spread = pyro.sample("spread", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", size if x is None else len(x)):
            return pyro.sample("x", dist.Normal(mean + pair, spread).to_event(1), obs=x)

    target = Target(task_of(far, np.full((3, 2), 500.0)))
    names = [(place.site.name, place.part) for place in target.posterior.places]
    flat, share = torch.full((4, target.d), 1.0, dtype=torch.float64), torch.full((4,), 0.25, dtype=torch.float64)
    for name, part in names:
        edge = flat.clone()
        edge[:, part.stop - 1] = -250.0
        found = target.at_an_edge(edge, share)
        assert (found is not None and f"'{name}' runs to the edge" in found) is (name != "mean"), name
    flat[:, next(p for n, p in names if n == "mean")] = 250.0
    flat[:, next(p for n, p in names if n == "pair").start] = 250.0
    assert target.at_an_edge(flat, share) is None
