"""Discrete latents that are summed out along the graph given the continuous ones: every method that moves the rest profits."""

from __future__ import annotations

import chain_programs as chains
import numpy as np
import profit_programs as programs
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from helpers import in_full, task_of, tensor, zoo_refusal

from inference import ais, importance, laplace, nuts, svi
from inference._density.local import LocalDensity
from inference._density.newton import derivatives
from inference._method.summed import summed
from inference._new_rows.asked import new_rows
from inference._run.verify import verify
from inference._sampling import weights
from latent_zoo import run

T, LIMIT = 8, 64  # 256 joint values, more than are to be listed
RNG = np.random.default_rng(0)
X = RNG.poisson(np.exp(RNG.normal(size=(6, 1)) * 0.3 + np.array([0.2, 1.6])[RNG.integers(0, 2, (6, T))])) * 1.0
SPREAD = 0.3


def task(learn=False, model=None, x=X, limit=LIMIT):
    made = task_of(programs.count_hmm(T, spread=SPREAD) if model is None else model, x, limit=limit)
    made.learn = learn
    return made


def test_what_is_summed_and_who_can_serve_it():
    structure = task().structure
    assert not structure.is_exact and structure.largest_table == 4
    assert "given the continuous latents, they can be summed out one by one" in structure.reason
    assert [s.name for s in structure.summed.local_latents] == ["u"] and structure.summed.by_row
    able = [m for m in ("laplace", "svi", "importance") if not zoo_refusal(m, structure)]
    assert able == ["laplace", "svi", "importance"] and "more than the limit" in zoo_refusal("em", structure)


def test_the_density_and_its_derivatives_are_those_of_the_listed_sum():
    listed, found = task(limit=1000), task()
    own = summed(found)
    z = torch.linspace(-1, 1, 6, dtype=torch.float64).unsqueeze(1)
    density = LocalDensity(own.program, own.structure, own.x)
    every = LocalDensity(listed.program, listed.structure, listed.x)
    a = torch.arange(256)[:, None].expand(-1, 6)
    truth = lambda z: every.log_joint(z.expand(256, 6, 1), a).logsumexp(0)  # noqa: E731
    value, slope, hessian = derivatives(density, z, torch.zeros(6, dtype=torch.long))
    at = z.clone().requires_grad_()
    (first,) = torch.autograd.grad(truth(at).sum(), at, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), at)
    for mine, theirs in ((value, truth(z)), (slope, first), (hessian[:, 0], -second)):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-9)
    latent, observed = density.terms(z)
    assert torch.allclose(latent + observed, value, rtol=1e-10)
    assert torch.allclose(latent[:, ...], torch.distributions.Normal(0.0, SPREAD).log_prob(z[:, 0]), atol=1e-10)


METHODS = {
    "modes": (importance, {"proposal": "laplace"}),
    "prior": (importance, {"proposal": "prior", "samples": 4000}),
    "guide": (importance, {"epochs": 20}),
    "laplace": (laplace, {}),
}


@pytest.mark.parametrize("name", ["modes", *in_full("prior", "guide", "laplace")])
def test_methods_at_the_truth(name):
    total, mean, one = programs.count_truth(X, spread=SPREAD)
    method, options = METHODS[name]
    torch.manual_seed(0)
    mine = task()
    fit = method.fit(mine, **options)
    if method is laplace:
        assert fit.claimed.kind == "estimate" and abs(fit.claimed.value - total.sum()) < 1.5
    else:
        assert abs(fit.claimed.value - total.sum()) < 4 * fit.claimed.se + 0.05
    if fit.claimed.kind == "lower bound":
        assert fit.claimed.value < total.sum() + 4 * fit.claimed.se
    spread = fit.draws["u"].std(0) / fit.draws["u"].shape[0] ** 0.5
    assert (abs(fit.draws["u"].mean(0) - mean) < 5 * spread + (0.25 if method is laplace else 0.02)).all()
    assert abs(fit.probabilities["s0"][:, 1] - one).max() < 0.05
    drawn = fit.draws["s0"].mean(0)
    assert abs(drawn - fit.probabilities["s0"][:, 1]).max() < 4 * 0.5 / 200**0.5
    assert fit.notes["summed_out"] == [f"s{t}" for t in range(T)]
    found = verify(mine, fit)[1]
    assert abs(found.value - total.sum()) < 4 * found.se + 0.1


@pytest.mark.full
def test_svi_bounds_the_evidence_and_learns():
    torch.manual_seed(0)
    mine = task(learn=True)
    fit = svi.fit(mine, epochs=300)
    total, _, one = programs.count_truth(X, fit.parameters["level"], SPREAD)
    assert (
        fit.claimed.kind == "lower bound" and total.sum() - 2.0 < fit.claimed.value < total.sum() + 4 * fit.claimed.se
    )
    assert total.sum() > programs.count_truth(X, spread=SPREAD)[0].sum()  # θ has climbed
    assert abs(fit.probabilities["s0"][:, 1] - one).max() < 0.1


@pytest.mark.full
def test_nuts_and_ais_see_the_same_posterior():
    total, mean, one = programs.count_truth(X, spread=SPREAD)
    mine = task()
    fit = nuts.fit(mine, samples=500, warmup=200)
    assert abs(fit.means["u"] - mean).max() < 0.05 and abs(fit.probabilities["s0"][:, 1] - one).max() < 0.03
    told = ais.fit(task(x=X[:2]), temperatures=60, chains=150, leapfrog=3)
    assert abs(told.claimed.value - total[:2].sum()) < 4 * told.claimed.se + 0.05


