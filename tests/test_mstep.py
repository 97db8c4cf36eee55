"""Which parameters get a closed-form update, and that each such update is the maximiser."""

from __future__ import annotations

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from families import CASES, CLOSED
from helpers import hide, task_of, tensor
from scipy import optimize, stats
from torch.distributions import constraints, transform_to

from inference._families._family import Floor
from inference._method.task import Task
from zoo._program.describe import describe
from zoo._program.load import load

GAUSSIAN = 1.0 + np.random.default_rng(0).normal(size=(60, 3))
WEIGHTS = {"weights", "weight_logits"}


def planned(model, x, **options):
    task = task_of(model, x, **options)
    return task.plan(task.global_start())


# ---- what is closed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_each_family(name):
    case = CASES[name]
    plan = planned(case.program, case.data(np.random.default_rng(1), 50))
    assert set(plan.closed) - WEIGHTS == case.closed - WEIGHTS
    assert set(plan.closed) & WEIGHTS  # the weights of a mixture are always closed
    everything = set(CASES[name].draw_theta(0))
    assert set(plan.numeric) == everything - set(plan.closed)


@pytest.mark.parametrize("covariance", ["full", "tied", "diagonal", "spherical"])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_gmm_is_closed(covariance, missing):
    x = hide(GAUSSIAN, missing)
    plan = planned("gmm", x, components=4, covariance=covariance)
    assert plan.numeric == ()
    assert len(plan.closed) == 3


def test_thousands_of_parameters_in_float32_are_closed():
    x = torch.as_tensor(np.random.default_rng(0).normal(size=(200, 16)), dtype=torch.float32)
    program = load("gmm", x, {"components": 10})  # 2,560 numbers: of as many float32 draws two are alike
    assert Task(program, describe(program, x), x, quiet=True).plan({}).numeric == ()


def test_two_sites_are_closed():
    plan = planned(user.two_sites, GAUSSIAN)
    assert set(plan.closed) == {"first", "second", "locs", "scale"}
    second = plan.copies["second"]
    assert (second.site, second.parameter) == ("z2", "probs")


def test_a_module_is_as_good_as_a_function():
    assert set(planned(user.Mixture, np.ones((20, 3))).closed) == {"weights", "rates"}


def test_one_program_may_mix_both():
    plan = planned(user.Decoder, GAUSSIAN)
    assert set(plan.closed) == {"weights"}
    assert len(plan.numeric) == 5
    plan = planned(user.regressions, GAUSSIAN[:, :2])
    assert set(plan.closed) == {"weights"}
    assert set(plan.numeric) == {"slopes", "offsets", "scales"}


def test_a_plate_inside_data_goes_the_general_way():
    plan = planned(user.causes, GAUSSIAN)
    assert set(plan.numeric) == {"probs", "effects", "scale"}


def test_some_entries_may_be_constants():
    """A component whose mean is fixed at zero: the others' means are still weighted averages."""

    def noise_and_one(x=None, size=None):
        weights, loc = user.simplex(), user.real("loc", 1, 3)
        locs = torch.cat([torch.zeros(1, 3), loc])
        with user.rows(x, size):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], 1.0).to_event(1), obs=x)

    task = task_of(noise_and_one, GAUSSIAN)
    how = task.plan({})
    assert set(how.closed) == {"weights", "loc"}
    weights = tensor(np.random.default_rng(2).dirichlet([1, 1], len(GAUSSIAN)))
    task.m_step(how, task.exact.e_step({}, weights), {}, Floor(1e-6, set()))
    expected = (weights[:, 1] @ tensor(GAUSSIAN)) / weights[:, 1].sum()
    np.testing.assert_allclose(task.program.values()["loc"].detach()[0], expected, rtol=1e-10)


# ---- near misses: what looks like a copy, and is none ------------------------------------------------------------


def mixture(make_rates, constraint=constraints.positive, start=None):
    """A Poisson mixture whose rates are made from θ."""

    def program(x=None, size=None):
        theta = pyro.param(
            "theta", torch.tensor([[0.5, 1.0, 2.0], [3.0, 1.5, 4.0]]) if start is None else start, constraint=constraint
        )
        weights = user.simplex()
        with user.rows(x, size):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Poisson(make_rates(theta)[z]).to_event(1), obs=x)

    return program


