"""Most probable values of global latents: by closed forms, against numeric maximisation of the program's own log joint."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import scipy.stats
import torch
from helpers import task_of
from pyro import poutine
from torch.distributions import transform_to

from inference import em, run
from zoo._errors import UsageError
from zoo._program.load import load
from zoo._program.noise import InverseWishart, Separated


def mixture(priors, site):
    """A program of two components: `priors` name → distribution, `site` of the values at z → distribution of x."""

    def model(x=None, size=None):
        weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([2.0, 3.0])))
        values = {name: pyro.sample(name, prior) for name, prior in priors.items()}
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            return pyro.sample("x", site(z, **values), obs=x)

    return model


def normals(x=None, size=None):
    spread = pyro.sample("spread", dist.HalfNormal(torch.tensor([2.0, 0.5])).to_event(1))
    with pyro.plate("components", 2):
        loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]), 0.5))
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
        return pyro.sample("x", dist.Normal(loc[z], spread[z]), obs=x)


@pytest.fixture(autouse=True)
def in_double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


TWO = torch.ones(2, dtype=torch.float64)

PROGRAMS = {
    "poisson": lambda: mixture({"rate": dist.Gamma(2 * TWO, TWO).to_event(1)}, lambda z, rate: dist.Poisson(rate[z])),
    "exponential": lambda: mixture(
        {"rate": dist.Gamma(3 * TWO, TWO).to_event(1)}, lambda z, rate: dist.Exponential(rate[z])
    ),
    "bernoulli": lambda: mixture(
        {"p": dist.Beta(2.0, 4.0).expand([2, 5]).to_event(2)}, lambda z, p: dist.Bernoulli(p[z]).to_event(1)
    ),
    "cauchy": lambda: mixture(
        {"s": dist.HalfCauchy(TWO).to_event(1)}, lambda z, s: dist.Normal(torch.tensor([-2.0, 2.0])[z], s[z])
    ),
    "precision": lambda: mixture(
        {"lam": dist.Gamma(2 * TWO, 3 * TWO).to_event(1), "mu": dist.Normal(0.0, 1.0).expand([2]).to_event(1)},
        lambda z, lam, mu: dist.Normal(mu[z], lam[z].rsqrt()),
    ),
    "wishart": lambda: mixture(
        {"lam": dist.Wishart(torch.tensor(12.0), torch.eye(2)).expand([2]).to_event(1)},
        lambda z, lam: dist.MultivariateNormal(torch.tensor([[-1.0, 0.0], [1.0, 0.0]])[z], precision_matrix=lam[z]),
    ),
    "normals": lambda: normals,
}


def data(name):
    rng = np.random.default_rng(5)
    group = rng.random(60) < 0.4
    if name == "poisson":
        return rng.poisson(np.where(group, 1.0, 6.0)).astype(float)
    if name == "exponential":
        return rng.exponential(np.where(group, 0.3, 4.0))
    if name == "bernoulli":
        return (rng.random((60, 5)) < np.where(group, 0.2, 0.8)[:, None]).astype(float)
    if name == "wishart":
        return np.where(group, -1, 1)[:, None] * [1, 0] + rng.normal(size=(60, 2)) * [0.4, 1]
    return np.where(group, -1.5, 1.5) + rng.normal(size=60) * np.where(group, 0.5, 1.0)


def log_joint(model, x, point, states):
    """log p(x, globals): every row under each state of z, by the program's own densities."""
    rows = []
    for k in range(states):
        latents = point | ({"z": torch.full((len(x),), k)} if states > 1 else {})
        trace = poutine.trace(poutine.condition(model, data=latents)).get_trace(x)
        trace.compute_log_prob()
        nodes = [n for n in trace.nodes.values() if n["type"] == "sample" and "log_prob" in n]
        local = [n for n in nodes if any(f.name == "data" for f in n["cond_indep_stack"])]
        rows.append(sum(n["log_prob"].reshape(-1) for n in local))
        prior = sum(n["log_prob"].sum() for n in nodes if not any(m is n for m in local))
    return torch.stack(rows).logsumexp(0).sum() + prior


def highest(of, point, supports):
    """The largest value near `point` that L-BFGS finds, in unconstrained coordinates, from a place beside it."""
    ways = {n: transform_to(supports[n]) for n in point}
    free = {n: ways[n].inv(v) for n, v in point.items()}
    sizes = [v.numel() for v in free.values()]

    def height(u):
        u = torch.tensor(u, requires_grad=True)
        parts = dict(zip(free, u.split(sizes), strict=True))
        value = -of({n: ways[n](parts[n].reshape(free[n].shape)) for n in free})
        value.backward()
        return value.item(), u.grad.numpy()

    start = torch.cat([v.reshape(-1) for v in free.values()]).numpy()
    beside = start + 0.05 * np.random.default_rng(0).normal(size=len(start))
    return -scipy.optimize.minimize(height, beside, jac=True, method="L-BFGS-B", options={"gtol": 1e-7}).fun


