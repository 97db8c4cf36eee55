"""What EM says holds where numbers are hard: tiny units, nearly collinear columns, narrow clusters, float32, borders."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from helpers import task_of
from scipy.stats import multivariate_normal, norm, poisson
from sklearn.mixture import GaussianMixture
from torch.distributions import constraints

from inference import em, run
from inference._families._family import Floor
from inference._method.start import begin
from inference._training.ascent import Surface


def saturated(x):
    """The largest log-likelihood of one Gaussian: mean and covariance of the data."""
    deviations = np.linalg.svd(x - x.mean(0), compute_uv=False) / len(x) ** 0.5
    n, D = x.shape
    return -0.5 * n * (D * np.log(2 * np.pi) + 2 * np.log(deviations).sum() + D)


def never_falls(trace):
    return bool(np.all(np.diff(trace) >= -1e-8 * (1 + np.abs(trace[:-1]))))


# ---- nearly singular posteriors -----------------------------------------------------------------------------------


def alike(latents, noise):
    """Latents that enter alike: the data say nothing about their differences."""

    def program(x=None, size=None):
        with user.rows(x, size):
            z = pyro.sample("z", dist.Normal(torch.zeros(latents), 1.0).to_event(1))
            return pyro.sample(
                "x", dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], 2), noise).to_event(1), obs=x
            )

    return program


@pytest.mark.parametrize("latents", [2, 4])
@pytest.mark.parametrize("noise", [1e-3, 1e-6, 1e-8])
@pytest.mark.parametrize("holes", [False, True])
def test_latents_that_enter_alike_under_little_noise(latents, noise, holes):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(50, 1)) * latents**0.5 + noise * rng.normal(size=(50, 2))
    both = norm.logpdf(x.sum(1) / 2**0.5, 0, np.sqrt(2 * latents + noise**2))
    truth = both + norm.logpdf((x[:, 0] - x[:, 1]) / 2**0.5, 0, noise)
    if holes:
        x[:20, 1] = np.nan
        truth[:20] = norm.logpdf(x[:20, 0], 0, np.sqrt(latents + noise**2))
    task = task_of(alike(latents, noise), x)
    for own in (False, True):
        np.testing.assert_allclose(task.exact.per_datum(own=own).sum(), truth.sum(), rtol=1e-6)
    torch.manual_seed(0)
    drawn = task.exact.draw(task.exact.responsibilities(), 2000)["z"].numpy()
    np.testing.assert_allclose(drawn.sum(-1).mean(0), x[:, 0], atol=5 * max(noise, 1e-7))
    apart = (drawn[..., 0] - drawn[..., 1]) / 2**0.5  # of which the posterior is the prior
    assert abs(apart.var() - 1) < 0.02


def test_a_gaussian_with_holes_that_is_nearly_singular():
    rng = np.random.default_rng(5)
    small = 3e-8
    x = rng.normal(size=(40, 1)) + np.c_[np.zeros(40), small * rng.normal(size=40), rng.normal(size=40)]
    x[:10, 2], x[10:20, 0] = np.nan, np.nan
    task = task_of("gmm", x, components=1)
    tril = torch.tensor([[1.0, 0, 0], [1.0, small, 0], [1.0, 0, 1.0]], dtype=torch.float64)
    task.program.assign({"locs": torch.zeros(1, 3, dtype=torch.float64), "scale_tril": tril[None]})
    first, second, third = x.T
    at_first = norm.logpdf(first) + norm.logpdf(second - first, 0, small)
    truth = np.where(np.isnan(third), at_first, at_first + norm.logpdf(third - first))
    gone = np.isnan(first)
    truth[gone] = multivariate_normal([0, 0], [[1, 1], [1, 2]]).logpdf(x[gone][:, 1:])
    np.testing.assert_allclose(task.exact.per_datum().numpy(), truth, rtol=1e-6, atol=1e-6)


# ---- units and floors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [1e4, 1.0, 1e-3, 1e-5])
@pytest.mark.parametrize("start", [1.0, 1e-2])
def test_random_intercepts_fit_the_same_in_any_unit(unit, start):
    def program(x=None, size=None):
        spread, noise = (pyro.param(k, torch.tensor(start * unit), constraint=constraints.positive) for k in ("s", "e"))
        level = pyro.param("m", torch.tensor(0.0))
        with user.rows(x, size):
            z = pyro.sample("z", dist.Normal(0.0, spread))
            return pyro.sample(
                "x", dist.Normal((level + z).unsqueeze(-1).expand(*z.shape, 4), noise).to_event(1), obs=x
            )

    rng = np.random.default_rng(3)
    standard = 1 + 0.7 * rng.normal(size=(100, 1)) + 0.4 * rng.normal(size=(100, 4))
    between = 4 * ((standard.mean(1) - standard.mean()) ** 2).mean()
    within = ((standard - standard.mean(1, keepdims=True)) ** 2).sum() / 300
    covariance = (between - within) / 4 + within * np.eye(4)
    best = multivariate_normal(np.full(4, standard.mean()), covariance).logpdf(standard).sum() - 400 * np.log(unit)
    fit = em.fit(task_of(program, unit * standard))
    assert fit.claimed.value == pytest.approx(best, abs=1e-3)
    assert fit.converged and fit.warnings == []


def test_a_latent_without_variance_is_named():
    def program(x=None, size=None):
        spread, noise = (pyro.param(k, torch.tensor(1.0), constraint=constraints.positive) for k in ("s", "e"))
        with user.rows(x, size):
            z = pyro.sample("z", dist.Normal(0.0, spread))
            return pyro.sample("x", dist.Normal(z.unsqueeze(-1).expand(*z.shape, 4), noise).to_event(1), obs=x)

    x = np.random.default_rng(0).normal(size=(60, 4))
    x -= x.mean(1, keepdims=True)  # the rows' means vary less than chance would have them
    fit = em.fit(task_of(program, x))
    assert fit.claimed.value == pytest.approx(norm.logpdf(x, 0, np.sqrt((x**2).mean())).sum(), abs=1e-3)
    assert not any("collapsed" in w for w in fit.warnings)


@pytest.mark.parametrize("condition", [1e4, 1e8, 1e12])
def test_nearly_collinear_columns_are_no_collapse(condition):
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    x = 3 + rng.normal(size=(200, 5)) * np.logspace(0, -0.5 * np.log10(condition), 5) @ turn.T
    fit = run("gmm", x, "em", components=1)
    assert fit.claimed.value == pytest.approx(saturated(x), abs=1e-3)
    assert fit.converged and fit.warnings == []


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize("narrow", [1e-2, 1e-5])
def test_clean_clusters_are_no_collapse(covariance, narrow):
    rng, centers = np.random.default_rng(2), np.array([[0, 0], [10, 0], [0, 10], [10, 10.0]])
    z = np.repeat(np.arange(4), 100)
    x = centers[z] + narrow * rng.normal(size=(400, 2))
    truth = 400 * np.log(0.25)
    for k in range(4):
        own = x[z == k]
        truth += saturated(own) if covariance == "full" else norm.logpdf(own, own.mean(0), own.std(0)).sum()
    fit = run("gmm", x, "em", components=4, covariance=covariance)
    assert fit.claimed.value == pytest.approx(truth, abs=1e-2)
    assert fit.converged and fit.warnings == []


def test_what_collapsed_names_the_floor_and_a_remedy_that_exists():
    line = np.arange(8.0)[:, None] * [1.0, 2.0]
    (word,) = run("gmm", line, "em", components=1).warnings
    assert "collapsed" in word and "floor" in word and "fewer" not in word
    points = np.concatenate([np.random.default_rng(4).normal(size=(60, 2)), np.full((30, 2), 9.0)])
    words = run("gmm", points, "em", components=2).warnings
    assert any("collapsed" in w and "fewer components" in w and "floor" in w for w in words)
    strict = run(
        "gmm",
        np.random.default_rng(1).normal(size=(50, 2)) * [1, 1e-2] @ [[1, 1], [0, 1.0]],
        "em",
        components=1,
        floor=0.1,
    )
    assert any("collapsed" in w for w in strict.warnings)  # a floor that was asked for holds for all


@pytest.mark.parametrize("model", ["ppca", "factor_analysis"])
@pytest.mark.parametrize(("noise", "hole"), [(0.0, True), (1e-4, True), (1e-3, False), (1e-3, True)])
def test_a_leap_to_the_border_is_taken_back(model, noise, hole):
    rng = np.random.default_rng(1)
    first = 3 * rng.normal(size=6)
    x = np.c_[first, 2 * first + noise * rng.normal(size=6)]
    truth = saturated(x) if noise else None
    true = x[4, 0]
    if hole:
        x[4, 0] = np.nan
    fit = run(model, x, "em", latents=1)
    assert np.isfinite(fit.claimed.value) and never_falls(fit.trace["log_likelihood"])
    assert any("collapsed" in w for w in fit.warnings) == (noise == 0)
    if hole:
        assert fit.impute(draws=1).mean[4, 0] == pytest.approx(true, abs=1e-2)
    elif model == "factor_analysis":  # two columns and one factor: any covariance can be had
        assert fit.claimed.value == pytest.approx(truth, abs=1e-3)


@pytest.mark.parametrize("model", ["ppca", "factor_analysis"])
def test_nearly_collinear_columns_with_holes_reach_the_top(model):
    rng = np.random.default_rng(8)
    celsius = rng.uniform(-10, 35, (100, 1))
    x = np.hstack([celsius, celsius * 1.8 + 32 + 0.05 * rng.normal(size=(100, 1))])
    x[rng.random(x.shape) < 0.2] = np.nan
    top = run("gmm", x, "em", components=1, tol=1e-13).claimed.value  # as many covariances, another way
    fit = run(model, x, "em", latents=1)
    assert fit.claimed.value == pytest.approx(top, abs=1e-3)
    assert fit.converged and fit.notes["iterations"] < 300 and never_falls(fit.trace["log_likelihood"])


# ---- float32 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", ["full", "tied", "diagonal", "spherical"])
def test_float32_claims_what_float64_finds(covariance):
    rng, centers = np.random.default_rng(2), np.array([[0, 0], [10, 0], [0, 10], [10, 10.0]])
    x = (centers[np.repeat(np.arange(4), 50)] + 0.01 * rng.normal(size=(200, 2))).astype(np.float32).astype(float)
    single, double = (run("gmm", x, "em", components=4, covariance=covariance, dtype=d) for d in ("float32", "float64"))
    assert single.claimed.value == pytest.approx(double.claimed.value, abs=2e-3)
    assert single.verified.value == pytest.approx(single.claimed.value, abs=1e-6)
    assert single.parameters["locs"].dtype == np.float32


def test_constants_made_at_import_are_brought_to_the_datas_dtype():
    assert torch.get_default_dtype() == torch.float32
    prior, loc = dist.Bernoulli(0.5), dist.Normal(torch.tensor(0.5), torch.tensor(2.0))

    def discrete(x=None, size=None):
        with user.rows(x, size):
            z = pyro.sample("z", prior)
            return pyro.sample("x", dist.Normal(2.0 * z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def linear(x=None, size=None):
        with user.rows(x, size):
            z = pyro.sample("z", loc)
            return pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    x = np.random.default_rng(8).normal(size=(12, 1)) + 1
    halves = np.logaddexp(norm.logpdf(x), norm.logpdf(x, 2)) - np.log(2)
    assert run(discrete, x, "em").claimed.value == pytest.approx(halves.sum(), rel=1e-12)
    assert run(linear, x, "em").claimed.value == pytest.approx(norm.logpdf(x, 0.5, 5**0.5).sum(), rel=1e-12)


# ---- starts and steps ---------------------------------------------------------------------------------------------


def folded(family):
    """A parameter that is θ below a bend and something else above it."""

    def program(x=None, size=None):
        r = pyro.param(
            "r", torch.tensor(1.0), constraint=constraints.positive if family == "poisson" else constraints.real
        )
        bent = torch.where(r < 10, r, 20 - r)
        with user.rows(x, size):
            made = (
                dist.Poisson(bent.clamp(min=0.1).expand([1]))
                if family == "poisson"
                else dist.Normal(bent.expand([1]), 1.0)
            )
            return pyro.sample("x", made.to_event(1), obs=x)

    return program


@pytest.mark.parametrize("family", ["poisson", "normal"])
def test_a_closed_form_never_lands_where_it_is_no_longer_right(family):
    x = np.random.default_rng(14).poisson(15, (50, 1)) * 1.0
    fit = run(folded(family), x, "em")
    truth = poisson.logpmf(x, 10) if family == "poisson" else norm.logpdf(x, 10, 1)
    assert fit.claimed.value == pytest.approx(truth.sum(), abs=1e-2)
    assert fit.notes["numeric"] == ["r"]


def test_no_probability_starts_at_zero():
    rng = np.random.default_rng(3)
    P = np.array([[[0.1, 0.2, 0.3, 0.4]] * 3, [[0.4, 0.3, 0.2, 0.1]] * 3])
    z = (rng.random(150) < 0.5).astype(int)
    x = np.array([[rng.choice(4, p=P[k, j]) for j in range(3)] for k in z]) * 1.0

    def program(x=None, size=None):
        w = pyro.param("w", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
        p = pyro.param("p", torch.rand(2, 3, 4).softmax(-1), constraint=constraints.simplex)
        with user.rows(x, size):
            k = pyro.sample("k", dist.Categorical(w))
            return pyro.sample("x", dist.Categorical(p[k]).to_event(1), obs=x)

    task = task_of(program, x)
    begin(task, "kmeans", 0)
    assert float(task.program.values()["p"].detach().min()) > 1e-3
    fit = em.fit(task_of(program, x), start="kmeans")
    assert fit.claimed.value == pytest.approx(-605.9184, abs=1e-3)  # from other starts, and from 16 restarts


def test_where_it_converged_the_slope_is_flat():
    x = np.random.default_rng(7).normal(size=(50, 2))
    for options in ({"covariance": "spherical"}, {"covariance": "full", "components": 3}):
        task = task_of("gmm", x, **options)
        fit = em.fit(task)
        surface = Surface(task, {}, Floor(1e-6, set(), strict=False))
        spot = surface.here(task.engine.e_step({}), fit.claimed.value, {})
        leaves = spot.u.clone().requires_grad_()
        evidence = task.exact.log_evidence(surface.layout.unflatten(leaves))[0]
        (slope,) = torch.autograd.grad(evidence, leaves)
        torch.testing.assert_close(spot.gradient, slope, rtol=1e-6, atol=1e-6)  # Fisher's identity
        if fit.converged:
            assert float(slope.abs().max()) < 0.1


def test_a_point_that_is_not_stationary_is_not_called_converged(monkeypatch):
    """An M-step that stands still says nothing about the likelihood."""
    task = task_of("gmm", np.random.default_rng(0).normal(size=(80, 2)) + np.array([0.0, 3.0]), components=1)
    monkeypatch.setattr(type(task), "m_step", lambda self, how, stats, globals, *rest, **more: globals)
    fit = em.fit(task, start="program", accelerate=False, max_iter=100)
    assert fit.converged is False and any("did not converge" in w for w in fit.warnings)


def test_the_starts_that_were_tried_are_noted():
    x = np.random.default_rng(0).normal(size=(200, 2)) * [1, 8] + np.repeat([[0, 0], [5, 0]], 100, 0)
    fit = run("gmm", x, "em", components=2)
    assert {"kmeans", "program"} <= set(fit.notes["starts"])
    assert fit.claimed.value >= run("gmm", x, "em", components=2, start="kmeans").claimed.value - 1e-3
    holes = np.where(
        np.random.default_rng(1).random((80, 5)) < 0.2, np.nan, np.random.default_rng(2).normal(size=(80, 5))
    )
    found = run("factor_analysis", holes, "em", latents=2)
    assert set(found.notes["starts"]) == {"program", "eigenvectors", "random"}


@pytest.mark.full
def test_one_clustering_that_leads_to_a_poor_mode_is_not_the_only_start():
    """k-means from this seed, and its k-means++ seeds, lead 12 nats below the best mode, which scikit-learn's finds."""
    rng = np.random.default_rng(0)
    u = rng.normal(size=100)
    first = rng.random(100) < 1 / (1 + np.exp(0.5 - 2 * u))
    y = np.where(first, 1 + 2 * u, -1 - u) + 0.5 * rng.normal(size=100)
    rng.random(400)
    x = np.c_[y, rng.normal(size=100)]
    peer = GaussianMixture(2, covariance_type="diag", tol=1e-9, max_iter=1000, random_state=0).fit(x)
    best = 100 * peer.score(x)
    poor, found = (
        em.fit(task_of("gmm", x, covariance="diagonal"), start=how).claimed.value for how in ("kmeans", "auto")
    )
    assert poor < best - 12 and found == pytest.approx(best, abs=1e-3)


