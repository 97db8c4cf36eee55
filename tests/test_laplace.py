"""Laplace's approximation: standard errors against finite differences, evidence against closed forms and quadrature."""

from __future__ import annotations

import functools
import warnings

import local_programs as local
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from helpers import in_full, structure_of, task_of, tensor
from scipy import special, stats

from inference import laplace, run
from inference._numerics import definite
from zoo._data import datasets
from zoo._errors import Refusal, UsageError

FAITHFUL = datasets.load("faithful").x


def hessian(f, at: np.ndarray, step: float = 1e-4) -> np.ndarray:
    """By central differences, with steps in proportion."""
    d, h = len(at), step * (0.1 + np.abs(at))
    out = np.empty((d, d))
    for i in range(d):
        for j in range(d):
            a, b = np.eye(d)[i] * h[i], np.eye(d)[j] * h[j]
            out[i, j] = (f(at + a + b) - f(at + a - b) - f(at - a + b) + f(at - a - b)) / (4 * h[i] * h[j])
    return out


# ---- no continuous latents: the observed information of θ --------------------------------------------------------


@pytest.mark.parametrize("covariance", ["tied", *in_full("full"), "diagonal", "spherical"])
def test_standard_errors_against_finite_differences(covariance):
    """Of SciPy's log-likelihood, in the constrained parameters themselves; the second weight is one minus the first."""
    fit = run("gmm", "faithful", "laplace", covariance=covariance)
    assert fit.converged and fit.warnings == []
    scale = "scale_tril" if covariance in ("full", "tied") else "scales"
    shape = fit.parameters[scale].shape
    row, column = np.tril_indices(2)

    def flat_scale(v):
        return v[..., row, column].ravel() if scale == "scale_tril" else v.ravel()

    def covariances(numbers):
        if scale == "scales":
            s = numbers.reshape(shape)
            return np.stack([np.diag(np.broadcast_to(s[k] ** 2, 2)) for k in range(2)])
        tril = np.zeros(shape)
        tril[..., row, column] = numbers.reshape(*shape[:-2], 3)
        return np.broadcast_to(tril @ np.swapaxes(tril, -1, -2), (2, 2, 2))

    def log_likelihood(v):
        w, locs, S = v[0], v[1:5].reshape(2, 2), covariances(v[5:])
        first, second = (stats.multivariate_normal(locs[k], S[k]).logpdf(FAITHFUL) for k in range(2))
        return np.logaddexp(np.log(w) + first, np.log1p(-w) + second).sum()

    at = np.concatenate(
        [fit.parameters["weights"][:1], fit.parameters["locs"].ravel(), flat_scale(fit.parameters[scale])]
    )
    assert log_likelihood(at) == pytest.approx(fit.claimed.value, rel=1e-10)
    expected = np.sqrt(np.diag(np.linalg.inv(-hessian(log_likelihood, at))))
    errors = fit.standard_errors
    got = np.concatenate([errors["weights"][:1], errors["locs"].ravel(), flat_scale(errors[scale])])
    np.testing.assert_allclose(got, expected, rtol=2e-3)
    assert errors["weights"][1] == pytest.approx(errors["weights"][0], rel=1e-6)  # they sum to one


def test_it_reaches_the_maximum_that_em_does():
    fit = run("gmm", "faithful", "laplace")
    assert fit.claimed.value == pytest.approx(-1130.264, abs=0.001)
    assert fit.verified.value == pytest.approx(fit.claimed.value, abs=1e-6)
    assert fit.claimed.kind == "exact"  # nothing continuous was approximated


def test_standard_errors_of_a_mean_and_a_rate_are_the_textbooks():
    def plain(x=None, size=None):
        loc, scale = user.real("loc", 2), user.positive("scale", 2)
        with user.rows(x, size):
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    fit = run(plain, FAITHFUL, "laplace")
    s, n = FAITHFUL.std(0), len(FAITHFUL)
    np.testing.assert_allclose(fit.standard_errors["loc"], s / np.sqrt(n), rtol=1e-6)
    np.testing.assert_allclose(fit.standard_errors["scale"], s / np.sqrt(2 * n), rtol=1e-6)


