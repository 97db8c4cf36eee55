"""Importance sampling: unbiased, with standard errors that mean what they say, and diagnostics for each datum."""

from __future__ import annotations

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from families import CASES
from helpers import hide, structure_of, task_of, tensor
from scipy import special, stats

from inference import importance, infer, run
from inference._method.task import Task
from inference._sampling import weights as _weights
from zoo._data import datasets
from zoo._errors import Refusal, UsageError

FAITHFUL = datasets.load("faithful").x


@functools.cache
def faithful():
    return run("gmm", "faithful", "importance")


@functools.cache
def fitted() -> Task:
    """Old Faithful at its maximum likelihood."""
    from inference import em

    task = task_of("gmm", FAITHFUL)
    em.fit(task)
    return task


def at_the_maximum(seed: int, **options):
    """An estimate at the θ of `fitted`, which stays."""
    task = fitted()
    again = Task(task.program, task.structure, task.x, seed=seed, learn=False, quiet=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return importance.fit(again, **options)


# ---- unbiased, with errors that mean it ---------------------------------------------------------------------------


def test_faithful():
    fit = faithful()
    assert abs(fit.verified.value + 1130.264) < 0.5
    assert fit.claimed.kind == "estimate" and fit.verified.kind == "exact"
    assert abs(fit.claimed.value - fit.verified.value) < 3 * fit.claimed.se
    assert 0 < fit.claimed.se < 0.5
    assert fit.converged is True


@pytest.mark.parametrize("options", [{"proposal": "prior"}, {"proposal": "guide", "epochs": 15}])
def test_the_estimate_is_within_its_error_of_the_exact_value(options):
    exact = float(fitted().exact.per_datum().sum())
    scores = []
    for seed in range(4):
        fit = at_the_maximum(seed, samples=400, **options)
        scores.append((fit.claimed.value - exact) / fit.claimed.se)
    assert max(map(abs, scores)) < 3.5
    assert abs(np.mean(scores)) < 2.5 / 2


def test_the_standard_error_of_each_datum_is_calibrated():
    """(estimate − exact)/se over the data has a spread of one, for data on which the prior does not know the answer."""
    exact = fitted().exact.per_datum().numpy()
    fit = at_the_maximum(1, proposal="prior", samples=2000)
    unsure = fit.ess < 1900
    se = fit.claimed.se**2
    assert unsure.sum() > 200
    errors = fit.claimed.per_datum - exact
    # the total's error is the root of the sum of squares of the data's
    assert se == pytest.approx(np.sum(relative_variance() / 2000), rel=0.1)
    assert 0.8 < np.sqrt(np.mean((errors**2 / (relative_variance() / 2000))[unsure])) < 1.2


def relative_variance() -> np.ndarray:
    """Var(w)/E(w)² for draws from the prior: Σ_k π_k p(x|k)² / p(x)² − 1, in closed form."""
    theta = {n: v.detach().numpy() for n, v in fitted().program.values().items()}
    likelihood = np.stack(
        [
            stats.multivariate_normal(m, L @ L.T).pdf(FAITHFUL)
            for m, L in zip(theta["locs"], theta["scale_tril"], strict=True)
        ],
        1,
    )
    return (likelihood**2 @ theta["weights"]) / (likelihood @ theta["weights"]) ** 2 - 1


def test_a_guide_beats_the_prior():
    naive = at_the_maximum(0, proposal="prior", samples=300)
    guided = at_the_maximum(0, proposal="guide", samples=300, epochs=60)
    assert guided.claimed.se < 0.6 * naive.claimed.se
    assert np.median(guided.ess) > np.median(naive.ess)


def test_more_samples_shrink_the_error_as_one_over_the_root():
    few, many = (at_the_maximum(2, proposal="prior", samples=s) for s in (200, 3200))
    assert few.claimed.se / many.claimed.se == pytest.approx(4.0, rel=0.15)


def test_the_mean_of_the_weights_is_unbiased_for_the_likelihood():
    """E[w] = p(x): over many small estimates, on the scale of probabilities. Their logarithm is below, by Jensen."""
    task = fitted()
    rows = task.x[:8]
    exact = task.exact.per_datum()[:8]
    ratios, bounds = [], []
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(400):
            log_w = _weights.draw(task.program, task.structure, rows, None, 5).log_weights
            estimate = _weights.log_mean(log_w)[0]
            ratios.append((estimate - exact).exp())
            bounds.append(estimate - exact)
    ratios, bounds = torch.stack(ratios), torch.stack(bounds)
    se = ratios.std(0) / 20
    assert bool(((ratios.mean(0) - 1).abs() < 4 * se + 1e-9).all())
    assert bool((bounds.mean(0) < 4 * bounds.std(0) / 20).all())


# ---- a bad guide -----------------------------------------------------------------------------------------------------


def wrong_guide(x=None, size=None):
    """Sure of the wrong component for every datum."""
    short = x[:, 0] < 3
    logits = torch.stack([12.0 * short, 12.0 * ~short], 1).to(x.dtype)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Categorical(logits=logits))


