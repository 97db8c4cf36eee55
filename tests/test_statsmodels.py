"""Maximum likelihood of state space models and of random intercepts, against statsmodels.

statsmodels' own figures are kept here, so that they hold where it is not installed; where it is, they are found again.
"""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import hide, in_full, task_of
from kalman_programs import POSITIVE, ar2, local_level, local_trend, tracking

from inference import em
from latent_zoo import run

PROGRAMS = {"level": local_level, "trend": local_trend, "ar2": ar2, "tracking": tracking}
THETA = {
    "level": {"q": 0.5, "r": 0.8},
    "trend": {"q": [0.5, 0.2], "r": 0.8},
    "ar2": {"a": [0.9, -0.4], "q": 0.5, "r": 0.4},
    "tracking": {"q": [0.3, 0.3, 0.2, 0.2], "r": [0.5, 0.7]},
}
MAXIMA = {  # nats, by statsmodels 0.15.0
    ("level", 100): -140.9754735161731,
    ("trend", 100): -152.3706673061491,
    ("ar2", 100): -91.08399669383302,
    ("tracking", 100): -250.12800289987757,
    ("level", 1000): -1352.4253335950484,
    ("trend", 1000): -1511.5708984447751,
    ("ar2", 1000): -958.0044075729404,
    ("tracking", 1000): -2337.5299446091676,
}
INTERCEPTS = -210.02123849767275  # the same, of MixedLM


def series(name, T):
    """One series of T steps that the model has made, with a tenth of holes; [T, D].

    The first step of an AR(2) is hidden: SARIMAX begins with a state of two steps, of which it sees the second.
    """
    A, Q, H, R, P0 = PROGRAMS[name](T).matrices(**{k: np.array(v) for k, v in THETA[name].items()})
    rng, x = np.random.default_rng(T), []
    z = np.sqrt(P0.diagonal()) * rng.normal(size=len(A))
    for _ in range(T):
        x.append(H @ z + np.sqrt(R.diagonal()) * rng.normal(size=len(R)))
        z = A @ z + np.sqrt(Q.diagonal()) * rng.normal(size=len(A))
    x = hide(np.array(x), 0.1, T)
    if name == "ar2":
        x[0] = np.nan
    return x


def by_statsmodels(name, x):
    """The highest log-likelihood that statsmodels finds, climbing from the θ that made the data."""
    from statsmodels.tsa.statespace.mlemodel import MLEModel
    from statsmodels.tsa.statespace.sarimax import SARIMAX
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    class Tracking(MLEModel):
        def __init__(self, x):
            super().__init__(x, k_states=4)
            self["design"], self["selection"] = np.eye(2, 4), np.eye(4)
            self["transition"] = np.eye(4) + 0.5 * np.diag(np.ones(2), 2)

        start_params = np.ones(6)
        param_names = [f"s{k}" for k in range(6)]

        def update(self, params, **options):
            params = super().update(params, **options)
            self["state_cov"], self["obs_cov"] = np.diag(params[:4] ** 2), np.diag(params[4:] ** 2)

    theta = THETA[name]
    if name == "ar2":
        options = {"enforce_stationarity": False, "hamilton_representation": True}
        model, variance = SARIMAX(x[1:], order=(2, 0, 0), measurement_error=True, **options), np.eye(2)
        start = [*theta["a"], theta["r"] ** 2, theta["q"] ** 2]
    else:
        variance = PROGRAMS[name](2).matrices(**theta)[-1]
        model = (
            Tracking(x)
            if name == "tracking"
            else UnobservedComponents(x, {"level": "llevel", "trend": "lltrend"}[name])
        )
        squares = np.hstack([theta["r"], theta["q"]]) ** 2
        start = np.hstack([theta["q"], theta["r"]]) if name == "tracking" else squares
    model.initialize_known(np.zeros(len(variance)), variance)
    model.loglikelihood_burn = model.ssm.tolerance = 0
    for method in ("nm", "bfgs", "nm"):
        start = model.fit(start, method=method, maxiter=5000, disp=False, xtol=1e-10, ftol=1e-12, gtol=1e-9).params
    return model.loglike(start)


def groups():
    """Rows of 30 groups, of which the k-th has 1 + k % 9: the group, a covariate, and what is seen."""
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(30), 1 + np.arange(30) % 9)
    u = rng.normal(size=len(group))
    return np.column_stack([group, u, 1 + 0.5 * u + 0.7 * rng.normal(size=30)[group] + rng.normal(size=len(group))])


def intercepts(x=None, size=None):
    """y ~ N(b₀ + b₁ u + a_group, s²), a ~ N(0, t²)."""
    b, s, t = pyro.param("b", torch.zeros(2)), *(pyro.param(n, torch.ones(()), constraint=POSITIVE) for n in "st")
    with pyro.plate("groups", 30):
        a = pyro.sample("a", dist.Normal(torch.zeros(()), t))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(b[0] + b[1] * x[:, 1] + a[..., x[:, 0].long()], s), obs=x[:, 2])


def mixed_by_statsmodels(x):
    from statsmodels.regression.mixed_linear_model import MixedLM

    model = MixedLM(x[:, 2], np.column_stack([np.ones(len(x)), x[:, 1]]), x[:, 0])
    return model.fit(reml=False, method=["bfgs", "nm"], gtol=1e-10).llf


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("T", [*in_full(100), pytest.param(1000, marks=pytest.mark.slow)])
def test_em_ends_where_statsmodels_does(name, T):
    x = series(name, T)
    found = em.fit(task_of(PROGRAMS[name](T), x[None] if name == "tracking" else x.T))
    assert found.claimed.kind == "exact" and found.converged
    assert abs(found.claimed.value - MAXIMA[name, T]) < 1e-5


@pytest.mark.full
def test_unbalanced_random_intercepts_are_statsmodels():
    found = run(intercepts, groups(), "em")
    assert found.claimed.kind == found.verified.kind == "exact" and found.converged
    assert abs(found.claimed.value - INTERCEPTS) < 1e-4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # that it did not converge to a tolerance below rounding
def test_statsmodels_still_finds_these():
    pytest.importorskip("statsmodels")
    for (name, T), value in MAXIMA.items():
        assert abs(by_statsmodels(name, series(name, T)) - value) < 1e-6
    assert abs(mixed_by_statsmodels(groups()) - INTERCEPTS) < 1e-6
