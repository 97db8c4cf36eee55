"""Discrete latents that are summed out one by one: chains, trees and nets against textbook recursions and plain sums."""

from __future__ import annotations

import math
from dataclasses import replace

import chain_programs as chains
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from helpers import structure_of, task_of, tensor
from scipy.special import logsumexp

from inference import em
from inference._exact._sums.elimination import Elimination
from inference._numerics.replayed import Replayed
from inference._run._own import own_route
from inference._run._own.disagreement import Disagreement
from zoo._errors import UsageError
from zoo._reading.elimination import best_order, many_at_once
from zoo._reading.witness import Witness

FAMILIES = ("normal", "poisson", "categorical")


def theta_of(task):
    return {n: v.numpy() for n, v in task.theta().items()}


def data_of(task, n, seed=0):
    """n rows that the program itself makes."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return task.program(None, size=n).double().numpy()


def chain(T, K, n, family="normal", holes=0.0, seed=0):
    """A task on data of its own, with a share of holes."""
    program = chains.hmm(T, K, family, seed)
    x = data_of(task_of(program, np.ones((3, T))), n, seed)
    x[np.random.default_rng(seed).random(x.shape) < holes] = np.nan
    return task_of(program, x), x


def nearly(found, truth, rtol=1e-9):
    np.testing.assert_allclose(np.asarray(found), truth, rtol=rtol, atol=1e-12)


# ---- hidden Markov models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("T", "holes"),
    [(12, 0.2), pytest.param(1000, 0.0, marks=pytest.mark.slow), pytest.param(1000, 0.1, marks=pytest.mark.slow)],
)
def test_a_chain_is_what_the_forward_algorithm_says(family, T, holes):
    task, x = chain(T, 3, 5, family, holes)
    structure = task.structure
    assert (structure.exact, structure.largest_table) == ("enumerable by elimination", 9)
    assert f"'z0', 'z1' … 'z{T - 1}'" in structure.reason
    total, each, _ = chains.forward_backward(x, theta_of(task), family)
    assert isinstance(task.engine, Elimination)
    nearly(task.engine.per_datum(), total)
    nearly(task.engine.per_datum(own=True), total)
    marginals = task.engine.marginals(task.engine.responsibilities())
    for t in range(0, T, max(1, T // 50)):
        np.testing.assert_allclose(marginals[f"z{t}"], each[:, t], atol=1e-9)
    rows = torch.arange(len(x))
    nearly(own_route.log_evidence(task, rows, {}), total, 1e-8)


@pytest.mark.parametrize(
    ("family", "holes", "T"),
    [("normal", 0.15, 10), ("poisson", 0.0, 10), ("categorical", 0.15, 10)]
    + [pytest.param(f, h, 10, marks=pytest.mark.slow) for f, h in zip(FAMILIES, (0.0, 0.15, 0.0), strict=True)]
    + [pytest.param(f, h, 1000, marks=pytest.mark.slow) for f in FAMILIES for h in (0.0, 0.15)],
)
def test_em_is_baum_welch(family, holes, T):
    task, x = chain(T, 3, 20 if T < 100 else 5, family, holes)
    truth, theta = chains.baum_welch(x, theta_of(task), 51, family)
    found = em.fit(task, max_iter=50, tol=0, accelerate=False, start="program")
    assert set(found.notes["closed_form"]) == set(theta) and not found.notes["numeric"]
    nearly(found.trace["log_likelihood"], truth, 1e-8)


def test_a_program_is_replayed_and_not_run_where_only_theta_changes():
    task, x = chain(10, 3, 8, holes=0.1)
    fresh = task_of(chains.hmm(10, 3), x)
    found = em.fit(task, max_iter=12, tol=0, accelerate=False, start="program")
    assert task.engine.factors._replayed.graph is not None
    fresh.program.assign({n: tensor(v) for n, v in found.parameters.items()})
    nearly(task.engine.per_datum(), fresh.engine.per_datum().numpy(), 1e-12)
    replayed, by_program = task.engine.e_step(), fresh.engine.e_step()
    for site, sums in by_program.sites.items():
        for name, value in sums.items():
            np.testing.assert_allclose(replayed.sites[site][name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.full
def test_a_record_sees_sites_that_stop_being_alike():
    def program(x=None, size=None):
        s = pyro.param("s", torch.tensor(0.7), constraint=torch.distributions.constraints.positive)
        with user.rows(x, size):
            z = None
            for t in range(14):
                z = pyro.sample(f"z{t}", dist.Categorical(MOVES[0] if z is None else MOVES[z]))
                scale = torch.where(s > 50, s + t, s)
                pyro.sample(f"x{t}", dist.Normal(2.0 * z, scale), obs=None if x is None else x[:, t])

    task = task_of(program, np.random.default_rng(0).normal(size=(4, 14)))
    runs, plain = [], task.program._run
    task.program._run = lambda *a, **k: runs.append(1) or plain(*a, **k)
    for s in (0.7, 0.8, 0.9, 1.0, 1.1, 1.2):
        task.program.assign({"s": tensor(s)})
        runs.clear()
        found = float(task.engine.per_datum().sum())
        plan = {"p": MOVES[0].numpy(), "A": MOVES.numpy(), "b": np.array([0.0, 2.0]), "s": s}
        nearly(found, chains.forward_backward(task.x.numpy(), plan)[0].sum())
    assert not runs
    task.program.assign({"s": tensor(60.0)})
    for ask in (task.engine.per_datum, task.engine.e_step):
        with pytest.raises(UsageError, match="do not at this one"):
            ask()


MOVES = torch.tensor([[0.7, 0.3], [0.2, 0.8]], dtype=torch.float64)


@pytest.mark.parametrize("kind", ["by a value", "beside torch", "counted", "into a constant"])
def test_what_cannot_be_replayed_is_run(kind):
    calls = []

    def function(values):
        a = values["a"]
        calls.append(1)
        if kind == "by a value":
            return {"b": a.exp() if float(a.sum()) > 0 else -a}
        if kind == "beside torch":
            return {"b": torch.as_tensor(a.numpy() ** 2)}
        if kind == "into a constant":  # of equal values wherever the record is looked at
            b = torch.zeros(2, dtype=torch.float64)
            b[:] = a.clamp(max=-1)
            return {"b": b}
        return {"b": a * len(calls)}

    replayed = Replayed(function, lambda values: {"a": values["a"] + 1})
    for k in range(10):
        a = torch.full((2,), 2.0 - k, dtype=torch.float64)
        found = replayed({"a": a})["b"]
        if kind == "counted":
            assert torch.equal(found, a * len(calls))
        else:
            of = {"by a value": a.exp() if 2 - k > 0 else -a, "beside torch": a**2, "into a constant": a.clamp(max=-1)}
            assert torch.equal(found, of[kind])
    assert replayed.graph is None


def test_a_record_that_is_no_longer_right_is_dropped():
    state = {"factor": 1.0}
    replayed = Replayed(lambda values: {"b": values["a"] * state["factor"]}, lambda values: {"a": values["a"] + 1})
    for k in range(32):
        state["factor"] = 1.0 if k < 20 else 3.0
        found = replayed({"a": torch.ones(2, dtype=torch.float64)})["b"]
    assert replayed.graph is None and float(found[0]) == 3.0


def test_a_record_that_cannot_be_looked_at_elsewhere_is_not_used():
    def elsewhere(values):
        raise ValueError("there is no other place")

    state = {"factor": 1.0}
    replayed = Replayed(lambda values: {"b": values["a"] * state["factor"]}, elsewhere)
    for _ in range(5):
        replayed({"a": torch.ones(2)})
    state["factor"] = 2.0
    assert replayed({"a": torch.ones(2)})["b"].tolist() == [2.0, 2.0]


def test_a_row_of_weight_three_counts_as_three():
    x = chain(10, 3, 12, holes=0.1)[1]
    weights = np.r_[0, 3, np.ones(10)]
    times = task_of(chains.hmm(10, 3), np.repeat(x, weights.astype(int), 0))
    once = replace(task_of(chains.hmm(10, 3), x), weights=tensor(weights))
    found, truth = (em.fit(t, max_iter=8, accelerate=False, start="program") for t in (once, times))
    nearly(found.trace["log_likelihood"], truth.trace["log_likelihood"], 1e-9)
    nearly(found.claimed.value, truth.claimed.value, 1e-9)
    nearly(once.engine.log_evidence()[0].detach(), found.claimed.value)


def test_a_numeric_m_step_finds_what_the_closed_form_has():
    task, _ = chain(10, 3, 40, holes=0.1)
    engine = task.engine
    start, stats = task.theta(), engine.e_step()
    plan = engine.plan({})
    task.m_step(plan, stats, {}, em.Floor(1e-6, set()))
    best = task.theta()
    task.program.assign(start)
    task.m_step(plan.without(list(plan.closed)), stats, {}, em.Floor(1e-6, set()), iterations=200)
    for name, value in task.theta().items():
        np.testing.assert_allclose(value, best[name], atol=2e-5)


def test_the_gradient_is_the_expected_complete_one():
    """Fisher's identity, and log p(x) differentiated through the sums."""
    task, _ = chain(10, 3, 10)
    stats = task.engine.e_step()
    for loss in (lambda v: task.engine.log_evidence(v)[0], lambda v: task.engine.expected(stats, v, {})):
        leaves = {n: v.requires_grad_() for n, v in task.theta().items()}
        found = torch.autograd.grad(loss(leaves), list(leaves.values()))
        if "first" not in locals():
            first = found
    for one, other in zip(first, found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8)


