"""EM on completed data, by draws of the latents or the most probable ones, held against EM, k-means and quadrature."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import task_of, tensor
from pyro.nn import PyroModule, PyroParam
from scipy.stats import multivariate_normal, norm
from sklearn.cluster import KMeans
from torch.distributions import constraints

from inference import em, run
from inference._em import chain
from inference._em.completed import ByDensity, ByStatistics
from inference._em.e_step import EStep
from inference._em.latents import Gibbs, Resampled, latents
from inference._exact.moments import Posterior
from inference._families._family import Floor
from zoo._data import datasets
from zoo._errors import Refusal, UsageError

FAITHFUL = np.asarray(datasets.load("faithful", standardize=True).x)
WINE = np.asarray(datasets.load("wine", standardize=True).x)[:, [0, 5, 6, 8, 11]]  # columns that go together


class Spheres(PyroModule):
    """A mixture with equal weights and one spherical variance: k-means is its classification EM."""

    def __init__(self, x, *, components: int = 3):
        super().__init__()
        rows = torch.linspace(0, len(x) - 1, components).long()
        self.locs = PyroParam(x[rows].clone(), constraints.real)
        self.scale = PyroParam(torch.ones(()), constraints.positive)
        self.register_buffer("weights", torch.full((components,), 1 / components))

    def forward(self, x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Categorical(self.weights))
            return pyro.sample("x", dist.Normal(self.locs[z], self.scale).to_event(1), obs=x)


class Counts(PyroModule):
    """Counts with a rate of their own each: no exact posterior, and log p(x) is an integral of one number."""

    def __init__(self, x):
        super().__init__()
        self.loc = PyroParam(torch.zeros(()), constraints.real)
        self.scale = PyroParam(torch.ones(()), constraints.positive)

    def forward(self, x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(self.loc, self.scale))
            return pyro.sample("x", dist.Poisson(z.exp().unsqueeze(-1)).to_event(1), obs=x)


class Causes(PyroModule):
    """A few binary causes of a normal number, whose effects do not add up: few enough to be listed, or not, by `limit`."""

    def __init__(self, x):
        super().__init__()
        self.chance = PyroParam(torch.full((3,), 0.4), constraints.unit_interval)
        self.effect = PyroParam(torch.tensor([3.0, -2.0, 1.0]), constraints.real)
        self.scale = PyroParam(torch.ones(()), constraints.positive)

    def forward(self, x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Bernoulli(self.chance).to_event(1))
            return pyro.sample("x", dist.Normal((z @ self.effect).unsqueeze(-1), self.scale).to_event(1), obs=x)


def counts(n=150):
    generator = np.random.default_rng(0)
    return generator.poisson(np.exp(0.5 + 0.8 * generator.normal(size=(n, 1)))).astype(float)


def log_likelihood(x, loc, scale):
    """Σ log ∫ Poisson(x; e^z) N(z; loc, scale²) dz, by Gauss–Hermite quadrature."""
    node, weight = np.polynomial.hermite_e.hermegauss(60)
    z = torch.as_tensor(loc + scale * node)
    each = dist.Poisson(z.exp()).log_prob(tensor(x)) + torch.as_tensor(weight / weight.sum()).log()
    return float(each.logsumexp(1).sum())


def best(x):
    """θ̂ of `Counts` and its standard errors, by quadrature and differences."""
    from scipy.optimize import minimize

    def value(t):
        return -log_likelihood(x, t[0], np.exp(t[1]))

    top, steps = minimize(value, [0.5, -0.2], tol=1e-10).x, 0.01 * np.eye(2)
    bend = [
        [value(top + i + j) - value(top + i - j) - value(top - i + j) + value(top - i - j) for i in steps]
        for j in steps
    ]
    return top, np.sqrt(np.diag(np.linalg.inv(np.array(bend) / (4 * 0.01**2))))


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("text", ["soft", "sample:0", "sample:", "sample:x", "hard:2", ""])
def test_an_e_step_is_named_rightly(text):
    with pytest.raises(UsageError, match="for e_step, got"):
        EStep.named(text)


def test_whom_an_e_step_serves():
    listed, causes = task_of(Counts, counts()), task_of("gmm", FAITHFUL, priors=True)
    assert "e_step=sample draws the latents instead" in em.refusal(listed.structure)
    assert em.refusal_with(listed.structure, {"e_step": "sample:3"}) is None
    assert "joint values can be listed" in em.refusal_with(listed.structure, {"e_step": "hard"})
    assert "global latents 'weights'" in em.refusal_with(causes.structure, {"e_step": "sample"})
    with pytest.raises(Refusal, match="global latents"):
        em.fit(causes, e_step="hard")
    with pytest.raises(Refusal, match=r"e_step=hard.*take exact or sample\. Methods that can: importance"):
        run(Counts, counts(), "em", e_step="hard")


def test_options_of_the_exact_e_step_have_no_effect_beside_others():
    with pytest.raises(UsageError, match="restarts has no effect with e_step=sample"):
        run("gmm", FAITHFUL, "em", e_step="sample", restarts=3)


# --------------------------------------------------------------------------------------------- one step of many draws


def test_statistics_of_draws_are_those_of_the_draws():
    chosen, z = torch.tensor([[0, 1], [0, 0], [1, 0]]), tensor(np.random.default_rng(0).normal(size=(3, 2, 2)))
    found = Posterior.of_draws(chosen, z, 2)
    assert torch.allclose(found.log_evidence.exp(), tensor([[2 / 3, 1 / 3], [2 / 3, 1 / 3]]))
    assert torch.allclose(found.mean[0, 0], z[:2, 0].mean(0))
    assert torch.allclose(found.covariance[0, 0], torch.cov(z[:2, 0].mT, correction=0))
    assert torch.equal(found.covariance[0, 1], torch.zeros(2, 2, dtype=z.dtype))


@pytest.mark.parametrize("model", ["gmm", "factor_analysis"])
def test_with_many_draws_a_step_is_that_of_em(model):
    options = {"components": 2} if model == "gmm" else {"latents": 1}
    exact, sampled = task_of(model, FAITHFUL, **options), task_of(model, FAITHFUL, **options)
    torch.manual_seed(0)
    floor = Floor(1e-6, set())
    stats = exact.engine.e_step()
    exact.m_step(exact.plan({}), stats, {}, floor)
    ByStatistics(sampled, 4000, floor).step()
    for name, value in exact.theta().items():
        assert torch.allclose(value, sampled.theta()[name], atol=5 / (4000 * len(FAITHFUL)) ** 0.5), name


@pytest.mark.full
def test_completed_data_without_statistics_have_the_same_maximum():
    by, plain = task_of("gmm", FAITHFUL, components=2), task_of("gmm", FAITHFUL, components=2)
    torch.manual_seed(0)
    drawn = latents(plain, 3)
    values = drawn.draw()
    step = ByDensity(plain, drawn)
    drawn.draw = lambda: values
    for _ in range(12):
        step.step()
    shares = torch.nn.functional.one_hot(values["z"], 2).double().mean(0)
    ByStatistics(by, 3, Floor(1e-9, set())).maximise(by.engine.e_step(None, shares), shares)
    for name, value in by.theta().items():
        assert torch.allclose(value, plain.theta()[name], atol=1e-3), name


# ------------------------------------------------------------------------------------------------------ moves of latents


@pytest.mark.full
def test_moves_keep_the_posterior_as_it_is():
    """Of single proposals resampling would be biased; moved again and again, the draws have the posterior's moments."""
    x = counts(6)
    task = task_of(Counts, x)
    torch.manual_seed(0)
    moves = Resampled(task, 400)
    z = torch.cat([moves.draw()["z"] for _ in range(30)][5:]).reshape(25, 400, 6)
    node = torch.linspace(-5, 5, 2001, dtype=torch.float64)
    log_p = dist.Poisson(node.exp()).log_prob(tensor(x)) + dist.Normal(0.0, 1.0).log_prob(node)
    share = log_p.softmax(1)
    mean = share @ node
    deviation = (share @ node.square() - mean.square()).sqrt()
    error = deviation / 400**0.5  # of one sweep's 400 chains, which are independent
    assert bool(((z.mean((0, 1)) - mean).abs() < 3 * error).all())
    assert bool(((z.std((0, 1)) / deviation - 1).abs() < 0.05).all())


