"""Global latents beside locals that are not Gaussian: nested Laplace against quadrature; svi's covariance of globals."""

from __future__ import annotations

import numpy as np
import nuts_programs as programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import in_full, task_of
from numpy.polynomial.hermite_e import hermegauss
from scipy import special, stats

from inference import laplace, svi
from inference._laplace.globals import approximation
from inference._laplace.inner import Inner, Nested
from zoo._errors import Refusal


def few_rows() -> np.ndarray:
    rng = np.random.default_rng(7)
    return (rng.random((12, 5)) < special.expit(rng.normal(0.5, 1.5, (12, 1)))).astype(float)


def by_quadrature(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of `programs.logistic`: log p(x, mu, log tau) on a grid of mu × log tau, b summed by 60 nodes."""
    mu, u = np.linspace(-6, 7, 141), np.linspace(-7, 3, 161)
    nodes, weights = hermegauss(60)
    heads = x.sum(1)
    logits = mu[:, None, None] + np.exp(u)[:, None] * nodes
    log_p, log_q = special.log_expit(logits), special.log_expit(-logits)
    total = stats.norm.logpdf(mu, 0, 5)[:, None] + stats.halfnorm.logpdf(np.exp(u), scale=3) + u
    for k in heads:
        rows = k * log_p + (5 - k) * log_q
        total = total + special.logsumexp(rows + np.log(weights / weights.sum()), axis=2)
    return mu, u, total


@pytest.mark.full
def test_a_logistic_random_intercept_against_quadrature():
    x = few_rows()
    mu, u, total = by_quadrature(x)
    evidence = special.logsumexp(total) + np.log((mu[1] - mu[0]) * (u[1] - u[0]))
    share = np.exp(total - total.max())
    share /= share.sum()
    fit = laplace.fit(task_of(programs.logistic, x))
    assert fit.claimed.kind == "estimate" and fit.claimed.value == pytest.approx(evidence, abs=0.02)
    for name, value in (("mu", mu[:, None]), ("tau", np.exp(u)[None])):
        mean = (share * value).sum()
        sd = (share * (value - mean) ** 2).sum() ** 0.5
        assert float(fit.parameters[name]) == pytest.approx(mean, abs=0.05 * sd)
        assert float(fit.standard_errors[name]) == pytest.approx(sd, rel=0.05)


def test_the_gradient_is_that_of_finite_differences():
    for by_nodes, near in ((True, 1e-4), (False, 1e-5)):
        inner = Nested(task_of(programs.logistic, few_rows()), 100, 1e-12, 5, 0, by_nodes)
        at = torch.tensor([0.3, 0.8], dtype=torch.float64)

        def value(v, inner=inner):
            evidence, prior = inner.log_evidence(None, {"mu": v[0], "tau": v[1]})
            return evidence + prior

        flat = at.clone().requires_grad_()
        (slope,) = torch.autograd.grad(value(flat), flat)
        steps = 1e-4 * torch.eye(2, dtype=torch.float64)
        with torch.no_grad():
            expected = [float(value(at + s) - value(at - s)) / 2e-4 for s in steps]
        np.testing.assert_allclose(slope.numpy(), expected, rtol=near, atol=near)


def test_values_side_by_side_are_those_one_by_one():
    inner = Nested(task_of(programs.logistic, few_rows()), 100, 1e-10, 5, 0, None)
    globals = {
        "mu": torch.tensor([0.1, -1.0, 2.0], dtype=torch.float64),
        "tau": torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64),
    }
    together = inner.log_evidences({}, globals)
    assert inner.side_by_side
    torch.testing.assert_close(together, Inner.log_evidences(inner, {}, globals))


def of_the_sum(x=None, size=None):
    """The data tell a + b, and little of a − b."""
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    with programs.rows(x, size):
        return pyro.sample("x", dist.Normal(a + b, 1.0).to_event(1), obs=x)


def exact_of_the_sum(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    design = np.array([[1.0, 1, 0], [1, 0, 1]])
    precision = np.eye(3) / 4 + len(x) * design.T @ design
    covariance = np.linalg.inv(precision)
    return covariance @ design.T @ x.sum(0), covariance


@pytest.mark.parametrize("globals", ["full", *in_full("diagonal")])
def test_svi_over_globals_that_go_together(globals):
    """A full q is the posterior; an independent one has the variances 1/P_jj (Bishop 2006, §10.1.2)."""
    x = np.random.default_rng(1).normal([1.0, 2.0], 1.0, (20, 2))
    mean, covariance = exact_of_the_sum(x)
    fit = svi.fit(task_of(of_the_sum, x), globals=globals)
    q = fit.global_gaussian
    found = (q.scale_tril @ q.scale_tril.mT).numpy()
    expected = covariance if globals == "full" else np.diag(1 / np.diag(np.linalg.inv(covariance)))
    np.testing.assert_allclose(q.mean.numpy(), mean, atol=0.02 if globals == "full" else 0.2)
    np.testing.assert_allclose(found, expected, rtol=0.01 if globals == "full" else 0.15)
    if globals == "full":
        truth = stats.multivariate_normal(
            np.zeros(40), np.eye(40) + 4 * np.kron(np.ones((20, 20)), np.eye(2) + np.ones((2, 2)))
        ).logpdf(x.ravel())
        assert fit.claimed.kind == "lower bound"
        assert fit.claimed.value == pytest.approx(truth, abs=0.01) and fit.claimed.value <= truth + 0.01


def test_svi_beside_nested_laplace():
    q = approximation(task_of(programs.logistic, few_rows()))
    assert q.mean.shape == (2,) and q.scale_tril.shape == (2, 2)
    assert list(q.coordinates.sizes) == ["mu", "tau"]


def test_two_modes_are_listed():
    x = np.full((3, 1), 25.0)
    fit = laplace.fit(task_of(programs.two_roots, x), restarts=6)
    assert [m["weight"] for m in fit.notes["modes"]] == pytest.approx([0.5, 0.5], abs=0.01)
    assert any("2 modes were found" in w for w in fit.warnings)
    each = stats.norm.logpdf(5.0, 0, 10) + 3 * stats.norm.logpdf(0) + 0.5 * np.log(2 * np.pi / 300)
    assert fit.claimed.value == pytest.approx(each, abs=0.01)


@pytest.mark.full
def test_an_improper_posterior_is_called_that():
    with pytest.raises(Refusal, match="seems improper"):
        laplace.fit(task_of(programs.improper, np.zeros((4, 1))))


def test_a_saddle_is_no_mode():
    fit = laplace.fit(task_of(programs.two_roots, np.full((3, 1), 25.0)))
    assert abs(float(fit.parameters["a"])) == pytest.approx(5.0, abs=0.01)
