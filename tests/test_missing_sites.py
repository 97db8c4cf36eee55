"""Missing entries that become the latent `x_missing`: against sums over all completions, closed forms, and Monte Carlo."""

from __future__ import annotations

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import hide, task_of, tensor
from hypothesis import given
from hypothesis import strategies as st
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.infer import TraceEnum_ELBO
from scipy import optimize, special, stats
from torch.distributions import constraints

from inference import em, importance
from inference._answers.impute import impute
from inference._exact import densities, enumeration
from inference._sampling import weights as _weights
from zoo._errors import UsageError
from zoo._program.describe import describe
from zoo._program.load import load
from zoo._program.slots import Slots, complete, most_missing, slots

LENGTH = 5
FIRST, STAY = 0.3, 0.8


class Chain(TorchDistribution):
    """A Markov chain of bits: each is like the one before it with probability `stay`."""

    arg_constraints = {}
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, first, stay, batch_shape=None):
        self.first, self.stay = torch.as_tensor(first), torch.as_tensor(stay)
        super().__init__(self.stay.shape if batch_shape is None else batch_shape, torch.Size([LENGTH]), False)

    def expand(self, batch_shape, _instance=None):
        return Chain(self.first, self.stay, torch.Size(batch_shape))

    def log_prob(self, value):
        begin = torch.where(value[..., 0] == 1, self.first, 1 - self.first).log()
        same, stay = value[..., 1:] == value[..., :-1], self.stay.unsqueeze(-1)
        return begin + torch.where(same, stay, 1 - stay).log().sum(-1)

    def sample(self, sample_shape=torch.Size()):  # noqa: B008
        shape = sample_shape + self.batch_shape
        out = [torch.bernoulli(self.first.expand(shape))]
        for _ in range(LENGTH - 1):
            out.append(torch.where(torch.bernoulli(self.stay.expand(shape)) == 1, out[-1], 1 - out[-1]))
        return torch.stack(out, -1)


def plate(x, size):
    return pyro.plate("data", size if x is None else len(x))


def share(name, value):
    return pyro.param(name, torch.as_tensor(value), constraint=constraints.unit_interval)


def chain(x=None, size=None):
    first, stay = share("first", FIRST), share("stay", [STAY])
    with plate(x, size):
        return pyro.sample("x", Chain(first, stay[0]), obs=x)


def two_chains(x=None, size=None):
    stay = share("stay", [0.2, 0.9])
    with plate(x, size):
        z = pyro.sample("z", dist.Categorical(tensor([0.4, 0.6])))
        return pyro.sample("x", Chain(FIRST, stay[z]), obs=x)


def chain_log_prob(row, first=FIRST, stay=STAY):
    steps = np.where(row[1:] == row[:-1], stay, 1 - stay)
    return np.log(first if row[0] == 1 else 1 - first) + np.log(steps).sum()


def completions(row):
    """All vectors of bits that agree with what is seen of `row`."""
    missing = np.isnan(row)
    for bits in itertools.product([0.0, 1.0], repeat=int(missing.sum())):
        full = row.copy()
        full[missing] = bits
        yield full


def chain_log_evidence(row, **theta):
    if np.isnan(row).all():
        return 0.0
    return special.logsumexp([chain_log_prob(full, **theta) for full in completions(row)])


def bits(n, seed=0, missing=0.35):
    """Binary rows with holes that vary by row: row 2 has nothing left, row 4 everything."""
    rng = np.random.default_rng(seed)
    full = (rng.random((n, LENGTH)) < 0.5).astype(float)
    x = hide(full, missing, seed + 1)
    x[2], x[4] = np.nan, full[4]
    return x


# ---- slots --------------------------------------------------------------------------------------------------------


