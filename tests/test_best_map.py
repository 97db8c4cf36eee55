"""The best linear map from normal latents to data: heights, slopes and bends, where EM begins, and what is sure of a top."""

from __future__ import annotations

import linear_programs as linear
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from helpers import task_of
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.datasets import load_wine
from torch.distributions import constraints

from inference import em
from inference._em.climb import ENOUGH
from inference._exact.compressed import Compressed
from inference._families._family import Floor
from inference._numerics.best_map import BestMap

RNG = np.random.default_rng(5)
SHAPED = RNG.normal(size=(200, 3)) @ RNG.normal(size=(3, 7)) + RNG.uniform(0.4, 1.2, 7) * RNG.normal(size=(200, 7))
WINE = load_wine().data / load_wine().data.std(0)
TIED = torch.tensor([0, 0, 1, -1, 2, 2, 2])


def of(x, latents, group=None):
    away = torch.as_tensor(x - x.mean(0)) / len(x) ** 0.5
    known = torch.full((x.shape[1],), 0.3, dtype=torch.float64)
    return BestMap(torch.linalg.qr(away).R, torch.arange(x.shape[1]) if group is None else group, known, latents)


def log_p(x, W, variances):
    return multivariate_normal(x.mean(0), W @ W.T + np.diag(variances)).logpdf(x).sum()


def scipys(x, latents, lowest):
    """The largest log-likelihood of factor analysis with no noise below `lowest`, by SciPy from two starts."""
    D, best = x.shape[1], -np.inf
    S = np.cov(x.T, bias=True)

    def loss(flat):
        W, v = flat[: D * latents].reshape(D, latents), np.exp(flat[D * latents :])
        inverse = np.linalg.inv(C := W @ W.T + np.diag(v))
        slope = inverse - inverse @ S @ inverse
        value = np.linalg.slogdet(C)[1] + np.trace(inverse @ S)
        return value, np.concatenate([(2 * slope @ W).ravel(), slope.diagonal() * v])

    for seed in range(2):
        start = np.random.default_rng(seed).normal(size=D * latents) * 0.5
        bounds = [(None, None)] * len(start) + [(np.log(lowest), None)] * D
        start, more = np.concatenate([start, np.full(D, -0.7)]), {"maxiter": 5000, "maxfun": 9000, "ftol": 1e-15}
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={**more, "gtol": 1e-9})
        best = max(best, -0.5 * len(x) * (found.fun + D * np.log(2 * np.pi)))
    return best


# ---- the height ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [None, TIED, torch.zeros(7, dtype=torch.long)])
@pytest.mark.parametrize("latents", [1, 3, 6])
def test_the_height_is_the_likelihood_and_its_derivatives_are_right(group, latents):
    best = of(SHAPED, latents, group)
    t = best.pooled(0.5 * best.root.square().sum(0)) + 0.1 * torch.arange(len(best.spreads))
    height = best.at(t)
    value = log_p(SHAPED, height.map.numpy(), best.variances(t).numpy())
    assert -100 * (height.value + 7 * np.log(2 * np.pi)) == pytest.approx(value, rel=1e-12)
    step = 1e-5 * torch.eye(len(t), dtype=torch.float64)
    for i in range(len(t)):
        up, down = best.at(t + step[i]), best.at(t - step[i])
        assert float(height.slope[i]) == pytest.approx((up.value - down.value) / 2e-5, abs=1e-8)
        torch.testing.assert_close(height.bend[i], (up.slope - down.slope) / 2e-5, rtol=1e-6, atol=1e-8)


def test_no_other_map_is_better_for_the_same_noise():
    best = of(SHAPED, 2)
    v = 0.4 * best.root.square().sum(0)
    height = best.at(best.pooled(v))
    top = log_p(SHAPED, height.map.numpy(), v.numpy())
    for seed in range(20):
        other = height.map.numpy() + 0.05 * np.random.default_rng(seed).normal(size=(7, 2))
        assert log_p(SHAPED, other, v.numpy()) < top