def test_gibbs_moves_have_the_exact_marginals():
    x = np.random.default_rng(1).normal(size=(5, 1)) * 2
    listed, moved = task_of(Causes, x), task_of(Causes, x, limit=2)
    assert listed.structure.enumerable
    assert not moved.structure.is_exact
    torch.manual_seed(0)
    moves = latents(moved, 500)
    assert isinstance(moves, Gibbs)
    z = torch.stack([moves.draw()["z"] for _ in range(12)][2:]).mean((0, 1))
    shares = listed.engine.responsibilities()
    exact = shares @ listed.engine.assignments["z"].reshape(8, 3).double()
    assert bool(((z - exact).abs() < 5 * 0.5 / 500**0.5).all())


# --------------------------------------------------------------------------------------------------------- the chain over θ


@pytest.mark.full
@pytest.mark.parametrize(
    ("model", "x", "options"), [("gmm", FAITHFUL, {"components": 2}), ("factor_analysis", WINE, {"latents": 1})]
)
def test_the_mean_of_the_iterates_is_near_the_maximum(model, x, options):
    top = run(model, x, "em", **options)
    found = run(model, x, "em", e_step="sample:4", max_iter=1600, **options)
    assert found.claimed.kind == "exact"
    assert found.fit.converged is None
    assert found.fit.notes["theta"] == "the mean of the last 800 iterates"
    # nats below the top: half a nat for each of 11 or 15 parameters would be a standard error of each
    assert -0.5 < found.claimed.value - top.claimed.value <= 1e-9
    for name, value in top.fit.parameters.items():
        assert np.allclose(np.abs(found.fit.parameters[name]), np.abs(value), atol=1 / len(x) ** 0.5), name


