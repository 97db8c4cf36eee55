"""Claims about global latents whose posterior has parts that a proposal or a chain does not reach by itself."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import task_of
from nuts_programs import rows
from scipy import special, stats

from inference import importance, laplace, nuts
from inference._globals import modes
from inference._globals.labels import Labels
from inference._globals.target import Target
from inference._numerics import peak
from inference._run.verify import verify
from zoo._errors import Refusal

ORIGIN = np.zeros((1, 3))
SMALL = np.array([[0.1, -0.2, 0.3, 0.0, 0.5, -0.4, 0.2, 0.1, 0.0]])


def far(x=None, size=None):
    """Two narrow modes, at (−6, −6, −6) with 80% of the likelihood and at (6, 6, 6)."""
    at = pyro.sample("at", dist.Normal(torch.zeros(3), 10.0).to_event(1))
    both = dist.Normal(torch.stack([at + 6, at - 6], -2), torch.tensor([[0.5], [0.3]]))
    seen = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.8, 0.2])), both.to_event(1))
    with rows(x, size):
        return pyro.sample("x", seen, obs=x)


def of_far() -> float:
    each = [3 * stats.norm.logpdf(6, 0, math.hypot(10, sd)) for sd in (0.5, 0.3)]
    return float(special.logsumexp(each, b=[0.8, 0.2]))


def spike(x=None, size=None):
    """A narrow mode inside the tail of a wide one."""
    at = pyro.sample("at", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    both = dist.Normal(torch.stack([at + 4, at], -2), torch.tensor([[2.0], [0.2]]))
    seen = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.7, 0.3])), both.to_event(1))
    with rows(x, size):
        return pyro.sample("x", seen, obs=x)


def conflict(x=None, size=None):
    """All priors' draws are near 0; two of three rows, and with them nearly all mass, are at 30."""
    m = pyro.sample("m", dist.StudentT(2.0, 0.0, 0.1))
    with rows(x, size):
        return pyro.sample("x", dist.StudentT(2.0, m, 0.1), obs=x)


CONFLICT = np.array([[30.0], [30.05], [-20.0]])


def of_conflict() -> float:
    m = np.linspace(-60, 70, 1_300_001)
    log_p = stats.t.logpdf(m, 2, 0, 0.1) + stats.t.logpdf(CONFLICT, 2, m, 0.1).sum(0)
    return float(special.logsumexp(log_p) + np.log(m[1] - m[0]))


def scale(x=None, size=None):
    """Where all data are 0 the posterior of the scale has no integral."""
    s = pyro.sample("s", dist.HalfCauchy(1.0))
    with rows(x, size):
        return pyro.sample("x", dist.Normal(0.0, s), obs=x)


def funnel(x=None, size=None):
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    u = pyro.sample("u", dist.Normal(torch.zeros(9), (v / 2).exp().unsqueeze(-1)).to_event(1))
    with rows(x, size):
        return pyro.sample("x", dist.Normal(u, 1.0).to_event(1), obs=x)


def of_funnel() -> float:
    v = np.linspace(-30, 30, 60_001)
    log_p = stats.norm.logpdf(v, 0, 3) + stats.norm.logpdf(SMALL[0][:, None], 0, np.sqrt(1 + np.exp(v))).sum(0)
    return float(np.log(np.trapezoid(np.exp(log_p), v)))


@pytest.mark.full
def test_importance_weighs_both_of_two_modes_far_apart():
    fit = importance.fit(task_of(far, ORIGIN))
    assert fit.notes["modes"] == 2 and fit.claimed.kind == "estimate"
    assert abs(fit.claimed.value - of_far()) < 3 * fit.claimed.se < 0.3


