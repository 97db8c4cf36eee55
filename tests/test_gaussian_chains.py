"""Chains and trees of normal latents, eliminated along their graph: against Kalman filters, dense solutions and quadrature."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from helpers import hide, task_of, tensor
from kalman_programs import POSITIVE, ar2, kalman, local_level, local_trend, smooth, tracking
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from inference import em
from inference._exact._chains.engine import Chains
from inference._exact._chains.sites import graph
from inference._exact.latent_program import LatentProgram
from inference._exact.quadratic import Quadratic
from inference._run._own import own_route
from inference._run._own.disagreement import Disagreement
from zoo._errors import UsageError

LONG = pytest.param(1000, marks=pytest.mark.slow)
MODELS = {"level": local_level, "trend": local_trend, "ar2": ar2, "tracking": tracking}


def series(T, n, width=1, holes=0.15, seed=0):
    """n wandering series with holes, as [n, T] or [n, T, width]."""
    rng = np.random.default_rng(seed)
    x = hide(np.cumsum(rng.normal(size=(n, T, width)) * 0.4, 1) + rng.normal(size=(n, T, width)) * 0.5, holes, seed)
    return x[..., 0] if width == 1 else x


def chains_of(task, backwards=False):
    """The sparse engine of a program, however small."""
    found = graph(LatentProgram(task.program, task.structure, task.x))
    assert found is not None
    return Chains(task.program, task.structure, task.x, found, backwards=backwards)


def theta_of(task):
    return {n: v.numpy() for n, v in task.theta().items()}


def filtered(program, x, theta):
    return kalman(x, *program.matrices(**theta), lag=getattr(program, "lag", 0))


def model(name, T, n):
    program = MODELS[name](T)
    x = series(T, n, 2 if name == "tracking" else 1)
    return program, x, task_of(program, x)


# ---- evidence and posterior ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [18, LONG])
@pytest.mark.parametrize("name", MODELS)
def test_a_chain_is_what_the_kalman_filter_says(name, T):
    program, x, task = model(name, T, 2)
    engine = task.exact if T > 100 else chains_of(task)
    assert isinstance(engine, Chains)
    found = [filtered(program, row, theta_of(task)) for row in x]
    np.testing.assert_allclose(engine.per_datum().numpy(), [total for total, _ in found], rtol=1e-9)
    means, deviations = engine.summary()
    for row, (_, kept) in enumerate(found):
        truth = smooth(kept, program.matrices(**theta_of(task))[0])
        for t in range(2 * getattr(program, "lag", 0), T, max(1, T // 50)):
            for names, value in zip((means, deviations), truth, strict=True):
                own = [names[n][row].numpy() for n in names if n in (f"z{t}", f"level{t}", f"slope{t}")]
                own = np.concatenate([np.atleast_1d(v) for v in own])
                np.testing.assert_allclose(own, value[t][: len(own)], rtol=1e-8, atol=1e-8)


def test_the_verifier_eliminates_in_another_order_and_runs_the_program_plainly():
    program, x, task = model("level", 40, 3)
    assert isinstance(task.exact, Chains)
    rows = torch.arange(3)
    truth = [filtered(program, row, theta_of(task))[0] for row in x]
    np.testing.assert_allclose(own_route.log_evidence(task, rows, {}).numpy(), truth, rtol=1e-9)
    task.exact.graph.groups[-1].points.zero_()  # as if coefficients had been read at a wrong point
    with pytest.raises(Disagreement):
        own_route.log_evidence(task, rows, {})


def both(program, x):
    task = task_of(program, x)
    assert task.structure.linear_gaussian, task.structure.reason
    return task, chains_of(task), Quadratic(task.program, task.structure, task.x)


def the_same(program, x):
    """The sparse engine and the dense one say the same: evidence, moments, slopes of log p(x)."""
    task, sparse, dense = both(program, x)
    assert sparse.agrees()
    np.testing.assert_allclose(sparse.per_datum(), dense.per_datum(), rtol=1e-10, atol=1e-10)
    for one, other in zip(sparse.summary(), dense.summary(), strict=True):
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-8, atol=1e-9)
    theta = {n: v.detach().requires_grad_() for n, v in task.program.values().items()}
    slopes = [torch.autograd.grad(e.log_evidence(theta)[0], list(theta.values())) for e in (sparse, dense)]
    for one, other in zip(*slopes, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-8)
    return task, sparse, dense


def tree(x=None, size=None):
    """A binary tree of vectors of two, whose leaves are seen; and one observation that adds two far leaves."""
    q = pyro.param("q", torch.tensor(0.6), constraint=POSITIVE)
    W = pyro.param("W", torch.tensor([[0.8, 0.1], [-0.2, 0.9]]))
    with user.rows(x, size):
        nodes = [pyro.sample("t0", dist.Normal(torch.zeros(2), 1.0).to_event(1))]
        for i in range(1, 7):
            nodes.append(pyro.sample(f"t{i}", dist.Normal(nodes[(i - 1) // 2] @ W.mT, q).to_event(1)))
        for i in range(3, 7):
            pyro.sample(f"x{i}", dist.Normal(nodes[i].sum(-1), 0.5), obs=None if x is None else x[:, i - 3])
        pyro.sample("sum", dist.Normal(nodes[3][..., 0] - nodes[6][..., 1], 0.3), obs=None if x is None else x[:, 4])


def coupled(x=None, size=None):
    """Two chains that push each other, with a covariate in the emission and one in its scale."""
    a = pyro.param("a", torch.tensor([[0.8, 0.2], [-0.3, 0.7]]))
    r = pyro.param("r", torch.tensor(0.5), constraint=POSITIVE)
    with user.rows(x, size):
        u = v = torch.zeros(())
        for t in range(4):
            u, v = (
                pyro.sample(f"u{t}", dist.Normal(a[0, 0] * u + a[0, 1] * v, 0.4)),
                pyro.sample(f"v{t}", dist.Normal(a[1, 0] * u + a[1, 1] * v, 0.6)),
            )
            where = None if x is None else x[:, t]
            weight = torch.ones(()) if x is None else x[:, 4 + t]
            pyro.sample(f"x{t}", dist.Normal(weight * u + v, r * (1 + weight.square())), obs=where)


def autoregressive(x=None, size=None):
    """What is seen goes on from what was seen before, beside a latent walk."""
    a = pyro.param("a", torch.tensor(0.5))
    with user.rows(x, size):
        z, before = torch.zeros(()), torch.zeros(())
        for t in range(5):
            z = pyro.sample(f"z{t}", dist.Normal(z, 0.5))
            before = pyro.sample(f"x{t}", dist.Normal(z + a * before, 0.4), obs=None if x is None else x[:, t])


def mixture(x=None, size=None):
    """One of two dynamics for a whole series."""
    p = pyro.param("p", torch.tensor([0.3, 0.7]), constraint=torch.distributions.constraints.simplex)
    a = pyro.param("a", torch.tensor([0.95, -0.5]))
    q = pyro.param("q", torch.tensor([0.3, 0.8]), constraint=POSITIVE)
    r = pyro.param("r", torch.tensor(0.5), constraint=POSITIVE)
    with user.rows(x, size):
        k = pyro.sample("k", dist.Categorical(p))
        z = None
        for t in range(6):
            z = pyro.sample(f"z{t}", dist.Normal(0.0, 1.0) if z is None else dist.Normal(a[k] * z, q[k]))
            pyro.sample(f"x{t}", dist.Normal(z, r), obs=None if x is None else x[:, t])


X8 = np.random.default_rng(3).normal(size=(5, 8))


@pytest.mark.parametrize(
    ("program", "x"),
    [
        (tree, hide(X8[:, :5], 0.2)),
        (coupled, np.where(np.arange(8) < 4, hide(X8, 0.2), X8)),
        (autoregressive, X8[:, :5]),
        (mixture, hide(X8[:, :6], 0.2)),
        (tracking(3, joint=True), series(3, 4, 2, 0.3)),
    ],
)
def test_other_graphs_against_the_dense_engine(program, x):
    task, sparse, dense = the_same(program, x)
    stats, other = sparse.e_step(), dense.e_step()
    moved = {n: (v.detach() * 1.1).requires_grad_() for n, v in task.program.values().items() if n != "p"}
    rest = {n: v.detach() for n, v in task.program.values().items() if n == "p"}
    slopes = [
        torch.autograd.grad(e.expected(s, {**moved, **rest}, {}), list(moved.values()))
        for e, s in ((sparse, stats), (dense, other))
    ]
    for one, two in zip(*slopes, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_joint_draws_have_the_posterior_covariance():
    task = task_of(mixture, hide(X8[:, :6], 0.2))
    sparse, dense = chains_of(task), Quadratic(task.program, task.structure, task.x)
    torch.manual_seed(0)
    n = 40_000
    draws = sparse.draw(None, n)
    found = next(iter(dense.posteriors()))[1]
    share = found.weights[:, 1]
    assert bool(((draws["k"].double().mean(0) - share).abs() < 5 * (share * (1 - share) / n).sqrt() + 1e-9).all())
    second = torch.einsum(
        "na,nalm->nlm", found.weights, found.covariance + found.mean[..., None] * found.mean[..., None, :]
    )
    z = torch.stack([draws[f"z{t}"] for t in range(6)], -1)
    mine = torch.einsum("dnl,dnm->nlm", z, z) / n
    error = (torch.einsum("dnl,dnm->nlm", z.square(), z.square()) / n / n).sqrt()
    assert float(((mine - second).abs() / error).max()) < 5


@torch.no_grad()
def test_points_have_the_mean_of_a_quadratic():
    task = task_of(mixture, X8[:, :6])
    sparse, dense = chains_of(task), Quadratic(task.program, task.structure, task.x)
    rows = slice(0, 5)
    totals = []
    for engine in (sparse, dense):
        totals.append(
            sum(
                w * (v["z1"].reshape(-1) * v["z4"].reshape(-1) + v["k"].sum() * v["z2"].reshape(-1))
                for w, v in engine.points(rows)
            )
        )
    np.testing.assert_allclose(*totals, atol=1e-10)


# ---- the M-step ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_what_sites_share_has_its_closed_form_from_their_sum(name):
    _, _, task = model(name, 12, 3)
    engine = chains_of(task)
    stats, plan = engine.e_step(), engine.plan({})
    assert set(plan.closed) == set(task.program.values())
    floor = em.Floor(1e-6, set())
    engine.m_step(plan, stats, {}, {}, floor)
    closed = task.theta()

    def height(theta):
        return engine.expected(stats, theta, {})

    leaves = {n: v.clone().requires_grad_() for n, v in closed.items()}
    for slope in torch.autograd.grad(height(leaves), list(leaves.values())):
        np.testing.assert_allclose(slope, 0.0, atol=1e-7)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        moved = {n: v * (1 + 0.1 * torch.randn(v.shape, generator=generator, dtype=v.dtype)) for n, v in closed.items()}
        assert float(height(moved)) < float(height(closed))


def test_a_mean_of_each_step_and_noise_of_each_component():
    x = hide(X8[:, :6], 0.2)

    def program(x=None, size=None):
        mu = pyro.param("mu", torch.zeros(6))
        r = pyro.param("r", torch.tensor(0.5), constraint=POSITIVE)
        with user.rows(x, size):
            z = torch.zeros(())
            for t in range(6):
                z = pyro.sample(f"z{t}", dist.Normal(0.8 * z, 0.5))
                pyro.sample(f"x{t}", dist.Normal(mu[t] + z, r), obs=None if x is None else x[:, t])

    _, sparse, _ = both(program, x)
    plan = sparse.plan({})
    assert set(plan.closed) == {"mu", "r"}
    before = sparse.e_step()
    for _ in range(3):
        sparse.m_step(plan, before, {}, {}, em.Floor(1e-6, set()))
        after = sparse.e_step()
        assert after.log_joint > before.log_joint
        before = after


@pytest.mark.full
@pytest.mark.parametrize("name", MODELS)
def test_em_finds_the_maximum_of_the_kalman_likelihood(name):
    T = 40
    program, x, task = model(name, T, 3)
    shapes = {n: v.shape for n, v in task.theta().items()}
    positive = {n: n in "qr" for n in shapes}

    def split(u):
        out, at = {}, 0
        for n, shape in shapes.items():
            size = int(np.prod(shape))
            value = u[at : at + size].reshape(shape)
            out[n], at = np.exp(value) if positive[n] else value, at + size
        return out

    def height(u):
        return -sum(filtered(program, row, split(u))[0] for row in x)

    start = np.concatenate(
        [np.log(v.numpy()).ravel() if positive[n] else v.numpy().ravel() for n, v in task.theta().items()]
    )
    best = minimize(height, start, method="BFGS", options={"gtol": 1e-6})
    best = minimize(height, best.x, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-9, "maxiter": 4000})
    task.__dict__["exact"] = chains_of(task)
    fit = em.fit(task, tol=1e-12, max_iter=2000)
    assert abs(fit.claimed.value + best.fun) < 1e-5


def test_a_replayed_e_step_is_the_programs_and_sees_sites_that_stop_being_alike():
    def program(x=None, size=None):
        q = pyro.param("q", torch.tensor(0.5), constraint=POSITIVE)
        with user.rows(x, size):
            z = torch.zeros(())
            for t in range(6):
                z = pyro.sample(f"z{t}", dist.Normal(0.8 * z, torch.where(q > 50, q + t, q)))
                pyro.sample(f"x{t}", dist.Normal(z, 0.5), obs=None if x is None else x[:, t])

    task, sparse, dense = both(program, hide(X8[:, :6], 0.2))
    for q in (0.5, 0.6, 0.7, 0.9, 1.3):
        task.program.assign({"q": tensor(q)})
        np.testing.assert_allclose(sparse.e_step().log_joint, dense.e_step().log_joint, rtol=1e-10)
    assert sparse._replayed.graph is not None
    task.program.assign({"q": tensor(60.0)})
    with pytest.raises(UsageError, match="do not at this one"):
        sparse.e_step()
    np.testing.assert_allclose(sparse.per_datum(), dense.per_datum(), rtol=1e-10)


# ---- nearly singular -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("q", "r", "first"), [(1e-6, 0.8, 2.0), (0.5, 1e-6, 2.0), (0.5, 0.8, 1e5), (1e-7, 1e-3, 1e4)])
def test_small_noise_and_flat_priors_keep_nine_digits(q, r, first):
    T = 12
    program = local_level(T, first)
    x = series(T, 2)
    task = task_of(program, x)
    task.program.assign({"q": tensor(q), "r": tensor(r)})
    engine = chains_of(task)
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        for row, value in zip(x, engine.per_datum(), strict=True):
            m, P, total = mpmath.mpf(0), mpmath.mpf(first) ** 2, mpmath.mpf(0)
            for t, y in enumerate(row):
                P = P + mpmath.mpf(q) ** 2 if t else P
                if np.isnan(y):
                    continue
                S, v = P + mpmath.mpf(r) ** 2, mpmath.mpf(float(y)) - m
                total -= (v * v / S + mpmath.log(2 * mpmath.pi * S)) / 2
                m, P = m + P / S * v, P * mpmath.mpf(r) ** 2 / S
            assert abs(float(value) - float(total)) < 1e-9 * abs(float(total)) or engine.delicate


def test_rows_of_unlike_size_keep_twelve_digits():
    T, r, tiny = 12, 0.5, 1e-8
    x = series(T, 2, holes=0.0)
    task = task_of(local_trend(T), x)
    task.program.assign({"q": tensor([tiny, tiny]), "r": tensor(r)})
    t = np.arange(T)
    line = multivariate_normal(np.zeros(T), 4.0 + np.outer(t, t) + r**2 * np.eye(T))
    np.testing.assert_allclose(chains_of(task).per_datum().numpy(), line.logpdf(x), rtol=1e-12)


@pytest.mark.parametrize("far", [1e4, 1e8])
def test_a_coefficient_beside_a_large_constant_keeps_its_digits(far):
    T, a, q, r = 12, 0.9, 0.3, 0.5

    def program(x=None, size=None):
        slope = pyro.param("slope", torch.tensor(a))
        with user.rows(x, size):
            z = None
            for t in range(T):
                fn = dist.Normal(far, 2.0) if z is None else dist.Normal(slope * z + 0.1 * far, q)
                z = pyro.sample(f"z{t}", fn)
                pyro.sample(f"x{t}", dist.Normal(z, r), obs=None if x is None else x[:, t])

    x = far + np.round(series(T, 2, holes=0.0), 2)
    task = task_of(program, x)
    slope = float(task.theta()["slope"])
    means = [far]
    for _ in range(T - 1):
        means.append(slope * means[-1] + 0.1 * far)
    one = np.eye(1)
    truth = [kalman(row - means, slope * one, q**2 * one, one, r**2 * one, 4.0 * one)[0] for row in x]
    for engine in (task.exact, chains_of(task)):
        np.testing.assert_allclose(engine.per_datum(), truth, rtol=0, atol=1e-14 * far + 1e-9)


# ---- programs that try to fool the graph ---------------------------------------------------------------------------


def fooling(body):
    """A chain of six, whose step is `body(t, z, a)` from all latents so far and a parameter; two far ones meet in it."""

    def program(x=None, size=None):
        a = pyro.param("a", torch.tensor(0.5))
        with user.rows(x, size) as rows:
            z = []
            for t in range(6):
                fn = dist.Normal(0.7 * z[-1] if z else torch.zeros(len(rows)), 0.6)
                z.append(pyro.sample(f"z{t}", fn))
            for t in range(6):
                loc = body(t, z, a)
                pyro.sample(f"x{t}", dist.Normal(loc, 0.5), obs=None if x is None else x[:, t])

    return program


def in_a_buffer(t, z, a):
    buffer = torch.zeros(torch.broadcast_shapes(*(v.shape for v in z)))
    buffer = buffer + z[t]
    buffer += a * z[(t + 3) % 6]
    return buffer


def zero_here(t, z, a):
    return z[t] + (a - 0.5) * z[(t + 3) % 6]


FOOLING = {
    "gather": lambda t, z, a: torch.stack(z, -1).gather(-1, torch.tensor([(t * 5) % 6]).expand(*z[0].shape, 1))[..., 0],
    "where": lambda t, z, a: torch.where(a > 0.4, z[t], z[(t + 3) % 6]),
    "cumsum": lambda t, z, a: torch.stack(z, -1).cumsum(-1)[..., t],
    "matmul over all": lambda t, z, a: torch.stack(z, -1) @ torch.linspace(-1, 1, 6).roll(t),
    "two far states": lambda t, z, a: z[0] + z[5],
    "in place": in_a_buffer,
    "stacked, then indexed": lambda t, z, a: torch.stack(z, -1)[..., 5 - t],
    "zero at this value": zero_here,
    "flip and roll": lambda t, z, a: torch.stack(z, -1).flip(-1).roll(t, -1)[..., 0],
    "a difference that cancels": lambda t, z, a: z[t] + 1e8 * z[(t + 2) % 6] - 1e8 * z[(t + 2) % 6],
    "a pad and a mean": lambda t, z, a: torch.nn.functional.pad(torch.stack(z, -1), (2, 2)).mean(-1),
    "einsum": lambda t, z, a: torch.einsum("...i,i->...", torch.stack(z, -1), torch.eye(6)[t] + a * torch.eye(6)[1]),
}


@pytest.mark.parametrize("how", FOOLING)
def test_a_hidden_dependence_is_right_or_refused(how):
    task = task_of(fooling(FOOLING[how]), X8[:, :6])
    if not task.structure.linear_gaussian:
        return
    found = graph(LatentProgram(task.program, task.structure, task.x))
    if found is None:
        return
    sparse = Chains(task.program, task.structure, task.x, found)
    dense = Quadratic(task.program, task.structure, task.x)
    for a in (0.5, 0.1, -1.3):
        task.program.assign({"a": tensor(a)})
        if sparse.agrees():
            np.testing.assert_allclose(sparse.per_datum(), dense.per_datum(), rtol=1e-8, atol=1e-8)
        else:
            assert how == "a difference that cancels"


def test_a_zero_at_this_value_is_still_a_dependence():
    task = task_of(fooling(zero_here), X8[:, :6])
    assert set(task.structure.sites[6].parents) == {"z0", "z3"}


def test_a_value_that_is_observed_of_a_latent_is_not_served_here():
    def program(x=None, size=None):
        with user.rows(x, size):
            z = torch.zeros(())
            for t in range(6):
                z = pyro.sample(f"z{t}", dist.Normal(z, 0.5))
                pyro.sample(f"x{t}", dist.Normal(torch.zeros(()), 0.5), obs=None if x is None else x[:, t] - z)

    task = task_of(program, X8[:, :6])
    assert not task.structure.linear_gaussian or graph(LatentProgram(task.program, task.structure, task.x)) is None


def test_a_long_chain_is_one_marginal_normal():
    T = 34
    _, x, task = model("level", T, 2)
    assert isinstance(task.exact, Chains)
    q, r = (float(v) for v in task.theta().values())
    covariance = 4.0 + q**2 * np.minimum.outer(np.arange(T), np.arange(T)) + r**2 * np.eye(T)
    for row, value in zip(x, task.exact.per_datum(), strict=True):
        seen = ~np.isnan(row)
        truth = multivariate_normal(np.zeros(seen.sum()), covariance[np.ix_(seen, seen)]).logpdf(row[seen])
        np.testing.assert_allclose(float(value), truth, rtol=1e-10)
