"""Draws of global latents that are weighed: what Laplace's Gaussian misses, and proposals at modes given other latents."""

from __future__ import annotations

import numpy as np
import nuts_programs as programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import task_of, tensor
from scipy import special, stats

from benchmarks._references import exactly
from benchmarks._references.command import Asked, checked
from benchmarks._references.programs import DATA, MODELS
from inference import importance, laplace
from inference._globals.adaptive import GROUP
from inference._mcmc.posterior import Posterior
from inference._mcmc.recorded import Gradient
from inference._sampling.nested import Nested

COUNTS = np.array([[0.0, 3, 1, 9, 0], [1, 5, 0, 4, 0]])
SCALED = np.array([[0.4, -1.1, 2.3, 0.2, 1.7], [1.2, 0.3, 1.9, -0.6, 0.8]])


def counted(x=None, size=None):
    """Five rates, whose posteriors are gammas: skewed, of five numbers, and no grid."""
    rate = pyro.sample("rate", dist.Gamma(torch.full((5,), 1.5), 1.0).to_event(1))
    with programs.rows(x, size):
        return pyro.sample("x", dist.Poisson(rate).to_event(1), obs=x)


def scaled(x=None, size=None):
    """Five numbers with normal priors, and their scale: normal given it."""
    tau = pyro.sample("tau", dist.HalfNormal(2.0))
    f = pyro.sample("f", dist.Normal(torch.zeros(5), 1.0).to_event(1))
    with programs.rows(x, size):
        return pyro.sample("x", dist.Normal(tau * f, 1.0).to_event(1), obs=x)