@pytest.mark.full
def test_priors_that_do_not_keep_the_mode_inside_are_said_to():
    x = np.array([[1, 2], [3, 6], [4, 8], [10, 20], [np.nan, 22], [7, 14.0]])
    fit = run("gmm", x, "em", components=1, priors=True)
    assert fit.converged is False and fit.notes["iterations"] < 300
    assert any("no posterior mode" in w for w in fit.warnings)
    assert fit.impute(draws=1).mean[4, 0] == pytest.approx(11.0, abs=1e-2)


@pytest.mark.parametrize("prior", [True, False])
def test_a_start_without_slope_is_no_end(prior):
    """Loadings that begin at 0 have no gradient there, and a likelihood 870 nats below its maximum."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 1)) * np.array([2.0, -1.5, 1.0]) + 0.7 * rng.normal(size=(150, 3))

    def program(x=None, size=None):
        if prior:
            variance = pyro.sample("variance", dist.InverseGamma(2.0, 1.0))
            w = pyro.sample("w", dist.Normal(torch.zeros(3), variance.sqrt()).to_event(1))
        else:
            w = pyro.param("w", torch.zeros(3))
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) * w, 0.7).to_event(1), obs=x)

    fit = run(program, x, "em").fit
    covariance = np.outer(fit.parameters["w"], fit.parameters["w"]) + 0.49 * np.eye(3)
    value = multivariate_normal(np.zeros(3), covariance).logpdf(x).sum()
    assert fit.converged and fit.claimed.value == pytest.approx(value, abs=1e-6) and value > -690


def test_a_column_of_loadings_that_stays_at_0_is_no_end():
    """The other column moves, and the likelihood comes to the maximum of one latent; of two, it is PPCA's."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 2)) @ [[2, -1.5, 1, 0.5], [0, 1, 1.2, -1]] + 0.5 * rng.normal(size=(100, 4))

    def program(x=None, size=None):
        w = pyro.param("w", torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0]]))
        noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
        with user.rows(x, size):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z @ w, noise).to_event(1), obs=x)

    ordered = np.linalg.eigvalsh(x.T @ x / 100)[::-1]
    spread = np.r_[ordered[:2], [ordered[2:].mean()] * 2]
    fit = em.fit(task_of(program, x))
    assert fit.claimed.value == pytest.approx(-50 * (4 * np.log(2 * np.pi) + np.log(spread).sum() + 4), abs=1e-3)