@given(
    masks=st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=6),
    spare=st.integers(0, 2),
    draws=st.integers(0, 3),
)
def test_slots_and_complete_there_and_back(masks, spare, draws):
    missing = torch.tensor(masks)
    full = torch.arange(missing.numel(), dtype=torch.float64).reshape(missing.shape)
    value = full.masked_fill(missing, torch.nan)
    M = most_missing(value) + spare
    index, real = slots(value, M)
    partly = missing & ~missing.all(1, keepdim=True)
    assert index.shape == real.shape == (len(masks), M)
    assert torch.equal(real.sum(1), partly.sum(1))
    for i, row in enumerate(partly):  # slot j is the j-th missing entry
        assert index[i][real[i]].tolist() == row.nonzero()[:, 0].tolist()
    held = full.gather(1, index)
    wanted = torch.where(missing.all(1, keepdim=True), value, full)
    assert torch.equal(complete(value, held).nan_to_num(-1.0), wanted.nan_to_num(-1.0))
    many = complete(value, held.expand(draws, *held.shape))
    assert many.shape == (draws, *value.shape)


def test_too_few_slots():
    with pytest.raises(ValueError, match="at most 1 missing entries, got one with 2"):
        slots(tensor([[np.nan, np.nan, 1.0]]), 1)


def test_all_values_of_binary_slots_can_be_made_and_counted_without():
    few = Slots(dist.Bernoulli(tensor([0.5, 0.5, 0.5])), 1).expand([7])
    assert few.enumerate_support(expand=False).shape == (8, 1, 3)
    assert few.enumerate_support().shape == (8, 7, 3)
    assert few.enumerate_support(expand=False)[:, 0].unique(dim=0).shape == (8, 3)
    assert Slots(dist.Bernoulli(torch.full((392,), 0.5)), 1).cardinality == 2**392
    real = Slots(dist.Normal(torch.zeros(3), 1.0), 1)
    assert real.cardinality is None and not real.has_enumerate_support
    with pytest.raises(NotImplementedError):
        real.enumerate_support()


# ---- what is seen of them -----------------------------------------------------------------------------------------


def test_the_site_in_the_structure():
    x = bits(30)
    found = task_of(chain, x).structure
    latent, observed = found.sites
    M = int(np.isnan(x).sum(1)[np.isnan(x).sum(1) < LENGTH].max())
    assert (latent.name, latent.role, latent.scope, latent.family) == ("x_missing", "latent", "local", "Bernoulli")
    assert (latent.event_shape, latent.discrete, latent.cardinality) == ((M,), True, 2**M)
    assert (latent.completes, observed.completes, observed.family) == ("x", None, "Chain")
    assert (found.exact, found.assignments) == ("enumerable", 2**M)
    assert found.to_json()["sites"][0]["completes"] == "x"


def test_every_batch_has_the_same_slots():
    x = tensor(bits(30))
    program = load(chain, x)
    for rows in (x, x[4:5], x[2:3], x[:7]):
        for raw in (False, True):
            trace = program.trace(rows, raw=raw)
            assert trace.nodes["x_missing"]["fn"].event_shape == describe(program, x).sites[0].event_shape
            assert bool(trace.nodes["x"]["value"].isnan().any()) == (raw and bool(rows.isnan().any()))


def test_other_data_than_the_program_was_made_for():
    """Its slots stay; more are made where they are needed."""
    x = np.random.default_rng(1).normal(size=(20, 5))
    one, two = x.copy(), x.copy()
    one[3, 0] = two[5, :2] = np.nan
    program = load(low_rank, tensor(one))
    assert describe(program, tensor(x)).exact == "linear-gaussian"
    assert program.trace(tensor(x)).nodes["x_missing"]["value"].shape == (20, 1)
    assert program.trace(tensor(two)).nodes["x_missing"]["value"].shape == (20, 2)


def test_without_holes_there_is_no_such_site():
    x = bits(30, missing=0.0)
    assert [s.name for s in task_of(chain, x).structure.sites] == ["x"]  # a row with nothing observed has no slots
    np.testing.assert_allclose(task_of(chain, x).exact.per_datum(), [chain_log_evidence(row) for row in x], atol=1e-12)