def with_factor(x=None, size=None):
    """A term of the density that belongs to no row."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    pyro.factor("more", -0.5 * (mu - 1.0) ** 2)
    with programs.rows(x, size):
        return pyro.sample("x", dist.Normal(mu, 1.0), obs=None if x is None else x[:, 0])


def test_laplace_weighs_its_draws():
    fit = laplace.fit(task_of(counted, COUNTS))
    a, b = 1.5 + COUNTS.sum(0), 1.0 + len(COUNTS)
    truth = (
        special.gammaln(a).sum() - 5 * special.gammaln(1.5) - (a * np.log(b)).sum() - special.gammaln(COUNTS + 1).sum()
    )
    away = fit.claimed.value - truth
    assert fit.claimed.kind == "estimate" and fit.claimed.se is None
    assert abs(away) < 4 * fit.notes["log_evidence_se_of_weights"] < 0.5
    error = np.sqrt(a) / b / np.sqrt(fit.notes["effective_draws"])
    assert np.all(np.abs(fit.parameters["rate"] - a / b) < 4 * error)
    assert np.all(np.abs(fit.standard_errors["rate"] * b / np.sqrt(a) - 1) < 0.15)
    assert fit.notes["khat_of_globals"] <= 0.7 and "resampled" in fit.notes["global_draws"]
    plain = laplace.fit(task_of(counted, COUNTS), globals="laplace")
    assert abs(plain.claimed.value - truth) > 5 * abs(away) and "global_draws" not in plain.notes
    assert plain.claimed.value == pytest.approx(fit.notes["log_evidence_by_laplace"])


def test_nested_proposals_are_unbiased():
    """log p(x, tau) in closed form: given tau each column is normal with one covariance."""
    task = task_of(scaled, SCALED)
    posterior = Posterior(task, False)
    outer, inner = posterior.normal_group()
    assert len(outer) == 1 and inner.shape == (1, 5)
    nested = Nested(posterior.whole, outer, inner, posterior.width, torch.Generator().manual_seed(0))
    u = tensor([-1.0, 0.0, 1.0]).repeat_interleave(500).unsqueeze(1)
    found = nested.weigh(u)[0].detach().reshape(3, 500)
    for k, tau in enumerate(np.exp([-1.0, 0.0, 1.0])):
        of_x = stats.multivariate_normal(np.zeros(2), np.eye(2) + tau**2)
        truth = of_x.logpdf(SCALED.T).sum() + stats.halfnorm.logpdf(tau, scale=2) + np.log(tau)
        ratio = np.exp(found[k].numpy() - truth)
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(500) < 0.2


def test_a_factor_outside_the_rows_is_recorded():
    posterior = Posterior(task_of(with_factor, np.array([[0.3], [1.2]])), False)
    gradient = Gradient(posterior.log_density, tensor([[0.2], [1.0]]))
    assert gradient.recorded is not None
    slope = gradient(np.array([[0.5], [0.7]]))[1][:, 0]
    expected = [-m / 25 - (m - 1) + (0.3 - m) + (1.2 - m) for m in (0.5, 0.7)]
    np.testing.assert_allclose(slope, expected, rtol=1e-8)


@pytest.mark.full
def test_a_funnel_of_effects_outside_the_rows():
    """Eight schools with the effects outside the plate: Laplace's evidence is 5.8 nats off, the weights' is not."""
    task = task_of(MODELS["eight_schools_outside"], DATA["eight_schools_outside"]())
    truth = exactly.known("eight_schools_outside")
    for method in (laplace, importance):
        fit = method.fit(task)
        se = fit.claimed.se or fit.notes["log_evidence_se_of_weights"]
        assert abs(fit.claimed.value - truth.log_evidence) < 4 * se < 0.5
        for name in ("mu", "tau"):
            mean, square = truth.moments[name]
            assert abs(fit.parameters[name] - mean) < 0.25 * np.sqrt(square - mean**2)


@pytest.mark.slow
def test_a_gaussian_process_needs_nested_proposals():
    task = task_of(MODELS["poisson_gp"], DATA["poisson_gp"]())
    fit = importance.fit(task, samples=1000)
    assert fit.notes["nested"] == GROUP and fit.claimed.kind == "estimate"
    other = laplace.fit(task)
    assert other.claimed.value == pytest.approx(fit.claimed.value, abs=4 * fit.claimed.se + 0.05)


@pytest.mark.full
def test_a_mode_beside_the_one_of_a_nested_gaussian_is_told():
    """Two modes of 6 : 4 in mu; the truth by quadrature over mu and each row's b."""
    x = np.array([[3.0], [5.0], [4.0], [2.0], [6.0], [4.0]])

    def program(x=None, size=None):
        mu = pyro.sample("mu", dist.Normal(0.2, 1.0))
        with programs.rows(x, size):
            b = pyro.sample("b", dist.Normal(mu**2, 0.3))
            return pyro.sample("x", dist.Poisson(b.exp()), obs=x)

    fit = laplace.fit(task_of(program, x))
    mu, b = np.linspace(-5, 5, 1001)[:, None], np.linspace(-1, 4, 800)
    truth = stats.norm(0.2, 1).logpdf(mu[:, 0])
    for count in x[:, 0]:
        joint = stats.poisson(np.exp(b)).logpmf(count) + stats.norm(mu**2, 0.3).logpdf(b)
        truth = truth + special.logsumexp(joint, 1) + np.log(b[1] - b[0])
    truth = special.logsumexp(truth) + np.log(0.01)
    assert fit.claimed.value < truth - 0.3 and "one of 2" in fit.claimed.given
    assert special.logsumexp([m["log_evidence"] for m in fit.notes["modes"]]) == pytest.approx(truth, abs=0.1)


def test_a_point_whose_matrix_has_no_factor_is_impossible_alone():
    def program(x=None, size=None):
        alpha = pyro.sample("alpha", dist.Normal(0.0, 0.1))
        root = torch.linalg.cholesky(torch.eye(2) - alpha**2)
        with programs.rows(x, size):
            return pyro.sample("x", dist.Normal(root.sum(), 1.0), obs=x)

    task = task_of(program, np.array([[0.5], [1.0]]))
    posterior = Posterior(task, False)
    posterior.check(tensor([[0.1], [0.2]]))
    found = posterior.log_density(tensor([[0.3], [-2.0], [0.4]]))
    assert posterior.side_by_side and found.isfinite().tolist() == [True, False, True]


@pytest.mark.slow
def test_laplace_walks_where_its_gaussian_is_far_off():
    """2PL, 40 global numbers: the reference is a long run of nuts."""
    found, _ = checked(Asked("two_pl", method="laplace"))
    assert found.verdict == "agrees" and len(found.numbers) == 140
