"""A chain summed out at once (`_sums/chain.py`) against logarithms: hard zeros, extremes, rows that cannot be."""

from __future__ import annotations

import chain_programs as chains
import numpy as np
import pytest
import torch
from helpers import task_of, tensor
from scipy.special import logsumexp
from test_elimination import left_to_right

from inference._exact._sums import chain


def by_logarithms(own, matrices):
    """The same message by log-sum-exp in NumPy, of own [L, n, K] and matrices [L or 1, next, this]."""
    a = np.zeros(own.shape[1:])
    with np.errstate(all="ignore"):
        for o, m in zip(own, np.broadcast_to(matrices, (len(own), *matrices.shape[1:])), strict=True):
            a = logsumexp(m + (a + o)[:, None], axis=-1)
    return a


def tables(L=40, n=6, K=4, each=False, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(L, n, K)) * 3, np.log(rng.dirichlet(np.ones(K), (L if each else 1, K)).swapaxes(-1, -2))


def check(own, matrices):
    """The message, and its gradient against central differences of the logarithms' recursion."""
    leaves = [tensor(v).requires_grad_() for v in (own, matrices)]
    found = chain.message(*leaves)
    truth = by_logarithms(own, matrices)
    np.testing.assert_allclose(found.detach(), truth, rtol=1e-11, atol=1e-11)
    weights = np.random.default_rng(1).random(truth.shape) * np.isfinite(truth)
    gradients = torch.autograd.grad((found.nan_to_num(0, 0, 0) * tensor(weights)).sum(), leaves)
    for k, gradient in enumerate(gradients):
        assert gradient.isfinite().all()
        way = np.random.default_rng(2 + k).normal(size=gradient.shape)
        ends = []
        for sign in (1, -1):
            moved = [own, matrices]
            moved[k] = moved[k] + sign * 1e-5 * way
            ends.append((weights * np.nan_to_num(by_logarithms(*moved), nan=0, posinf=0, neginf=0)).sum())
        slope = float((gradient * tensor(way)).sum())
        assert abs(slope - (ends[0] - ends[1]) / 2e-5) < 1e-6 * max(1, abs(slope), abs(ends[0]) * 1e-3)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
def test_a_message_is_what_logarithms_give(each, zeros):
    own, matrices = tables(each=each)
    if zeros:
        matrices[:, 0, 2] = matrices[:, 3, 1] = -np.inf
    check(own, matrices)


def test_extreme_densities_without_hard_zeros():
    """A state that is e^100,000 times less likely, and states that cannot be at some steps."""
    own, matrices = tables()
    own[5, :, 1], own[9:14, 2, :3], own[20, 3] = -1e5, -1e5, [-np.inf, -2e5, -1e5, -np.inf]
    check(own, matrices)
    check(own - 1e5, matrices)


@pytest.mark.parametrize("zeros", [False, True])
def test_a_row_that_cannot_be_is_minus_infinity_and_has_no_gradient(zeros):
    own, matrices = tables()
    own[7, 2] = -np.inf
    if zeros:
        matrices[:, 0, 2] = -np.inf
    check(own, matrices)
    leaf = tensor(own).requires_grad_()
    found = chain.message(leaf, tensor(matrices))
    assert found[2].isneginf().all() and found[[0, 1, 3, 4, 5]].isfinite().all()
    (gradient,) = torch.autograd.grad(found[[0, 1, 3, 4, 5]].sum(), leaf)
    assert gradient.isfinite().all() and (gradient[:, 2] == 0).all()


def test_what_may_be_lost_is_not_served():
    """State 0 goes on to itself alone: then the paths through state 1, e^-2,000 at first, are the ones that are left."""
    own = np.zeros((3, 1, 2))
    own[0, 0, 1], own[2, 0, 0] = -2000, -np.inf
    matrices = np.array([[[0.0, np.log(0.5)], [-np.inf, np.log(0.5)]]])
    with pytest.raises(chain.Lost):
        chain.message(tensor(own), tensor(matrices))
    for bad in (np.nan, np.inf):
        own[1, 0, 0] = bad
        with pytest.raises(chain.Lost):
            chain.message(tensor(own), tensor(matrices))
    with pytest.raises(chain.Lost):
        chain.message(tensor(own).float(), tensor(matrices).float())


def test_the_engine_takes_logarithms_where_it_must():
    """A left-to-right chain, with holes: where densities are extreme beside its hard zeros, it is as exact, only slower."""
    K, T, rng = 3, 9, np.random.default_rng(0)
    program, moves = left_to_right(T, K)
    path = np.sort(rng.integers(0, K, (4, T)), 1)
    x = path + rng.normal(size=(4, T)) / 2
    x[0, 3:6] = np.nan
    theta = {"p": np.eye(K)[0], "A": moves, "b": np.arange(K), "s": 0.5}
    task = task_of(program, x)
    for spread in (1.0, 400.0):
        theta["b"] = np.arange(K) * spread
        task.program.assign({"b": tensor(theta["b"])})
        with np.errstate(divide="ignore"):
            total, each, pairs = chains.forward_backward(x, theta)
        stats = task.engine.e_step()
        np.testing.assert_allclose(stats.per_datum, total, rtol=1e-9)
        np.testing.assert_allclose(task.engine.per_datum(), total, rtol=1e-9)
        np.testing.assert_allclose(stats.sites["z1"]["counts"][:, 0], pairs.sum(0), rtol=1e-9, atol=1e-9)
        marginals = task.engine.marginals(task.engine.responsibilities())
        np.testing.assert_allclose(marginals["z4"], each[:, 4], atol=1e-9)


def test_a_state_that_cannot_be_has_no_slope_however_well_it_fits():
    L, never = 10, -torch.inf
    own = torch.tensor([-200.0, 0.0], dtype=torch.float64).repeat(L, 1, 1)
    own[0, :, 1] = never
    matrix = torch.tensor([[[0.0, -1.0], [never, -1.0]]], dtype=torch.float64)
    own.requires_grad_()
    (slope,) = torch.autograd.grad(chain.message(own, matrix)[:, 0].sum(), own)
    assert torch.allclose(slope, torch.tensor([1.0, 0.0], dtype=slope.dtype).expand(L, 1, 2))