def test_two_components_that_begin_alike_do_not_stay_alike():
    rng = np.random.default_rng(0)
    x = np.repeat([[3.0, 3], [-2, -2], [6, -6]], 40, 0) + rng.normal(size=(120, 2))

    def program(x=None, size=None):
        locs = pyro.param("locs", torch.tensor([[0.0, 0], [0, 0], [6, -6]]))
        with user.rows(x, size):
            z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
            return pyro.sample("x", dist.Normal(locs[z], 1.0).to_event(1), obs=x)

    alike, apart = (em.fit(task_of(program, x), start=start).claimed.value for start in ("program", "kmeans"))
    assert alike == pytest.approx(apart, abs=1e-3)


@pytest.mark.full
def test_a_saddle_that_bends_little_is_left():
    """A variance of 1.02 in one direction and 1 in the others: EM's steps from loadings of 0 grow by 2 % each."""
    x = np.linalg.qr(np.random.default_rng(0).normal(size=(4000, 3)))[0] * 4000**0.5 * [1.02**0.5, 1, 1]

    def program(x=None, size=None):
        w = pyro.param("w", torch.zeros(3))
        with user.rows(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(z.unsqueeze(-1) * w, 1.0).to_event(1), obs=x)

    best = multivariate_normal(np.zeros(3), np.diag([1.02, 1, 1])).logpdf(x).sum()
    assert em.fit(task_of(program, x)).claimed.value == pytest.approx(best, abs=1e-3)