def total(task: Task, guide, samples: int, defensive: float) -> tuple[float, float]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        log_w = _weights.draw(task.program, task.structure, task.x, guide, samples, defensive).log_weights
    estimate, se = _weights.log_mean(log_w)
    return float(estimate.sum()), float(se.square().sum().sqrt())


def test_a_share_from_the_prior_saves_a_guide_that_is_wrong():
    task = fitted()
    first, second = task.program.values()["locs"][:, 0].tolist()
    guide = wrong_guide if first > second else lambda x=None, size=None: wrong_guide(6.6 - x)
    exact = float(task.exact.per_datum().sum())
    bare, _ = total(task, guide, 2000, 0.0)
    assert bare < exact - 500  # without it, hopeless: or this would test nothing
    value, se = total(task, guide, 2000, 0.2)
    assert abs(value - exact) < 4 * se
    assert se < 3


def test_the_mixture_proposal_is_the_mixture_of_both_densities():
    """By hand: log(0.75 q + 0.25 p) of each draw."""
    task = fitted()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        drawn = _weights.draw(task.program, task.structure, task.x, wrong_guide, 40, 0.25)
    z = drawn.values["z"].numpy()
    assert z.shape == (40, 272)
    short = FAITHFUL[:, 0] < 3
    q = special.softmax(np.stack([12.0 * short, 12.0 * ~short], 1), axis=1)
    prior = task.program.values()["weights"].detach().numpy()
    expected = np.log(0.75 * q[np.arange(272), z] + 0.25 * prior[z])
    np.testing.assert_allclose(drawn.log_proposal, expected, rtol=1e-9)
    # exactly a quarter of the draws come from the prior: there the unlikely component of the guide appears
    assert np.all(z[:30] == np.where(short, 0, 1))
    assert np.any(z[30:] != np.where(short, 0, 1))


# ---- diagnostics for each datum ------------------------------------------------------------------------------------


@pytest.mark.full
def test_there_is_a_diagnostic_for_each_datum():
    fit = faithful()
    assert fit.khat.shape == fit.ess.shape == fit.claimed.per_datum.shape == (272,)
    assert np.all((fit.ess >= 1) & (fit.ess <= 1000 * (1 + 1e-9)))
    assert fit.to_json()["khat"]["frac_above_0.7"] == np.mean(fit.khat > 0.7)
    assert fit.draws["z"].shape[1:] == (272,)


def test_draws_are_resampled_by_their_weights():
    """So they follow the posterior, though they came from the prior."""
    fit = at_the_maximum(3, proposal="prior", samples=2000)
    exact = fitted().exact.responsibilities().numpy()[:, 1]
    error = fit.draws["z"].mean(0) - exact
    draws = len(fit.draws["z"])
    assert abs(error.sum()) < 5 * np.sqrt((exact * (1 - exact)).sum() / draws + len(exact) * 1e-4)
    assert np.corrcoef(fit.draws["z"].mean(0), exact)[0, 1] > 0.99


