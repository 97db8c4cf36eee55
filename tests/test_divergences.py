"""The best normal under each divergence: against closed forms and quadrature."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import integrate, stats

from benchmarks import divergences
from zoo._errors import Refusal


def test_a_correlated_normal_has_the_closed_forms():
    r = 0.8
    found = divergences.answers(divergences.correlated(r))
    covariance = np.array([[1.0, r], [r, 1.0]])
    (one,), (other,) = found["kl_q_p"], found["kl_p_q"]
    variance = 2 / np.trace(np.linalg.inv(covariance))  # the average of the precisions
    assert one["covariance"] == pytest.approx(variance * np.eye(2), abs=1e-6)
    assert one["mean"] == pytest.approx([0, 0], abs=1e-6)
    # KL(q‖p) = ½ [tr(P S) − 2 + log det Σ − log det S], where tr(P S) = 2
    assert one["nats"] == pytest.approx(0.5 * (np.log(1 - r**2) - 2 * np.log(variance)), abs=1e-6)
    assert other["covariance"] == pytest.approx(np.eye(2), abs=1e-3)  # the average of the variances
    assert other["nats"] == pytest.approx(-0.5 * np.log(1 - r**2), abs=1e-3)
    assert found["laplace"][0]["covariance"] == pytest.approx(covariance, abs=1e-6)


@pytest.fixture(scope="module")
def bimodal():
    return divergences.answers(divergences.two_modes())


def test_two_modes_have_three_optima_under_one_divergence_and_one_under_the_other(bimodal):
    away = np.array([divergences.APART, 0.4 * divergences.APART])
    means = np.array([a["mean"] for a in bimodal["kl_q_p"]])
    assert len(means) == 3 and sorted(np.sign(np.round(means[:, 0], 2))) == [-1, 0, 1]
    (broad,) = bimodal["kl_p_q"]
    assert broad["mean"] == pytest.approx([0, 0], abs=1e-6)
    assert broad["covariance"] == pytest.approx(np.eye(2) + np.outer(away, away), abs=1e-2)
    assert len(bimodal["laplace"]) == 2


def test_the_values_are_those_of_quadrature(bimodal):
    away = np.array([divergences.APART, 0.4 * divergences.APART])

    def log_p(z):
        return np.logaddexp(*(stats.multivariate_normal(s * away).logpdf(z) for s in (1, -1))) - np.log(2)

    for answer, forward in [
        (bimodal["kl_q_p"][0], False),
        (bimodal["kl_q_p"][-1], False),
        (bimodal["kl_p_q"][0], True),
    ]:
        q = stats.multivariate_normal(answer["mean"], answer["covariance"])
        axis = np.linspace(-11, 11, 441)
        points = np.stack(np.meshgrid(axis, axis), -1)
        p, log_q = log_p(points), q.logpdf(points)
        each = np.exp(p) * (p - log_q) if forward else np.exp(log_q) * (log_q - p)
        truth = integrate.simpson(integrate.simpson(each, x=axis), x=axis)
        assert answer["nats"] == pytest.approx(truth, abs=2e-3)


BANANA = """
import pyro, torch
import pyro.distributions as dist
def banana(x=None, size=None):
    with pyro.plate("data", size if x is None else len(x)):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a**2, 0.5))
        return pyro.sample("x", dist.Normal(b, 1.0), obs=None if x is None else x[..., 0])
"""


@pytest.mark.full
def test_a_program_of_ones_own(tmp_path, capsys):
    (tmp_path / "banana.py").write_text(BANANA)
    np.save(tmp_path / "x.npy", np.array([[1.5], [0.2]]))
    asked = {"model": f"{tmp_path}/banana.py:banana", "data": str(tmp_path / "x.npy")}
    divergences.main(json=True, out=tmp_path, **asked)
    (found,) = json.loads(capsys.readouterr().out)["targets"]
    a, b = np.meshgrid(np.linspace(-5, 5, 501), np.linspace(-4, 12, 801))
    p = stats.norm.pdf(a) * stats.norm.pdf(b, a**2, 0.5) * stats.norm.pdf(1.5, b, 1.0)
    p = p / p.sum()
    mean, second = (p * b).sum(), (p * a**2).sum()
    assert found["kl_p_q"][0]["mean"] == pytest.approx([0, mean], abs=0.01)
    assert found["kl_p_q"][0]["covariance"][0][0] == pytest.approx(second, rel=0.02)
    assert (tmp_path / "divergences.png").stat().st_size > 20_000


def test_programs_of_another_kind_are_refused():
    with pytest.raises(Refusal, match="two continuous latents"):
        divergences.of_program("gmm", "faithful", 0)
