"""SVI: the bound is what it says, below the truth, and tight where the guide can be."""

from __future__ import annotations

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from families import CASES
from helpers import hide, structure_of, task_of
from scipy import special, stats

from guides import amortized
from inference import infer, run, svi
from inference._laplace.globals import approximation
from inference._training import elbo
from zoo._data import datasets
from zoo._errors import Refusal, UsageError

FAITHFUL = datasets.load("faithful").x


@functools.cache
def faithful():
    return run("gmm", "faithful", "svi")


# ---- the bound ------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_faithful():
    fit = faithful()
    assert abs(fit.verified.value + 1130.264) < 0.5
    assert fit.claimed.value <= fit.verified.value + 1e-9
    assert fit.claimed.value > fit.verified.value - 1.0
    assert (fit.claimed.kind, fit.verified.kind) == ("lower bound", "exact")
    assert fit.claimed.se == 0.0  # all latents are summed out: no sampling noise
    assert fit.converged is True and fit.warnings == []


def test_the_bound_is_its_formula():
    """Σ_k q(k | x) [log p(x, k) − log q(k | x)], datum by datum, with SciPy's densities."""
    fit = faithful()
    q = fit.probabilities["z"]
    np.testing.assert_allclose(q.sum(1), 1, rtol=1e-9)
    tril = fit.parameters["scale_tril"]
    joint = np.stack(
        [
            np.log(fit.parameters["weights"][k])
            + stats.multivariate_normal(fit.parameters["locs"][k], tril[k] @ tril[k].T).logpdf(FAITHFUL)
            for k in range(2)
        ],
        axis=1,
    )
    bound = (special.xlogy(q, 1) + q * joint - special.xlogy(q, q)).sum(1)
    np.testing.assert_allclose(fit.claimed.per_datum, bound, rtol=1e-8, atol=1e-8)
    exact = special.logsumexp(joint, axis=1)
    np.testing.assert_allclose(fit.verified.per_datum, exact, rtol=1e-9)
    assert np.all(bound <= exact + 1e-9)  # each datum's, not the sum alone


def test_the_guide_approaches_the_posterior():
    fit = faithful()
    tril, exact = fit.parameters["scale_tril"], []
    for k in range(2):
        density = stats.multivariate_normal(fit.parameters["locs"][k], tril[k] @ tril[k].T).logpdf(FAITHFUL)
        exact.append(np.log(fit.parameters["weights"][k]) + density)
    posterior = special.softmax(np.stack(exact, 1), axis=1)
    assert np.abs(fit.probabilities["z"] - posterior).mean() < 0.01


@pytest.mark.parametrize(
    ("model", "name"),
    [(user.poisson, "poisson"), (user.bernoulli_logits, "bernoulli_logits"), (user.student, "student")],
)
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_every_claim_is_below_the_exact_evidence(model, name, missing):
    """After hardly any training, too: a bound is a bound for any guide."""
    x = hide(CASES[name].data(np.random.default_rng(1), 50), missing)
    for epochs in (1, 15):
        fit = run(model, x, "svi", epochs=epochs, start="program")
        assert fit.verified.kind == "exact"
        assert np.all(fit.claimed.per_datum <= fit.verified.per_datum + 1e-9)
        theta = {k: np.asarray(v) for k, v in fit.parameters.items()}
        assert fit.verified.value == pytest.approx(CASES[name].log_evidence(theta, x).sum(), rel=1e-9)


def test_two_dependent_sites_get_a_factorised_guide_and_a_bound():
    x = 2 * np.random.default_rng(2).normal(size=(60, 3))
    fit = run(user.two_sites, x, "svi", epochs=15)
    assert np.all(fit.claimed.per_datum <= fit.verified.per_datum + 1e-9)
    assert {n: p.shape for n, p in fit.probabilities.items()} == {"z1": (60, 2), "z2": (60, 3)}
    assert {n: d.shape[1:] for n, d in fit.draws.items()} == {"z1": (60,), "z2": (60,)}


@pytest.mark.parametrize("program", [user.pixels, user.pixels_left])
def test_observations_in_a_plate_inside_data(program):
    """With the data dimension left of the inner plate's, or right of it; the latent has one value a datum either way."""
    x = CASES["bernoulli"].data(np.random.default_rng(9), 40)
    fit = run(program, x, "svi", epochs=10)
    assert np.all(fit.claimed.per_datum <= fit.verified.per_datum + 1e-9)
    assert fit.draws["z"].shape[1:] == (40,) and fit.probabilities["z"].shape == (40, 2)
    theta = {k: np.asarray(v) for k, v in fit.parameters.items()}
    assert fit.verified.value == pytest.approx(CASES["bernoulli"].log_evidence(theta, x).sum(), rel=1e-9)