def test_a_proposal_that_cannot_be_trusted_is_reported():
    """A prior that is far wider than the posterior: hardly a draw lands there."""

    def needle(x=None, size=None):
        with user.rows(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 100.0))
            pyro.sample("x", dist.StudentT(3.0, z, 0.01), obs=x[:, 0])

    fit = run(
        needle,
        np.random.default_rng(4).normal(size=(20, 1)) * 100,
        "importance",
        proposal="prior",
        samples=200,
        epochs=1,
    )
    assert any("k-hat is above 0.7" in w for w in fit.warnings)
    assert fit.to_json()["khat"]["frac_above_0.7"] > 0.5


# ---- other programs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proposal", ["prior", "guide"])
def test_a_gamma_latent_under_counts(proposal):
    rng = np.random.default_rng(5)
    x = rng.poisson(rng.gamma(2.0, 2.0, (100, 1))).astype(float)
    fit = run(user.counts, x, "importance", proposal=proposal, epochs=40, samples=500)
    a, b = float(fit.parameters["shape"]), float(fit.parameters["rate"])
    truth = stats.nbinom.logpmf(x[:, 0], a, b / (1 + b)).sum()
    assert abs(fit.claimed.value - truth) < 3 * fit.claimed.se
    assert fit.verified.kind == "exact" and fit.verified.value == pytest.approx(truth, rel=1e-9)
    start = stats.nbinom.logpmf(x[:, 0], 0.8, 0.5).sum()
    assert truth > start - 50


def test_learning_approaches_the_maximum_likelihood():
    """Of the negative binomial, found by SciPy."""
    from scipy import optimize

    rng = np.random.default_rng(6)
    x = rng.poisson(rng.gamma(2.0, 2.0, (100, 1))).astype(float)
    fit = run(user.counts, x, "importance", epochs=60, lr=0.05, batch=50, particles=20)
    best = optimize.minimize(
        lambda u: -stats.nbinom.logpmf(x[:, 0], np.exp(u[0]), np.exp(u[1]) / (1 + np.exp(u[1]))).sum(), np.zeros(2)
    )
    a, b = float(fit.parameters["shape"]), float(fit.parameters["rate"])
    assert stats.nbinom.logpmf(x[:, 0], a, b / (1 + b)).sum() > -best.fun - 2.0


def test_a_factor_model_against_its_closed_form():
    rng = np.random.default_rng(7)
    x = rng.normal(size=(80, 1)) * [2.0, -1.0, 0.5] + rng.normal(size=(80, 3)) * 0.5
    fit = run(user.one_factor, x, "importance", epochs=60, samples=500)
    w, mu, s = fit.parameters["direction"], fit.parameters["loc"], fit.parameters["scale"]
    truth = stats.multivariate_normal(mu, np.outer(w, w) + np.diag(s**2)).logpdf(x).sum()
    assert abs(fit.claimed.value - truth) < 3 * fit.claimed.se


def test_missing_entries():
    x = hide(CASES["normal"].data(np.random.default_rng(8), 60), 0.4)
    fit = run(user.normal, x, "importance", epochs=20, samples=500)
    assert fit.verified.kind == "exact"
    assert abs(fit.claimed.value - fit.verified.value) < 3.5 * fit.claimed.se


def test_latents_in_a_plate_inside_data_by_the_prior():
    rng = np.random.default_rng(9)
    theta = {"probs": rng.uniform(0.2, 0.8, 3), "effects": rng.normal(size=(3, 3)), "scale": np.ones(3)}
    x = rng.normal(size=(25, 3))
    task = task_of(user.causes_apart, x)
    task.program.assign({k: tensor(v) for k, v in theta.items()})
    task.learn = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fit = importance.fit(task, proposal="prior", samples=2000)
    exact = float(task.exact.per_datum().sum())
    assert abs(fit.claimed.value - exact) < 3.5 * fit.claimed.se
    assert fit.draws["on"].shape == (task.draws, 25, 3)  # the datum first, then its inner plate
    responsibilities = task.exact.responsibilities()
    expected = responsibilities @ task.exact.assignments["on"].reshape(8, 3).double()
    np.testing.assert_allclose(fit.draws["on"].mean(0), expected, atol=5 * 0.5 / np.sqrt(task.draws) + 0.1)