@pytest.mark.full
def test_turned_axes_have_no_mean():
    """Loadings of two latents turn about: where their mean fits worse than they do, the last iterate is reported, and said."""
    found = run("factor_analysis", WINE, "em", e_step="sample", latents=2, max_iter=400)
    usual = found.fit.trace["log_likelihood"][-200:]
    assert found.claimed.value >= usual.mean() - 3 * usual.std()
    assert found.fit.notes["theta"] in ("the last iterate", "the mean of the last 200 iterates")


@pytest.mark.full
def test_a_program_without_an_exact_posterior_learns_near_its_maximum():
    x = counts()
    (loc, log_scale), errors = best(x)
    found = run(Counts, x, "em", e_step="sample:5", max_iter=120)
    assert found.claimed is None
    assert found.fit.converged is None
    assert abs(found.fit.parameters["loc"] - loc) < 0.5 * errors[0]
    assert abs(np.log(found.fit.parameters["scale"]) - log_scale) < 0.5 * errors[1]
    assert found.fit.draws["z"].shape == (200, len(x))
    assert (
        abs(found.verified.value - log_likelihood(x, found.fit.parameters["loc"], found.fit.parameters["scale"])) < 0.5
    )


@pytest.mark.full
def test_discrete_latents_that_cannot_be_listed_learn_near_the_maximum():
    generator = np.random.default_rng(2)
    z = generator.random((400, 3)) < [0.5, 0.3, 0.6]
    x = (z @ [4.0, -3.0, 1.5] + 0.5 * generator.normal(size=400))[:, None]
    top = run(Causes, x, "em")
    found = run(Causes, x, "em", e_step="sample:2", limit=2, max_iter=150)
    assert found.claimed is None
    at_it = task_of(Causes, x)
    at_it.program.assign({n: tensor(v) for n, v in found.fit.parameters.items()})
    value = float(at_it.engine.per_datum().sum())
    assert -3 < value - top.claimed.value < 1e-6