@pytest.mark.parametrize(("holes", "written"), [(40, "1,099,511,627,776"), (392, "2^392")])
def test_too_many_to_enumerate_is_said_at_once(holes, written):
    def wide(x=None, size=None):
        with plate(x, size):
            parts = dist.Bernoulli(torch.full((2, holes + 1), 0.5)).to_event(1)
            return pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts), obs=x)

    x = np.zeros((6, holes + 1))
    x[1, 1:] = x[3] = np.nan
    found = task_of(wide, x).structure
    assert (found.exact, found.sites[0].cardinality) == ("no", 2**holes)
    assert f"'x_missing' have {written} joint values" in found.reason and written in em.refusal(found)
    shown = found.to_json()["sites"][0]["cardinality"]
    assert shown == (2**40 if holes == 40 else "2^392")


def test_the_limit_of_enumeration():
    x = bits(30)
    M = most_missing(tensor(x))
    assert task_of(chain, x, limit=2**M).structure.exact == "enumerable"
    assert task_of(chain, x, limit=2**M - 1).structure.exact == "no"


def test_other_supports_are_refused_still():
    def simplex(x=None, size=None):
        with plate(x, size):
            return pyro.sample("x", dist.Dirichlet(torch.ones(3)), obs=x)

    x = np.random.default_rng(0).dirichlet(np.ones(3), 10)
    x[7, 1] = np.nan
    with pytest.raises(UsageError, match=r"site 'x' \(Dirichlet\) expects rows .* got row 7 partly missing"):
        task_of(simplex, x)


def test_simulating_needs_no_such_site():
    program = load(chain, tensor(bits(30)))
    trace = program.trace(None, size=11, latents={"x_missing": torch.zeros(11, 4)})
    assert trace.nodes["x"]["value"].shape == (11, LENGTH) and "x_missing" not in trace.nodes
    assert program(None, size=3).shape == (3, LENGTH)


def test_a_named_value_is_not_completed():
    def named(x=None, size=None):
        with plate(x, size):
            pyro.deterministic("copy", torch.zeros(1) if x is None else x, event_dim=1)
            return pyro.sample("x", Chain(FIRST, torch.tensor(STAY)), obs=x)

    trace = load(named, tensor(bits(30))).trace(tensor(bits(30)), raw=True)
    assert "copy_missing" not in trace.nodes


# ---- exact by enumeration -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [densities.CHUNK_NUMBERS, 1])
def test_evidence_and_posterior_are_those_of_all_completions(chunk, monkeypatch):
    monkeypatch.setattr(densities, "CHUNK_NUMBERS", chunk)
    x = bits(40)
    exact = task_of(chain, x).exact
    want = [chain_log_evidence(row) for row in x]
    np.testing.assert_allclose(exact.per_datum(), want, atol=1e-12)
    np.testing.assert_allclose(exact.per_datum(own=True), want, atol=1e-12)
    np.testing.assert_allclose(float(exact.log_evidence()[0].detach()), np.sum(want), rtol=1e-12)
    marginal = exact.responsibilities() @ exact.assignments["x_missing"][:, 0].double()  # of each slot being 1
    for row, got in zip(x, marginal.numpy(), strict=True):
        if np.isnan(row).any() and not np.isnan(row).all():
            fulls = np.stack(list(completions(row)))
            weights = special.softmax([chain_log_prob(full) for full in fulls])
            np.testing.assert_allclose(got[: np.isnan(row).sum()], (weights @ fulls)[np.isnan(row)], atol=1e-12)


def test_single_precision():
    x = tensor(bits(20)).float()
    program = load(chain, x)
    trace = program.trace(x)
    assert trace.nodes["x"]["value"].dtype == trace.nodes["x_missing"]["value"].dtype == torch.float32
    np.testing.assert_allclose(
        enumeration.Enumeration(program, describe(program, x), x).per_datum(),
        [chain_log_evidence(row) for row in x.double().numpy()],
        atol=1e-5,
    )


def test_beside_a_discrete_latent():
    x = bits(30)
    task = task_of(two_chains, x)
    assert {s.name for s in task.structure.local_latents} == {"z", "x_missing"}
    want = [
        0.0
        if np.isnan(row).all()
        else special.logsumexp([chain_log_evidence(row, stay=0.2), chain_log_evidence(row, stay=0.9)], b=[0.4, 0.6])
        for row in x
    ]
    np.testing.assert_allclose(task.exact.per_datum(), want, atol=1e-12)
    fit = em.fit(task, start="program")
    assert np.diff(fit.trace["log_likelihood"]).min() > -1e-9