def test_a_program_with_constants_and_deterministic_sites():
    """Pyro makes their densities itself, in the default dtype, which must be that of the data."""

    def named(x=None, size=None):
        weights, locs = user.simplex(), user.real("locs", 2, 3)
        with user.rows(x, size):
            z = pyro.sample("z", pyro.distributions.Categorical(weights))
            loc = pyro.deterministic("loc", locs[z], event_dim=1)
            pyro.sample("x", pyro.distributions.Normal(loc, 1.0).to_event(1), obs=x)

    x = np.random.default_rng(10).normal(size=(30, 3))
    for method in ("em", "laplace", "svi", "importance"):
        fit = run(named, x, method, **({} if method in ("em", "laplace") else {"epochs": 2}))
        assert fit.verified.kind == "exact", method
    assert task_of(named, x).plan({}).numeric == ()


# ---- continuous local latents -----------------------------------------------------------------------------------------


def test_a_gamma_latent_under_counts():
    """x | λ ~ Poisson(λ), λ ~ Gamma(a, b): log p(x) is the negative binomial's."""
    rng = np.random.default_rng(3)
    x = rng.poisson(rng.gamma(2.0, 2.0, (150, 1))).astype(float)
    fit = run(user.counts, x, "svi", epochs=60)
    a, b = float(fit.parameters["shape"]), float(fit.parameters["rate"])
    truth = stats.nbinom.logpmf(x[:, 0], a, b / (1 + b))
    assert fit.claimed.kind == "lower bound" and fit.claimed.se > 0
    assert fit.claimed.value <= truth.sum() + 3 * fit.claimed.se
    assert fit.claimed.value > truth.sum() - 0.1 * len(x)  # and it is a bound that says something
    assert fit.verified.kind == "exact" and fit.verified.value == pytest.approx(truth.sum(), rel=1e-9)
    assert fit.draws["intensity"].shape[1:] == (150,) and np.all(fit.draws["intensity"] > 0)


def test_a_factor_model_against_its_closed_form():
    """x = μ + z w + noise: log p(x) = log N(μ, w wᵀ + diag σ²)."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(120, 1)) * [2.0, -1.0, 0.5] + rng.normal(size=(120, 3)) * 0.5
    fit = run(user.one_factor, x, "svi", epochs=60)
    w, mu, s = fit.parameters["direction"], fit.parameters["loc"], fit.parameters["scale"]
    truth = stats.multivariate_normal(mu, np.outer(w, w) + np.diag(s**2)).logpdf(x)
    assert fit.claimed.value <= truth.sum() + 3 * fit.claimed.se + 1e-9
    assert fit.claimed.value > truth.sum() - 0.4 * len(x)
    assert abs(fit.verified.value - truth.sum()) < 3 * fit.verified.se + 1e-6


def test_the_bound_of_each_datum_carries_its_own_error():
    """(bound − truth)/se of data whose guide is exactly the posterior would be noise; here it must not be far above 0."""
    rng = np.random.default_rng(5)
    x = rng.poisson(rng.gamma(2.0, 2.0, (200, 1))).astype(float)
    fit = run(user.counts, x, "svi", epochs=10)
    a, b = float(fit.parameters["shape"]), float(fit.parameters["rate"])
    truth = stats.nbinom.logpmf(x[:, 0], a, b / (1 + b))
    assert fit.claimed.per_datum.shape == (200,)
    assert np.sum(fit.claimed.per_datum) == pytest.approx(fit.claimed.value)
    assert np.mean(fit.claimed.per_datum > truth) < 0.6


# ---- global latents -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [8, 32])
def test_a_conjugate_mean_is_found_whatever_the_batch(batch):
    """The likelihood of a batch stands for all the data, the prior counts once: or q's spread would depend on the batch."""
    x = np.random.default_rng(6).normal(2.0, 0.7, 64)
    fit = run(user.normal_mean, x, "svi", batch=batch, epochs=400)
    precision = 1 / 2.0**2 + 64 / 0.7**2
    mean = (1.0 / 2.0**2 + x.sum() / 0.7**2) / precision
    q = fit.global_gaussian
    assert float(q.mean[0]) == pytest.approx(mean, abs=0.5 * precision**-0.5)
    assert float(q.scale_tril[0, 0]) == pytest.approx(precision**-0.5, rel=0.25)
    truth = stats.multivariate_normal(np.ones(64), 4.0 * np.ones((64, 64)) + 0.49 * np.eye(64)).logpdf(x)
    assert fit.claimed.value <= truth + 3 * fit.claimed.se
    assert fit.claimed.value > truth - 0.3 - 3 * fit.claimed.se
    assert abs(fit.verified.value - truth) < 4 * fit.verified.se + 1e-3