def check(model, x, found, states):
    point = {n: torch.as_tensor(v) for n, v in found.fit.parameters.items()}
    x = torch.as_tensor(x)
    trace = poutine.trace(poutine.condition(model, data=point)).get_trace(x)
    supports = {n: trace.nodes[n]["fn"].support for n in point}
    value = found.fit.trace["log_joint"][-1]
    assert found.fit.converged and not found.fit.notes["numeric"]
    assert value == pytest.approx(log_joint(model, x, point, states).item(), abs=1e-8)
    assert value >= highest(lambda at: log_joint(model, x, at, states), point, supports) - 1e-6
    assert (np.diff(found.fit.trace["log_joint"]) > -1e-8).all()


@pytest.mark.filterwarnings("ignore:Singular sample")  # torch says so of its own Wishart draws
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_mode_is_that_of_numeric_maximisation(name):
    x, program = data(name), PROGRAMS[name]()
    check(program, x, run(program, x, "em", quiet=True), 2)


@pytest.mark.parametrize("covariance", ["full", "tied", "diagonal", "spherical"])
def test_the_mode_of_gmm(covariance):
    x = np.random.default_rng(1).normal(size=(80, 3)) * [1, 10, 0.1] + np.repeat([[0.0], [2.0]], 40, 0) * [1, 10, 0.1]
    found = run("gmm", x, "em", components=2, covariance=covariance, priors="conjugate", quiet=True)
    program = load("gmm", torch.as_tensor(x), {"components": 2, "covariance": covariance, "priors": "conjugate"})
    check(program.module, x, found, 2)


@pytest.mark.full
def test_a_prior_that_is_not_conjugate_is_climbed_numerically():
    program = mixture({"mu": dist.StudentT(3.0, TWO, 1.0).to_event(1)}, lambda z, mu: dist.Normal(mu[z], 1.0))
    fit = run(program, data("normals"), "em", quiet=True).fit
    assert fit.notes["numeric"] == ["mu"] and fit.converged
    borderless = mixture({"r": dist.Gamma(0.5 * TWO, TWO).to_event(1)}, lambda z, r: dist.Poisson(r[z]))
    assert "r" in run(borderless, data("poisson"), "em", quiet=True).fit.notes["numeric"]


def test_a_latent_that_enters_twice_has_no_closed_form():
    def model(x=None, size=None):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("seen", dist.Normal(mu[0], 0.1), obs=torch.tensor(0.7))
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
            return pyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    assert run(model, data("normals"), "em", quiet=True).fit.notes["numeric"] == ["mu"]


@pytest.mark.full
def test_loadings_with_priors_are_at_their_mode():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(100, 2)) @ rng.normal(size=(2, 5)) + rng.normal(size=(100, 5)) * [1, 1, 0.5, 0.5, 2] + 3
    for name, options in (("factor_analysis", {"latents": 2}), ("ppca", {"latents": 4, "init": "eigenvectors"})):
        fit = run(name, x, "em", priors=True, quiet=True, **options).fit
        assert fit.converged and not fit.notes["numeric"]
        point = {n: torch.as_tensor(v) for n, v in fit.parameters.items()}
        model = load(name, torch.as_tensor(x), {**options, "priors": True}).module
        trace = poutine.trace(poutine.condition(model, data=point)).get_trace(torch.as_tensor(x))
        globals = [n for n in trace.nodes if n in point]

        def of(at, globals=globals, model=model):
            trace = poutine.trace(poutine.condition(model, data=at)).get_trace(torch.as_tensor(x))
            noise = at.get("variances", at.get("variance")) * torch.ones(5)
            normal = dist.MultivariateNormal(at["mean"], at["loadings"] @ at["loadings"].mT + noise.diag())
            prior = sum(trace.nodes[n]["fn"].log_prob(at[n]).sum() for n in globals)
            return normal.log_prob(torch.as_tensor(x)).sum() + prior

        supports = {n: trace.nodes[n]["fn"].support for n in globals}
        value = fit.trace["log_joint"][-1]
        assert value == pytest.approx(of(point).item(), abs=1e-7)
        assert value >= highest(of, point, supports) - 1e-5


def test_relevance_chooses_the_number_of_latents():
    """Bishop 1999: 300 points in 10 dimensions, of standard deviation 1 along 3 of them and 0.5 along the others."""
    x = np.random.default_rng(0).normal(size=(300, 10)) * ([1.0] * 3 + [0.5] * 7)
    fit = run("ppca", x, "em", latents=9, priors=True, init="eigenvectors", quiet=True).fit
    sizes = np.square(fit.parameters["loadings"]).sum(0)
    assert (sizes > 1e-3 * fit.parameters["variance"]).sum() == 3


@pytest.mark.full
def test_thirty_columns_converge():
    from sklearn.datasets import load_breast_cancer

    x = load_breast_cancer().data
    fit = run("gmm", x, "em", components=2, priors="conjugate", quiet=True, standardize=True).fit
    assert fit.converged and fit.notes["iterations"] < 100


