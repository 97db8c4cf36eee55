"""Conjugate latents: exact against SciPy's closed forms; programs that only look conjugate are refused."""

from __future__ import annotations

import contextlib

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import in_full, structure_of, task_of
from scipy import integrate, stats
from scipy.optimize import minimize
from scipy.special import gammaln, logsumexp
from torch.distributions import constraints

from inference._run._own import own_route
from latent_zoo import run
from zoo._program.structure import Exactness

F64 = torch.float64
COUNTS = np.random.default_rng(0).poisson(4.0, (30, 3)).astype(float)


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def program(latent, site, columns=1):
    """z from `latent()`, and x given it from `site(z)`."""

    def model(x=None, size=None):
        with pyro.plate("data", len(x) if x is not None else size):
            z = latent()
            seen = None if x is None else x[:, 0] if columns == 1 else x
            return pyro.sample("x", site(z), obs=seen)

    return model


def gamma(a=2.0, b=1.5):
    return lambda: pyro.sample("z", dist.Gamma(tensor(a)[0], tensor(b)[0]))


def inverse_gamma():
    return pyro.sample("z", dist.InverseGamma(tensor(2.0)[0], tensor(3.0)[0]))


def beta():
    return pyro.sample("z", dist.Beta(tensor(2.0)[0], tensor(3.0)[0]))


def dirichlet():
    return pyro.sample("z", dist.Dirichlet(tensor(1.0, 2.0, 3.0)))


def shares(z, columns):
    return dist.Categorical(z.unsqueeze(-2).expand(*z.shape[:-1], columns, 3)).to_event(1)


def dirichlet_multinomial(counts, alpha=(1.0, 2.0, 3.0)):
    """log p of the ordered draws."""
    alpha, n = np.asarray(alpha), counts.sum(1)
    return gammaln(alpha.sum()) - gammaln(alpha.sum() + n) + (gammaln(alpha + counts) - gammaln(alpha)).sum(1)


