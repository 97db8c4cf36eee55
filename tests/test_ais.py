"""Annealed importance sampling: against exact evidence and quadrature, within its own standard errors, and unbiased."""

from __future__ import annotations

import linear_programs as linear
import local_programs as local
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from helpers import hide, in_full, structure_of, task_of, tensor
from scipy import special, stats

from inference import ais, infer, run
from inference._density.local import LocalDensity
from inference._mcmc import hamiltonian
from inference._method.fit import Fit
from zoo._errors import Refusal, UsageError


def anneal(program, x, seed: int = 0, theta=None, **options) -> Fit:
    """At the program's own θ, or at `theta`."""
    task = task_of(program, x)
    task.program.assign({k: tensor(v) for k, v in (theta or {}).items()})
    task.learn = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ais.fit(task, **options)


def score(fit: Fit, truth: np.ndarray) -> float:
    """The error of the total in its standard errors."""
    return (fit.claimed.value - truth.sum()) / fit.claimed.se


# ---- truth --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program",
    [*in_full(linear.two_latents_that_add, linear.mixture_of_factor_analysers), linear.random_intercept_in_a_plate],
    ids=lambda p: p.__name__,
)
def test_a_linear_gaussian_program_against_its_exact_evidence(program):
    x = hide(np.random.default_rng(0).normal(size=(10, linear.D)), 0.15, seed=1)
    fit = anneal(program, x, temperatures=100, chains=250, leapfrog=5)
    assert fit.claimed.kind == "estimate", fit.warnings
    truth = task_of(program, x).exact.per_datum().detach().numpy()
    assert abs(score(fit, truth)) < 4
    assert fit.claimed.se < 1
    assert np.abs(fit.claimed.per_datum - truth).max() < 1
    assert 0.5 < fit.notes["acceptance"]["mean"] < 0.8


def test_counts_against_quadrature():
    x = np.append(local.draw_counts(30), [[60.0]], axis=0)  # the last far out in the prior's tail
    fit = anneal(local.counts, x, temperatures=150, chains=16, leapfrog=5)
    assert abs(score(fit, local.counts_truth(x))) < 4
    assert np.abs(fit.claimed.per_datum - local.counts_truth(x)).max() < 1


@pytest.mark.full
def test_a_tanh_decoder_with_a_discrete_site_against_quadrature():
    x = hide(local.draw_bent(25), 0.1)
    fit = anneal(local.bent, x, temperatures=200, chains=16, leapfrog=5)
    truth = local.bent_joint(x)
    assert abs(score(fit, special.logsumexp(truth, axis=1))) < 4
    assert np.abs(fit.probabilities["k"] - special.softmax(truth, axis=1)).mean() < 0.08
    assert np.abs((fit.draws["k"] == 1).mean(0) - fit.probabilities["k"][:, 1]).max() < 5 * 0.5 / np.sqrt(200)


def test_a_positive_latent_against_its_closed_form():
    x = np.random.default_rng(2).poisson(3.0, (25, 1)).astype(float)
    fit = anneal(user.counts, x, theta={"shape": 1.7, "rate": 0.6}, temperatures=150, chains=16, leapfrog=5)
    truth = stats.nbinom.logpmf(x[:, 0], 1.7, 0.6 / 1.6)
    assert abs(score(fit, truth)) < 4
    a = 1.7 + x[:, 0]
    assert np.abs(fit.means["intensity"] - a / 1.6).mean() < 3 * np.mean(np.sqrt(a) / 1.6) / np.sqrt(16)
    assert np.all(fit.draws["intensity"] > 0)


def test_a_row_with_nothing_observed_costs_nothing():
    x = local.draw_logistic(6)
    x[2] = np.nan
    fit = anneal(local.logistic, x, temperatures=40, chains=4, leapfrog=3)
    assert fit.claimed.per_datum[2] == pytest.approx(0.0, abs=1e-12)
    assert fit.ess[2] == pytest.approx(4.0)