def test_a_latent_that_no_guide_serves_is_drawn_from_its_prior():
    def one_hot(x=None, size=None):
        weights, locs = user.simplex(), user.real("locs", 2, 3)
        with user.rows(x, size):
            z = pyro.sample("z", dist.OneHotCategorical(weights))
            pyro.sample("x", dist.Normal(z @ locs, 1.0).to_event(1), obs=x)

    x = np.random.default_rng(10).normal(size=(40, 3))
    with pytest.raises(Refusal, match=r"'z'.*take proposal=prior"):
        run(one_hot, x, "importance")
    fit = run(one_hot, x, "importance", proposal="prior", epochs=2)
    assert abs(fit.claimed.value - fit.verified.value) < 3.5 * fit.claimed.se
    assert fit.draws["z"].shape[1:] == (40, 2)


def test_a_program_that_would_mix_up_its_draws_is_refused():
    with pytest.raises(Refusal, match=r"'causes' mixes up draws .*keepdim"):
        run(user.causes, np.zeros((10, 3)), "importance", proposal="prior")


# ---- learning, seeds, options ---------------------------------------------------------------------------------------


def test_learn_false_keeps_theta():
    before = {n: v.detach().clone() for n, v in fitted().program.values().items()}
    fit = at_the_maximum(0, proposal="guide", samples=50, epochs=5)
    for n, v in before.items():
        assert np.array_equal(fit.parameters[n], v.numpy()), n


def test_the_same_seed_gives_the_same_bits():
    one, two, other = (run("gmm", "faithful", "importance", epochs=2, samples=50, seed=s) for s in (1, 1, 2))
    assert np.array_equal(one.claimed.per_datum, two.claimed.per_datum)
    assert np.array_equal(one.khat, two.khat) and np.array_equal(one.draws["z"], two.draws["z"])
    assert not np.array_equal(one.claimed.per_datum, other.claimed.per_datum)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"samples": 1}, "samples must be at least 2"),
        ({"samples": "2.5"}, "samples must be a whole number"),
        ({"particles": 0}, "particles must be more than zero"),
        ({"defensive": 1.0}, "defensive must be at least zero and less than 1"),
        ({"defensive": -0.1}, "defensive must be at least zero and less than 1"),
        ({"proposal": "posterior"}, "guide, prior.*, got 'posterior'"),
    ],
)
def test_options(options, says):
    with pytest.raises(UsageError, match=says):
        run("gmm", "faithful", "importance", **options)


def test_what_it_cannot_do():
    assert "has none" in importance.refusal(structure_of("missing_pixels", np.eye(4)))
    assert importance.refusal(structure_of(user.coin, np.ones((5, 1)))) is None


# ---- at the modes ---------------------------------------------------------------------------------------------------


def test_the_laplace_proposal_is_exact_where_the_posterior_is_a_gaussian(tmp_path):
    """Then every weight is p(x): no spread, but for the share of draws from the prior."""
    x = np.random.default_rng(8).normal(size=(30, 4)) @ np.diag([3.0, 1.0, 1.0, 0.5])
    run("factor_analysis", x, "em", latents=2, out=tmp_path / "run", max_iter=50)
    fit = infer(tmp_path / "run", "importance", proposal="laplace", defensive=0.0, samples=50)
    np.testing.assert_allclose(fit.claimed.per_datum, fit.verified.per_datum, rtol=1e-8)
    assert fit.claimed.se < 1e-6
    mixed = infer(tmp_path / "run", "importance", proposal="laplace", samples=500)
    assert abs(mixed.claimed.value - mixed.verified.value) < 4 * mixed.claimed.se
    with pytest.raises(Refusal, match="the modes hold for one θ"):
        run("factor_analysis", x, "importance", proposal="laplace", latents=2)


def test_the_laplace_proposal_needs_modes(tmp_path):
    run("gmm", "faithful", "em", out=tmp_path / "run")
    with pytest.raises(Refusal, match="needs a continuous local latent"):
        infer(tmp_path / "run", "importance", proposal="laplace")