def normals(make_locs, constraint=constraints.real, start=None):
    def program(x=None, size=None):
        theta = pyro.param("theta", torch.zeros(2, 3) if start is None else start, constraint=constraint)
        weights = user.simplex()
        with user.rows(x, size):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(make_locs(theta)[z], 1.0).to_event(1), obs=x)

    return program


COUNTS = np.random.default_rng(3).poisson(3.0, (50, 3)).astype(float)
NEAR_MISSES = {
    "exp": (mixture(torch.exp, constraints.real), COUNTS),
    "plus one": (mixture(lambda t: t + 1), COUNTS),
    "twice": (mixture(lambda t: 2 * t), COUNTS),
    "clamp and a little": (mixture(lambda t: t.clamp(min=1e-3) + 1e-4), COUNTS),
    "sums": (mixture(lambda t: t.cumsum(0)), COUNTS),
    "mean of two": (mixture(lambda t: (t + t.flip(0)) / 2), COUNTS),
    "normalised": (mixture(lambda t: t / t.sum()), COUNTS),
    "another constraint": (mixture(lambda t: t, constraints.interval(0.0, 5.0)), COUNTS),
    "tanh at zero": (normals(torch.tanh), GAUSSIAN),
    "sin at zero": (normals(torch.sin), GAUSSIAN),
    "absolute value": (normals(torch.abs, start=torch.ones(2, 3)), -GAUSSIAN),
    "relu": (normals(torch.relu, start=torch.ones(2, 3)), -GAUSSIAN),
    "positive locations": (normals(lambda t: t, constraints.positive, torch.ones(2, 3)), -GAUSSIAN),
    "locations on a simplex": (normals(lambda t: t, constraints.simplex, torch.full((2, 3), 1 / 3)), GAUSSIAN),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_are_numeric(name):
    plan = planned(*NEAR_MISSES[name])
    assert "theta" in plan.numeric
    assert set(plan.closed) == {"weights"}


AT_A_BORDER = {"absolute value", "relu", "positive locations"}  # the best mean is 0, and the data's is below


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_still_climb_to_the_maximum(name):
    from inference import em

    model, x = NEAR_MISSES[name]
    task = task_of(model, x)
    fit = em.fit(task, start="program", max_iter=60, tol=1e-12)
    trace = fit.trace["log_likelihood"]
    assert np.all(np.diff(trace) >= -1e-8 * (1 + np.abs(trace[:-1])))
    if name in AT_A_BORDER:
        assert trace[-1] == pytest.approx(stats.norm.logpdf(x).sum(), abs=0.1)
        return
    assert trace[-1] > trace[0]
    for n, gradient in gradients(task).items():
        assert float(gradient.abs().max()) < 0.02 * len(x) ** 0.5, n


def gradients(task) -> dict[str, torch.Tensor]:
    """Of log p(x; θ), by the unconstrained parameters."""
    leaves = {n: p.detach().clone().requires_grad_() for n, p in task.program.unconstrained().items()}
    theta = {n: transform_to(task.program.constraints[n])(p) for n, p in leaves.items()}
    got = torch.autograd.grad(task.exact.log_evidence(theta)[0], list(leaves.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(leaves.items(), got, strict=True)}


def test_a_parameter_of_two_sites_is_numeric():
    def two(x=None, size=None):
        weights, theta = user.simplex(), user.positive("theta", 2, 1)
        with user.rows(x, size):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Poisson(theta[z]).to_event(1), obs=x[:, :1])
            pyro.sample("y", dist.Exponential(theta[z]).to_event(1), obs=x[:, 1:2])

    assert planned(two, COUNTS).numeric == ("theta",)


def test_a_parameter_that_is_both_loc_and_scale_is_numeric():
    def both(x=None, size=None):
        weights, theta = user.simplex(), user.positive("theta", 2, 3)
        with user.rows(x, size):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(theta[z], theta[z]).to_event(1), obs=x)

    assert planned(both, GAUSSIAN).numeric == ("theta",)


def test_a_parameter_in_a_prior_is_numeric():
    """An empirical-Bayes prior: θ is in the density of a global latent, whose own step is closed given θ."""

    def shrunk(x=None, size=None):
        theta = user.real("theta", 2, 3)
        locs = pyro.sample("locs", dist.Normal(theta, 1.0).to_event(2))
        weights = user.simplex()
        with user.rows(x, size):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], 1.0).to_event(1), obs=x)

    plan = planned(shrunk, GAUSSIAN)
    assert plan.numeric == ("theta",) and set(plan.closed) == {"weights", "locs"}
    assert plan.changing == ("locs",) and plan.by_steps({"locs": torch.zeros(2, 3)}) == ("theta",)