def test_a_batch_stands_for_all_the_data():
    """The mean over the batches of one epoch is the ELBO of all the data, when the globals drawn are the same."""
    task = task_of(user.normal_mean, np.random.default_rng(7).normal(size=(12, 1)))
    from inference._numerics.coordinates import bijection

    bijections = {n: bijection(s) for n, s in task.global_supports.items()}
    guide = amortized.Guide(task.structure, task.x, task.global_start(), bijections)
    objective = elbo.objective(task, guide, 1)

    def value(rows):
        torch.manual_seed(0)  # the same draw of the mean
        return float(objective(rows, task.x[rows]).detach())

    parts = np.mean([value(rows) for rows in torch.arange(12).split(3)])
    assert parts == pytest.approx(value(slice(None)), rel=1e-9)


@pytest.mark.parametrize("held_out", [0.0, 0.2])
def test_a_few_epochs_with_priors_give_a_bound(held_out):
    fit = svi.fit(task_of("gmm", datasets.load("faithful").x[::4], priors=True), epochs=2, held_out=held_out)
    assert fit.claimed.kind == "lower bound"
    assert np.isfinite(fit.claimed.value)
    assert 0 < fit.claimed.se < 20


@pytest.mark.slow
def test_gmm_with_priors_is_below_its_evidence():
    fit = run("gmm", "faithful", "svi", priors=True)
    evidence = run("gmm", "faithful", "laplace", priors=True).verified
    slack = 3 * (fit.claimed.se**2 + evidence.se**2) ** 0.5
    assert fit.claimed.value <= evidence.value + slack
    assert fit.claimed.value > evidence.value - 3
    assert abs(fit.verified.value - evidence.value) < 4 * (fit.verified.se**2 + evidence.se**2) ** 0.5


# ---- learning, stopping, seeds ----------------------------------------------------------------------------------------


def test_learn_false_keeps_theta_to_the_bit(here):
    run("gmm", "faithful", "em", out="first")
    fit = infer("first", "svi", epochs=30)
    kept = run("gmm", "faithful", "em").parameters
    for name, value in kept.items():
        assert np.array_equal(fit.parameters[name], value), name
    assert fit.claimed.value <= -1130.264 + 1e-3
    assert fit.verified.value == pytest.approx(-1130.264, abs=1e-3)


def test_it_says_when_it_did_not_converge():
    fit = run("gmm", "faithful", "svi", epochs=3)
    assert fit.converged is False
    assert any("did not converge" in w for w in fit.warnings)
    assert len(fit.trace["elbo_per_datum"]) == len(fit.trace["lr"]) == 3


def test_the_learning_rate_falls_when_progress_stops_and_begins_again_until_that_brings_nothing():
    lr = faithful().trace["lr"]
    rises = np.flatnonzero(np.diff(lr) > 0)
    assert len(rises) and np.all(lr[[0, *rises + 1]] == 0.02) and np.all(lr[[*rises, -1]] < 0.02 / 10)
    assert len(lr) < 1000  # it stopped by itself


def test_the_same_seed_gives_the_same_bits():
    one, two, other = (run("gmm", "faithful", "svi", epochs=5, seed=s) for s in (3, 3, 4))
    assert one.claimed.value == two.claimed.value
    assert all(np.array_equal(one.parameters[n], two.parameters[n]) for n in one.parameters)
    assert np.array_equal(one.draws["z"], two.draws["z"])
    assert one.claimed.value != other.claimed.value


def test_a_batch_larger_than_the_data_means_all_of_them():
    small = FAITHFUL[:20]
    assert run("gmm", small, "svi", batch=1000, epochs=2).n == 20


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epochs": 0}, "epochs must be more than zero"),
        ({"epochs": "1.5"}, "epochs must be a whole number"),
        ({"batch": -1}, "batch must be more than zero"),
        ({"lr": 0}, "lr must be more than zero"),
        ({"lr": "fast"}, "lr must be a number"),
        ({"tol": -1}, "tol must be more than zero"),
        ({"hidden": "8,x"}, "hidden must be a whole number"),
    ],
)
def test_options(options, says):
    with pytest.raises(UsageError, match=says):
        run("gmm", "faithful", "svi", **options)


def test_a_rate_that_is_too_large_is_a_plain_error():
    with pytest.raises((ArithmeticError, UsageError)):
        run(
            user.exponential,
            np.random.default_rng(8).gamma(2.0, size=(20, 3)) * 1e8,
            "svi",
            lr=1e4,
            epochs=50,
            start="program",
        )


# ---- the guide ------------------------------------------------------------------------------------------------------------


def head(guide, x):
    """What the guide makes of x, for its first site."""
    return guide.head(guide.sites[0], guide.look(x, None), [])