def test_draws_are_joint():
    task, x = chain(14, 2, 3)
    torch.manual_seed(0)
    S = 20_000
    drawn = task.engine.draw(None, S)
    z = np.stack([drawn[f"z{t}"].numpy() for t in range(14)], -1)  # [S, N, T]
    _, each, pairs = chains.forward_backward(x, theta_of(task))
    np.testing.assert_allclose(z.mean(0), each[..., 1], atol=5 * 0.5 / S**0.5)
    both = (z[..., :-1] * z[..., 1:]).sum(-1).mean(0)
    np.testing.assert_allclose(both, pairs[:, 1, 1], atol=5 * 14 * 0.5 / S**0.5)


def test_the_most_probable_path_is_viterbis():
    task, x = chain(12, 3, 10)
    theta = theta_of(task)
    e, A = chains.emissions(x, theta), np.log(theta["A"])
    score, back = np.log(theta["p"]) + e[:, 0], []
    for t in range(1, 12):
        step = score[:, :, None] + A
        back.append(step.argmax(1))
        score = step.max(1) + e[:, t]
    path = [score.argmax(1)]
    for b in reversed(back):
        path.append(b[np.arange(len(x)), path[-1]])
    found = task.engine.most_probable()
    assert (np.stack([found[f"z{t}"].numpy() for t in range(12)]) == np.stack(path[::-1])).all()