def test_draws_of_theta_spread_as_the_standard_errors_say():
    fit = run("gmm", "faithful", "laplace")
    draws = fit.draws["locs"]
    error = fit.standard_errors["locs"]
    count = len(draws)
    assert np.all(np.abs(draws.mean(0) - fit.parameters["locs"]) < 5 * error / np.sqrt(count))
    assert np.all(np.abs(draws.std(0) / error - 1) < 5 / np.sqrt(2 * count))
    assert fit.log_likelihood.shape == (count, 272)
    assert np.ptp(fit.log_likelihood.sum(1)) > 1  # at each draw's own θ, not at θ̂


# ---- global latents: log evidence -----------------------------------------------------------------------------------


def normal_evidence(x: np.ndarray, loc: float, tau: float, scale: float) -> float:
    """log N(x; loc, τ² 11ᵀ + σ² I)."""
    n = len(x)
    return float(stats.multivariate_normal(np.full(n, loc), tau**2 * np.ones((n, n)) + scale**2 * np.eye(n)).logpdf(x))


def test_a_conjugate_normal_is_exact():
    x = np.random.default_rng(1).normal(2.0, 0.7, 25)
    fit = run(user.normal_mean, x, "laplace")
    truth = normal_evidence(x, 1.0, 2.0, 0.7)
    assert fit.claimed.value == pytest.approx(truth, abs=1e-8)
    assert fit.claimed.kind in ("estimate", "exact")
    assert abs(fit.verified.value - truth) < max(3 * fit.verified.se, 1e-6)
    precision = 1 / 2.0**2 + 25 / 0.7**2
    mean = (1.0 / 2.0**2 + x.sum() / 0.7**2) / precision
    assert fit.parameters["mean"] == pytest.approx(mean, rel=1e-8)
    assert fit.standard_errors["mean"] == pytest.approx(precision**-0.5, rel=1e-8)
    assert fit.draws["mean"].std() == pytest.approx(precision**-0.5, rel=5 / np.sqrt(2 * len(fit.draws["mean"])))


def test_two_global_latents_one_a_vector():
    def both(x=None, size=None):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        with user.rows(x, size):
            pyro.sample("x", dist.Normal(a + b, 1.0).to_event(1), obs=x)

    x = np.random.default_rng(2).normal(1.0, 1.0, (8, 2))
    fit = run(both, x, "laplace")
    flat = x.ravel()
    same_column = np.kron(np.ones((8, 8)), np.eye(2))
    covariance = 1.0 + 9.0 * same_column + np.eye(16)
    truth = stats.multivariate_normal(np.zeros(16), covariance).logpdf(flat)
    assert fit.claimed.value == pytest.approx(truth, abs=1e-8)


def test_a_beta_bernoulli_is_near():
    x = (np.random.default_rng(3).random(40) < 0.3).astype(float)
    k, n = x.sum(), len(x)
    truth = special.betaln(2 + k, 3 + n - k) - special.betaln(2, 3)
    fit = run(user.coin, x, "laplace")
    assert fit.claimed.kind == "estimate" and fit.claimed.se is None
    assert abs(fit.claimed.value - truth) < 1.0 / n  # its error is of the order of 1/n
    assert fit.verified.kind == "exact" and fit.verified.value == pytest.approx(truth, abs=1e-9)


def normal_quadrature(x, mean_prior, variance_prior, means: tuple, log_variances: tuple) -> float:
    """log ∫∫ N(x | m, v) p(m) p(v) dm dv, on a grid of m and log v that holds all of it."""
    mean, log_v = np.linspace(*means, 600)[:, None], np.linspace(*log_variances, 600)
    v, n = np.exp(log_v), len(x)
    squares = ((x - x.mean()) ** 2).sum() + n * (x.mean() - mean) ** 2
    joint = -0.5 * n * np.log(2 * np.pi * v) - 0.5 * squares / v + mean_prior(mean) + variance_prior(v) + log_v
    assert max(joint[0].max(), joint[-1].max(), joint[:, 0].max(), joint[:, -1].max()) < joint.max() - 15
    cell = (means[1] - means[0]) / 599 * (log_variances[1] - log_variances[0]) / 599
    return float(special.logsumexp(joint) + np.log(cell))