def test_a_chain_that_drifts_is_not_called_settled():
    class Drift:
        how, numeric = "by nobody", ()

        def __init__(self, task):
            self.task, self.t = task, 0

        def step(self):
            self.t += 1
            self.task.program.assign({"locs": self.task.theta()["locs"] + 0.01})

        def value(self):
            return float(self.t)

    task = task_of("gmm", FAITHFUL, components=2)
    found = chain.walk(task, Drift(task), 40, lambda *_, **__: None)
    assert not found.agrees
    assert found.rhat_of_theta > 1.5
    assert "did not settle" in found.warnings()[0]


def test_a_chain_that_no_draw_moves_is_settled():
    """One component: each iteration gives the same θ, which is the maximum."""
    fit = em.fit(task_of("gmm", FAITHFUL, components=1), e_step="sample", max_iter=20)
    assert fit.warnings == []
    assert fit.converged is None
    assert np.isclose(
        fit.claimed.value, multivariate_normal(FAITHFUL.mean(0), np.cov(FAITHFUL.T, ddof=0)).logpdf(FAITHFUL).sum()
    )


# -------------------------------------------------------------------------------------------------------------- hard


def test_hard_em_ends_where_theta_is_best_for_its_assignments():
    """An M-step of a mean that two scales share is one step of two, and the assignments settle first."""
    rng = np.random.default_rng(0)
    x = np.r_[0.1 * rng.normal(size=50) + 1, 8 * rng.normal(size=50) + 4]

    def program(x=None, size=None):
        m = pyro.param("m", torch.zeros(()))
        s = pyro.param("s", torch.tensor([1.0, 2.0]), constraint=constraints.positive)
        with pyro.plate("data", size if x is None else len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2) / 2))
            return pyro.sample("x", dist.Normal(m.expand(*k.shape, 1), s[k].unsqueeze(-1)).to_event(1), obs=x)

    fit = em.fit(task_of(program, x[:, None]), e_step="hard", start="program")
    assert fit.converged
    wide = fit.probabilities["k"].argmax(1) == 1
    m = fit.parameters["m"]
    for _ in range(200):
        s = np.array([((x[~wide] - m) ** 2).mean(), ((x[wide] - m) ** 2).mean()])[wide * 1] ** 0.5
        m = (x / s**2).sum() / (1 / s**2).sum()
    best = (norm(m, s).logpdf(x) + np.log(0.5)).sum()
    assert np.isclose(fit.trace["classification_log_likelihood"][-1], best, atol=1e-8, rtol=0)


@pytest.mark.parametrize("components", [2, 3, 5])
def test_hard_em_of_equal_spheres_is_k_means(components):
    start = FAITHFUL[torch.linspace(0, len(FAITHFUL) - 1, components).long().numpy()]
    theirs = KMeans(components, init=start, n_init=1, tol=0, max_iter=300, algorithm="lloyd").fit(FAITHFUL)
    found = run(Spheres, FAITHFUL, "em", e_step="hard", start="program", components=components)
    assert found.fit.converged
    assert np.allclose(found.fit.parameters["locs"], theirs.cluster_centers_, atol=1e-10)
    assert (found.fit.probabilities["z"].argmax(1) == theirs.labels_).all()
    assert np.isclose(found.fit.parameters["scale"] ** 2, theirs.inertia_ / FAITHFUL.size, rtol=1e-10)
    climbed = found.fit.trace["classification_log_likelihood"]
    assert (np.diff(climbed) >= -1e-9).all()


@pytest.mark.full
def test_hard_em_claims_no_maximum_of_the_likelihood():
    top, hard = (run("gmm", FAITHFUL, "em", e_step=how, components=2) for how in ("exact", "hard"))
    assert hard.claimed.kind == "exact"
    assert hard.claimed.value < top.claimed.value
    assert "most probable" in hard.fit.notes["climbed"]
