"""gmm noise=uniform: the density by SciPy, with holes and beyond the box; EM by hand; outliers with their own label."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import hide, task_of
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, uniform

from inference import infer, run
from zoo._errors import UsageError

RNG = np.random.default_rng(0)
CLEAN = np.r_[RNG.normal([0, 0], 1, (150, 2)), RNG.normal([6, 3], [0.5, 1], (100, 2))]
X = np.r_[CLEAN, RNG.uniform([-15, -15], [15, 15], (50, 2))]
LOW, HIGH = X.min(0), X.max(0)


def joint_by_hand(x, weights, locs, sigmas, low=LOW, high=HIGH) -> np.ndarray:
    """log p(x_i, z) [n, K + 1]: of each row what is seen of it alone."""
    out = np.log(weights) + np.zeros((len(x), 1))
    for i, row in enumerate(x):
        s = np.flatnonzero(~np.isnan(row))
        for k in range(len(locs) if s.size else 0):
            out[i, k] += multivariate_normal(locs[k][s], sigmas[k][np.ix_(s, s)]).logpdf(row[s])
        out[i, -1] += uniform(low[s], (high - low)[s]).logpdf(row[s]).sum()
    return out


def theta_of(task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """weights, locs, Σ_k of the task's program."""
    theta = {n: v.detach().numpy() for n, v in task.program.values().items()}
    scale = task.program.module._scale().detach().numpy()
    K, D = theta["locs"].shape
    if scale.ndim == 1:  # spherical
        scale = np.repeat(scale[:, None], D, 1)
    sigmas = scale @ scale.swapaxes(-1, -2) if scale.ndim == 3 else np.stack([np.diag(s**2) for s in scale])
    assert len(sigmas) == K
    return theta["weights"], theta["locs"], sigmas


@pytest.mark.parametrize("covariance", ["full", "diagonal", "spherical", "VEV"])
@pytest.mark.parametrize("holes", [0.0, 0.2])
def test_the_density_is_scipys(covariance, holes):
    x = hide(X, holes)
    task = task_of("gmm", x, components=2, covariance=covariance, noise="uniform")
    task.program.assign(task.program.elsewhere())
    box = np.nanmin(x, 0), np.nanmax(x, 0)
    truth = logsumexp(joint_by_hand(x, *theta_of(task), *box), 1)
    for own in (False, True):
        assert task.engine.per_datum(own=own).numpy() == pytest.approx(truth)


def test_beyond_the_box_there_is_no_noise(tmp_path):
    fitted = run("gmm", X, "em", components=2, noise="uniform", out=tmp_path / "fit")
    new = np.array([[16.0, 0.0], [np.nan, 0.0], [16.0, np.nan], [1.0, 1.0], [np.nan, np.nan]])
    found = infer(tmp_path / "fit", "em", data=new)
    by_hand = joint_by_hand(new, *theta_of(fitted.at_theta()))
    assert np.isneginf(by_hand[[0, 2], -1]).all() and not np.isneginf(by_hand[[1, 3, 4], -1]).any()
    assert found.verified.per_datum == pytest.approx(logsumexp(by_hand, 1))
    assert found.verified.per_datum[4] == pytest.approx(0)


def test_em_is_that_by_hand_and_outliers_have_their_own_label():
    fit = run("gmm", X, "em", components=2, noise="uniform")
    assert fit.notes["numeric"] == [] and fit.converged and fit.verified.kind == "exact"
    r = np.zeros((len(X), 3))
    r[:150, 0] = r[150:250, 1] = r[250:, 2] = 1
    for _ in range(200):
        n = r.sum(0)
        locs = (r.T @ X)[:2] / n[:2, None]
        sigmas = [(r[:, k, None] * (X - locs[k])).T @ (X - locs[k]) / n[k] for k in range(2)]
        joint = np.column_stack([multivariate_normal(locs[k], sigmas[k]).logpdf(X) for k in range(2)])
        joint = np.column_stack([joint, np.full(len(X), -np.log(HIGH - LOW).sum())]) + np.log(n / len(X))
        value = logsumexp(joint, 1)
        r = np.exp(joint - value[:, None])
    assert fit.verified.value == pytest.approx(value.sum(), abs=1e-6)
    assert np.sort(fit.parameters["weights"][:2]) == pytest.approx(np.sort(n[:2] / len(X)), abs=1e-4)
    labels = fit.probabilities["z"].argmax(1)
    far = np.abs(X).max(1) > 9
    assert (labels[far] == 2).all() and (labels[:250] == 2).mean() < 0.05
    assert fit.verified.value > run("gmm", X, "em", components=2).verified.value


def test_what_is_missing_is_filled_from_the_box_where_a_row_is_noise():
    x = X.copy()
    x[260:280, 0] = np.nan
    fit = run("gmm", x, "em", components=2, noise="uniform")
    found = fit.impute(draws=20)
    weights, locs, sigmas = theta_of(fit.at_theta())
    low, high = np.nanmin(x, 0), np.nanmax(x, 0)
    r = joint_by_hand(x[260:280], weights, locs, sigmas, low, high)
    r = np.exp(r - logsumexp(r, 1)[:, None])
    means = [locs[k][0] + sigmas[k][0, 1] / sigmas[k][1, 1] * (x[260:280, 1] - locs[k][1]) for k in range(2)]
    expected = r[:, 0] * means[0] + r[:, 1] * means[1] + r[:, 2] * (low + high)[0] / 2
    assert found.mean[260:280, 0] == pytest.approx(expected)
    assert ((found.draws >= low - 9) & (found.draws <= high + 9)).all()


def test_a_constant_column_has_no_box():
    with pytest.raises(UsageError, match="noise=uniform expects columns that vary; column 1"):
        run("gmm", np.c_[X[:, :1], np.ones(len(X))], "em", noise="uniform")


def test_priors_go_with_noise():
    fit = run("gmm", X, "em", components=2, noise="uniform", priors=True)
    assert fit.parameters["weights"].shape == (3,) and fit.converged


@pytest.mark.slow
@pytest.mark.parametrize("method", ["svi", "importance"])
def test_bounds_and_estimates_are_beside_the_exact_value(method):
    fit = run("gmm", hide(X, 0.1), method, components=2, noise="uniform", epochs=100)
    assert fit.claimed.kind in ("lower bound", "estimate")
    assert fit.claimed.value < fit.verified.value + 4 * (fit.claimed.se or 0)
