"""Laplace's approximation where the latents of each datum are not exact: against quadrature, and θ learned through it."""

from __future__ import annotations

import local_programs as local
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import hide, task_of, tensor
from scipy import special, stats

from inference import infer, laplace, run
from inference._laplace import locals as _laplace_locals


def at_theta(program, x, **options):
    """Laplace at the program's own θ."""
    task = task_of(program, x)
    task.learn = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return laplace.fit(task, **options)


def test_counts_against_quadrature():
    x = local.draw_counts(300)
    fit = at_theta(local.counts, x)
    truth = local.counts_truth(x)
    assert fit.claimed.kind == "estimate" and fit.claimed.se is None
    assert np.abs(fit.claimed.per_datum - truth).max() < 0.06
    assert fit.claimed.value == pytest.approx(fit.claimed.per_datum.sum())
    assert fit.khat.shape == fit.ess.shape == (300,)
    assert fit.draws["z"].shape == (200, 300)
    # mean and deviation by quadrature
    z = np.linspace(-12, 12, 4001)
    joint = stats.poisson.logpmf(x, np.exp(z)) + stats.norm.logpdf(z, 0, local.SCALE)
    weights = special.softmax(joint, axis=1)
    mean = weights @ z
    sd = np.sqrt(weights @ z**2 - mean**2)
    assert np.abs((fit.means["z"] - mean) / sd).max() < 0.25
    assert np.abs(fit.deviations["z"] / sd - 1).max() < 0.15
    error = fit.draws["z"].mean(0) - fit.means["z"]
    assert np.abs(error / fit.deviations["z"]).max() < 5 / np.sqrt(200)


def test_a_mixture_says_what_each_datum_is():
    x = hide(local.draw_bent(100), 0.1)
    fit = at_theta(local.bent, x)
    truth = local.bent_joint(x)
    assert np.abs(fit.claimed.per_datum - special.logsumexp(truth, axis=1)).max() < 0.25
    assert np.abs(fit.probabilities["k"] - special.softmax(truth, axis=1)).max() < 0.1
    share = (fit.draws["k"] == 1).mean(0)
    assert np.abs(share - fit.probabilities["k"][:, 1]).max() < 5 * 0.5 / np.sqrt(200)


def test_constrained_sites_are_told_in_their_own_values():
    x = np.random.default_rng(9).normal(size=(10, 3))
    fit = at_theta(local.several, x, samples=500)
    assert fit.means["share"].shape == fit.deviations["share"].shape == (10, 3)
    assert fit.draws["share"].shape == (200, 10, 3) and fit.draws["k"].shape == (200, 10)
    np.testing.assert_allclose(fit.draws["share"].sum(-1), 1.0)
    np.testing.assert_allclose(fit.means["share"].sum(-1), 1.0)
    assert np.all(fit.draws["rate"] > 0)
    assert set(fit.probabilities) == {"k", "b"}


def test_its_own_gaussian_verifies_it():
    x = local.draw_logistic(40)
    fit = run(local.logistic, x, "laplace")
    assert fit.guide is not None and fit.converged
    assert 0 < fit.verified.se < 1
    assert abs(fit.claimed.value - fit.verified.value) < 0.3 * 40
    assert fit.verified.value > local.logistic_truth(x).sum() + 1  # it learned


def test_the_scale_of_counts_is_learned():
    """Near the maximum of the likelihood itself, found by quadrature; and at that of the Laplace evidence to rounding."""
    x = local.draw_counts(300, seed=3)
    fit = run(local.counts, x, "laplace", samples=30)
    values, times = np.unique(x, return_counts=True)
    grid = np.linspace(0.8, 1.6, 81)
    best = grid[np.argmax([local.counts_truth(values[:, None], s) @ times for s in grid])]
    assert float(fit.parameters["s"]) == pytest.approx(best, abs=0.03)
    task = task_of(local.counts, x)
    task.learn = False
    values = []
    for s in (-1e-3, 0.0, 1e-3):
        task.program.assign({"s": tensor(fit.parameters["s"] + s)})
        values.append(laplace.fit(task, samples=30).claimed.value)
    assert values[1] > max(values[0], values[2])
    assert fit.trace["log_evidence_per_datum"][-1] > fit.trace["log_evidence_per_datum"][0]