def left_to_right(T, K):
    """A chain that cannot go back: most entries of its tables are −∞."""
    moves = np.triu(np.ones((K, K))) - np.triu(np.ones((K, K)), 2)
    moves /= moves.sum(1, keepdims=True)

    def program(x=None, size=None):
        b = pyro.param("b", torch.arange(float(K)))
        A = torch.tensor(moves).to(b.dtype)
        with user.rows(x, size):
            z = pyro.sample("z0", dist.Categorical(torch.eye(K)[0]))
            out = [pyro.sample("x0", dist.Normal(b[z], 0.5), obs=None if x is None else x[:, 0])]
            for t in range(1, T):
                z = pyro.sample(f"z{t}", dist.Categorical(A[z]))
                out.append(pyro.sample(f"x{t}", dist.Normal(b[z], 0.5), obs=None if x is None else x[:, t]))
            return torch.stack(out, -1)

    return program, moves


def test_impossible_moves_are_no_trouble():
    program, moves = left_to_right(18, 4)
    x = np.random.default_rng(0).normal(size=(6, 18)) + np.linspace(0, 3, 18)
    task = task_of(program, x)
    with np.errstate(divide="ignore"):
        theta = {"p": np.eye(4)[0], "A": moves, "b": np.arange(4.0), "s": 0.5}
        total, each, _ = chains.forward_backward(x, theta)
    nearly(task.engine.per_datum(), total)
    marginals = task.engine.marginals(task.engine.responsibilities())
    np.testing.assert_allclose(marginals["z9"], each[:, 9], atol=1e-10)
    nearly(own_route.log_evidence(task, torch.arange(6), {}), total, 1e-8)
    found = em.fit(task, max_iter=3, start="program")
    assert np.isfinite(found.trace["log_likelihood"]).all() and (np.diff(found.trace["log_likelihood"]) > -1e-8).all()


