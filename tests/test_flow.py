"""q of the global latents that is no normal with all covariances: triangular flows, and covariances along few directions."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import task_of
from scipy import special, stats
from torch.distributions import biject_to, constraints

from guides import _flow
from guides._flow import Part, pull, push
from inference import svi
from inference._run.result import load
from inference._run.runner import infer, run

D, SPREAD, NOISE = 9, 3.0, 4.0
BENT = np.array([[1.0], [1.4], [0.7]])


def rows(x, size):
    return pyro.plate("data", size if x is None else len(x))


def bent(x=None, size=None):
    """Of the sum of u and v² alone the data tell: a posterior along a parabola."""
    u = pyro.sample("u", dist.Normal(0.0, 1.0))
    v = pyro.sample("v", dist.Normal(0.0, 1.0))
    with rows(x, size):
        return pyro.sample("x", dist.Normal(u + v**2, 0.5), obs=None if x is None else x[:, 0])


def together(x=None, size=None):
    """Nine means with one shared part: their posterior covariance is a I + b 1 1ᵀ."""
    covariance = torch.eye(D) + SPREAD**2
    mu = pyro.sample("mu", dist.MultivariateNormal(torch.zeros(D), covariance))
    with rows(x, size):
        return pyro.sample("x", dist.Normal(mu, NOISE).to_event(1), obs=x)


def random_flow(d: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {n: 0.3 * torch.randn_like(v, dtype=torch.float64) for n, v in _flow.parameters(d).items()}


@pytest.mark.parametrize("d", [1, 4])
def test_a_flow_is_triangular_and_has_its_inverse(d):
    flow, w = random_flow(d), torch.randn(20, d, dtype=torch.float64)
    v, slope = push(flow, w)
    torch.testing.assert_close(pull(flow, v), w)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda a: push(flow, a)[0], w[i])
        assert (jacobian.triu(1) == 0).all()
        torch.testing.assert_close(jacobian.diagonal().log(), slope[i])


@pytest.mark.parametrize(
    ("support", "shape"),
    [(constraints.real, (2,)), (constraints.positive, (2,)), (constraints.simplex, (2,)), (constraints.real, ())],
)
@pytest.mark.parametrize("bends", [True, False])
def test_a_part_has_the_density_of_its_draws(support, shape, bends):
    """Its log-determinant is that of the Jacobian, and its inverse gives the numbers back, without the cache too."""
    shape, onto = torch.Size(shape), biject_to(support)
    d = 1 + shape.numel() + 1
    tril = torch.eye(d, dtype=torch.float64) + 0.5 * torch.ones(d, d, dtype=torch.float64).tril(-1)
    loc, before = torch.randn(d, dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
    part = Part(random_flow(d) if bends else None, loc, tril, before, shape, onto)
    w = torch.randn(5, shape.numel(), dtype=torch.float64)
    value = part(w)
    torch.testing.assert_close(part.inv(value.clone()), w)
    free = lambda a: onto(part._free(a)[0])  # noqa: E731
    for i in range(5):
        jacobian = torch.autograd.functional.jacobian(free, w[i]).reshape(-1, shape.numel())
        chart = jacobian[: shape.numel()]  # a simplex has one entry more than free numbers
        torch.testing.assert_close(chart.det().abs().log(), part.log_abs_det_jacobian(w, value)[i])
    q = dist.TransformedDistribution(dist.Normal(torch.zeros_like(w[0]), 1.0).to_event(1), [part])
    assert q.event_shape == value.shape[1:] and q.log_prob(value).shape == (5,)


def evidence_of_together(x: np.ndarray) -> float:
    n = len(x)
    covariance = np.kron(np.ones((n, n)), np.eye(D) + SPREAD**2) + NOISE**2 * np.eye(n * D)
    return float(stats.multivariate_normal(np.zeros(n * D), covariance).logpdf(x.ravel()))


@pytest.mark.full
def test_few_directions_are_enough_for_what_goes_together():
    x = np.random.default_rng(0).normal(size=(3, D)) + 2.0
    truth = evidence_of_together(x)
    found = {kind: svi.fit(task_of(together, x), globals=kind) for kind in ("lowrank", "diagonal")}
    assert abs(found["lowrank"].claimed.value - truth) < 4 * found["lowrank"].claimed.se + 0.02
    assert found["diagonal"].claimed.value < truth - 0.3
    assert found["lowrank"].guide.free["globals_factor"].shape == (D, 3)
    precision = np.linalg.inv(np.eye(D) + SPREAD**2) + len(x) / NOISE**2 * np.eye(D)
    q = found["lowrank"].global_gaussian
    covariance = (q.scale_tril @ q.scale_tril.mT).numpy()
    assert np.abs(covariance @ precision - np.eye(D)).max() < 0.1
    np.testing.assert_allclose(q.mean.numpy(), np.linalg.solve(precision, x.sum(0) / NOISE**2), atol=0.1)


@pytest.mark.full
def test_a_flow_is_nearer_to_a_bent_posterior():
    grid = np.linspace(-6, 6, 801)
    u, v = np.meshgrid(grid, grid, indexing="ij")
    log_p = (
        stats.norm.logpdf(u) + stats.norm.logpdf(v) + stats.norm.logpdf(BENT[:, 0, None, None], u + v**2, 0.5).sum(0)
    )
    truth = special.logsumexp(log_p) + 2 * np.log(grid[1] - grid[0])
    full, flow = (svi.fit(task_of(bent, BENT), globals=kind) for kind in ("full", "flow"))
    assert full.claimed.value < flow.claimed.value - 0.4
    assert flow.claimed.kind == "lower bound" and flow.claimed.value < truth + 4 * flow.claimed.se
    assert flow.notes["khat_of_globals"] < full.notes["khat_of_globals"]
    share = np.exp(log_p - special.logsumexp(log_p))
    sd = ((share * u**2).sum() - (share * u).sum() ** 2) ** 0.5
    assert full.draws["u"].std() + 0.05 < flow.draws["u"].std() < sd


@pytest.mark.full
def test_a_run_with_a_flow_is_read_back(tmp_path):
    made = run(f"{__file__}:bent", BENT, "svi", globals="flow", epochs=60)
    again = load(made.save(tmp_path / "run"))
    np.testing.assert_array_equal(again.fit.draws["u"], made.fit.draws["u"])
    found = infer(again, "importance", proposal="guide")
    assert found.fit.notes["proposal"] == "guide" and found.fit.claimed.kind in ("estimate", "lower bound")