def test_one_variance_for_all_is_the_mean_of_the_other_eigenvalues():
    best = of(SHAPED, 3, torch.zeros(7, dtype=torch.long))
    values = np.linalg.eigvalsh(np.cov(SHAPED.T, bias=True))
    t, height = best.lowest(1e-9)
    assert float(t.exp()) == pytest.approx(values[:4].mean(), rel=1e-10)
    assert best.is_lowest(t, height, 1e-6, 1e-9)


# ---- where EM begins ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "latents"),
    [(WINE, 6), *(pytest.param(x, n, marks=pytest.mark.full) for x, n in ((SHAPED, 3), (WINE, 2), (WINE, 4)))],
)
def test_factor_analysis_is_at_its_maximum_also_where_noises_go_to_0(x, latents):
    fit = em.fit(task_of("factor_analysis", x, latents=latents))
    assert fit.converged and fit.warnings == [] and fit.notes["iterations"] <= 3
    bounded = scipys(x, latents, 1e-5)  # further down EM may gain a little more
    assert bounded - 1e-6 < fit.claimed.value < bounded + 0.02
    noise = fit.parameters["noise"] / x.std(0)
    if noise.min() > 0.01:
        assert fit.claimed.value == pytest.approx(bounded, abs=1e-6)


def test_a_floor_that_was_asked_for_holds_for_the_start_too():
    fit = em.fit(task_of("factor_analysis", WINE, latents=6), floor=0.05)
    assert (fit.parameters["noise"] / WINE.std(0)).min() == pytest.approx(0.05**0.5, rel=1e-6)
    assert fit.claimed.value == pytest.approx(scipys(WINE, 6, 0.05), abs=1e-3)


def test_latents_of_any_prior_and_an_offset_that_is_held():
    """z ~ N((1, −2), Σ) with a free offset, and z ~ N(0, Σ) with none: the map takes the prior's root back out."""
    tril = torch.tensor([[2.0, 0.0], [1.0, 0.5]], dtype=torch.float64)

    def program(moved):
        def program(x=None, size=None):
            w = pyro.param("w", torch.ones(7, 2) + torch.eye(7)[:, :2])
            mean = pyro.param("mean", torch.zeros(7)) if moved else torch.full((7,), 0.25)
            noise = pyro.param("noise", torch.ones(7), constraint=constraints.positive)
            with user.rows(x, size):
                loc = torch.tensor([1.0, -2.0] if moved else [0.0, 0.0], dtype=torch.float64)
                z = pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=tril))
                return pyro.sample("x", dist.Normal(z @ w.mT + mean, noise).to_event(1), obs=x)

        return program

    for moved in (True, False):
        # about 0.25 the scatter of the data is that of them and their mirror image, whose mean it is
        x = SHAPED if moved else np.concatenate([SHAPED, 0.5 - SHAPED])
        top = em.fit(task_of("factor_analysis", x, latents=2)).claimed.value
        fit = em.fit(task_of(program(moved), SHAPED))
        assert fit.claimed.value == pytest.approx(top * len(SHAPED) / len(x), abs=1e-6)
        assert fit.converged and fit.notes["iterations"] <= 3
        W, v = fit.parameters["w"], fit.parameters["noise"] ** 2
        mean = fit.parameters["mean"] + W @ [1, -2] if moved else np.full(7, 0.25)
        W = W @ tril.numpy()
        truth = multivariate_normal(mean, W @ W.T + np.diag(v)).logpdf(SHAPED).sum()
        assert fit.claimed.value == pytest.approx(truth, rel=1e-12)


def halves(x=None, size=None):
    """Both halves of the columns have the same loadings."""
    w = pyro.param("w", torch.ones(3))
    noise = pyro.param("noise", torch.ones(6), constraint=constraints.positive)
    with user.rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z.unsqueeze(-1) * torch.cat([w, w]), noise).to_event(1), obs=x)


@pytest.mark.parametrize("program", [linear.random_intercept, linear.correlated_noise, halves])
def test_a_map_that_is_not_free_has_no_closed_form(program):
    it = task_of(program, SHAPED[:, :6] if program is halves else SHAPED[:, :5])
    assert isinstance(it.engine, Compressed)
    assert it.engine.highest(it.plan({}), Floor(1e-6, set())) is None
    assert not it.engine.is_highest(it.plan({}), it.engine.e_step(), ENOUGH)