def test_beside_an_observed_site_of_another_family():
    """Its own holes are left out; only those of the chain take slots."""

    def both(x=None, size=None):
        stay = share("stay", STAY)
        with plate(x, size):
            pyro.sample("y", dist.Normal(0.5, 2.0).expand([3]).to_event(1), obs=None if x is None else x[:, :3])
            pyro.sample("x", Chain(FIRST, stay), obs=None if x is None else x[:, 3:])

    rng = np.random.default_rng(5)
    x = np.concatenate([hide(rng.normal(size=(30, 3)), 0.6, 1), bits(30)], 1)
    task = task_of(both, x)
    (latent,) = task.structure.local_latents
    assert (latent.name, latent.completes, latent.event_shape) == ("x_missing", "x", (most_missing(tensor(x[:, 3:])),))
    normal = np.nansum(stats.norm(0.5, 2.0).logpdf(x[:, :3]), 1)
    np.testing.assert_allclose(task.exact.per_datum(), normal + [chain_log_evidence(r) for r in x[:, 3:]], atol=1e-12)


def test_in_a_plate_inside_data():
    def parts(x=None, size=None):
        n = size if x is None else len(x)
        with pyro.plate("data", n, dim=-2), pyro.plate("parts", 2, dim=-1):
            return pyro.sample("x", Chain(FIRST, torch.tensor(STAY)), obs=x)

    x = hide(bits(30, missing=0.0), 0.3, 3)
    x[:, 2:] = np.where(np.isnan(x[:, 2:]), 0.0, x[:, 2:])  # two at most in each
    x[6, 0] = x[6, 1] = x[7] = np.nan
    task = task_of(parts, x.reshape(15, 2, LENGTH))
    assert task.structure.assignments == 16
    want = np.array([chain_log_evidence(row) for row in x]).reshape(15, 2).sum(1)
    np.testing.assert_allclose(task.exact.per_datum(own=True), want, atol=1e-12)
    fit = em.fit(task, start="program", max_iter=1)
    found = impute(task, fit.draws, {}, 5)
    assert found.mean.shape == (15, 2, LENGTH) and not np.isnan(found.draws).any()


def test_em_finds_the_maximum_that_a_sum_over_completions_has():
    x = bits(60, seed=8)
    task = task_of(chain, x)
    fit = em.fit(task, tol=1e-13)
    assert np.diff(fit.trace["log_likelihood"]).min() > -1e-9

    def loss(theta):
        return -sum(chain_log_evidence(row, first=theta[0], stay=theta[1]) for row in x)

    best = optimize.minimize(loss, [0.4, 0.6], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9})
    np.testing.assert_allclose(fit.claimed.value, -best.fun, atol=1e-6)
    np.testing.assert_allclose([fit.parameters["first"], fit.parameters["stay"][0]], best.x, atol=1e-4)


