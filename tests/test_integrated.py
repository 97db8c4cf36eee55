"""Global latents integrated out exactly: against marginal Gaussians and closed forms; refused where that is not so."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import structure_of, task_of
from scipy import stats
from scipy.optimize import minimize
from scipy.special import betaln, comb, gammaln
from torch.distributions import constraints

from latent_zoo import infer, run
from zoo._errors import Refusal

F64 = torch.float64
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 2))
TABLE = np.column_stack([X, 1 + X @ [2.0, -1.0] + 0.5 * RNG.normal(size=40)])
GROUP = np.repeat([0, 1, 2, 3], [1, 3, 8, 20])
RATES = np.column_stack([GROUP, RNG.poisson(4.0, 32)]).astype(float)
SCORES = np.column_stack([GROUP, RNG.normal(size=4)[GROUP] * 2 + RNG.normal(size=32) + 3])
HITS = RNG.binomial(10, 0.3, size=(40, 1)).astype(float)


def positive(name, value=1.0):
    return pyro.param(name, torch.tensor(value, dtype=F64), constraint=constraints.positive)


def regression(x=None, size=None):
    """y ~ N(b₀ + b₁ x₁ + b₂ x₂, s²), b ~ N(0, t²)."""
    s, t = positive("s"), positive("t")
    b = pyro.sample("b", dist.Normal(torch.zeros(3, dtype=F64), t).to_event(1))
    with pyro.plate("data", len(x)):
        mean = b[..., 0] + x[:, 0] * b[..., 1] + x[:, 1] * b[..., 2]
        return pyro.sample("y", dist.Normal(mean, s), obs=x[:, 2])


def intercepts(x=None, size=None):
    """Groups of 1 to 20 rows, a random intercept each."""
    s, t, m = positive("s"), positive("t"), pyro.param("m", torch.zeros((), dtype=F64))
    with pyro.plate("groups", 4):
        a = pyro.sample("a", dist.Normal(m, t))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(a[..., x[:, 0].long()], s), obs=x[:, 1])


def marginal(y, mean, design, s, t):
    return stats.multivariate_normal.logpdf(y, np.full(len(y), mean), s**2 * np.eye(len(y)) + t**2 * design @ design.T)


DESIGN = np.column_stack([np.ones(40), X])


def test_bayesian_linear_regression():
    fit = run(regression, TABLE, "em")
    assert fit.claimed.kind == fit.verified.kind == "exact" and not fit.claimed.given
    s, t = fit.parameters["s"], fit.parameters["t"]
    assert fit.claimed.value == pytest.approx(marginal(TABLE[:, 2], 0.0, DESIGN, s, t), rel=1e-10)
    best = minimize(lambda u: -marginal(TABLE[:, 2], 0.0, DESIGN, *np.exp(u)), [0, 0], method="BFGS")
    assert fit.claimed.value == pytest.approx(-best.fun, abs=1e-6) and fit.converged
    precision = DESIGN.T @ DESIGN / s**2 + np.eye(3) / t**2
    np.testing.assert_allclose(
        fit.parameters["b"], np.linalg.solve(precision, DESIGN.T @ TABLE[:, 2] / s**2), rtol=1e-8
    )
    errors = np.sqrt(np.diag(np.linalg.inv(precision)))
    np.testing.assert_allclose(fit.standard_errors["b"], errors, rtol=1e-8)
    assert np.all(np.abs(fit.draws["b"].mean(0) - fit.parameters["b"]) < 5 * errors / len(fit.draws["b"]) ** 0.5)


def test_random_intercepts_of_unbalanced_groups(here):
    fit = run(intercepts, SCORES, "em", out="fit")
    best = minimize(
        lambda u: -marginal(SCORES[:, 1], u[0], np.eye(4)[GROUP], *np.exp(u[1:])), [3.0, 0.0, 0.0], method="BFGS"
    )
    assert fit.claimed.kind == fit.verified.kind == "exact"
    assert fit.claimed.value == pytest.approx(-best.fun, abs=1e-6)
    again = infer("fit", "em", model=intercepts)
    assert again.claimed.value == pytest.approx(fit.claimed.value, rel=1e-12) and again.claimed.kind == "exact"


def test_laplace_calls_it_exact_too():
    fit = run(regression, TABLE, "laplace")
    s, t = fit.parameters["s"], fit.parameters["t"]
    assert fit.claimed.kind == fit.verified.kind == "exact"
    assert fit.claimed.value == pytest.approx(marginal(TABLE[:, 2], 0.0, DESIGN, s, t), rel=1e-10)


def test_with_local_latents_between():
    def program(x=None, size=None):
        a = pyro.sample("a", dist.Normal(torch.zeros((), dtype=F64), 1.0))
        with pyro.plate("data", len(x) if x is not None else size):
            z = pyro.sample("z", dist.Normal(a, 1.0))
            return pyro.sample("y", dist.Normal(2 * z, 0.5), obs=None if x is None else x[:, 1])

    fit = run(program, SCORES, "em")
    n = len(SCORES)
    covariance = 4.25 * np.eye(n) + 4.0
    assert fit.claimed.value == pytest.approx(
        stats.multivariate_normal.logpdf(SCORES[:, 1], np.zeros(n), covariance), rel=1e-10
    )
    joint = 4.0 * np.eye(n) + 4.0  # Cov(2 z)
    expected = joint @ np.linalg.solve(covariance, SCORES[:, 1]) / 2
    np.testing.assert_allclose(fit.means["z"], expected, atol=5 * fit.deviations["z"].max() / 200**0.5)


def test_a_chance_of_all_rows():
    def program(x=None, size=None):
        p = pyro.sample("p", dist.Beta(torch.tensor(2.0, dtype=F64), 3.0))
        with pyro.plate("data", len(x) if x is not None else size):
            return pyro.sample("k", dist.Binomial(10, p), obs=None if x is None else x[:, 0])

    expected = np.log(comb(10, HITS)).sum() + betaln(2 + HITS.sum(), 3 + 400 - HITS.sum()) - betaln(2, 3)
    fit = run(program, HITS, "em")
    assert fit.claimed.kind == fit.verified.kind == "exact"
    assert fit.claimed.value == pytest.approx(expected, rel=1e-11)
    assert fit.parameters["p"] == pytest.approx((2 + HITS.sum()) / 405, rel=1e-8)
    approximate = run(program, HITS, "laplace")
    assert approximate.claimed.kind == "estimate" and approximate.verified.kind == "exact"
    assert approximate.verified.value == pytest.approx(expected, rel=1e-11)


def rates(x=None, size=None):
    a = positive("a", 2.0)
    with pyro.plate("groups", 4):
        z = pyro.sample("z", dist.Gamma(a, torch.ones((), dtype=F64)))
    with pyro.plate("data", len(x)):
        return pyro.sample("k", dist.Poisson(2 * z[x[:, 0].long()]), obs=x[:, 1])


def test_rates_of_groups():
    def log_p(a):
        total = (RATES[:, 1] * np.log(2) - gammaln(RATES[:, 1] + 1)).sum()
        for g in range(4):
            k = RATES[RATES[:, 0] == g, 1]
            total += gammaln(a + k.sum()) - gammaln(a) - (a + k.sum()) * np.log(1 + 2 * len(k))
        return total

    fit = run(rates, RATES, "em")
    best = minimize(lambda u: -log_p(np.exp(u[0])), [0.5], method="BFGS")
    assert fit.claimed.kind == fit.verified.kind == "exact"
    assert fit.claimed.value == pytest.approx(log_p(float(fit.parameters["a"])), rel=1e-11)
    assert fit.claimed.value == pytest.approx(-best.fun, abs=1e-6)


def test_shares_of_all_rows():
    def program(x=None, size=None):
        w = pyro.sample("w", dist.Dirichlet(torch.ones(3, dtype=F64)))
        with pyro.plate("data", len(x) if x is not None else size):
            return pyro.sample("k", dist.Categorical(w), obs=None if x is None else x[:, 0])

    x = RNG.integers(0, 3, (30, 1)).astype(float)
    expected = gammaln(3) - gammaln(33) + gammaln(1 + np.bincount(x[:, 0].astype(int), minlength=3)).sum()
    assert run(program, x, "em").claimed.value == pytest.approx(expected, rel=1e-11)


def normal_global(mean, scale=None, prior=None):
    def program(x=None, size=None):
        a = pyro.sample("a", prior or dist.Normal(torch.zeros((), dtype=F64), 1.0))
        with pyro.plate("data", len(x) if x is not None else size):
            width = torch.ones((), dtype=F64) if scale is None else scale(a)
            return pyro.sample("y", dist.Normal(mean(a), width), obs=None if x is None else x[:, 1])

    return program


def masked(x=None, size=None):
    with pyro.poutine.scale(scale=0.5):
        a = pyro.sample("a", dist.Normal(torch.zeros((), dtype=F64), 1.0))
    with pyro.plate("data", len(x) if x is not None else size):
        return pyro.sample("y", dist.Normal(a, 1.0), obs=None if x is None else x[:, 1])


def mixture(x=None, size=None):
    a = pyro.sample("a", dist.Normal(torch.zeros((), dtype=F64), 1.0))
    with pyro.plate("data", len(x) if x is not None else size):
        k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5, dtype=F64)))
        return pyro.sample("y", dist.Normal(a * k, 1.0), obs=None if x is None else x[:, 1])


@pytest.mark.parametrize(
    "program",
    [
        normal_global(lambda a: torch.tanh(1e-6 * a)),
        normal_global(lambda a: a.clamp(-1e6, 1e6)),
        normal_global(lambda a: a, scale=lambda a: (1 + a * a).sqrt()),
        normal_global(lambda a: a, prior=dist.Laplace(torch.zeros((), dtype=F64), 1.0)),
        normal_global(lambda a: a, prior=dist.StudentT(30.0, torch.zeros((), dtype=F64), 1.0)),
        masked,
        mixture,
    ],
    ids=["tanh", "clamp", "scale", "laplace", "student", "a scale", "a mixture"],
)
def test_what_cannot_be_integrated_out_is_said(program):
    structure = structure_of(program, SCORES)
    assert structure.integrable == ""
    assert "given the global latents 'a', which are not integrated out" in structure.reason
    fit = run(program, SCORES, "em")
    assert fit.claimed.given == "the posterior mode of a"


def test_a_flat_prior_has_no_evidence():
    def model(x=None, size=None):
        b = pyro.sample("b", dist.Normal(torch.zeros((), dtype=F64), 1.0).mask(False))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(b, 1.0), obs=x[:, 1])

    structure = structure_of(model, SCORES)
    assert not structure.integrable and "'b' has a mask" in structure.reason


@pytest.mark.parametrize("method", ["em", "laplace"])
def test_a_variance_of_almost_nothing_is_refused_in_a_sentence(method):
    def model(x=None, size=None):
        m = pyro.sample("m", dist.Normal(torch.zeros((), dtype=F64), 10.0))
        with pyro.plate("groups", 4):
            a = pyro.sample("a", dist.Normal(m, 1e-8))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(a[..., x[:, 0].long()], 1.0), obs=x[:, 1])

    with pytest.raises(Refusal, match="nearly singular"):
        run(model, SCORES, method)


@pytest.mark.parametrize("model", ["factor_analysis", "gmm"])
def test_draws_and_moments_from_one_look_are_those_of_two(model):
    """And the program of a linear model with priors is recorded, which checks of its values would have forbidden."""
    x = np.random.default_rng(0).normal(size=(20, 4))
    task = task_of(model, x, priors=True)
    at = task.global_start()
    with torch.no_grad():
        for _ in range(15):
            task.engine.per_datum(globals=at)
    assert task.engine._replayed.graph is not None
    torch.manual_seed(0)
    drawn, means, deviations = task.engine.draw_and_summary(at)
    torch.manual_seed(0)
    again = (task.engine.draw(None, 1, at), *task.engine.summary(at))
    for one, other in zip((drawn, means, deviations), again, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