X = COUNTS[:, :1]
FEW = X.clip(max=10)
STATES = np.random.default_rng(1).integers(0, 3, (30, 4)).astype(float)
PER_STATE = np.stack([(k == STATES).sum(1) for k in range(3)], 1)
REALS = np.random.default_rng(2).normal(size=(30, 3))
SQUARES = (REALS**2).sum(1)
A, B = 2.0, 3.0
EXACT = {
    "gamma, poisson": (program(gamma(), lambda z: dist.Poisson(3 * z)), X, stats.nbinom.logpmf(X[:, 0], 2, 1.5 / 4.5)),
    "gamma, exponential": (
        program(gamma(), lambda z: dist.Exponential(z / 2)),
        X + 0.5,
        stats.lomax.logpdf(X[:, 0] + 0.5, 2, scale=2 * 1.5),
    ),
    "gamma, gamma": (
        program(gamma(), lambda z: dist.Gamma(torch.full_like(z, 2.5), z)),
        X + 0.5,
        stats.betaprime.logpdf(X[:, 0] + 0.5, 2.5, 2, scale=1.5),
    ),
    "gamma, precision": (
        program(gamma(), lambda z: dist.Normal(1.0, (2 * z).rsqrt())),
        X,
        stats.t.logpdf(X[:, 0], 4, 1.0, np.sqrt(1.5 / 4)),
    ),
    "inverse gamma, variance": (
        program(inverse_gamma, lambda z: dist.Normal(0.0, z.sqrt().unsqueeze(-1)).expand([*z.shape, 3]).to_event(1), 3),
        REALS,
        A * np.log(B) - gammaln(A) + gammaln(A + 1.5) - (A + 1.5) * np.log(B + SQUARES / 2) - 1.5 * np.log(2 * np.pi),
    ),
    "inverse gamma, mean": (
        program(inverse_gamma, lambda z: dist.Exponential(1 / z)),
        X + 0.5,
        A * np.log(B) - gammaln(A) + gammaln(A + 1) - (A + 1) * np.log(B + X[:, 0] + 0.5),
    ),
    "beta, binomial": (
        program(beta, lambda z: dist.Binomial(10, z)),
        FEW,
        stats.betabinom.logpmf(FEW[:, 0], 10, 2, 3),
    ),
    "beta, the other side": (
        program(beta, lambda z: dist.Binomial(10, 1 - z)),
        FEW,
        stats.betabinom.logpmf(10 - FEW[:, 0], 10, 2, 3),
    ),
    "beta, bernoulli": (
        program(beta, lambda z: dist.Bernoulli(z)),
        (X > 3).astype(float),
        np.log(np.where(X[:, 0] > 3, 0.4, 0.6)),
    ),
    "beta, geometric": (
        program(beta, lambda z: dist.Geometric(z)),
        X,
        gammaln(3) + gammaln(3 + X[:, 0]) - gammaln(6 + X[:, 0]) + gammaln(5) - gammaln(2) - gammaln(3),
    ),
    "beta, negative binomial": (
        program(beta, lambda z: dist.NegativeBinomial(4, z)),
        X,
        gammaln(4 + X[:, 0]) - gammaln(4) - gammaln(X[:, 0] + 1)
        + gammaln(2 + X[:, 0]) + gammaln(7) - gammaln(9 + X[:, 0]) - gammaln(2) - gammaln(3) + gammaln(5),
    ),
    "dirichlet, categorical": (program(dirichlet, lambda z: shares(z, 4), 4), STATES, dirichlet_multinomial(PER_STATE)),
    "dirichlet, multinomial": (
        program(dirichlet, lambda z: dist.Multinomial(4, z), 3),
        PER_STATE.astype(float),
        dirichlet_multinomial(PER_STATE) + gammaln(5) - gammaln(PER_STATE + 1.0).sum(1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_against_the_closed_form(name):
    model, x, expected = EXACT[name]
    task = task_of(model, x)
    assert task.structure.exact == Exactness.CONJUGATE, task.structure.reason
    np.testing.assert_allclose(task.engine.per_datum(), expected, rtol=1e-9, atol=1e-9)
    rows = torch.arange(len(x))
    np.testing.assert_allclose(own_route.log_evidence(task, rows, {}), expected, rtol=1e-6, atol=1e-6)


def test_counts_of_any_size():
    x = np.array([[0.0], [3.0], [1e3], [1e6], [1e9]])
    task = task_of(program(gamma(), lambda z: dist.Poisson(3 * z)), x)
    posterior = task.engine.summary()[0]["z"]
    np.testing.assert_allclose(posterior, (2 + x[:, 0]) / 4.5, rtol=1e-8)


def mixture(x=None, size=None):
    """Two kinds of rows, whose rates have gammas of their own; three counts each, at known exposures."""
    weights = pyro.param("weights", tensor(0.3, 0.7), constraint=constraints.simplex)
    shape = pyro.param("shape", tensor(2.0, 9.0), constraint=constraints.positive)
    with pyro.plate("data", len(x) if x is not None else size):
        k = pyro.sample("k", dist.Categorical(weights))
        z = pyro.sample("z", dist.Gamma(shape[k], 1.0))
        rate = z.unsqueeze(-1) * tensor(1.0, 2.0, 0.5)
        return pyro.sample("x", dist.Poisson(rate).to_event(1), obs=x)


def mixture_log_p(x, weights=(0.3, 0.7), shape=(2.0, 9.0)):
    each, exposure = [], np.array([1.0, 2.0, 0.5])
    for w, a in zip(weights, shape, strict=True):
        seen = ~np.isnan(x)
        s, e = np.nansum(x, 1), (exposure * seen).sum(1)
        other = np.where(seen, np.nan_to_num(x) * np.log(exposure) - gammaln(np.nan_to_num(x) + 1), 0.0).sum(1)
        each.append(np.log(w) + gammaln(a + s) - gammaln(a) - (a + s) * np.log1p(e) + other)
    return logsumexp(each, axis=0), np.stack(each, 1)


def test_a_mixture_with_holes():
    x = COUNTS.copy()
    x[0, 1] = x[5] = np.nan
    task = task_of(mixture, x)
    total, each = mixture_log_p(x)
    np.testing.assert_allclose(task.engine.per_datum(), total, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(task.engine.responsibilities(), np.exp(each - total[:, None]), atol=1e-10)
    torch.manual_seed(1)
    draws, mean = task.engine.draw(None, 4000)["z"], task.engine.summary()
    assert bool(((draws.mean(0) - mean[0]["z"]).abs() < 5 * mean[1]["z"] / 4000**0.5).all())
    fit = run(mixture, x, "em")
    assert fit.claimed.kind == fit.verified.kind == "exact"

    def loss(u):
        w = 1 / (1 + np.exp(-u[0]))
        return -mixture_log_p(x, (w, 1 - w), np.exp(u[1:]))[0].sum()

    best = min((minimize(loss, s, method="BFGS") for s in ([-1, 0.7, 2.2], [0.0, 1.0, 1.5])), key=lambda r: r.fun)
    assert fit.claimed.value == pytest.approx(-best.fun, abs=1e-3)


def test_the_slope_of_what_an_m_step_climbs_is_the_evidences():
    """Fisher's identity: at the θ of the E-step, ∇ E[log p(x, k, z; θ)] = ∇ log p(x; θ)."""
    engine = task_of(mixture, COUNTS).engine
    theta = {n: v.detach().requires_grad_() for n, v in engine.program.values().items()}
    expected = torch.autograd.grad(engine.expected(engine.e_step(), theta, {}), list(theta.values()))
    evidence = torch.autograd.grad(engine.log_evidence(theta)[0], list(theta.values()))
    for one, other in zip(expected, evidence, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8)


def test_several_latents_in_a_row():
    def model(x=None, size=None):
        with pyro.plate("data", len(x) if x is not None else size):
            z = pyro.sample("z", dist.Gamma(tensor(2.0, 2.0, 2.0), 1.0).to_event(1))
            p = pyro.sample("p", dist.Beta(tensor(1.0)[0], tensor(2.0)[0]))
            pyro.sample("hits", dist.Bernoulli(p), obs=None if x is None else (x[:, 3]))
            return pyro.sample("x", dist.Poisson(z).to_event(1), obs=None if x is None else x[:, :3])

    x = np.column_stack([COUNTS, COUNTS[:, 0] > 3])
    expected = stats.nbinom.logpmf(COUNTS, 2, 0.5).sum(1) + np.log(np.where(x[:, 3] > 0, 1 / 3, 2 / 3))
    np.testing.assert_allclose(task_of(model, x).engine.per_datum(), expected, rtol=1e-10)


def test_it_takes_quadratures_word():
    """A prior and a likelihood without a name: the mixture's own integral over z."""
    x = COUNTS[:2]

    def density(z, row):
        gammas = 0.3 * stats.gamma.pdf(z, 2.0) + 0.7 * stats.gamma.pdf(z, 9.0)
        return gammas * stats.poisson.pmf(row, z * np.array([1.0, 2.0, 0.5])).prod()

    expected = [np.log(integrate.quad(density, 0, 60, args=(row,), epsabs=0, epsrel=1e-11, limit=200)[0]) for row in x]
    np.testing.assert_allclose(task_of(mixture, x).engine.per_datum(), expected, rtol=1e-9)


def two(x=None, size=None):
    with pyro.plate("data", len(x) if x is not None else size):
        z, w = (pyro.sample(name, dist.Gamma(2.0, 1.0)) for name in "zw")
        return pyro.sample("x", dist.Poisson(z * w), obs=None if x is None else x[:, 0])


def in_a_row(x=None, size=None):
    with pyro.plate("data", len(x) if x is not None else size):
        z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        w = pyro.sample("w", dist.Gamma(2.0, z))
        return pyro.sample("x", dist.Poisson(w), obs=None if x is None else x[:, 0])


def halved(x=None, size=None):
    with pyro.plate("data", len(x) if x is not None else size):
        z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        with pyro.poutine.scale(scale=0.5):
            return pyro.sample("x", dist.Poisson(z), obs=None if x is None else x[:, 0])


def shifted(x=None, size=None):
    shift = pyro.param("shift", torch.zeros((), dtype=F64), constraint=constraints.nonnegative)
    with pyro.plate("data", len(x) if x is not None else size):
        z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        return pyro.sample("x", dist.Poisson(z + shift), obs=None if x is None else x[:, 0])


def bent(x=None, size=None):
    bend = pyro.param("bend", torch.ones((), dtype=F64))
    with pyro.plate("data", len(x) if x is not None else size):
        z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        return pyro.sample("x", dist.Poisson(z**bend), obs=None if x is None else x[:, 0])


def shares_of_a_part(x=None, size=None):
    with pyro.plate("data", len(x) if x is not None else size):
        z = pyro.sample("z", dist.Dirichlet(torch.ones(4, dtype=F64)))
        return pyro.sample("x", dist.Categorical(z[..., :3]), obs=None if x is None else x[:, 0])


def shares_again(x=None, size=None):
    with pyro.plate("data", len(x) if x is not None else size):
        z = pyro.sample("z", dist.Dirichlet(torch.ones(3, dtype=F64)))
        return pyro.sample("x", dist.Categorical(z[..., [0, 0, 1]]), obs=None if x is None else x[:, 0])


REFUSED = {
    "clamped": program(gamma(), lambda z: dist.Poisson(z.clamp(1e-12, 50))),
    "clamped where no point is tried": program(gamma(), lambda z: dist.Poisson(z.clamp(1e-200, 1e200))),
    "added to nothing": program(gamma(), lambda z: dist.Poisson(z + 0.0)),
    "squared": program(gamma(), lambda z: dist.Poisson(z * z)),
    "where": program(gamma(), lambda z: dist.Poisson(torch.where(z > 1e6, z * z, z))),
    "shape": program(gamma(), lambda z: dist.Gamma(z, 1.0)),
    "location": program(gamma(), lambda z: dist.Normal(z, 1.0)),
    "scale": program(gamma(), lambda z: dist.Normal(0.0, z)),
    "half a chance": program(beta, lambda z: dist.Bernoulli(0.999999 * z)),
    "chance of two": program(beta, lambda z: dist.Binomial(10, z * (2 - z))),
    "logits": program(beta, lambda z: dist.Binomial(10, logits=z)),
    "weighed shares": program(dirichlet, lambda z: dist.Categorical(z * tensor(1.0, 1.0, 1.0 + 1e-9))),
    "two at one site": two,
    "one on another": in_a_row,
    "a scale": halved,
    "a shift that starts at 0": shifted,
    "a power that starts at 1": bent,
    "a part of a simplex": shares_of_a_part,
    "an entry twice": shares_again,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_only_looks_conjugate_is_refused(name):
    x = (
        np.full((20, 1), 1.0)
        if "share" in name or "chance" in name or "simplex" in name or "twice" in name
        else X + 1.0
    )
    structure = structure_of(REFUSED[name], x)
    assert structure.exact == Exactness.NO
    assert "not conjugate" in structure.reason and "'z'" in structure.reason


@pytest.mark.parametrize("method", ["laplace", *in_full("svi", "importance", "ais")])
def test_every_method_serves_them(method):
    model, x, expected = EXACT["gamma, poisson"]
    fit = run(model, x, method)
    assert fit.verified.kind == "exact" and fit.verified.value == pytest.approx(expected.sum(), abs=1e-8)
    se = fit.claimed.se or 0.0
    assert fit.claimed.value <= expected.sum() + 4 * se + 1e-8


def test_imputing_by_draws():
    def rates(x=None, size=None):
        with pyro.plate("data", len(x) if x is not None else size):
            z = pyro.sample("z", dist.Gamma(tensor(2.0)[0], 1.0))
            rate = z.unsqueeze(-1) * tensor(1.0, 2.0, 0.5)
            return pyro.sample("x", dist.Poisson(rate).to_event(1), obs=x)

    x = COUNTS.copy()
    x[3] = np.nan
    x[0, 1] = np.nan
    found = run(rates, x, "em").impute(draws=50)
    assert found.missing.sum() == 4
    np.testing.assert_allclose(found.mean[3], 2 * np.array([1.0, 2.0, 0.5]), rtol=0.3)
    assert found.mean[0, 1] == pytest.approx(2 * (2 + np.nansum(x[0])) / 2.5, rel=0.2)


@pytest.mark.parametrize("how", ["poutine.mask", "poutine.scale", "mask"])
def test_a_mask_that_the_latent_decides_is_refused(how):
    """However far out it begins to matter: at the points that are measured, nothing is to be seen of it."""

    def site(z):
        fn = dist.Poisson(z if how == "mask" else torch.full_like(z, 2.0))
        return fn.mask(z < 1e8) if how == "mask" else fn

    def model(x=None, size=None):
        with pyro.plate("data", len(x) if x is not None else size):
            z = gamma()()
            wide = pyro.poutine.mask(mask=z < 1e8) if how == "poutine.mask" else pyro.poutine.scale(scale=1 + (z > 1e8))
            with contextlib.nullcontext() if how == "mask" else wide:
                return pyro.sample("x", site(z), obs=None if x is None else x[:, 0])

    structure = structure_of(model, COUNTS[:, :1])
    assert not structure.is_exact and "mask" in structure.reason