@pytest.mark.full
def test_several_sites_of_all_kinds():
    """Against importance sampling from the prior."""
    from inference._sampling import weights as _weights

    x = np.random.default_rng(3).normal(size=(8, 3))
    fit = anneal(local.several, x, temperatures=150, chains=16, leapfrog=6)
    task = task_of(local.several, x)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = _weights.draw(task.program, task.structure, task.x, None, 40_000)
    truth, error = _weights.log_mean(drawn.log_weights)
    away = fit.claimed.value - float(truth.sum())
    assert abs(away) < 4 * np.hypot(fit.claimed.se, float(error.square().sum().sqrt()))
    assert fit.means["share"].shape == (8, 3) and fit.draws["share"].shape == (200, 8, 3)
    np.testing.assert_allclose(fit.means["share"].sum(-1), 1.0)
    assert set(fit.probabilities) == {"k", "b"}


# ---- what it claims of itself --------------------------------------------------------------------------------------------


def test_the_weights_are_unbiased_though_the_path_is_short():
    """E[w] = p(x): the mean of many weights from five temperatures, on the scale of probabilities; their logarithm is low."""
    x = np.repeat([[0.0], [3.0], [9.0]], 40, axis=0)
    task = task_of(local.counts, x)
    density = LocalDensity(task.program, task.structure, task.x)
    truth = tensor(local.counts_truth(x))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        steps = hamiltonian.pilot(density, 4, 5, 3, lambda: None)
        run = hamiltonian.anneal(density, 50, 5, 3, steps, lambda: None)
    ratio = (run.log_weights - truth).exp().reshape(50, 3, 40).movedim(1, 0).reshape(3, -1)  # 2000 of each count
    error = ratio.std(1) / ratio.shape[1] ** 0.5
    assert bool(((ratio.mean(1) - 1).abs() < 4 * error).all())
    low = (run.log_weights - truth).reshape(50, 3, 40).mean((0, 2))
    assert bool((low < 0).all()) and float(low.min()) < -0.1


def test_more_temperatures_leave_less_error():
    x = local.draw_logistic(15)
    few, many = (anneal(local.logistic, x, temperatures=t, chains=8, leapfrog=4) for t in (4, 120))
    assert many.claimed.se < 0.5 * few.claimed.se
    assert many.ess.mean() > few.ess.mean()


def test_the_schedule_is_the_papers():
    betas = ais.schedule(100).numpy()
    assert betas[0] == 0 and betas[-1] == 1 and np.all(np.diff(betas) > 0)
    logistic = special.expit(4 * np.linspace(-1, 1, 101))
    np.testing.assert_allclose(betas, (logistic - logistic[0]) / (logistic[-1] - logistic[0]), atol=1e-15)


def test_a_transition_keeps_its_distribution():
    """Started from f_β itself, a Gaussian, chains stay in it."""

    def plain(x=None, size=None):
        with local.rows(x, size):
            z = pyro.sample("z", dist.Normal(1.0, 2.0))
            return pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    task = task_of(plain, np.array([[4.0]]))
    density, beta = LocalDensity(task.program, task.structure, task.x), 0.3
    precision = 1 / 4 + beta
    mean, sd = (1 / 4 + beta * 4.0) / precision, precision**-0.5
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = hamiltonian.look(density, mean + sd * torch.randn(20_000, 1, 1, dtype=torch.float64))
        for _ in range(20):
            state, accept = hamiltonian.transition(density, state, beta, tensor([0.7]), tensor([2.0]), 2)
    z = state.z.flatten().numpy()
    assert 0.2 < float(accept.mean()) < 0.97  # or this would show little
    assert stats.kstest(z, stats.norm(mean, sd).cdf).pvalue > 0.001


def test_draws_and_moments_are_the_posteriors():
    x = local.draw_counts(12)
    fit = anneal(local.counts, x, temperatures=60, chains=200, leapfrog=5)
    z = np.linspace(-12, 12, 4001)
    weights = special.softmax(stats.poisson.logpmf(x, np.exp(z)) + stats.norm.logpdf(z, 0, local.SCALE), axis=1)
    mean = weights @ z
    sd = np.sqrt(weights @ z**2 - mean**2)
    assert np.abs((fit.means["z"] - mean) / sd).max() < 5 / np.sqrt(100)
    assert np.abs(fit.deviations["z"] / sd - 1).max() < 5 / np.sqrt(200)
    assert np.abs((fit.draws["z"].mean(0) - mean) / sd).max() < 7 / np.sqrt(100)
    assert fit.khat.shape == fit.ess.shape == (12,)  # so many chains have a tail to fit
    assert np.all(fit.khat <= 0.7)