def a_level(x=None, size=None):
    a = pyro.sample("a", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", size if x is None else len(x)):
        return pyro.sample("x", dist.Normal(a, 1.0), obs=x if x is None else x[..., 0])


def test_a_guide_of_ones_own_for_global_latents_is_drawn_from():
    """With numbers to learn and without: the fit's draws are the guide's, and its point their mean in free coordinates."""

    def fixed(x=None, size=None):
        pyro.sample("a", dist.LogNormal(0.5, 0.1))

    def learned(x=None, size=None):
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("a", dist.LogNormal(loc, 0.1))

    x = 2 + np.random.default_rng(0).normal(size=(40, 1))
    for guide, loc in ((fixed, 0.5), (learned, np.log(x.mean()))):
        found = run(a_level, x, "svi", guide=guide)
        draws = np.log(found.fit.draws["a"])
        assert draws.mean() == pytest.approx(loc, abs=0.08) and draws.std() == pytest.approx(0.1, rel=0.2)
        assert float(found.parameters["a"]) == pytest.approx(np.exp(draws.mean()))


def test_the_guide_sees_which_entries_are_missing():
    x = hide(FAITHFUL, 0.3)
    task = task_of("gmm", x)
    guide = amortized.Guide(task.structure, task.x)
    assert guide.sees_mask
    one, other = task.x[:1].clone(), task.x[:1].clone()
    one[:] = torch.tensor([[float("nan"), float(guide.center[1])]])
    other[:] = guide.center  # the same numbers go in, but for the mask
    assert not torch.allclose(head(guide, one), head(guide, other))
    assert bool(head(guide, torch.full((1, 2), torch.nan, dtype=torch.float64)).isfinite().all())


def test_the_guide_does_not_care_for_units():
    """Its input is standardised: data in other units give the same network the same numbers."""
    outputs = []
    for scale in (1.0, 1e3):
        task = task_of("gmm", FAITHFUL * scale)
        torch.manual_seed(0)
        outputs.append(head(amortized.Guide(task.structure, task.x), task.x))
    torch.testing.assert_close(outputs[0], outputs[1])


def test_what_it_cannot_do():
    assert "'on' is in a plate inside `data`" in svi.refusal(structure_of(user.causes, FAITHFUL @ np.ones((2, 3))))
    with pytest.raises(Refusal, match=r"Methods that can: .*em"):
        run(user.causes, np.zeros((10, 3)), "svi")


def test_a_guide_without_a_name_is_refused_before_the_fit_of_a_run_that_is_saved(tmp_path):
    def guide(x):
        raise AssertionError("not called")

    with pytest.raises(UsageError, match=r"guide='file\.py:function'"):
        run("gmm", "faithful", "svi", guide=guide, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_global_latents_with_dots_in_their_names():
    """As PyroSample's have; `a.b` and `a_b` stay apart."""

    def model(x=None, size=None):
        pair = [pyro.sample(n, dist.Normal(0.0, 2.0)) for n in ("a.b", "a_b")]
        with pyro.plate("data", size if x is None else len(x)):
            return pyro.sample("x", dist.Normal(torch.stack(pair), 1.0).to_event(1), obs=x)

    x = np.array([[1.0, -3.0], [2.0, -4.0]])
    fit = run(model, x, "svi", quiet=True).fit
    for name, total in (("a.b", 3.0), ("a_b", -7.0)):
        assert float(fit.parameters[name]) == pytest.approx(total / 2.25, abs=0.02)


@pytest.mark.slow
def test_a_gaussian_is_no_start_where_it_has_no_end():
    """Two factors can be rotated: along that ridge Laplace's standard deviation would be 1,000 and more."""
    x = np.random.default_rng(0).normal(size=(60, 4)) @ np.diag([1.0, 2, 3, 4])
    assert approximation(task_of("factor_analysis", x, latents=2, priors=True)) is None
    assert approximation(task_of("factor_analysis", x, latents=1, priors=True)) is not None
    bound = run("factor_analysis", x, "svi", latents=2, priors=True, quiet=True)
    assert bound.claimed.kind == "lower bound" and bound.claimed.value < bound.verified.value + 4 * bound.claimed.se


@pytest.mark.slow
def test_components_that_are_not_needed_do_not_end_the_climb():
    """Six components for three clusters: with few draws q of an empty one's covariance grows until it cannot be factored."""
    rng = np.random.default_rng(0)
    x = np.concatenate([0.5 * rng.normal(size=(60, 2)) + center for center in ([0, 0], [4, 0], [0, 4])])
    fit = run("gmm", x, "svi", components=6, priors=True, quiet=True, epochs=200)
    occupied = np.bincount(fit.fit.probabilities["z"].argmax(1), minlength=6)
    assert sorted(occupied) == [0, 0, 0, 60, 60, 60] and np.isfinite(fit.claimed.value)