def test_a_normal_with_unknown_mean_and_variance_against_quadrature():
    def program(x=None, size=None):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        variance = pyro.sample("variance", dist.InverseGamma(3.0, 2.0))
        with user.rows(x, size):
            pyro.sample("x", dist.Normal(mean, variance.sqrt()).expand([1]).to_event(1), obs=x)

    x = np.random.default_rng(4).normal(0.5, 1.2, 60)

    truth = normal_quadrature(
        x,
        lambda mean: stats.norm.logpdf(mean, 0, 2),
        lambda v: stats.invgamma.logpdf(v, 3, scale=2),
        (-1, 2),
        (-2, 2.5),
    )
    fit = run(program, x, "laplace")
    assert abs(fit.claimed.value - truth) < 0.1
    assert abs(fit.verified.value - truth) < max(3 * fit.verified.se, 1e-3)


def test_theta_is_learned_beside_globals():
    """σ is a parameter, the mean a latent: σ at the maximum of the joint, the evidence at that σ."""

    def program(x=None, size=None):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        mean = pyro.sample("mean", dist.Normal(1.0, 2.0))
        with user.rows(x, size):
            pyro.sample("x", dist.Normal(mean, scale).expand([1]).to_event(1), obs=x)

    x = np.random.default_rng(5).normal(2.0, 0.7, 200)
    fit = run(program, x, "laplace")
    scale = float(fit.parameters["scale"])
    assert scale == pytest.approx(x.std(), rel=0.01)
    assert fit.claimed.value == pytest.approx(normal_evidence(x, 1.0, 2.0, scale), abs=1e-6)


@functools.cache
def with_priors(covariance: str, components: int):
    return run("gmm", "faithful", "laplace", priors=True, covariance=covariance, components=components)


@pytest.mark.parametrize("covariance", ["spherical", *in_full("full")])
def test_the_evidence_of_gmm_with_priors_is_confirmed_by_sampling(covariance):
    fit = with_priors(covariance, 2)
    assert fit.converged
    assert fit.notes["khat_of_globals"] < 0.7
    assert fit.verified.se < 0.1
    assert abs(fit.claimed.value - fit.verified.value) < 0.3
    assert fit.claimed.value < -1130  # the evidence pays for the parameters: far below the maximum likelihood
    assert set(fit.standard_errors) == {"weights", "locs", "covariances" if covariance == "full" else "variances"}


@pytest.mark.full
def test_evidence_prefers_two_components_on_old_faithful():
    values = {K: with_priors("spherical", K).claimed.value for K in (1, 2)}
    assert values[2] > values[1] + 20


def test_one_component_with_priors_against_quadrature():
    """A mixture of one, in one dimension: the weights have no freedom, and two numbers are left to integrate over."""
    x = np.random.default_rng(6).normal(3.0, 2.0, 50)
    fit = run("gmm", x, "laplace", components=1, priors=True, covariance="spherical")
    m, s = x.mean(), x.std()

    truth = normal_quadrature(
        x,
        lambda mean: stats.norm.logpdf(mean, m, 2 * s),
        lambda v: stats.invgamma.logpdf(v, 2, scale=s**2),
        (m - 3, m + 3),
        (-0.5, 4),
    )
    assert abs(fit.verified.value - truth) < max(3 * fit.verified.se, 1e-3)
    assert abs(fit.claimed.value - truth) < 0.1


# ---- where the Hessian is not what it should be -----------------------------------------------------------------------


def test_a_direction_the_data_cannot_see_is_damped_and_reported():
    def sum_of_two(x=None, size=None):
        a, b = user.real("a"), user.real("b")
        with user.rows(x, size):
            pyro.sample("x", dist.Normal(a + b, 1.0).expand([1]).to_event(1), obs=x)

    x = np.random.default_rng(7).normal(2.0, 1.0, 30)
    fit = run(sum_of_two, x, "laplace")
    assert any("not positive definite" in w and "1 of its 2" in w for w in fit.warnings)
    assert fit.notes["eigenvalues_raised"] == 1
    assert fit.claimed.value == pytest.approx(stats.norm.logpdf(x, x.mean(), 1).sum(), abs=1e-6)
    assert all(np.isfinite(v).all() for v in fit.standard_errors.values())