@pytest.mark.full
def test_batches_end_where_all_data_at_once_do(monkeypatch):
    x = local.draw_counts(120, seed=4)
    whole = run(local.counts, x, "laplace", samples=30)
    monkeypatch.setattr(_laplace_locals, "SMALL", 0)
    batches = run(local.counts, x, "laplace", samples=30, batch=40, lr=0.05, epochs=150)
    assert batches.claimed.value == pytest.approx(whole.claimed.value, abs=0.05)
    assert len(batches.trace["log_evidence_per_datum"]) <= 150


@pytest.mark.full
def test_a_network_is_learned():
    rng = np.random.default_rng(5)
    z = rng.normal(size=(150, 1))
    x = np.column_stack([np.cos(z), np.sin(z)]) + 0.1 * rng.normal(size=(150, 2))
    fit = run("deep_latent_gaussian", x, "laplace", latents=1, hidden="8", activation="tanh", max_iter=60, samples=50)
    one = run("factor_analysis", x, "em", latents=1)
    assert fit.verified.value > one.claimed.value + 20  # a curve is no line
    assert fit.notes["modes_not_found"] == 0


def test_a_posterior_that_is_no_gaussian_is_reported():
    """Two modes a datum, and Laplace sees one of them: half of the mass; a proposal with a hole where the other is."""

    def heavy(x=None, size=None):
        with local.rows(x, size):
            z = pyro.sample("z", dist.Cauchy(0.0, 1.0))
            return pyro.sample("x", dist.Cauchy(z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    fit = run(heavy, np.linspace(-3, 3, 30)[:, None], "laplace", samples=1000)
    assert any("k-hat is above 0.7 for" in w and "tails" in w for w in fit.warnings)


def test_the_check_can_be_left_out():
    x = local.draw_counts(10)
    fit = at_theta(local.counts, x, samples=0)
    assert fit.khat is None and fit.ess is None and fit.warnings == []
    assert fit.draws["z"].shape == (200, 10)
    assert np.array_equal(fit.claimed.per_datum, at_theta(local.counts, x).claimed.per_datum)


def test_modes_that_are_not_reached_are_counted(monkeypatch):
    from inference._density import newton

    monkeypatch.setattr(newton, "QUASI_STEPS", 0)
    fit = at_theta(local.logistic, local.draw_logistic(20), max_iter=1, tries=0)
    assert any("did not reach the mode for 20 of 20 rows" in w for w in fit.warnings)
    assert fit.converged is False and fit.notes["modes_not_found"] == 20


def test_a_damped_hessian_is_reported():
    def flat(x=None, size=None):
        with local.rows(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("quartic", 0.5 * z.square() - z**4)
            return pyro.sample("x", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1), obs=x)

    fit = at_theta(flat, np.zeros((4, 1)), tries=0)
    assert any("not positive definite for 4 of 4 rows" in w for w in fit.warnings)


def test_the_same_seed_gives_the_same_bits_for_each_datum():
    x = local.draw_bent(30)
    one, two = (run(local.bent, x, "laplace", samples=30, seed=1, max_iter=20) for _ in range(2))
    assert np.array_equal(one.claimed.per_datum, two.claimed.per_datum)
    assert np.array_equal(one.draws["z"], two.draws["z"]) and np.array_equal(one.khat, two.khat)


def test_it_is_saved_and_taken_up_at_the_theta_of_another_run(here):
    x = local.draw_logistic(30)
    np.savetxt("x.csv", x, delimiter=",", header="a,b,c,d,e,f", comments="")
    run(
        "deep_latent_gaussian", "x.csv", "laplace", latents=1, hidden="4", likelihood="bernoulli", max_iter=5, out="one"
    )
    again = infer("one", "laplace", out="two")
    assert (here / "two" / "fit.nc").is_file()
    assert again.trace == {} and again.claimed.kind == "estimate"
