"""What a site observes may not come back to it: such a program multiplies to no density of the data."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import structure_of
from scipy import integrate

X = np.random.default_rng(0).normal(size=(20, 3))


def rows(sites, outside=None):
    """A program whose rows have these sites, given x and what `outside` the plate there is."""

    def program(x=None, size=None):
        above = None if outside is None else outside(x)
        with pyro.plate("data", len(x)):
            sites(x, above)

    return program


def observe(name, fn, column, x):
    return pyro.sample(name, fn, obs=x[:, column])


def normal(loc, scale=1.0):
    return dist.Normal(torch.as_tensor(loc), scale)


def own_column(x, _):
    observe("y", normal(0.5 * x[:, 0]), 0, x)


def own_sign(x, _):
    observe("y", normal(0.0, torch.where(x[:, 0] > 0, 1.0, 2.0)), 0, x)


def each_on_the_other(x, _):
    observe("y", normal(x[:, 1]), 0, x)
    observe("w", normal(x[:, 0]), 1, x)


def round_about(x, _):
    z = pyro.sample("z", normal(x[:, 0]))
    observe("y", normal(z), 0, x)


def round_about_two(x, _):
    z = pyro.sample("z", normal(x[:, 0]))
    w = pyro.sample("w", normal(z))
    observe("y", normal(w), 0, x)


def jointly(x, _):
    loc = torch.stack([torch.zeros(len(x), dtype=x.dtype), x[:, 0]], -1)
    pyro.sample("y", dist.MultivariateNormal(loc, torch.eye(2, dtype=x.dtype)), obs=x[:, :2])


REFUSED = {
    "its own column": rows(own_column),
    "its own sign": rows(own_sign),
    "two on each other": rows(each_on_the_other),
    "through a latent": rows(round_about),
    "through two latents": rows(round_about_two),
    "within a vector": rows(jointly),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(name):
    structure = structure_of(REFUSED[name], X)
    assert "comes back to it" in structure.obstacle and not structure.is_exact


@pytest.mark.parametrize(
    "prior",
    [
        lambda x: normal(x[:, 0].mean()),
        lambda x: normal(0.0, x[:, 1].abs().max()),  # of a covariate: engines look at priors on a few rows
    ],
    ids=["around the mean", "as wide as a covariate"],
)
def test_a_prior_that_depends_on_x_is_refused(prior):
    program = rows(lambda x, a: observe("y", normal(a), 0, x), lambda x: pyro.sample("a", prior(x)))
    structure = structure_of(program, X)
    assert "the prior of the global latent 'a' depends on x" in structure.obstacle and not structure.is_exact


def test_such_a_program_is_no_density():
    """Its integral over y is not 1."""
    total = integrate.quad(lambda y: np.exp(-0.5 * (y - 0.5 * y) ** 2) / np.sqrt(2 * np.pi), -np.inf, np.inf)[0]
    assert total == pytest.approx(2.0)


def one_after_the_other(x, _):
    observe("y", normal(0.0), 0, x)
    observe("w", normal(x[:, 0]), 1, x)
    observe("v", normal(x[:, 0] + x[:, 1]), 2, x)


def entry_by_entry(x, _):
    loc = torch.stack([torch.zeros(len(x), dtype=x.dtype), x[:, 0], x[:, 1]], -1)
    pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=x)


def covariate_of_a_prior(x, _):
    z = pyro.sample("z", normal(x[:, 2]))
    observe("y", normal(z + x[:, 1]), 0, x)


def states_that_see_the_last(x, _):
    z = pyro.sample("z0", dist.Bernoulli(torch.full((len(x),), 0.5, dtype=x.dtype)))
    observe("x0", normal(z), 0, x)
    z = pyro.sample("z1", dist.Bernoulli(torch.sigmoid(x[:, 0] + z)))
    observe("x1", normal(z + 0.5 * x[:, 0]), 1, x)


SERVED = [one_after_the_other, entry_by_entry, covariate_of_a_prior, states_that_see_the_last]


@pytest.mark.parametrize("sites", SERVED, ids=lambda s: s.__name__)
def test_what_goes_one_way_is_served(sites):
    structure = structure_of(rows(sites), X)
    assert structure.is_exact and not structure.obstacle, structure.reason
