"""What the reader proves of a program's operations, against what perturbing the numbers shows."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import structure_of, tensor, zoo_refusal
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from zoo._program.program import Program
from zoo._program.trace import log_prob, sample_nodes
from zoo._reading.operations import OTHER
from zoo._reading.reader import ROW_BITS, Reader, rows_along
from zoo._reading.side_by_side import log_probs
from zoo._reading.sites import read

N, D = 5, 3
RNG = np.random.default_rng(0)
DATA = RNG.normal(size=(40, D))
WEIGHTS = torch.as_tensor(RNG.normal(size=(D, D)))
BESIDE = np.column_stack([DATA[:, 0], DATA])  # with a covariate in front
TRIL = torch.linalg.cholesky(torch.as_tensor(np.cov(RNG.normal(size=(20, D)).T)))
CHOICE = torch.tensor([2, 0, 1, 1, 0])


def into_zeros(u):
    out = torch.zeros(N, D, dtype=u.dtype)
    out[:, 1] = u[:, 0]
    out[:, 2] += 2 * u[:, 1]
    return out


# name → (function of u [5, 3], the highest degree that it may be given)
OPERATIONS = {
    "affine": (lambda u: 3 * u - 2 + WEIGHTS[0], 1),
    "product": (lambda u: u * u[:, :1], 2),
    "square": (lambda u: u.square() + u**2, 2),
    "matrix": (lambda u: u @ WEIGHTS + torch.einsum("nd,de->ne", u, WEIGHTS), 1),
    "linear layer": (lambda u: nn.functional.linear(u, WEIGHTS, WEIGHTS[0]), 1),
    "batched matrices": (lambda u: (u[:, None, :] @ u[:, :, None]).squeeze(-1), 2),
    "vecdot": (lambda u: torch.linalg.vecdot(u, u).unsqueeze(-1), 2),
    "sum": (lambda u: u.sum(-1, keepdim=True) + u.mean(1, keepdim=True) + u.cumsum(1), 1),
    "sum over rows": (lambda u: u.sum(0) + 0 * u, 1),
    "cumulated over rows": (lambda u: u.cumsum(0), 1),
    "softmax": (lambda u: u.softmax(-1) + u.log_softmax(1), OTHER),
    "softmax over rows": (lambda u: u.softmax(0), OTHER),
    "logsumexp": (lambda u: u.logsumexp(-1, keepdim=True), OTHER),
    "norm": (lambda u: u.norm(dim=-1, keepdim=True) + u.std(-1, keepdim=True), OTHER),
    "extremes": (
        lambda u: u.amax(-1, keepdim=True) + u.min(-1, keepdim=True).values + u.topk(2, -1).values[:, :1],
        OTHER,
    ),
    "sort": (lambda u: u.sort(-1).values, OTHER),
    "sort rows": (lambda u: u.sort(0).values, OTHER),
    "roll": (lambda u: u.roll(1, -1), 1),
    "roll rows": (lambda u: u.roll(1, 0), 1),
    "flip rows": (lambda u: u.flip(0), 1),
    "rows before": (lambda u: torch.cat([torch.zeros(1, D, dtype=u.dtype), u[:-1]]), 1),
    "stack and pick": (lambda u: torch.stack([u, 2 * u], -1)[..., 1], 1),
    "pad": (lambda u: nn.functional.pad(u, (1, 0))[:, :D], 1),
    "into zeros": (into_zeros, 1),
    "transposed twice": (lambda u: (u.T.contiguous().T * 2).reshape(-1).view(N, D), 1),
    "gather": (lambda u: u.gather(1, CHOICE[:, None]).expand(N, D), 1),
    "index": (lambda u: u[torch.arange(N), CHOICE].unsqueeze(-1), 1),
    "index rows": (lambda u: u[CHOICE], 1),
    "index by a value": (lambda u: WEIGHTS[(u[:, 0] > 0).long()], OTHER),
    "embedding": (lambda u: nn.functional.embedding((u[:, 0] > 0).long(), WEIGHTS), OTHER),
    "where": (lambda u: torch.where(u > 0, u, 2 * u), OTHER),
    "where on a constant": (lambda u: torch.where(WEIGHTS[0] > 0, u, 2 * u), 1),
    "masked": (lambda u: u.masked_fill(WEIGHTS[0] > 0, 0.0), 1),
    "clamp": (lambda u: u.clamp(max=0.5), OTHER),
    "tiny tanh": (lambda u: torch.tanh(1e-9 * u), OTHER),
    "rounded": (lambda u: u.round() + u.float().double(), OTHER),
    "solve": (lambda u: torch.linalg.solve_triangular(TRIL, u.mT, upper=False).mT, 1),
    "cholesky solve": (lambda u: torch.cholesky_solve(u.mT, TRIL).mT, 1),
    "linalg.solve": (lambda u: torch.linalg.solve(TRIL @ TRIL.mT, u.mT).mT, 1),
    "matrices of rows": (
        lambda u: torch.linalg.cholesky(TRIL @ TRIL.mT + u[:, :, None] * u[:, None, :])[..., 0],
        OTHER,
    ),
    "inverse": (lambda u: torch.linalg.inv(TRIL + u[:, :, None] * u[:, None, :])[..., 0], OTHER),
    "normal": (lambda u: dist.Normal(u, 0.5).log_prob(torch.ones(D, dtype=u.dtype)), 2),
    "multivariate normal": (
        lambda u: dist.MultivariateNormal(u, scale_tril=TRIL).log_prob(WEIGHTS[0]).unsqueeze(-1),
        2,
    ),
    "bernoulli": (lambda u: dist.Bernoulli(logits=100 + u).log_prob(torch.ones(D, dtype=u.dtype)), OTHER),
    "layer norm": (lambda u: nn.functional.layer_norm(u, (D,)), OTHER),
    "convolution": (lambda u: nn.functional.conv1d(u[:, None], WEIGHTS[:1, None, :2])[:, 0], 1),
    "distances": (lambda u: torch.cdist(u, WEIGHTS), OTHER),
    "scatter": (lambda u: torch.zeros(N, D, dtype=u.dtype).scatter(1, CHOICE[:, None], u), 1),
    "fft": (lambda u: torch.fft.rfft(u, dim=-1).abs(), OTHER),
    "mix of rows": (lambda u: TRIL.new_ones(N, N) @ u, 1),
    "sigmoids": (lambda u: nn.functional.logsigmoid(u) + nn.functional.gelu(u) + nn.functional.hardswish(u), OTHER),
}


def followed(function, u):
    """The shadow of function(u), where u [5, 3] has a bit for each row and degree 1."""
    reader = Reader(N)
    u = u.clone()
    with torch.no_grad():
        reader.put(u, rows_along(u, 0), 1)
        with reader.reading():
            out = function(u)
        return out, reader.of(out)


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_changes_with_a_row_has_its_bit(name):
    function, _ = OPERATIONS[name]
    for seed in range(4):
        u = torch.as_tensor(np.random.default_rng(seed).normal(size=(N, D)))
        out, shadow = followed(function, u)
        for row in range(N):
            moved = u.clone()
            moved[row] += torch.as_tensor(np.random.default_rng(seed + 10).normal(size=D)) * 3
            changed = ~torch.isclose(function(moved), out, rtol=1e-12, atol=1e-14)
            assert bool((shadow.mask[changed] >> row & 1).all()), f"row {row}"


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_degree_is_never_too_low_and_rarely_too_high(name):
    function, most = OPERATIONS[name]
    u, step = (torch.as_tensor(RNG.normal(size=(N, D))) for _ in range(2))
    _, shadow = followed(function, u)
    assert int(shadow.degree.max()) == most
    along = torch.stack([function(u + t * step) for t in (0.0, 1.0, 2.0, 3.0, 4.0)])
    for degree in (0, 1, 2):
        rest = torch.diff(along, n=degree + 1, dim=0)
        size = 1 + along.abs().amax(0)
        assert bool(((rest.abs() / size) < 1e-12).all(0)[shadow.degree <= degree].all())


@given(st.lists(st.sampled_from(sorted(OPERATIONS)), min_size=2, max_size=4), st.integers(0, 1000))
def test_chains_of_operations(names, seed):
    u = torch.as_tensor(np.random.default_rng(seed).normal(size=(N, D)))

    def chain(v):
        for name in names:
            v = OPERATIONS[name][0]((v.expand(N, v.shape[-1]) + torch.zeros(N, D, dtype=v.dtype))[:, :D].clamp(-9, 9)
                                    if v.shape[-1] == 1 else nn.functional.pad(v, (0, D - v.shape[-1])))  # fmt: skip
        return v

    try:
        out, shadow = followed(chain, u)
    except torch.linalg.LinAlgError:
        return
    for row in range(N):
        moved = u.clone()
        moved[row] += 1.0
        try:
            changed = ~torch.isclose(chain(moved), out, rtol=1e-9, atol=1e-9, equal_nan=True)
        except torch.linalg.LinAlgError:
            continue
        assert bool((shadow.mask[changed] >> row & 1).all())


def test_views_and_writes_in_place_share_their_sources():
    def function(u):
        out = torch.zeros(N, 2, D, dtype=u.dtype)
        first, second = out[:, 0], out[:, 1]
        first.copy_(u)
        second[:, :2].add_(u[:, :2] * 3)
        second[:, 2].zero_()
        return out

    _, shadow = followed(function, torch.ones(N, D, dtype=torch.float64))
    assert not bool((shadow.mask & ROW_BITS & ~rows_along(shadow.mask, 0)).any())
    assert shadow.degree[0].tolist() == [[1, 1, 1], [1, 1, 0]]


# ---- programs -----------------------------------------------------------------------------------------------


def rows(x, size):
    return pyro.plate("data", size if x is None else len(x))


def program(loc, prior=None, covariate=False, **how):
    """z ~ prior, x | z ~ N(loc(z, x, i), 1) for the rows i; `covariate`: of all columns of x but the first."""

    def model(x=None, size=None):
        with rows(x, size) as i:
            z = pyro.sample("z", prior or dist.Normal(torch.zeros(()), 1.0))
            here = torch.zeros(size, D) if x is None else x
            seen = x[:, 1:] if covariate else x
            return pyro.sample(
                "x", dist.Normal(loc(z, here, i), 1.0, **how).expand([*z.shape, D]).to_event(1), obs=seen
            )

    return model


def reading(model, x=DATA):
    x = tensor(x)[:N]
    found = Program(model, x)
    z = found.trace(x).nodes["z"]["value"]
    return read(found, x, {"z": z}, -1, frozenset({"z"}))


ALONG_ROWS = {
    "the row before": lambda z, x, i: torch.cat([torch.zeros_like(z[..., :1]), z[..., :-1]], -1).unsqueeze(-1),
    "the row after": lambda z, x, i: torch.cat([z[..., 1:], torch.zeros_like(z[..., :1])], -1).unsqueeze(-1),
    "a random walk": lambda z, x, i: z.cumsum(-1).unsqueeze(-1),
    "the mean of all": lambda z, x, i: (z - z.mean(-1, keepdim=True)).unsqueeze(-1),
    "data of the row before": lambda z, x, i: z.unsqueeze(-1) + torch.cat([torch.zeros(1, D), x[:-1]]),
    "ranks": lambda z, x, i: z.unsqueeze(-1) + x.argsort(0),
    "weights over the batch": lambda z, x, i: z.unsqueeze(-1) * x.softmax(0),
    "the first row": lambda z, x, i: z.unsqueeze(-1) + x[:1],
    "backwards": lambda z, x, i: z.flip(-1).unsqueeze(-1),
}


@pytest.mark.parametrize("prior", [None, dist.Bernoulli(torch.tensor(0.02))], ids=["normal", "rare"])
@pytest.mark.parametrize("name", ALONG_ROWS)
def test_rows_that_depend_on_each_other_are_served_by_no_method(name, prior):
    found = structure_of(program(ALONG_ROWS[name], prior), DATA)
    assert found.exact == "no" and "the rows are not independent" in found.obstacle
    for method in ("em", "svi", "importance", "gibbs", "ais", "laplace"):
        assert "the rows are not independent" in zoo_refusal(method, found)


OF_PLACE = {
    "the plate's index": lambda z, x, i: (z + 0.1 * i).unsqueeze(-1),
    "arange": lambda z, x, i: (z + torch.arange(z.shape[-1])).unsqueeze(-1),
    "a list of the file's own": lambda z, x, i: (z * torch.as_tensor(DATA[: z.shape[-1], 0])).unsqueeze(-1),
    "the first row is another": lambda z, x, i: torch.where(torch.arange(z.shape[-1]) == 0, 0.0, z).unsqueeze(-1),
}


@pytest.mark.parametrize("name", OF_PLACE)
def test_a_density_that_knows_its_row_is_refused_with_the_remedy(name):
    found = structure_of(program(OF_PLACE[name]), DATA)
    assert "its place in the batch" in found.obstacle and "a column of x" in found.obstacle


def test_a_call_that_is_counted_is_found_by_running_twice():
    calls = []

    def counting(z, x, i):
        calls.append(1)
        return z.unsqueeze(-1) + len(calls)

    assert "two runs with the same values" in structure_of(program(counting), DATA).obstacle


CHOICES = {
    "if on data": lambda z, x, i: z.unsqueeze(-1) * (5.0 if bool((x > 6).any()) else 1.0),
    "if on a draw": lambda z, x, i: (z if z.reshape(-1)[0] > 0 else 2 * z).unsqueeze(-1),
    "item": lambda z, x, i: z.unsqueeze(-1) + x.max().item(),
    "a list": lambda z, x, i: torch.tensor(z.tolist()).unsqueeze(-1),
    "numpy": lambda z, x, i: torch.from_numpy(np.tanh(z.numpy())).unsqueeze(-1),
    "a tensor of numbers": lambda z, x, i: (
        torch.tensor([z.reshape(-1)[0], z.reshape(-1)[1]]).sum() + 0 * z.unsqueeze(-1)
    ),
    "as many as": lambda z, x, i: z.unsqueeze(-1) + len(torch.nonzero(x[:, 0] > 0)),
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_python_decides_by_a_value_is_refused_with_its_line(name):
    found = structure_of(program(CHOICES[name]), DATA)
    assert "test_reading.py:" in found.obstacle and "into a Python value" in found.obstacle


def test_random_numbers_outside_sites_are_refused():
    found = structure_of(program(lambda z, x, i: z.unsqueeze(-1) + 0.1 * torch.randn(z.shape).unsqueeze(-1)), DATA)
    assert "random numbers" in found.obstacle


@pytest.mark.parametrize(
    ("loc", "why"),
    [
        (lambda z, x, i: torch.where(z > 0.5, 3.0, -1.0).unsqueeze(-1), "`gt` at test_reading.py:"),
        (lambda z, x, i: z.clamp(max=400.0).unsqueeze(-1), "`clamp` at test_reading.py:"),
        (lambda z, x, i: torch.where(x[:, 0] > 0.9, z.tanh(), z).unsqueeze(-1), "`tanh` at test_reading.py:"),
        (lambda z, x, i: (z**2).unsqueeze(-1), "is not Gaussian in them"),
        (lambda z, x, i: z.detach().unsqueeze(-1), "detached at test_reading.py:"),
        (lambda z, x, i: torch.heaviside(z, torch.zeros_like(z)).unsqueeze(-1), "`heaviside` at test_reading.py:"),
        (lambda z, x, i: z.float().to(x.dtype).unsqueeze(-1), "at test_reading.py:"),
    ],
)
def test_what_is_not_affine_is_named_with_its_line(loc, why):
    found = structure_of(program(loc, covariate=True), BESIDE)
    assert found.exact == "no" and not found.obstacle and why in found.reason


def test_ordinary_ways_to_write_an_affine_map_are_proved():
    for loc in (
        lambda z, x, i: z[..., None] * WEIGHTS[0] + 1,
        lambda z, x, i: torch.stack([z, 2 * z, torch.zeros_like(z)], -1),
        lambda z, x, i: z.unsqueeze(-1) @ WEIGHTS[:1],
        lambda z, x, i: torch.where(x[:, :1] > 0, z.unsqueeze(-1), 2 * z.unsqueeze(-1)),
        lambda z, x, i: torch.einsum("...n,d->...nd", z, WEIGHTS[0]),
    ):
        assert structure_of(program(loc, covariate=True), BESIDE).exact == "linear-gaussian"


def test_a_saturated_logistic_is_no_normal_density():
    def logistic(x=None, size=None):
        a = pyro.param("a", torch.tensor(50.0))
        with rows(x, size):
            b = pyro.sample("b", dist.Normal(torch.zeros(()), 1.0))
            return pyro.sample("x", dist.Bernoulli(logits=(a + b).unsqueeze(-1).expand(*b.shape, D)).to_event(1), obs=x)

    assert structure_of(logistic, (DATA > 0).astype(float)).exact == "no"


def test_parents_and_supports_are_read_too():
    def model(x=None, size=None):
        with rows(x, size):
            k = pyro.sample("z", dist.Bernoulli(torch.tensor(0.02)))
            pyro.sample("count", dist.Binomial(1 + 3 * k, 0.6))
            a = pyro.sample("a", dist.Normal(0.0, 1.0), obs=None if x is None else x[:, 0])
            return pyro.sample("b", dist.Normal(2 * a, 1.0), obs=None if x is None else x[:, 1])

    found = structure_of(model, DATA)
    assert found.exact == "no" and "the support of 'count' (Binomial) changes with 'z'" in found.reason
    x = tensor(DATA)[:N]
    latents = {k: Program(model, x).trace(x).nodes[k]["value"] for k in ("z", "count")}
    sites = read(Program(model, x), x, latents, -1).sites
    assert sites["b"].parents == {"a"} and sites["a"].parents == set() and sites["count"].parents == {"z"}


def test_a_join_that_no_draw_shows_is_read_off_the_operations():
    found = structure_of(program(lambda z, x, i: (z * torch.where(x.max() > 1e6, 5.0, 1.0)).unsqueeze(-1)), DATA)
    assert found.exact == "no" and "the rows are not independent" in found.obstacle


def test_an_operation_without_a_rule_proves_nothing():
    found = structure_of(program(lambda z, x, i: torch._foreach_mul([z], 2.0)[0].unsqueeze(-1)), DATA)
    assert found.exact == "no" and not found.obstacle  # methods that sample may serve it
    assert "`_foreach_mul` at test_reading.py:" in found.reason and "cannot be analysed" in found.reason


def test_densities_of_alike_sites_are_those_of_each():
    def program(n):
        with pyro.plate("data", n, dim=-1):
            for t in range(9):
                p, u = torch.rand(2, 1, n, 3), torch.rand(n, 4)
                pyro.sample(f"a{t}", dist.Categorical(p), obs=torch.randint(3, (n,)))
                pyro.sample(f"b{t}", dist.Categorical(torch.rand(3)), obs=torch.randint(3, (7, 1, 1)))
                pyro.sample(f"c{t}", dist.Categorical(logits=u), obs=torch.randint(4, (n,)))
                pyro.sample(f"d{t}", dist.Bernoulli(logits=u).to_event(1), obs=torch.ones(n, 4))
                pyro.sample(f"e{t}", dist.Normal(u, torch.rand(4)).to_event(1), obs=torch.rand(6, 1, n, 4))
                pyro.sample(f"f{t}", dist.Normal(u[:, 0], torch.rand(())), obs=torch.rand(6, 1, n))
                pyro.sample(f"g{t}", dist.Gamma(u[:, 0], u[:, 1]), obs=torch.rand(n))
                pyro.sample(f"h{t}", dist.Beta(u[:, 0], u[:, 1]), obs=torch.rand(n))

    with pyro.validation_enabled(False):
        nodes = sample_nodes(pyro.poutine.trace(program).get_trace(5))
        found, each = log_probs(nodes), [log_prob(node) for node in nodes]
    assert [f.shape for f in found] == [e.shape for e in each]
    torch.testing.assert_close(found, each)