def test_a_mode_that_no_draw_is_near_is_told():
    target = Target(task_of(far, ORIGIN))
    flat = -6 + 0.5 * torch.randn(400, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_p = target.log_density(flat)
    share = modes.missed(target, Labels(target, flat[:4]), flat, log_p)
    assert abs(share - 0.2) < 0.05
    both = torch.cat([flat, 6 + (flat + 6) * 0.6])
    assert modes.missed(target, Labels(target, flat[:4]), both, target.log_density(both)) == 0.0


@pytest.mark.parametrize("seed", [0, 1])
def test_a_wide_mode_about_a_narrow_one_is_told(seed):
    target = Target(replace(task_of(spike, np.zeros((1, 2))), seed=seed))
    flat = 0.2 * torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    share = modes.missed(target, Labels(target, flat[:4]), flat, target.log_density(flat))
    sizes = [2 * stats.norm.logpdf(m, 0, math.hypot(5, sd)) for m, sd in ((4, 2.0), (0, 0.2))]
    wide = 0.7 * math.exp(sizes[0])
    assert abs(share - wide / (wide + 0.3 * math.exp(sizes[1]))) < 0.1


@pytest.mark.full
def test_a_mode_far_from_the_prior_is_found():
    claimed = importance.fit(task_of(conflict, CONFLICT)).claimed
    assert claimed.kind == "estimate" and abs(claimed.value - of_conflict()) < 4 * claimed.se < 0.3


@pytest.mark.full
def test_evidence_of_one_mode_is_no_verified_estimate():
    task = task_of(far, ORIGIN)
    fit, found = verify(task, laplace.fit(task))
    assert found.kind == "lower bound" and found.value < of_far() - 0.1
    assert fit.claimed.kind == "estimate" and "one of several" in fit.claimed.given
    assert any("the fit is of one mode" in w for w in fit.warnings)


def squares(x=None, size=None):
    """The sign of `g` is known from its prior alone; the rows have no exact density given it."""
    g = pyro.sample("g", dist.Normal(0.3, 2.0))
    with rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 0.3))
        return pyro.sample("x", dist.Poisson((z + g.square()).exp()), obs=x)


@pytest.mark.full
def test_a_claim_at_one_of_the_modes_that_the_method_found_says_so():
    task = task_of(squares, np.array([[20.0], [18.0], [25.0]]))
    fit, found = verify(task, laplace.fit(task, restarts=5))
    assert found is None and len(fit.notes["modes"]) == 2 and ", one of " in fit.claimed.given


@pytest.mark.full
def test_a_grid_over_both_of_two_modes_is_a_claim_of_all():
    def close(x=None, size=None):
        g = pyro.sample("g", dist.Normal(0.1, 1.0))
        with rows(x, size):
            return pyro.sample("x", dist.Normal(g.square(), 0.5), obs=x)

    task = task_of(close, np.array([[1.5]]))
    fit, _ = verify(task, laplace.fit(task, restarts=5))
    g = np.linspace(-8, 8, 20_001)
    truth = special.logsumexp(stats.norm.logpdf(g, 0.1) + stats.norm.logpdf(1.5, g * g, 0.5)) + np.log(g[1] - g[0])
    assert len(fit.notes["modes"]) == 2 and not fit.claimed.given and abs(fit.claimed.value - truth) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_chains_that_miss_a_mode_claim_nothing(seed):
    fit = nuts.fit(replace(task_of(far, ORIGIN), seed=seed), warmup=300, samples=500)
    assert not fit.converged and fit.claimed is None


@pytest.mark.full
@pytest.mark.parametrize("n", [1, 3])
def test_a_posterior_that_runs_to_an_edge_is_called_improper(n):
    with pytest.raises(Refusal, match="'s' runs to the edge"):
        importance.fit(task_of(scale, np.zeros((n, 1))))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_weights_in_a_funnel_are_an_estimate_only_near_the_truth(seed):
    claimed = importance.fit(replace(task_of(funnel, SMALL), seed=seed)).claimed
    assert claimed.kind == "lower bound" or abs(claimed.value - of_funnel()) < 4 * claimed.se


def test_a_climb_that_meets_no_number_ends_in_words():
    def density(flat):
        return -(flat - 1).square().sum() + torch.where((flat.detach().abs() < 0.1).all(), 0.0, torch.nan)

    with pytest.raises(ArithmeticError, match="a density that is not a number"):
        peak.climb(density, torch.zeros(2, dtype=torch.float64), 50, 1e-6, lambda **_: None)