def test_pyro_sums_binary_slots_out_under_a_guide():
    x = bits(12)
    task = task_of(chain, x)
    M = task.structure.sites[0].event_shape[0]
    logits = torch.randn(12, M, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x_missing", Slots(dist.Bernoulli(logits=logits), 1), infer={"enumerate": "parallel"})

    with task.program.settings():
        elbo = -TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(task.program, guide, task.x)
    each = dist.Bernoulli(logits=logits).log_prob(task.exact.assignments["x_missing"]).sum(-1).mT  # log q [n, A]
    joint = task.exact.log_joint(slice(0, 12), task.exact.views()[0])
    np.testing.assert_allclose(float(elbo.detach()), float((each.exp() * (joint - each)).sum().detach()), rtol=1e-10)


def test_imputing_binary_entries():
    x = bits(40)
    task = task_of(chain, x)
    torch.manual_seed(0)
    draws = {k: v.numpy() for k, v in task.exact.draw(task.exact.responsibilities(), 200).items()}
    found = impute(task, draws, {}, 200)
    assert found.draws.shape == (200, *x.shape) and set(np.unique(found.draws)) == {0.0, 1.0}
    for i, row in enumerate(x):
        if np.isnan(row).all():
            row = np.array([FIRST] + [np.nan] * (LENGTH - 1))  # by draws of the program alone
            assert abs(found.mean[i, 0] - FIRST) < 4 * np.sqrt(FIRST * (1 - FIRST) / 200)
            continue
        fulls = np.stack(list(completions(row)))
        mean = special.softmax([chain_log_prob(full) for full in fulls]) @ fulls
        np.testing.assert_allclose(found.mean[i], mean, atol=1e-12)
        np.testing.assert_allclose(found.sd[i], np.sqrt(mean * (1 - mean)), atol=1e-7)
        standard_error = np.sqrt(mean * (1 - mean) / 200) + 1e-9
        assert (np.abs(found.draws[:, i].mean(0) - mean) < 4.5 * standard_error).all()


# ---- by Monte Carlo ------------------------------------------------------------------------------------------------


def naive(task, samples):
    """log p(x_i) from draws of the prior, and the standard errors, both [n]."""
    torch.manual_seed(1)
    with torch.no_grad():
        drawn = _weights.draw(task.program, task.structure, task.x, None, samples)
    return tuple(v.numpy() for v in _weights.log_mean(drawn.log_weights))


def test_naive_monte_carlo_draws_uniform_completions():
    x = bits(25)
    task = task_of(chain, x)
    estimate, standard_error = naive(task, 4000)
    error = np.abs(estimate - [chain_log_evidence(row) for row in x])
    assert (error <= 4.5 * standard_error + 1e-9).all()
    assert error[2] < 1e-9 and error[4] < 1e-9  # nothing seen, nothing missing
    fit = importance.fit(task, proposal="prior", samples=50, epochs=0, start="program")
    assert fit.draws["x_missing"].shape == (task.draws, 25, task.structure.sites[0].event_shape[0])
    found = impute(task, fit.draws, {}, 3)
    np.testing.assert_array_equal(found.draws[0][~np.isnan(x)], x[~np.isnan(x)])


def test_a_student_t_against_its_marginals():
    """No exact way: the marginals of a multivariate t are t, and the estimate must meet them."""
    rng = np.random.default_rng(2)
    loc, df, root = np.array([1.0, -2.0, 0.5]), 5.0, np.tril(rng.normal(size=(3, 3)), -1) + np.diag([1.0, 2.0, 0.7])

    def student(x=None, size=None):
        with plate(x, size):
            return pyro.sample("x", dist.MultivariateStudentT(tensor(df), tensor(loc), tensor(root)), obs=x)

    shape = root @ root.T
    x = hide(stats.multivariate_t(loc, shape, df, seed=3).rvs(25), 0.3, 4)
    task = task_of(student, x)
    assert task.structure.exact == "no" and "'x_missing'" in task.structure.reason
    for row, estimate, standard_error in zip(x, *naive(task, 20_000), strict=True):
        seen = ~np.isnan(row)
        want = stats.multivariate_t(loc[seen], shape[np.ix_(seen, seen)], df).logpdf(row[seen]) if seen.any() else 0.0
        assert abs(estimate - want) <= 4.5 * standard_error + 1e-9


# ---- exact by being quadratic -------------------------------------------------------------------------------------

RNG = np.random.default_rng(6)
FACTOR, NOISE, CENTER = RNG.normal(size=(5, 2)), RNG.uniform(0.5, 1.5, 5), RNG.normal(size=5)


def low_rank(x=None, size=None):
    loc, factor = pyro.param("loc", tensor(CENTER)), pyro.param("factor", tensor(FACTOR))
    with plate(x, size):
        return pyro.sample("x", dist.LowRankMultivariateNormal(loc, factor, tensor(NOISE)), obs=x)


def test_a_low_rank_normal_is_exact_and_imputed_by_its_conditionals():
    covariance = FACTOR @ FACTOR.T + np.diag(NOISE)
    x = hide(RNG.multivariate_normal(CENTER, covariance, size=40), 0.3, 9)
    x[3] = np.nan
    task = task_of(low_rank, x)
    assert task.structure.exact == "linear-gaussian"
    torch.manual_seed(3)
    draws = {k: v.numpy() for k, v in task.exact.draw(task.exact.responsibilities(), 100).items()}
    found, evidence = impute(task, draws, {}, 100), task.exact.per_datum().numpy()
    for i, row in enumerate(x):
        o, m = ~np.isnan(row), np.isnan(row)
        if not o.any():
            assert evidence[i] == 0.0
            continue
        seen = stats.multivariate_normal(CENTER[o], covariance[np.ix_(o, o)])
        np.testing.assert_allclose(evidence[i], seen.logpdf(row[o]), rtol=1e-10)
        gain = covariance[np.ix_(m, o)] @ np.linalg.inv(covariance[np.ix_(o, o)])
        np.testing.assert_allclose(found.mean[i, m], CENTER[m] + gain @ (row[o] - CENTER[o]), atol=1e-8)
        variance = np.diag(covariance[np.ix_(m, m)] - gain @ covariance[np.ix_(o, m)])
        np.testing.assert_allclose(found.sd[i, m], np.sqrt(variance), rtol=1e-8)
    fit = em.fit(task, max_iter=3)
    assert np.diff(fit.trace["log_likelihood"]).min() > -1e-9


class Bent(TorchDistribution):
    """x0 ~ N(0, 1), x1 ~ N(x0, 1), x2 ~ N(tanh(x1), 1): quadratic in x0 and x2, not in x1."""

    arg_constraints = {}
    support = constraints.real_vector

    def __init__(self, batch_shape=()):
        super().__init__(torch.Size(batch_shape), torch.Size([3]), False)

    def expand(self, batch_shape, _instance=None):
        return Bent(batch_shape)

    def log_prob(self, value):
        a, b, c = value.unbind(-1)
        return sum(dist.Normal(m, 1.0).log_prob(v) for v, m in ((a, torch.zeros(())), (b, a), (c, b.tanh())))

    def sample(self, sample_shape=torch.Size()):  # noqa: B008
        return torch.randn(sample_shape + self.batch_shape + self.event_shape)


def test_quadratic_in_what_is_missing_and_not_in_what_is_seen():
    """One hole in a thousand decides it."""

    def bent(x=None, size=None):
        with plate(x, size):
            return pyro.sample("x", Bent(), obs=x)

    x = np.random.default_rng(0).normal(size=(500, 3))
    x[::3, 0] = x[1::5, 2] = np.nan
    task = task_of(bent, x)
    assert task.structure.exact == "linear-gaussian"
    a, b, c = np.where(np.isnan(x), 0.0, x).T
    want = np.where(np.isnan(x[:, 0]), stats.norm(0, 2**0.5).logpdf(b), stats.norm.logpdf(a) + stats.norm.logpdf(b - a))
    want = want + np.where(np.isnan(x[:, 2]), 0.0, stats.norm.logpdf(c - np.tanh(b)))
    np.testing.assert_allclose(task.exact.per_datum(), want, atol=1e-9)
    x[123, 1] = np.nan
    found = task_of(bent, x).structure
    assert found.exact == "no" and "site 'x' (Bent)" in found.reason


def test_a_value_of_another_shape_is_refused_with_holes_as_without():
    """The mask of the holes would broadcast one rate to two columns, and weigh what is no density of both."""

    def one_column(x=None, size=None):
        rate = pyro.param("rate", torch.ones(1), constraint=constraints.positive)
        with pyro.plate("data", size if x is None else len(x)):
            return pyro.sample("x", dist.Poisson(rate).to_event(1), obs=x)

    x = np.ones((5, 2))
    for holes in (False, True):
        x[1, 1] = np.nan if holes else 1
        with pytest.raises(UsageError, match=r"site 'x' .*expects values of its distribution's"):
            task_of(one_column, x)