def test_a_parameter_that_the_density_ignores_is_neither():
    def idle(x=None, size=None):
        weights, locs, _ = user.simplex(), user.real("locs", 2, 3), user.real("idle", 2)
        with user.rows(x, size):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], 1.0).to_event(1), obs=x)

    plan = planned(idle, GAUSSIAN)
    assert set(plan.closed) == {"weights", "locs"} and plan.numeric == ()


# ---- each closed form is the maximiser ----------------------------------------------------------------------------


def expected_log_joint(case, theta: dict[str, np.ndarray], x: np.ndarray, weights: np.ndarray) -> float:
    """Σ_i Σ_k r_ik log p(x_i, k; θ), by SciPy."""
    return float((weights * case.log_joint(theta, x)).sum())


def to_numpy(task) -> dict[str, np.ndarray]:
    return {n: v.detach().clone().numpy() for n, v in task.program.values().items()}


# with gaps the E-step of a multivariate normal depends on θ, and its objective is another: its own test follows
WHOLE_AND_WITH_GAPS = [(n, share) for n in CLOSED for share in (0.0, 0.3) if not (share and n.startswith("mvn"))]


@pytest.mark.parametrize(("name", "missing"), WHOLE_AND_WITH_GAPS)
def test_the_update_beats_every_other(name, missing):
    """Against random moves of all parameters at once, in their unconstrained space; the objective is SciPy's."""
    case = CASES[name]
    rng = np.random.default_rng(4)
    x = case.data(rng, 40)
    x = hide(x, missing) if missing else x
    weights = rng.dirichlet([1.0, 1.0], len(x))
    task = task_of(case.program, x)
    task.program.assign({n: tensor(v) for n, v in case.draw_theta(5).items()})
    how = task.plan({})
    for _ in range(40 if name.endswith("one_loc") else 1):  # loc and scales given each other: repeat until they agree
        task.m_step(how, task.exact.e_step({}, tensor(weights)), {}, Floor(1e-9, set()))
    best = expected_log_joint(case, to_numpy(task), x, weights)
    here = {n: p.detach().clone() for n, p in task.program.unconstrained().items()}
    worse = 0
    for size in (1e-3, 1e-2, 0.1, 0.5):
        for _ in range(6):
            for n, p in task.program.unconstrained().items():
                p.data = here[n] + size * tensor(rng.normal(size=here[n].shape))
            other = expected_log_joint(case, to_numpy(task), x, weights)
            assert other <= best + 1e-7
            worse += other < best - 1e-7
    assert worse == 24  # each of them moved it: the maximum is strict


@pytest.mark.parametrize("name", CLOSED)
def test_the_update_is_where_an_optimiser_ends(name):
    """L-BFGS from elsewhere, on the same objective, ends with the same value."""
    case = CASES[name]
    rng = np.random.default_rng(6)
    x = case.data(rng, 40)
    weights = tensor(rng.dirichlet([1.0, 1.0], len(x)))
    task = task_of(case.program, x)
    how = task.plan({})
    for _ in range(60 if name.endswith("one_loc") else 1):
        task.m_step(how, task.exact.e_step({}, weights), {}, Floor(1e-9, set()))
    sites = {s.name for s in task.structure.sites}

    def objective(theta):
        return (weights * task.exact.general_log_prob(slice(0, len(x)), sites, theta)).sum()

    closed = float(objective(None).detach())
    leaves = {n: (p.detach() + 0.3).requires_grad_() for n, p in task.program.unconstrained().items()}
    optimiser = torch.optim.LBFGS(
        list(leaves.values()), max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-9
    )

    def loss():
        optimiser.zero_grad()
        value = -objective({n: transform_to(task.program.constraints[n])(p) for n, p in leaves.items()})
        value.backward()
        return value

    optimiser.step(loss)
    assert -float(loss().detach()) == pytest.approx(closed, abs=1e-6)