def test_parameters_of_their_own_at_each_step():
    """A mean for each step and state is in closed form; one that is a function of the step goes by L-BFGS."""
    T, rng = 16, np.random.default_rng(0)
    A = np.array([[0.9, 0.1], [0.3, 0.7]])

    def program(x=None, size=None):
        b = pyro.param("b", torch.tensor(rng.normal(size=(T, 2))))
        c = pyro.param("c", torch.tensor(0.1))
        with user.rows(x, size):
            z = None
            for t in range(T):
                z = pyro.sample(
                    f"z{t}",
                    dist.Categorical(torch.tensor(A[0] if z is None else A, dtype=b.dtype)[() if z is None else z]),
                )
                pyro.sample(f"x{t}", dist.Normal(b[t][z], 1.0), obs=x[:, 2 * t])
                pyro.sample(f"y{t}", dist.Normal(c * t, 1.0), obs=x[:, 2 * t + 1])

    x = rng.normal(size=(30, 2 * T))
    task = task_of(program, x)
    plan = task.engine.plan({})
    assert (plan.closed, plan.numeric) == (("b",), ("c",))
    stats = task.engine.e_step()
    task.m_step(plan, stats, {}, em.Floor(1e-6, set()))
    t = np.arange(T)
    assert abs(float(task.theta()["c"]) - (x[:, 1::2] * t).sum() / (30 * (t**2).sum())) < 1e-6
    marginals = task.engine  # at the new θ the sum of weighted residuals of the old posterior is 0
    assert task.engine.e_step().log_joint > stats.log_joint
    assert isinstance(marginals, Elimination)


# ---- other graphs ---------------------------------------------------------------------------------------------------


def second_order(T, K, seed=0):
    rng = np.random.default_rng(seed)
    A, b = rng.dirichlet(np.ones(K), (K, K)), rng.normal(size=K)

    def program(x=None, size=None):
        moves = torch.tensor(A)
        with user.rows(x, size):
            one, two = torch.zeros((), dtype=torch.long), torch.zeros((), dtype=torch.long)
            for t in range(T):
                z = pyro.sample(f"z{t}", dist.Categorical(moves[one, two]))
                pyro.sample(f"x{t}", dist.Normal(torch.tensor(b)[z], 1.0), obs=x[:, t])
                one, two = two, z

    return program, A, b


def second_order_truth(x, A, b):
    """A first-order chain of pairs."""
    K = len(b)
    e = chains.norm.logpdf(x[..., None], b, 1.0)
    alpha = np.full((len(x), K, K), -np.inf)
    alpha[:, 0, 0] = 0.0
    for t in range(x.shape[1]):
        alpha = logsumexp(alpha[..., None] + np.log(A), axis=1) + e[:, t, None]
    return logsumexp(alpha, axis=(1, 2))


@pytest.mark.parametrize("T", [12, pytest.param(300, marks=pytest.mark.slow)])
def test_a_second_order_chain(T):
    program, A, b = second_order(T, 3)
    x = np.random.default_rng(1).normal(size=(4, T))
    task = task_of(program, x)
    assert task.structure.largest_table == 27
    nearly(task.engine.per_datum(), second_order_truth(x, A, b))
    nearly(own_route.log_evidence(task, torch.arange(4), {}), second_order_truth(x, A, b), 1e-8)


def coupled(T, seed=0):
    """Two chains, of 2 and 3 states, each of which moves by where both were; one reading of both at each step."""
    rng = np.random.default_rng(seed)
    A, B = rng.dirichlet(np.ones(2), (2, 3)), rng.dirichlet(np.ones(3), (2, 3))
    m = rng.normal(size=(2, 3))

    def program(x=None, size=None):
        with user.rows(x, size):
            u, v = torch.zeros((), dtype=torch.long), torch.zeros((), dtype=torch.long)
            for t in range(T):
                u, v = (
                    pyro.sample(f"u{t}", dist.Categorical(torch.tensor(A)[u, v])),
                    pyro.sample(f"v{t}", dist.Categorical(torch.tensor(B)[u, v])),
                )
                pyro.sample(f"x{t}", dist.Normal(torch.tensor(m)[u, v], 1.0), obs=x[:, t])

    return program, A, B, m