def test_too_short_a_path_is_reported():
    def needle(x=None, size=None):
        with local.rows(x, size):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z.tanh(), 0.01).to_event(1), obs=x)

    fit = anneal(needle, 0.5 * np.ones((5, 4)), temperatures=2, chains=10, leapfrog=1)
    assert fit.khat is None  # too few chains for a tail
    assert any("of 5 rows rests on fewer than a fifth of their 10 chains" in w for w in fit.warnings)


def test_chunks_only_divide_the_work(monkeypatch):
    monkeypatch.setattr("inference._density.local.NUMBERS", 5 * 16 * 8 * 2)
    x = local.draw_counts(12)
    fit = anneal(local.counts, x, temperatures=60, chains=16, leapfrog=3)
    assert fit.claimed.per_datum.shape == (12,) and fit.draws["z"].shape == (200, 12)
    assert abs(score(fit, local.counts_truth(x))) < 4


def test_the_same_seed_gives_the_same_bits():
    x = local.draw_bent(6)
    options = {"temperatures": 10, "chains": 4, "leapfrog": 2}
    one, two, other = (anneal(local.bent, x, seed=s, **options) for s in (1, 1, 2))
    assert np.array_equal(one.claimed.per_datum, two.claimed.per_datum)
    assert np.array_equal(one.draws["z"], two.draws["z"])
    assert not np.array_equal(one.claimed.per_datum, other.claimed.per_datum)


# ---- what it refuses ---------------------------------------------------------------------------------------------------------


def test_it_keeps_theta():
    with pytest.raises(Refusal, match=r"ais keeps θ as it is.*zoo infer RUN --method ais"):
        run(local.counts, local.draw_counts(5), "ais")
    fit = anneal(local.counts, local.draw_counts(5), temperatures=5, chains=2, leapfrog=1)
    assert float(fit.parameters["s"]) == pytest.approx(local.SCALE, rel=1e-15)


def test_it_runs_on_the_theta_of_another_run(here):
    x = np.random.default_rng(4).normal(size=(20, 3))
    np.savetxt("x.csv", x, delimiter=",", header="a,b,c", comments="")
    exact = run("factor_analysis", "x.csv", "em", latents=1, out="one")
    fit = infer("one", "ais", out="two", temperatures=100, chains=8, leapfrog=4)
    assert abs(fit.claimed.value - exact.claimed.value) < 4 * fit.claimed.se
    assert fit.verified.kind == "exact"


def test_a_program_without_parameters_just_runs():
    fit = run(local.several, np.zeros((3, 3)), "ais", temperatures=5, chains=2, leapfrog=1)
    assert fit.claimed.kind == "lower bound"
    assert any("fewer than 100 effective draws for 3 of 3 rows" in w for w in fit.warnings)


def test_what_it_cannot_do():
    assert "and the program has none" in ais.refusal(structure_of("missing_pixels", np.eye(4)))
    assert ais.refusal(structure_of(user.coin, np.ones((5, 1)))) is None
    assert "'k' (Poisson) cannot be enumerated" in ais.refusal(structure_of(local.unbounded_choice, np.ones((5, 1))))
    assert ais.refusal(structure_of(linear.random_intercept, np.ones((5, linear.D)))) is None
    assert ais.refusal(structure_of(local.bent, np.ones((5, 2)))) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperatures": 1}, "temperatures must be at least 2"),
        ({"chains": 1}, "chains must be at least 2"),
        ({"leapfrog": 0}, "leapfrog must be more than zero"),
    ],
)
def test_options(options, says):
    with pytest.raises(UsageError, match=says):
        run(local.several, np.zeros((3, 3)), "ais", **options)