def test_conjugate_priors_beside_a_component_of_outliers():
    fit = run("gmm", "faithful", "em", components=2, priors="conjugate", noise="uniform", max_iter=3, quiet=True).fit
    assert fit.parameters["covariances"].shape == (2, 2, 2) and np.isfinite(fit.claimed.value)


def test_the_inverse_wishart_is_scipys():
    scale = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=torch.float64)
    prior = InverseWishart(torch.tensor(5.5, dtype=torch.float64), scale)
    reference = scipy.stats.invwishart(5.5, scale.numpy())
    for value in reference.rvs(5, random_state=1):
        assert float(prior.log_prob(torch.as_tensor(value))) == pytest.approx(reference.logpdf(value), abs=1e-10)
    torch.manual_seed(0)
    draws = prior.sample((40_000,))
    wanted = torch.as_tensor(reference.mean())
    assert torch.allclose(prior.mean, wanted)
    assert ((draws.mean(0) - wanted).abs() < 4 * draws.std(0) / 200).all()


@pytest.mark.parametrize("prior", [dist.HalfNormal(1.0), dist.HalfCauchy(1.0)])
@pytest.mark.parametrize("bend", [torch.tanh, lambda w: w])
def test_a_scale_of_a_prior_that_goes_to_0_is_no_mode(prior, bend):
    def program(x=None, size=None):
        spread = pyro.sample("spread", prior)
        w = pyro.sample("w", dist.Normal(torch.zeros(3), spread).to_event(1))
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(bend(w) * z[..., None], 0.7).to_event(1), obs=x)

    task = task_of(program, np.random.default_rng(0).normal(size=(50, 3)))
    start = task.global_start()
    plan = task.plan(start)
    assert set(plan.hypers) == {"spread"}
    assert float(task.m_step(plan, task.engine.e_step(start), start, em.Floor(1e-6, set()))["spread"]) < 1e-20
    found = em.fit(task)
    assert found.converged is False
    assert "no posterior mode" in found.warnings[0]


def test_a_covariance_of_separate_variances_and_correlations():
    """The mode by Nelder–Mead in two dimensions, the density by SciPy's, and draws."""
    prior = Separated(2.0, torch.tensor([1.0, 4.0], dtype=torch.float64), 2.0)
    scatter = torch.tensor([[9.0, -3.0], [-3.0, 2.0]], dtype=torch.float64)

    def of(value, n):
        return float(
            prior.log_prob(value) - 0.5 * (n * torch.logdet(value) + torch.trace(torch.linalg.solve(value, scatter)))
        )

    def matrix(u):
        root = torch.tensor([[np.exp(u[0]), 0.0], [u[1], np.exp(u[2])]], dtype=torch.float64)
        return root @ root.mT

    for n in (0.0, 5.0):
        best = scipy.optimize.minimize(lambda u, n=n: -of(matrix(u), n), np.zeros(3), method="Nelder-Mead", tol=1e-10)
        value = torch.eye(2, dtype=torch.float64)
        for _ in range(20):
            before, value = (
                of(value, n),
                prior.most_probable(value, scatter, torch.full((1, 1), n, dtype=torch.float64)),
            )
            assert of(value, n) >= before - 1e-10
        assert of(value, n) == pytest.approx(-best.fun, abs=1e-7)
    v, rho = np.array([0.7, 3.0]), -0.4
    at = torch.tensor([[v[0], rho * v.prod() ** 0.5], [rho * v.prod() ** 0.5, v[1]]])
    wanted = (
        scipy.stats.invgamma(2, scale=[1, 4]).logpdf(v).sum() + np.log(0.75 * (1 - rho**2)) - 0.5 * np.log(v.prod())
    )
    assert float(prior.log_prob(at.double())) == pytest.approx(wanted, abs=1e-6)
    torch.manual_seed(0)
    draws = prior.expand([2]).sample((4000,))
    rho = draws[..., 0, 1] / (draws[..., 0, 0] * draws[..., 1, 1]).sqrt()
    assert float(rho.square().mean()) == pytest.approx(1 / 5, abs=0.02)  # of the density ¾ (1 − ρ²)
    assert float((1 / draws[..., 1, 1]).mean()) == pytest.approx(2 / 4, abs=0.03)


@pytest.mark.full
def test_a_prior_that_empties_components_has_no_mode():
    """Dirichlet(0.1): two of four components hold nothing, and the density is infinite there."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-4, 1, 60), rng.normal(4, 1, 60)])[:, None]
    fit = run("gmm", x, "em", components=4, priors=True, concentration=0.1, restarts=1).fit
    assert (np.sort(fit.parameters["weights"])[:2] < 1e-10).all()
    assert fit.converged is False and fit.claimed.given.startswith("the point values of weights")
    assert any("no posterior mode" in w and "'weights'" in w for w in fit.warnings)
    kept = run("gmm", x, "em", components=4, priors=True, concentration=2.0, restarts=1).fit
    assert kept.converged and kept.claimed.given.startswith("the posterior mode of weights")
    with pytest.raises(UsageError, match="concentration has no effect"):
        run("gmm", x, "em", concentration=0.1)