def test_damping_leaves_a_good_hessian_alone():
    good = tensor([[2.0, 0.5], [0.5, 1.0]])
    same, raised = definite.raised(good, 1e-9)
    assert raised == 0
    np.testing.assert_allclose(same, good, rtol=1e-12)
    bad = tensor([[1.0, 0.0], [0.0, -3.0]])
    better, raised = definite.raised(bad, 1e-9)
    assert raised == 1
    assert np.linalg.eigvalsh(better.numpy()).min() > 0


def test_learn_false_keeps_theta():
    task = task_of("gmm", FAITHFUL)
    task.learn = False
    before = {n: v.detach().clone() for n, v in task.program.values().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = laplace.fit(task)
    for n, v in before.items():
        np.testing.assert_allclose(fit.parameters[n], v, rtol=1e-12)


def neighbours(x=None, size=None):
    with local.rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z.tanh().unsqueeze(-1) + x.mean(), 1.0).to_event(1), obs=x)


def test_a_program_without_parameters_is_exact():
    def fixed(x=None, size=None):
        with user.rows(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = z.unsqueeze(-1).expand(*z.shape, 2)
            return pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    x = np.random.default_rng(2).normal(size=(50, 2))
    fit = run(fixed, x, "laplace")
    truth = stats.multivariate_normal([0, 0], [[2, 1], [1, 2]]).logpdf(x).sum()
    assert fit.claimed.kind == "exact" and fit.claimed.value == pytest.approx(truth, rel=1e-10)
    assert fit.converged and fit.draws["z"].shape[1:] == (50,)


@pytest.mark.full
def test_locals_are_drawn_given_each_draw_of_the_globals():
    """z | μ, τ, x is normal in closed form: draws of z, standardised by their own (μ, τ), are standard normal."""

    def two_levels(x=None, size=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfNormal(10.0))
        with user.rows(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal((mu + tau * z).unsqueeze(-1), 4.0).to_event(1), obs=x)

    x = np.random.default_rng(3).normal(3.0, 6.0, (8, 1))
    draws = run(two_levels, x, "laplace").draws
    mu, tau = draws["mu"].reshape(-1, 1), draws["tau"].reshape(-1, 1)
    variance = 1 / (1 + tau**2 / 16)
    standard = (draws["z"] - variance * tau * (x[:, 0] - mu) / 16) / np.sqrt(variance)
    count = standard.size
    assert abs(standard.mean()) < 4 / np.sqrt(count) and abs(standard.std() - 1) < 4 / np.sqrt(2 * count)
    assert abs(np.corrcoef(standard[:, 0], mu[:, 0])[0, 1]) < 4 / np.sqrt(len(mu))


# ---- refusals ------------------------------------------------------------------------------------------------------------


def test_what_it_cannot_do():
    assert laplace.refusal(structure_of(local.both_kinds, np.ones((5, 1)))) is None
    assert "'k' (Poisson) cannot be enumerated" in laplace.refusal(
        structure_of(local.unbounded_choice, np.ones((5, 1)))
    )
    assert "rows are not independent" in laplace.refusal(structure_of(neighbours, np.arange(5.0)[:, None]))
    assert laplace.refusal(structure_of(user.counts, np.ones((5, 1)))) is None
    assert laplace.refusal(structure_of("gmm", FAITHFUL)) is None
    with pytest.raises(UsageError, match="max_iter must be more than zero"):
        run("gmm", "faithful", "laplace", max_iter=0)


def test_too_many_parameters_are_refused_before_any_work():
    with pytest.raises(Refusal, match=r"Hessian over .* numbers, more than 3,000.*em"):
        run("gmm", np.random.default_rng(8).normal(size=(60, 60)), "laplace", components=2)