@pytest.mark.full
def test_a_run_and_its_new_rows():
    made = run(programs.count_hmm(T, spread=SPREAD), X, "svi", epochs=100, limit=LIMIT)
    total = programs.count_truth(X, made.fit.parameters["level"], SPREAD)[0].sum()
    assert abs(made.verified.value - total) < 4 * made.verified.se + 0.1
    kept = []
    new_rows(made, X[:3], {}).each(lambda rows, names: kept.append(rows))
    one = programs.count_truth(X[:3], made.fit.parameters["level"], SPREAD)[2]
    assert abs(kept[0].probabilities["s0"][:, 1] - one).max() < 0.15


# ------------------------------------------------------------------------------------------------- a latent for each step


def many_states(T):
    """A chain of states, each with a latent of its own that its observation sees through an exponential."""

    def program(x=None, size=None):
        moves = torch.tensor(programs.MOVES)
        with user.rows(x, size):
            s, out = None, []
            for t in range(T):
                s = pyro.sample(f"s{t}", dist.Categorical(torch.tensor(programs.START) if s is None else moves[s]))
                z = pyro.sample(f"z{t}", dist.Normal(1.5 * s - 0.5, 0.4))
                out.append(pyro.sample(f"x{t}", dist.Poisson(z.exp()), obs=None if x is None else x[:, t]))
            return torch.stack(out, -1)

    return program


def many_truth(x):
    """By quadrature of each z_t given its state, and the forward algorithm."""
    nodes, w = np.polynomial.hermite_e.hermegauss(80)
    rate = np.exp(np.array([-0.5, 1.0])[:, None] + 0.4 * nodes)  # [K, nodes]
    from scipy.stats import poisson

    e = poisson.pmf(x[..., None, None], rate) @ (w / w.sum())  # [N, T, K]
    alpha = programs.START * e[:, 0]
    for t in range(1, x.shape[1]):
        alpha = (alpha @ programs.MOVES) * e[:, t]
    return np.log(alpha.sum(1))


@pytest.mark.full
def test_a_chain_with_a_latent_for_each_step():
    x = X[:3]
    torch.manual_seed(0)
    fit = importance.fit(task(x=x, model=many_states(T)), proposal="laplace", samples=4000)
    truth = many_truth(x)
    away = fit.claimed.value - truth.sum()
    assert away < 4 * fit.claimed.se and (fit.claimed.kind == "lower bound" or away > -4 * fit.claimed.se)
    assert abs(away) < 1.0


@pytest.mark.full
def test_priors_of_globals_beside_a_chain():
    """A chain of states with a prior on a level: nuts and svi sum the chain given the level."""

    def program(x=None, size=None):
        level = pyro.sample("level", dist.Normal(0.0, 3.0))
        start, moves = tensor(programs.START), tensor(programs.MOVES)
        with user.rows(x, size):
            s, out = None, []
            for t in range(T):
                s = pyro.sample(
                    f"s{t}",
                    dist.Categorical(start if s is None else moves[s]),
                )
                out.append(pyro.sample(f"x{t}", dist.Normal(level + 2.0 * s, 1.0), obs=None if x is None else x[:, t]))
            return torch.stack(out, -1)

    x = np.random.default_rng(3).normal(size=(5, T)) + 1.0
    mine = task(x=x, model=program)
    assert mine.structure.eliminable and not zoo_refusal("nuts", mine.structure)
    grid = np.linspace(-2, 3, 301)
    theta = {"p": programs.START, "A": programs.MOVES, "s": 1.0}
    log = [chains.forward_backward(x, theta | {"b": np.array([m, m + 2.0])})[0].sum() - m * m / 18 for m in grid]
    weight = np.exp(log - np.max(log)) / np.exp(log - np.max(log)).sum()
    mean = (weight * grid).sum()
    deviation = np.sqrt((weight * (grid - mean) ** 2).sum())
    fit = nuts.fit(mine, samples=200, warmup=150, chains=2)
    assert abs(fit.parameters["level"] - mean) < 0.3 * deviation
    assert fit.draws["s0"].shape == (len(fit.draws["level"]), 5)
    fit = importance.fit(mine)
    log_p = np.logaddexp.reduce(log) + np.log((grid[1] - grid[0]) / (3 * np.sqrt(2 * np.pi)))
    assert fit.claimed.kind == "estimate" and abs(fit.claimed.value - log_p) < 4 * fit.claimed.se
    assert abs(fit.parameters["level"] - mean) < 0.15 * deviation and fit.draws["s0"].shape[1:] == (5,)
    verified = verify(mine, fit)[1]
    assert verified.kind == "estimate" and abs(verified.value - log_p) < 4 * verified.se
    torch.manual_seed(0)
    fit = svi.fit(task(x=x, model=program, learn=True))
    assert abs(fit.parameters["level"] - mean) < 0.3 * deviation


# ------------------------------------------------------------------------------------------------------ what it refuses


def test_a_support_that_moves_with_a_summed_latent_is_not_summed():
    def program(x=None, size=None):
        with user.rows(x, size):
            s, out = None, []
            for t in range(T):
                s = pyro.sample(f"s{t}", dist.Categorical(torch.tensor(programs.START)))
                z = pyro.sample(f"z{t}", dist.Uniform(0.0, 1.0 + s))
                out.append(pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=None if x is None else x[:, t]))
            return torch.stack(out, -1)

    structure = task(x=X, model=program).structure
    assert structure.largest_table is None and structure.summed is structure
    assert "more than the limit" in zoo_refusal("laplace", structure)


def test_draws_side_by_side_weigh_what_they_weigh_alone():
    own = summed(task())
    weights.check(own.program, own.structure, own.x)
    z = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = weights.log_joint(own.program, own.structure, own.x, {"u": z})
    alone = torch.stack([weights.log_joint(own.program, own.structure, own.x, {"u": v[None]})[0] for v in z])
    assert torch.allclose(together, alone, rtol=1e-12)
