"""Chains of normal latents by a banded Cholesky factor: against dense algebra, and where it has to give way."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from helpers import hide, task_of, tensor
from kalman_programs import kalman, local_level, tracking

from inference._exact._chains.banded import band
from inference._exact._chains.engine import Chains
from inference._exact._chains.plan import best_plan
from inference._exact._chains.sites import graph
from inference._exact.latent_program import LatentProgram
from inference._method.fit import Fit
from inference._run.predictive import predict


def dense(columns, factors, L):
    """P [A, R, L, L] and Σ Jᵀr [A, R, L, M] by plain loops."""
    _, A, R, *_ = factors[0][0].shape
    P, h = (
        torch.zeros(A, R, L, L, dtype=torch.float64),
        torch.zeros(A, R, L, factors[0][1].shape[-1], dtype=torch.float64),
    )
    for group, (J, r) in zip(columns, factors, strict=True):
        for s, place in enumerate(group):
            for a in range(A):
                for row in range(R):
                    P[a, row][place[:, None], place] += J[s, a, row].mT @ J[s, a, row]
                    h[a, row][place] += J[s, a, row].mT @ r[s, a, row]
    return P, h


@pytest.mark.parametrize(("A", "R", "M"), [(1, 1, 1), (2, 3, 1), (2, 1, 4)])
def test_means_and_determinants_are_those_of_dense_algebra(A, R, M):
    L, generator = 12, torch.Generator().manual_seed(0)
    order = torch.randperm(L, generator=generator)  # the chain goes through z in any order
    columns = [order[:, None], torch.stack([order[:-2], order[1:-1], order[2:]], 1)]
    factors = [
        (
            torch.randn(len(c), A, R, 2, c.shape[1], generator=generator, dtype=torch.float64),
            torch.randn(len(c), A, R, 2, M, generator=generator, dtype=torch.float64),
        )
        for c in columns
    ]
    found = band(columns, L)
    assert found.width == 2
    mean, log_det, lost = found.solve(factors)
    P, h = dense(columns, factors, L)
    np.testing.assert_allclose(mean.permute(1, 2, 0, 3), torch.linalg.solve(P, h), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(log_det, 0.5 * torch.logdet(P), rtol=1e-12)
    assert lost >= 1


def test_a_precision_that_is_not_positive_is_told():
    J = torch.tensor([[1.0, -1.0]], dtype=torch.float64).reshape(1, 1, 1, 1, 2)
    with pytest.raises(torch.linalg.LinAlgError):
        band([torch.tensor([[0, 1]])], 2).solve([(J, torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64))])


@pytest.mark.full
def test_the_quicker_of_band_and_plan_is_taken():
    """A chain of 2,000 steps is a band; of many rows of a wide tree that differ in their holes the plan is quicker."""

    def times(scopes, places, columns, rows=1):
        L = places[next(reversed(places))].stop
        return band(columns, L).seconds(rows, rows), best_plan(places, scopes, rows, rows).seconds(rows, rows)

    T = 2000
    places = {f"z{t}": slice(4 * t, 4 * t + 4) for t in range(T)}
    scopes = [[(f"z{t}", f"z{t - 1}") for t in range(1, T)]]
    one, other = times(scopes, places, [torch.arange(4 * T).unfold(0, 8, 4)])
    assert one < other
    n = 511
    places = {f"t{i}": slice(i, i + 1) for i in range(n)}
    scopes = [[(f"t{i}", f"t{(i - 1) // 2}") for i in range(1, n)]]
    columns = [torch.tensor([[i, (i - 1) // 2] for i in range(1, n)])]
    assert band(columns, n).width > 30
    one, other = times(scopes, places, columns, 500)
    assert one > other


def chains_of(task):
    found = graph(LatentProgram(task.program, task.structure, task.x))
    assert found is not None
    return Chains(task.program, task.structure, task.x, found)


@pytest.mark.full
def test_the_plan_takes_over_where_products_lose_digits(monkeypatch):
    T, rng = 12, np.random.default_rng(0)
    task = task_of(local_level(T), hide(np.cumsum(rng.normal(size=(2, T)), 1), 0.2, 0))
    engine, steps = chains_of(task), []
    plain = engine._solved
    monkeypatch.setattr(engine, "_solved", lambda whites: steps.append(1) or plain(whites))
    one = np.eye(1)
    for q, planned in ((0.5, False), (1e-7, True)):
        task.program.assign({"q": tensor(q)})
        steps.clear()
        found = engine.per_datum()
        truth = [kalman(row, one, q**2 * one, one, 0.64 * one, 4.0 * one)[0] for row in task.x.numpy()]
        np.testing.assert_allclose(found, truth, rtol=1e-9)
        assert bool(steps) == planned


@pytest.mark.full
def test_band_and_plan_agree_with_holes_and_with_gradients():
    x = hide(np.random.default_rng(1).normal(size=(3, 10, 2)), 0.3, 1)
    task = task_of(tracking(5, joint=True), x[:, :5])
    engine = chains_of(task)
    assert engine.band is not None
    theta = {n: v.detach().requires_grad_() for n, v in task.program.values().items()}
    total = engine.log_evidence(theta)[0]
    slopes = torch.autograd.grad(total, list(theta.values()))
    engine.band = None
    again = engine.log_evidence(theta)[0]
    np.testing.assert_allclose(total.detach(), again.detach(), rtol=1e-12)
    for one, other in zip(slopes, torch.autograd.grad(again, list(theta.values())), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.full
def test_simulated_data_sets_of_one_theta_differ():
    """They come from one run, as many rows below each other; each data set has draws of its own."""

    def program(x=None, size=None):
        mu = pyro.param("mu", torch.tensor([1.0, -1.0]))
        with user.rows(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(mu + z.unsqueeze(-1), 0.1).to_event(1), obs=x)

    task = task_of(program, np.random.default_rng(0).normal(size=(7, 2)))
    draws = torch.randn(40, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = predict(task, Fit({}, None, draws={"z": draws.numpy()}))[1].simulated["x"]
    assert found.shape == (40, 7, 2)
    # each data set is simulated at its own draw of z
    np.testing.assert_allclose(found.mean(-1), draws, atol=0.5)
    assert abs(float((found.mean(-1) - draws.numpy()).std()) - 0.1 / 2**0.5) < 0.01