def test_a_map_with_priors_has_none():
    it = task_of("ppca", SHAPED, latents=2, priors=True)
    globals = it.global_start()
    assert it.engine.highest(it.plan(globals), Floor(1e-6, set())) is None
    assert not it.engine.is_highest(it.plan(globals), it.engine.e_step(globals), ENOUGH)


def test_collinear_and_constant_columns_have_none_either():
    for x in (np.c_[SHAPED, SHAPED[:, :1] + SHAPED[:, 1:2]], np.c_[SHAPED, np.ones(200)]):
        it = task_of("ppca", x, latents=2)
        assert it.engine.highest(it.plan({}), Floor(1e-6, set())) is None


def test_of_the_ends_at_which_a_noise_is_0_the_best_is_found():
    """Of 13 rows and 6 columns several columns can be explained in full: which of them is 15 nats apart."""
    r = np.random.default_rng(70)
    r.integers(3, 9), r.integers(1, 5), r.choice([8, 13, 40, 150])
    x = r.normal(size=(13, 2 + int(r.integers(0, 2))))
    x = x @ r.normal(size=(x.shape[1], 6)) + r.choice([0.01, 0.1, 0.5, 1.0]) * r.normal(size=(13, 6)) * r.uniform(
        0.05, 1, 6
    )
    best = of(x, 2)
    _, height = best.lowest(1e-9)
    assert -6.5 * (height.value + 6 * np.log(2 * np.pi)) > scipys(x, 2, 1e-7) - 1e-3


# ---- what is no top ----------------------------------------------------------------------------------------------


def second_is_weak():
    """Data of variances 9 along one direction, 1.004 along another and ½ along the rest [4000, 12]."""
    z = np.linalg.qr(np.random.default_rng(0).normal(size=(4000, 12)))[0] * 4000**0.5
    return z * np.sqrt([9, 1.004, *[0.5] * 10])


def begins_alike(x=None, size=None):
    """Two latents with the same loadings: no step of EM tells them apart."""
    w = pyro.param("w", torch.tensor([[1.0, 1.0], *[[0.0, 0.0]] * 11]))
    with user.rows(x, size):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        return pyro.sample("x", dist.Normal(z @ w.mT, 1.0).to_event(1), obs=x)


def test_a_saddle_that_a_hundred_steps_do_not_leave_is_seen():
    """From a little aside EM's steps grow by 0.4 % each, so slowly that they are given up; 0.016 nats are to be gained."""
    it = task_of(begins_alike, second_is_weak())
    best = -2000 * (12 * np.log(2 * np.pi) + np.log(9 * 1.004) + 2 + 5)
    fit = em.fit(it, start="program")
    assert fit.converged and fit.claimed.value == pytest.approx(best, abs=ENOUGH)
    found = {"w": torch.tensor(fit.parameters["w"])}
    w = torch.tensor([[2.0, 2.0], *[[0.0, 0.0]] * 11], dtype=torch.float64)
    it.program.assign({"w": w})
    assert not it.engine.is_highest(it.plan({}), it.engine.e_step(), ENOUGH)  # though nothing slopes there
    it.program.assign(found)
    assert it.engine.is_highest(it.plan({}), it.engine.e_step(), ENOUGH)


def test_a_ridge_is_no_sure_top():
    """Of two columns and one latent many noises are equally good."""
    it = task_of("factor_analysis", SHAPED[:, :2], latents=1)
    it.program.assign(it.engine.highest(it.plan({}), Floor(1e-6, set())))
    assert not it.engine.is_highest(it.plan({}), it.engine.e_step(), ENOUGH)


def test_a_noise_that_still_slopes_is_no_top():
    it = task_of("factor_analysis", SHAPED, latents=3)
    theta = it.engine.highest(it.plan({}), Floor(1e-6, set()))
    it.program.assign(theta)
    assert it.engine.is_highest(it.plan({}), it.engine.e_step(), ENOUGH)
    it.program.assign({**theta, "noise": theta["noise"] * 1.01})
    assert not it.engine.is_highest(it.plan({}), it.engine.e_step(), ENOUGH)