def test_a_normal_with_gaps_takes_the_step_of_little_and_rubin():
    """One EM step for a mixture of multivariate normals with entries missing, by a plain loop over rows."""
    rng = np.random.default_rng(7)
    case = CASES["mvn_covariance"]
    x = hide(case.data(rng, 50), 0.35, seed=1)
    x[4] = np.nan
    theta = case.draw_theta(8)
    joint = case.log_joint(theta, x)
    weights = np.exp(joint - joint.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    K, D = 2, 3
    locs, covariances = np.empty((K, D)), np.empty((K, D, D))
    for k in range(K):
        mu, S = theta["locs"][k], theta["covariances"][k]
        filled, conditional, total = [], [], []
        for i in range(len(x)):
            o = np.flatnonzero(~np.isnan(x[i]))
            if not len(o):
                continue  # a row with nothing observed says nothing
            m = np.setdiff1d(np.arange(D), o)
            row, C = x[i].copy(), np.zeros((D, D))
            gain = S[np.ix_(m, o)] @ np.linalg.inv(S[np.ix_(o, o)])
            row[m] = mu[m] + gain @ (x[i, o] - mu[o])
            C[np.ix_(m, m)] = S[np.ix_(m, m)] - gain @ S[np.ix_(o, m)]
            filled.append(row)
            conditional.append(C)
            total.append(weights[i, k])
        filled, w = np.array(filled), np.array(total)
        locs[k] = w @ filled / w.sum()
        centred = filled - locs[k]
        covariances[k] = (
            np.einsum("i,ij,ik->jk", w, centred, centred) + np.einsum("i,ijk->jk", w, conditional)
        ) / w.sum()
    task = task_of(case.program, x)
    task.program.assign({n: tensor(v) for n, v in theta.items()})
    task.m_step(task.plan({}), task.exact.e_step({}), {}, Floor(1e-9, set()))
    got = to_numpy(task)
    np.testing.assert_allclose(got["weights"], weights.mean(0), rtol=1e-9)
    np.testing.assert_allclose(got["locs"], locs, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(got["covariances"], covariances, rtol=1e-8, atol=1e-8)


def test_the_numeric_step_ends_where_an_optimiser_does():
    """A gamma has no closed form: its shapes and rates against SciPy's maximum likelihood, component by component."""
    case = CASES["gamma"]
    rng = np.random.default_rng(9)
    x = case.data(rng, 60)
    weights = rng.dirichlet([1.0, 1.0], len(x))
    task = task_of(case.program, x)
    how = task.plan({})
    for _ in range(10):
        task.m_step(how, task.exact.e_step({}, tensor(weights)), {}, Floor(1e-9, set()), tensor(weights), iterations=50)
    got = to_numpy(task)
    for k, d in itertools.product(range(2), range(3)):
        w = weights[:, k]

        def loss(log, w=w, d=d):
            return -(w * stats.gamma.logpdf(x[:, d], np.exp(log[0]), scale=np.exp(-log[1]))).sum()

        best = optimize.minimize(loss, np.zeros(2), method="BFGS").x
        np.testing.assert_allclose([got["shapes"][k, d], got["rates"][k, d]], np.exp(best), rtol=2e-3)


def test_a_component_without_data_keeps_its_parameters():
    x = GAUSSIAN
    for name in ("normal", "mvn_tril", "poisson", "categorical"):
        case = CASES[name]
        task = task_of(case.program, x if "n" in name and name != "poisson" else COUNTS.clip(0, 3))
        before = to_numpy(task)
        weights = torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(len(task.x), 1)
        task.m_step(task.plan({}), task.exact.e_step({}, weights), {}, Floor(1e-6, set()))
        after = to_numpy(task)
        for n in case.closed:
            np.testing.assert_allclose(after[n][1], before[n][1], rtol=1e-9, err_msg=f"{name} {n}")
            assert not np.allclose(after[n][0], before[n][0]), f"{name} {n}"
            assert np.isfinite(after[n]).all()


def test_the_floor_is_a_share_of_the_variance_of_the_data():
    x = GAUSSIAN.copy()
    x[:20] = x[0]
    weights = torch.zeros(len(x), 2, dtype=torch.float64)
    weights[:20, 1] = weights[20:, 0] = 1.0
    for name, variance in (
        ("normal", lambda t: t["scales"][1] ** 2),
        ("mvn_tril", lambda t: np.diag(t["trils"][1] @ t["trils"][1].T)),
    ):
        task = task_of(CASES[name].program, x)
        floor = Floor(1e-4, set())
        task.m_step(task.plan({}), task.exact.e_step({}, weights), {}, floor)
        np.testing.assert_allclose(variance(to_numpy(task)), 1e-4 * x.var(0), rtol=1e-6)
        assert floor.reached == {1}
