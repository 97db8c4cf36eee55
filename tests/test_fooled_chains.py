"""Chains, trees and conjugate programs written to fool claims of exactness: refused in words, or their numbers are right."""

from __future__ import annotations

import chain_programs as chains
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from chain_programs import norm
from helpers import in_full, structure_of, task_of
from scipy.special import logsumexp
from user_programs import rows

from inference import em
from zoo._errors import UsageError

T = 20
X = np.random.default_rng(0).normal(size=(12, T))
MOVES = np.array([[0.7, 0.3], [0.2, 0.8]])
RARE = 1e-9


def states(moves, n=T):
    """A chain's states as drawn, the first from the first row of its moves."""
    z, moves = None, torch.tensor(moves)
    for t in range(n):
        z = pyro.sample(f"z{t}", dist.Categorical(moves[0] if z is None else moves[z]))
        yield t, z


def forward(e, moves=MOVES):
    """log p(x) [N] of log-densities e [N, T, K]."""
    with np.errstate(divide="ignore"):
        return chains.forward_backward(None, {"p": moves[0], "A": moves}, e=e)[0]


def emitted(locs, scale=1.0):
    return norm.logpdf(X[..., None], np.asarray(locs, float), scale)


def a_rare_value(x=None, size=None):
    """All readings are of the first state, with a chance of one in a billion."""
    with rows(x, size):
        k = pyro.sample("k", dist.Bernoulli(torch.tensor(RARE)))
        z = [z for _, z in states(MOVES)]
        for t in range(T):
            pyro.sample(f"x{t}", dist.Normal(torch.where(k == 1, 5.0 * z[0], 1.0 * z[t]), 1.0), obs=x[:, t])


def of_a_rare_value():
    first = logsumexp(np.log(MOVES[0]) + emitted([0, 5]).sum(1), axis=1)
    return np.logaddexp(np.log1p(-RARE) + forward(emitted([0, 1])), np.log(RARE) + first)


def ends_tied(x=None, size=None):
    """A factor ties the first state to the last."""
    with rows(x, size):
        z = []
        for t, now in states(MOVES):
            z.append(now)
            pyro.sample(f"x{t}", dist.Normal(1.0 * now, 1.0), obs=x[:, t])
        pyro.factor("tie", 2.0 * (z[0] == z[-1]))


def of_ends_tied():
    parts = []
    for first in (0, 1):
        e = emitted([0, 1])
        e[:, 0, 1 - first] = -np.inf
        e[:, -1, first] += 2.0
        parts.append(forward(e))
    return logsumexp(parts, axis=0)


def halves_of_states(x=None, size=None):
    """Readings of z // 2, and moves by its lowest bit."""
    moves = torch.tensor(np.vstack([MOVES[0].repeat(2) / 2, MOVES[1].repeat(2) / 2]))
    with rows(x, size):
        z = None
        for t in range(T):
            z = pyro.sample(f"z{t}", dist.Categorical(moves[0] if z is None else moves[z & 1]))
            pyro.sample(f"x{t}", dist.Normal((z // 2).to(moves.dtype), 1.0), obs=x[:, t])


def of_halves_of_states():
    return forward(emitted([0, 0, 1, 1]), np.vstack([MOVES.repeat(2, 1) / 2] * 2))


def a_leaf_that_peeks(x=None, size=None):
    """A binary tree, one leaf of which also sees the root where its first child is 1."""
    moves = torch.tensor(MOVES)
    with rows(x, size):
        z = [pyro.sample("z0", dist.Categorical(moves[0]))]
        for i in range(1, 15):
            z.append(pyro.sample(f"z{i}", dist.Categorical(moves[z[(i - 1) // 2]])))
        for i in range(7, 15):
            more = z[0] * z[1] if i == 14 else 0
            pyro.sample(f"x{i}", dist.Normal((z[i] + more).to(moves.dtype), 1.0), obs=x[:, i])


def of_a_leaf_that_peeks():
    parts = []
    for root, child in np.ndindex(2, 2):
        up = np.zeros((31, len(X), 2))
        for i in range(14, -1, -1):
            for c in (2 * i + 1, 2 * i + 2) if i < 7 else ():
                up[i] += logsumexp(up[c][:, None] + np.log(MOVES), axis=2)
            if i >= 7:
                up[i] = norm.logpdf(X[:, i, None], np.arange(2) + root * child * (i == 14))
            if i < 2:
                up[i][:, 1 - (root, child)[i]] = -np.inf
        parts.append(logsumexp(up[0] + np.log(MOVES[0]), axis=1))
    return logsumexp(parts, axis=0)


EXACT = [(a_rare_value, of_a_rare_value), (ends_tied, of_ends_tied), (a_leaf_that_peeks, of_a_leaf_that_peeks)]


@pytest.mark.parametrize(("program", "truth"), [(halves_of_states, of_halves_of_states), *in_full(*EXACT)])
def test_what_is_called_exact_is(program, truth):
    task = task_of(program, X)
    assert task.structure.exact == "enumerable by elimination", task.structure.reason
    np.testing.assert_allclose(task.engine.per_datum(), truth(), rtol=1e-10)


def by_number(x=None, size=None):
    """Moves that differ between even and odd rows."""
    with pyro.plate("data", len(x)) as i:
        odd, z = (i % 2).to(x.dtype), torch.zeros(())
        for t in range(T):
            z = pyro.sample(f"z{t}", dist.Bernoulli(logits=z + odd))
            pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=x[:, t])


def normal_chain(bend):
    def program(x=None, size=None):
        with rows(x, size):
            z = torch.zeros(())
            for t in range(T):
                z = pyro.sample(f"z{t}", dist.Normal(bend(z), 0.5))
                pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=x[:, t])

    return program


class FalseSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return z.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def clipped_rate(x=None, size=None):
    with rows(x, size):
        g = pyro.sample("g", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Poisson(g.clamp(max=1e5)), obs=x[:, 0].abs().round())


def seen_before_it_is(x=None, size=None):
    """A state that moves by what is read of the next one."""
    with rows(x, size):
        z = torch.zeros(())
        for t in range(T - 1):
            z = pyro.sample(f"z{t}", dist.Normal(z + x[:, t + 1], 0.5))
            pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=x[:, t])


REFUSED = [
    (by_number, "place in the batch"),
    (normal_chain(lambda z: z.half().to(torch.float64)), "_to_copy"),
    (normal_chain(lambda z: torch.where(z.abs() > 1e6, 0.0, z)), "abs"),
    (normal_chain(FalseSlope.apply), "curvature changes"),
    (clipped_rate, "not a constant times it"),
    (seen_before_it_is, "comes back to it"),
]


@pytest.mark.parametrize(("program", "why"), in_full(*REFUSED))
def test_what_is_not_exact_is_refused(program, why):
    structure = structure_of(program, X)
    assert structure.exact == "no" and why in structure.reason


@pytest.mark.full
def test_a_state_that_cannot_be_and_has_no_density_is_no_evidence():
    """Its probability is 0, and its scale the root of −1."""
    moves = np.array([[0.0, 0.6, 0.4], [0.0, 0.2, 0.8], [0.0, 0.5, 0.5]])

    def program(x=None, size=None):
        with rows(x, size):
            for t, z in states(moves):
                pyro.sample(f"x{t}", dist.Normal(0.0, (z - 1.0).sqrt() + 1), obs=x[:, t])

    with pytest.raises(UsageError, match="a site has no density there"):
        em.fit(task_of(program, X))