@pytest.mark.parametrize("T", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_two_coupled_chains(T):
    program, A, B, m = coupled(T)
    x = np.random.default_rng(1).normal(size=(4, T))
    task = task_of(program, x)
    alpha = np.full((4, 2, 3), -np.inf)
    alpha[:, 0, 0] = 0.0
    both = np.log(A)[:, :, :, None] + np.log(B)[:, :, None, :]  # [u, v, u', v']
    for t in range(T):
        alpha = logsumexp(alpha[..., None, None] + both, axis=(1, 2)) + chains.norm.logpdf(x[:, t, None, None], m, 1.0)
    nearly(task.engine.per_datum(), logsumexp(alpha, axis=(1, 2)))
    nearly(own_route.log_evidence(task, torch.arange(4), {}), logsumexp(alpha, axis=(1, 2)), 1e-8)


def tree(nodes, seed=0):
    """A binary tree; its leaves are read."""
    rng = np.random.default_rng(seed)
    A = rng.dirichlet(np.ones(3), 3)
    leaves = [k for k in range(nodes) if 2 * k + 1 >= nodes]

    def program(x=None, size=None):
        with user.rows(x, size):
            z = []
            for k in range(nodes):
                probs = torch.tensor(A)[0] if k == 0 else torch.tensor(A)[z[(k - 1) // 2]]
                z.append(pyro.sample(f"z{k}", dist.Categorical(probs)))
            for i, k in enumerate(leaves):
                pyro.sample(f"x{k}", dist.Normal(z[k].double(), 1.0), obs=x[:, i])

    return program, A, leaves


def tree_truth(x, nodes, A, leaves):
    up = {k: chains.norm.logpdf(x[:, i, None], np.arange(3.0), 1.0) for i, k in enumerate(leaves)}
    for k in reversed(range(nodes)):
        if k not in up:
            children = [logsumexp(np.log(A) + up[c][:, None], axis=2) for c in (2 * k + 1, 2 * k + 2)]
            up[k] = children[0] + children[1]
    return logsumexp(np.log(A)[0] + up[0], axis=1)


def test_a_binary_tree_of_63_nodes():
    program, A, leaves = tree(63)
    x = np.random.default_rng(1).normal(size=(5, len(leaves)))
    task = task_of(program, x)
    assert task.structure.largest_table == 9
    nearly(task.engine.per_datum(), tree_truth(x, 63, A, leaves))
    nearly(own_route.log_evidence(task, torch.arange(5), {}), tree_truth(x, 63, A, leaves), 1e-8)


def noisy_readings(causes, seed=0):
    """Binary causes, and readings of two or three of them each, in a ring."""
    rng = np.random.default_rng(seed)
    prior, w = rng.uniform(0.1, 0.5, causes), rng.normal(size=(causes // 2, 3))
    of = [
        [(2 * r) % causes, (2 * r + 1) % causes, (2 * r + 3) % causes][: 3 if r % 4 else 2] for r in range(causes // 2)
    ]

    def program(x=None, size=None):
        with user.rows(x, size):
            c = [pyro.sample(f"c{k}", dist.Bernoulli(torch.tensor(prior[k]))) for k in range(causes)]
            for r, mine in enumerate(of):
                loc = sum(w[r, j] * c[k] for j, k in enumerate(mine))
                pyro.sample(f"x{r}", dist.Normal(loc, 0.7), obs=x[:, r])

    def log_joint(x, z):
        out = sum(np.log(prior[k] if z[k] else 1 - prior[k]) for k in range(causes))
        for r, mine in enumerate(of):
            out = out + chains.norm.logpdf(x[:, r], sum(w[r, j] * z[k] for j, k in enumerate(mine)), 0.7)
        return out

    return program, log_joint, of, prior, w


def test_noisy_readings_of_a_few_causes():
    program, log_joint, *_ = noisy_readings(10)
    x = np.random.default_rng(2).normal(size=(4, 5))
    task = task_of(program, x, limit=64)
    assert task.structure.exact == "enumerable by elimination"
    truth = chains.by_listing(lambda z: log_joint(x, z), [2] * 10)
    nearly(task.engine.per_datum(), truth)
    nearly(own_route.log_evidence(task, torch.arange(4), {}), truth, 1e-8)
    at = task_of(program, x)  # by listing
    assert at.structure.exact == "enumerable"
    nearly(at.engine.per_datum(), truth)
    one, other = (t.engine.marginals(t.engine.responsibilities()) for t in (task, at))
    for name in other:
        np.testing.assert_allclose(one[name], other[name], atol=1e-12)


def test_fifteen_readings_of_thirty_causes():
    """Around the ring by hand: given cause 1 and 3, reading by reading, each leaving the one cause that the next shares."""
    program, _, of, prior, w = noisy_readings(30)
    x = np.random.default_rng(2).normal(size=(4, 15))
    task = task_of(program, x)
    assert task.structure.largest_table <= 2**6
    tables = [np.log([1 - p, p]) for p in prior]
    letters = {k: i for i, k in enumerate(range(30))}
    operands = []
    for k in range(30):
        operands += [np.exp(tables[k]), [letters[k]]]
    truth = []
    for row in x:
        mine = list(operands)
        for r, causes in enumerate(of):
            grid = np.indices((2,) * len(causes))
            loc = sum(w[r, j] * grid[j] for j in range(len(causes)))
            mine += [np.exp(chains.norm.logpdf(row[r], loc, 0.7)), [letters[k] for k in causes]]
        truth.append(math.log(np.einsum(*mine, [], optimize="greedy")))
    nearly(task.engine.per_datum(), truth)
    nearly(own_route.log_evidence(task, torch.arange(4), {}), truth, 1e-8)


def test_a_latent_that_depends_on_data():
    """Transitions by a covariate: tables that differ from row to row, and a numeric M-step."""
    T, rng = 14, np.random.default_rng(0)

    def program(x=None, size=None):
        w = pyro.param("w", torch.tensor([0.5, -1.0, 2.0]))
        with user.rows(x, size):
            z = torch.zeros(())
            for t in range(T):
                z = pyro.sample(f"z{t}", dist.Bernoulli(logits=w[0] + w[1] * x[:, T + t] + w[2] * z))
                pyro.sample(f"x{t}", dist.Normal(2 * z, 1.0), obs=x[:, t])

    u, z = rng.normal(size=(8, T)), np.zeros(8)
    x = np.empty((8, T))
    for t in range(T):
        z = (rng.random(8) < 1 / (1 + np.exp(1 - 1.5 * u[:, t] - 2 * z))).astype(float)
        x[:, t] = 2 * z + rng.normal(size=8)
    x = np.hstack([x, u])
    task = task_of(program, x)

    def truth(w):
        e = chains.norm.logpdf(x[:, :T, None], [0.0, 2.0], 1.0)
        alpha = np.stack([np.zeros(8), np.full(8, -np.inf)], 1)
        for t in range(T):
            logit = w[0] + w[1] * x[:, T + t, None] + w[2] * np.arange(2)  # [N, before]
            move = np.stack([-np.logaddexp(0, logit), -np.logaddexp(0, -logit)], -1)
            alpha = logsumexp(alpha[..., None] + move, axis=1) + e[:, t]
        return logsumexp(alpha, axis=1)

    nearly(task.engine.per_datum(), truth([0.5, -1.0, 2.0]))
    found = em.fit(task)
    nearly(found.claimed.per_datum, truth(found.parameters["w"]))
    assert found.claimed.value > truth([0.5, -1.0, 2.0]).sum()
    away = [truth(found.parameters["w"] + d).sum() for d in 0.1 * np.r_[np.eye(3), -np.eye(3)]]
    assert max(away) < found.claimed.value


# ---- programs written to fool it ------------------------------------------------------------------------------------


def binary(n=20):
    return [pyro.sample(f"z{t}", dist.Bernoulli(0.3 + 0.02 * t)) for t in range(n)]


def refused(program, x):
    structure = structure_of(program, x)
    assert structure.exact == "no", structure.reason
    return structure.reason


X = np.random.default_rng(5).normal(size=(30, 4))


def test_a_latent_that_is_used_only_when_data_say_so():
    def program(x=None, size=None):
        with user.rows(x, size):
            z = binary()
            late = torch.where(x[:, 0] > 3.9, z[0], z[1])  # for no row of these data
            pyro.sample("x", dist.Normal(late + z[19], 1.0), obs=x[:, 1])

    structure = structure_of(program, X)
    assert structure.exact == "enumerable by elimination"
    assert {s.name: s.parents for s in structure.sites}["x"] == ("z0", "z1", "z19")


def test_a_choice_by_data_is_refused():
    def program(x=None, size=None):
        with user.rows(x, size):
            z = binary()
            late = z[0] if float(x.max()) > 1e6 else z[1]
            pyro.sample("x", dist.Normal(late, 1.0), obs=x[:, 1])

    assert "Python value" in refused(program, X)


def test_a_choice_by_a_latent_is_refused():
    def program(x=None, size=None):
        with user.rows(x, size):
            z = binary()
            late = z[1] if z[0].sum() > 3 else z[2]
            pyro.sample("x", dist.Normal(late, 1.0), obs=x[:, 1])

    assert "Python value" in refused(program, X)


def test_what_goes_through_python_lists_and_buffers_is_followed():
    kept = {}

    def program(x=None, size=None):
        with user.rows(x, size):
            kept["z"] = binary()
            kept["sum"] = kept["z"][3] + kept["z"][4]
            pyro.sample("x", dist.Normal(kept["sum"], 1.0), obs=x[:, 1])
            pyro.sample("y", dist.Normal(kept["z"][7] * kept["z"][3], 1.0), obs=x[:, 2])

    parents = {s.name: s.parents for s in structure_of(program, X).sites}
    assert (parents["x"], parents["y"]) == (("z3", "z4"), ("z3", "z7"))


def test_what_is_left_from_the_run_before_is_refused():
    kept = {}

    def program(x=None, size=None):
        with user.rows(x, size):
            z = binary()
            before = kept.get("z", torch.zeros(()))
            kept["z"] = z[3].detach().reshape(-1)[0].clone()
            pyro.sample("x", dist.Normal(z[5] + before, 1.0), obs=x[:, 1])

    assert "keeps a state" in refused(program, X)


def test_a_sum_over_values_side_by_side_is_refused():
    """It holds at plain values, where the sum is over one number; side by side it is over all."""

    def program(x=None, size=None):
        with user.rows(x, size):
            z = binary()
            shifted = z[5].reshape(-1, len(x)).mean(0) if z[5].dim() > 1 else z[5]
            pyro.sample("x", dist.Normal(shifted, 1.0), obs=x[:, 1])

    assert "side by side" in refused(program, X)


def test_an_emission_of_all_states_is_refused_with_its_size():
    def program(x=None, size=None):
        with user.rows(x, size):
            pyro.sample("y", dist.Normal(sum(binary()), 1.0), obs=x[:, 1])

    reason = refused(program, X)
    assert "'y'" in reason and "1,048,576" in reason and "10,000" in reason


def test_a_wide_net_is_refused_with_the_latent():
    """No site sees more than two latents, and no order makes do with small tables: all pairs are tied."""

    def program(x=None, size=None):
        with user.rows(x, size):
            z = binary(14)
            for i in range(14):
                for j in range(i):
                    pyro.sample(f"y{i}_{j}", dist.Normal(z[i] * z[j], 1.0), obs=x[:, (i + j) % 4])

    reason = refused(program, X)
    assert "16,384" in reason and "one by one" in reason


def test_a_mixed_program_is_refused_by_its_numbers():
    def program(x=None, size=None):
        with user.rows(x, size):
            z = binary()
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(u + z[0], 1.0), obs=x[:, 1])

    assert "joint values" in refused(program, X)


def test_a_wrong_graph_is_found_by_the_witness():
    """Were the reading wrong, the plain run would say so: here it is told that a transition sees nothing."""
    task, _ = chain(10, 3, 6)
    sites = task.structure.sites
    lying = tuple(replace(s, parents=()) if s.name == "z5" else s for s in sites)
    said = Witness(task.program, task.x, task.structure.axes).tables(lying)
    assert "'z5'" in said
    assert Witness(task.program, task.x, task.structure.axes).tables(sites) == ""


def test_the_verifier_does_not_believe_the_engine():
    """A transition that counts twice in the engine's tables gives another posterior than the program's own runs."""
    task, _ = chain(10, 3, 6)
    tables = Elimination.trials

    def doubled(self, draws, globals=None):
        states, density = tables(self, draws, globals)
        return states, density * 1.001

    Elimination.trials = doubled
    try:
        with pytest.raises(Disagreement):
            own_route.log_evidence(task, torch.arange(6), {})
    finally:
        Elimination.trials = tables


def test_a_shared_global_is_a_parameter_of_all():
    def program(x=None, size=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with user.rows(x, size):
            z = torch.zeros(())
            for t in range(16):
                z = pyro.sample(f"z{t}", dist.Bernoulli(0.2 + 0.6 * z))
                pyro.sample(f"x{t}", dist.Normal(mu * z, 1.0), obs=x[:, t])

    x = np.random.default_rng(0).normal(size=(10, 16)) + 1
    task = task_of(program, x)
    assert task.structure.exact == "enumerable by elimination"
    found = em.fit(task)
    theta = {"p": np.array([0.8, 0.2]), "A": np.array([[0.8, 0.2], [0.2, 0.8]]), "b": np.array([0, 0.0]), "s": 1.0}

    def truth(mu):
        return chains.forward_backward(x, {**theta, "b": np.array([0.0, mu])})[0].sum() + chains.norm.logpdf(mu, 0, 3)

    mu = float(found.parameters["mu"])
    assert found.claimed.given and truth(mu) > max(truth(mu - 0.02), truth(mu + 0.02))
    nearly(found.claimed.value + chains.norm.logpdf(mu, 0, 3), truth(mu))


# ---- orders ---------------------------------------------------------------------------------------------------------


def test_orders_and_their_largest_tables():
    cards = {f"z{t}": 3 for t in range(100)}
    chain_ = {"z0": ("z0",)} | {f"z{t}": (f"z{t - 1}", f"z{t}") for t in range(1, 100)}
    assert best_order(cards, chain_, 10**4).largest == 9
    assert many_at_once(cards, chain_, 10**4).largest == 27
    assert many_at_once(cards, chain_, 10).largest == 9 and many_at_once(cards, chain_, 8) is None
    star = {f"x{t}": ("z0", f"z{t}") for t in range(1, 100)}
    assert best_order(cards, star, 10**4).largest == 9
    grid = {f"{i},{j}": 2 for i in range(6) for j in range(30)}
    across = {f"{i},{j} right": (f"{i},{j}", f"{i},{j + 1}") for i in range(6) for j in range(29)}
    down = {f"{i},{j} down": (f"{i},{j}", f"{i + 1},{j}") for i in range(5) for j in range(30)}
    assert best_order(grid, across | down, 10**4).largest <= 2**9


def test_small_programs_are_listed_as_before():
    task, x = chain(8, 3, 4)
    assert (task.structure.exact, task.structure.assignments) == ("enumerable", 3**8)
    nearly(task.engine.per_datum(), chains.forward_backward(x, theta_of(task))[0])


@pytest.mark.slow
def test_ten_thousand_steps():
    task, x = chain(10_000, 2, 2)
    nearly(task.engine.per_datum(), chains.forward_backward(x, theta_of(task))[0])
    assert np.isfinite(task.engine.e_step().log_joint)


def test_describe_says_it_in_two_lines():
    task, _ = chain(14, 2, 3)
    found = [(line.name, line.count, line.on) for line in task.structure.lines]
    assert found == [("z0 … z13", 14, "each on the one before"), ("x0 … x13", 14, "each on its z")]
    two = structure_of(second_order(9, 3)[0], X9).lines
    assert two[0].on == "each on the one 2 before and the one before"
    mixture = structure_of(user.two_sites, X[:, :3]).lines
    assert [line.count for line in mixture] == [1] * len(mixture)


X9 = np.random.default_rng(5).normal(size=(5, 9))


@pytest.mark.parametrize("sites", [pytest.param(30, marks=pytest.mark.slow), 90])
def test_parents_are_read_exactly_of_many_sites_too(sites):
    """A net at random: each latent on up to three earlier sites anywhere, latents or observed ones."""
    rng = np.random.default_rng(sites)
    truth = {}
    for k in range(sites):
        among = [f"z{j}" for j in range(k)] + [f"x{j}" for j in range(0, k, 2)]
        truth[f"z{k}"] = (
            set(rng.choice(among, min(len(among), int(rng.integers(1, 4))), replace=False)) if among else set()
        )
        if k % 2 == 0:
            truth[f"x{k}"] = {f"z{k}"}

    def program(x=None, size=None):
        with user.rows(x, size):
            value = {}
            for k in range(sites):
                logit = 0.1 + sum(0.3 * value[name] for name in sorted(truth[f"z{k}"]))
                value[f"z{k}"] = pyro.sample(f"z{k}", dist.Bernoulli(logits=torch.as_tensor(logit)))
                if k % 2 == 0:
                    value[f"x{k}"] = pyro.sample(f"x{k}", dist.Normal(value[f"z{k}"], 1.0), obs=x[:, k // 2])

    x = np.random.default_rng(0).normal(size=(8, sites // 2))
    assert {s.name: set(s.parents) for s in structure_of(program, x).sites} == truth


def test_vectors_of_bits_alone_have_no_marginals_of_one_number():
    def program(x=None, size=None):
        w = pyro.param("w", torch.tensor([0.3, -1.0, 0.7]))
        with user.rows(x, size):
            h, out = torch.zeros_like(w), []
            for t in range(3):
                h = pyro.sample(f"h{t}", dist.Bernoulli(logits=w + h).to_event(1))
                out.append(pyro.sample(f"x{t}", dist.Normal(h.sum(-1), 1.0), obs=None if x is None else x[:, t]))
            return torch.stack(out, -1)

    x = np.random.default_rng(0).normal(size=(4, 3))
    task = task_of(program, x, limit=100)
    assert task.structure.eliminable and task.engine.marginals(task.engine.responsibilities()) == {}
    assert em.fit(task, max_iter=2, start="program").claimed.kind == "exact"
