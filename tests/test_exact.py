"""Exact evidence and posterior against independent closed forms: SciPy, scikit-learn, and plain loops over all values."""

from __future__ import annotations

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from families import CASES
from helpers import exact_of, hide, in_full, task_of, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from sklearn.mixture import GaussianMixture

from inference import run
from inference._exact import densities
from inference._families import _patterns, multivariate_normal
from inference._families.multivariate_normal import MultivariateNormal

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
BESSEL = {"rtol": 1e-6, "atol": 1e-6}  # torch's Bessel function has 7 digits


def check(exact, log_joint: np.ndarray, order: list[int] | None = None, close: dict[str, float] = TIGHT) -> None:
    """Evidence and posterior of the engine against log p(x_i, a) [n, A], by both of its ways."""
    evidence = special.logsumexp(log_joint, axis=1)
    np.testing.assert_allclose(exact.per_datum(), evidence, **close)
    np.testing.assert_allclose(exact.per_datum(own=True), exact.per_datum(), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(float(exact.log_evidence()[0].detach()), evidence.sum(), **close)
    posterior = exact.responsibilities().numpy()[:, order or slice(None)]
    np.testing.assert_allclose(posterior, np.exp(log_joint - evidence[:, None]), atol=close["atol"])
    statistics = exact.e_step()
    np.testing.assert_allclose(statistics.per_datum, evidence, **close)
    np.testing.assert_allclose(statistics.counts.numpy()[order or slice(None)], posterior.sum(0), **TIGHT)


# ---- one family each ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_each_family_against_scipy(name, missing):
    case, rng = CASES[name], np.random.default_rng(1)
    x = case.data(rng, 60)
    x = hide(x, missing) if missing else x
    theta = case.draw_theta(2)
    if missing:
        x[5] = np.nan
    exact = exact_of(case.program, x, theta)
    check(exact, case.log_joint(theta, x), close=BESSEL if name == "von_mises" else TIGHT)
    if missing:
        assert float(exact.per_datum()[5]) == pytest.approx(0.0, abs=1e-12)  # nothing observed: the empty product


@pytest.mark.parametrize("name", ["normal", "mvn_tril", "poisson", "student"])
def test_data_longer_than_a_chunk(name, monkeypatch):
    monkeypatch.setattr(densities, "CHUNK_NUMBERS", 1)
    monkeypatch.setattr(densities, "ALIKE_NUMBERS", 200)
    case = CASES[name]
    x = hide(case.data(np.random.default_rng(3), 500), 0.2)
    theta = case.draw_theta(4)
    exact = exact_of(case.program, x, theta)
    assert len(list(exact.chunks())) > 3
    check(exact, case.log_joint(theta, x))


@pytest.mark.parametrize("name", ["normal", *in_full("mvn_tril"), "categorical", "student"])
def test_threads_share_out_the_chunks(name, monkeypatch):
    """Each of torch's threads takes chunks of its own; the same numbers twice, and those of one thread but for rounding."""
    monkeypatch.setattr(densities, "CHUNK_NUMBERS", 1)
    monkeypatch.setattr(densities, "ALIKE_NUMBERS", 200)
    case = CASES[name]
    x, theta = hide(case.data(np.random.default_rng(3), 700), 0.2), case.draw_theta(4)
    found = []
    for threads in (1, 2, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        exact = exact_of(case.program, x, theta)
        check(exact, case.log_joint(theta, x))
        statistics = exact.e_step()
        found.append([statistics.counts, *(v for site in statistics.sites.values() for v in site.values())])
    for one, two, again in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-10)
        assert torch.equal(two, again)


@pytest.mark.parametrize("name", ["normal", "mvn_tril", "mvn_precision"])
def test_data_far_from_the_origin_keep_their_digits(name):
    """Sufficient statistics of data at 1e6 ± 1 cancel, unless they are centred first."""
    case = CASES[name]
    x, theta = case.data(np.random.default_rng(5), 50), case.draw_theta(6)
    near = exact_of(case.program, x, theta).per_datum()
    far = exact_of(case.program, x + 1e6, {**theta, "locs": theta["locs"] + 1e6})
    np.testing.assert_allclose(far.per_datum(), near, atol=1e-6)


def test_data_far_from_every_component_have_a_finite_density():
    """A million standard deviations away; an underflow to zero would make it −inf, and the posterior 0/0."""
    theta = {"weights": np.array([0.2, 0.8]), "locs": np.zeros((2, 3)), "scales": np.full((2, 3), 0.01)}
    x = np.array([[1e4, 0.0, 0.0], [0.0, 0.0, 0.0]])
    exact = exact_of(user.normal, x, theta)
    np.testing.assert_allclose(exact.per_datum(), CASES["normal"].log_evidence(theta, x), rtol=1e-5)
    np.testing.assert_allclose(exact.responsibilities(), [[0.2, 0.8], [0.2, 0.8]], rtol=1e-3)


# ---- the mixture of Gaussians -----------------------------------------------------------------------------------

SKLEARN = {"full": "full", "tied": "tied", "diagonal": "diag", "spherical": "spherical"}


def gmm_theta(covariance: str, K: int, D: int, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Parameters of zoo.gmm, and their covariances [K, D, D]."""
    theta = {"weights": rng.dirichlet(np.full(K, 3.0)), "locs": 2 * rng.normal(size=(K, D))}
    if covariance in ("full", "tied"):
        shape = (K, D, D) if covariance == "full" else (D, D)
        tril = np.tril(rng.normal(size=shape), -1) + np.eye(D) * rng.uniform(0.5, 2.0, shape[:-1])[..., None]
        theta["scale_tril"] = tril
        return theta, np.broadcast_to(tril @ np.swapaxes(tril, -1, -2), (K, D, D))
    theta["scales"] = rng.uniform(0.5, 2.0, (K, D) if covariance == "diagonal" else K)
    variances = np.broadcast_to(theta["scales"].reshape(K, -1) ** 2, (K, D))
    return theta, np.stack([np.diag(v) for v in variances])


@pytest.mark.parametrize("covariance", SKLEARN)
def test_gmm_against_scikit_learn(covariance):
    K, D, rng = 3, 4, np.random.default_rng(7)
    x = 2 * rng.normal(size=(200, D))
    theta, covariances = gmm_theta(covariance, K, D, rng)
    exact = exact_of("gmm", x, theta, components=K, covariance=covariance)
    peer = GaussianMixture(K, covariance_type=SKLEARN[covariance])
    peer.weights_, peer.means_ = theta["weights"], theta["locs"]
    small = {
        "full": covariances,
        "tied": covariances[0],
        "diagonal": covariances.diagonal(axis1=1, axis2=2),
        "spherical": covariances[:, 0, 0],
    }[covariance]
    peer.covariances_ = small
    inverse = np.linalg.cholesky(np.linalg.inv(small)) if covariance in ("full", "tied") else small**-0.5
    peer.precisions_cholesky_ = inverse
    np.testing.assert_allclose(exact.per_datum(), peer.score_samples(x), **TIGHT)
    np.testing.assert_allclose(exact.responsibilities(), peer.predict_proba(x), atol=1e-9)


@settings(max_examples=25)
@given(
    K=st.integers(1, 4),
    D=st.integers(1, 5),
    n=st.integers(1, 40),
    covariance=st.sampled_from(list(SKLEARN)),
    missing=st.sampled_from([0.0, 0.3, 0.9]),
    seed=st.integers(0, 1000),
)
def test_gmm_of_any_shape_against_scipy(K, D, n, covariance, missing, seed):
    rng = np.random.default_rng(seed)
    x = hide(3 * rng.normal(size=(max(n, K), D)), missing, seed)
    theta, covariances = gmm_theta(covariance, K, D, rng)
    exact = exact_of("gmm", x, theta, components=K, covariance=covariance)
    expected = np.empty((len(x), K))
    for i, k in itertools.product(range(len(x)), range(K)):
        seen = np.flatnonzero(~np.isnan(x[i]))
        block = covariances[k][np.ix_(seen, seen)]
        density = stats.multivariate_normal(theta["locs"][k][seen], block).logpdf(x[i][seen]) if len(seen) else 0.0
        expected[i, k] = np.log(theta["weights"][k]) + density
    check(exact, expected)


def test_the_log_prior_of_gmm_against_scipy():
    """π ~ Dirichlet(2), μ ~ N(m, (2s)²), v ~ InverseGamma(2, s²), C ~ LKJ(2): for D = 2 the density of ρ is ¾ (1 − ρ²)."""
    rng = np.random.default_rng(8)
    x = rng.normal(size=(50, 2)) * [2.0, 5.0] + [1.0, -3.0]
    m, s = x.mean(0), x.std(0)
    weights, locs, variances = np.array([0.3, 0.7]), rng.normal(size=(2, 2)), rng.uniform(1, 4, (2, 2))
    rho = np.array([0.4, -0.8])
    scales = np.sqrt(variances)
    covariances = scales[:, :, None] * scales[:, None] * np.stack([[[1, r], [r, 1]] for r in rho])
    point = {"weights": weights, "locs": locs, "covariances": covariances}
    exact = exact_of("gmm", x, priors=True)
    evidence, prior = exact.log_evidence(None, {k: tensor(v) for k, v in point.items()})
    expected = (
        stats.dirichlet([2, 2]).logpdf(weights)
        + stats.norm.logpdf(locs, m, 2 * s).sum()
        + stats.invgamma.logpdf(variances, 2, scale=s**2).sum()
        + np.log(0.75 * (1 - rho**2)).sum()
        - np.log(scales.prod(1)).sum()  # |∂Σ / ∂(v, ρ)| = √(v_1 v_2)
    )
    assert float(prior) == pytest.approx(expected, rel=1e-9)
    density = 0.0
    for k in range(2):
        density = density + weights[k] * stats.multivariate_normal(locs[k], covariances[k]).pdf(x)
    assert float(evidence) == pytest.approx(np.log(density).sum(), rel=1e-9)


# ---- more than one discrete latent --------------------------------------------------------------------------------


def test_two_sites_against_a_loop():
    rng = np.random.default_rng(9)
    first, second = rng.dirichlet([2, 2]), rng.dirichlet([1, 1, 1], 2)
    locs, scale = 2 * rng.normal(size=(2, 3, 3)), rng.uniform(0.5, 1.5, 3)
    x = hide(2 * rng.normal(size=(40, 3)), 0.2)
    exact = exact_of(user.two_sites, x, {"first": first, "second": second, "locs": locs, "scale": scale})
    names = [
        (int(a), int(b))
        for a, b in zip(exact.assignments["z1"].flatten(), exact.assignments["z2"].flatten(), strict=True)
    ]
    joint = np.empty((len(x), 6))
    pairs = list(itertools.product(range(2), range(3)))
    for i, (j, (a, b)) in itertools.product(range(len(x)), enumerate(pairs)):
        seen = ~np.isnan(x[i])
        density = stats.norm.logpdf(x[i][seen], locs[a, b][seen], scale[seen]).sum()
        joint[i, j] = np.log(first[a]) + np.log(second[a, b]) + density
    check(exact, joint, [names.index(p) for p in pairs])
    posterior = np.exp(joint - special.logsumexp(joint, axis=1, keepdims=True)).reshape(-1, 2, 3)
    marginals = exact.marginals(exact.responsibilities())
    np.testing.assert_allclose(marginals["z1"], posterior.sum(2), atol=1e-9)
    np.testing.assert_allclose(marginals["z2"], posterior.sum(1), atol=1e-9)
    assert exact.label(names.index((1, 2))) == "z1=1, z2=2"


@pytest.mark.parametrize("program", [user.causes, user.causes_apart])
def test_latents_in_a_plate_inside_data_against_a_loop(program):
    rng = np.random.default_rng(10)
    probs, effects, scale = rng.uniform(0.1, 0.9, 3), rng.normal(size=(3, 3)), rng.uniform(0.5, 1.5, 3)
    x = hide(rng.normal(size=(30, 3)), 0.2)
    exact = exact_of(program, x, {"probs": probs, "effects": effects, "scale": scale})
    values = exact.assignments["on"].reshape(8, 3).numpy()
    assert sorted(map(tuple, values)) == sorted(itertools.product((0.0, 1.0), repeat=3))
    joint = np.empty((len(x), 8))
    for i, (a, on) in itertools.product(range(len(x)), enumerate(values)):
        seen = ~np.isnan(x[i])
        prior = stats.bernoulli.logpmf(on, probs).sum()
        joint[i, a] = prior + stats.norm.logpdf(x[i][seen], (on @ effects)[seen], scale[seen]).sum()
    check(exact, joint)


@pytest.mark.parametrize("program", [user.pixels, user.pixels_left])
def test_observations_in_a_plate_inside_data(program):
    """The same density, written with an inner plate or with an event."""
    rng = np.random.default_rng(11)
    theta = CASES["bernoulli"].draw_theta(12)
    x = hide(CASES["bernoulli"].data(rng, 40), 0.3)
    check(exact_of(program, x, theta), CASES["bernoulli"].log_joint(theta, x))


def test_a_mean_that_differs_from_row_to_row():
    rng = np.random.default_rng(13)
    x = rng.normal(size=(50, 2))
    x[4, 1] = np.nan
    weights, a, b, s = rng.dirichlet([2, 2]), rng.normal(size=2), rng.normal(size=2), rng.uniform(0.5, 1.5, 2)
    exact = exact_of(user.regressions, x, {"weights": weights, "offsets": a, "slopes": b, "scales": s})
    joint = np.log(weights) + np.nan_to_num(stats.norm.logpdf(x[:, 1:], a + b * x[:, :1], s))
    check(exact, joint)


def test_a_mask_of_the_program_is_honoured():
    """A program may leave rows out by a mask of its own: what is masked has a density of 1."""
    import pyro
    import pyro.distributions as dist

    def masked(x=None, size=None):
        weights, locs = user.simplex(), user.real("locs", 2, 3)
        with user.rows(x, size):
            z = pyro.sample("z", dist.Categorical(weights))
            with pyro.poutine.mask(mask=x[:, 0] > 0):
                pyro.sample("x", dist.Normal(locs[z], 1.0).to_event(1), obs=x)

    rng = np.random.default_rng(14)
    x, locs, weights = rng.normal(size=(30, 3)), rng.normal(size=(2, 3)), np.array([0.3, 0.7])
    density = np.where(x[:, :1] > 0, stats.norm.logpdf(x[:, None], locs).sum(-1), 0.0)
    check(exact_of(masked, x, {"weights": weights, "locs": locs}), np.log(weights) + density)


def test_a_scale_of_the_program_is_honoured():
    """A weight on the log-density of each row, as for observations that stand for several."""
    import pyro
    import pyro.distributions as dist

    def weighted(x=None, size=None):
        weights, locs = user.simplex(), user.real("locs", 2, 2)
        with user.rows(x, size):
            z = pyro.sample("z", dist.Categorical(weights))
            with pyro.poutine.scale(scale=x[:, 0]):
                pyro.sample("x", dist.Normal(locs[z], 1.0).to_event(1), obs=x[:, 1:])

    rng = np.random.default_rng(14)
    x = np.column_stack([rng.uniform(0.5, 3, 30), rng.normal(size=(30, 2))])
    locs, weights = rng.normal(size=(2, 2)), np.array([0.3, 0.7])
    density = x[:, :1] * stats.norm.logpdf(x[:, None, 1:], locs).sum(-1)
    check(exact_of(weighted, x, {"weights": weights, "locs": locs}), np.log(weights) + density)


def test_two_observed_sites():
    import pyro
    import pyro.distributions as dist

    def both(x=None, size=None):
        weights, rates, locs = user.simplex(), user.positive("rates", 2), user.real("locs", 2, 2)
        with user.rows(x, size):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("count", dist.Poisson(rates[z]), obs=x[:, 0])
            pyro.sample("place", dist.Normal(locs[z], 1.0).to_event(1), obs=x[:, 1:])

    rng = np.random.default_rng(15)
    x = hide(np.column_stack([rng.poisson(3, 40), rng.normal(size=(40, 2))]), 0.3)
    weights, rates, locs = rng.dirichlet([2, 2]), rng.uniform(1, 5, 2), rng.normal(size=(2, 2))
    joint = np.empty((40, 2))
    for i, k in itertools.product(range(40), range(2)):
        count = 0.0 if np.isnan(x[i, 0]) else stats.poisson.logpmf(x[i, 0], rates[k])
        seen = ~np.isnan(x[i, 1:])
        joint[i, k] = np.log(weights[k]) + count + stats.norm.logpdf(x[i, 1:][seen], locs[k][seen]).sum()
    check(exact_of(both, x, {"weights": weights, "rates": rates, "locs": locs}), joint)


def test_a_program_with_no_latent_is_its_own_density():
    exact = exact_of(user.normal_mean, np.ones((4, 1)))
    evidence, prior = exact.log_evidence(None, {"mean": tensor(0.3)})
    assert float(evidence) == pytest.approx(4 * stats.norm.logpdf(1.0, 0.3, 0.7), rel=1e-12)
    assert float(prior) == pytest.approx(stats.norm.logpdf(0.3, 1.0, 2.0), rel=1e-12)


# ---- gradients and draws ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["poisson", "mvn_tril", "student"])
def test_the_evidence_is_differentiable(name):
    """By finite differences along a random direction of each parameter."""
    case = CASES[name]
    theta, x = case.draw_theta(16), case.data(np.random.default_rng(17), 30)
    exact = exact_of(case.program, x, theta)
    leaves = {n: v.detach().requires_grad_() for n, v in exact.program.values().items()}
    exact.log_evidence(leaves)[0].backward()
    rng = np.random.default_rng(18)
    for n, leaf in leaves.items():
        direction = rng.normal(size=leaf.shape)
        if n == "weights":
            direction -= direction.mean()  # along the simplex
        if n == "trils":
            direction = np.tril(direction)
        step = 1e-6
        ends = [case.log_evidence({**theta, n: theta[n] + sign * step * direction}, x).sum() for sign in (1, -1)]
        slope = float((leaf.grad * tensor(direction)).sum())
        assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-4)


def test_posterior_draws_have_the_frequencies_of_the_posterior():
    case = CASES["poisson"]
    exact = exact_of(case.program, case.data(np.random.default_rng(19), 20), case.draw_theta(20))
    posterior = exact.responsibilities()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = exact.draw(posterior, 4000)["z"]
    assert draws.shape == (4000, 20)
    p = posterior[:, 1].numpy()
    error = draws.double().mean(0).numpy() - p
    assert np.all(np.abs(error) <= 5 * np.sqrt(p * (1 - p) / 4000) + 1e-9)


def test_posterior_draws_of_a_site_in_an_inner_plate():
    exact = exact_of(user.causes, np.random.default_rng(21).normal(size=(10, 3)))
    posterior = exact.responsibilities()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = exact.draw(posterior, 3000)["on"]
    assert draws.shape == (3000, 10, 3)
    expected = posterior @ exact.assignments["on"].reshape(8, 3).double()
    assert float((draws.double().mean(0) - expected).abs().max()) < 5 * 0.5 / 3000**0.5


def test_verification_of_large_data_looks_at_some_rows(monkeypatch):
    """By the program alone; where those rows do not agree with the products, there is no result."""
    from inference import run
    from inference._run import verify

    x = (np.random.default_rng(0).random((200, user.D)) < 0.4).astype(float)
    monkeypatch.setattr(verify, "OWN_NUMBERS", 200)
    fit = run(user.bernoulli, x, "em")
    assert fit.verified.value == pytest.approx(fit.claimed.value, rel=1e-9)
    original = type(fit.task.exact).per_datum

    def wrong(self, parameters=None, globals=None, own=False):
        assert not own  # too many numbers for that
        return original(self, parameters, globals, own) + 1e-3

    monkeypatch.setattr(type(fit.task.exact), "per_datum", wrong)
    with pytest.raises(ArithmeticError, match="two exact values"):
        verify.verify(fit.task, fit.fit)


@pytest.mark.parametrize("family", ["bernoulli", "categorical"])
def test_a_vector_of_discrete_entries_is_enumerated(family):
    """All joint values of its entries, beside a sum over them by hand."""
    weights = np.random.default_rng(3).normal(size=(3, 4))
    size = 2 if family == "bernoulli" else 3
    chances = np.array([[0.3, 0.7], [0.9, 0.1], [0.5, 0.5]]) if size == 2 else np.array([[0.2, 0.3, 0.5]] * 3)

    def vector(x=None, size=None):
        prior = dist.Bernoulli(tensor(chances[:, 1])) if family == "bernoulli" else dist.Categorical(tensor(chances))
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", prior.to_event(1))
            return pyro.sample("x", dist.Normal(z.double() @ tensor(weights), 0.5).to_event(1), obs=x)

    x = np.random.default_rng(4).normal(size=(12, 4))
    terms = []
    for z in itertools.product(range(size), repeat=3):
        prior = sum(np.log(chances[i, v]) for i, v in enumerate(z))
        terms.append(prior + stats.norm.logpdf(x, np.array(z) @ weights, 0.5).sum(1))
    task = task_of(vector, x)
    assert (task.structure.exact, task.structure.assignments) == ("enumerable", size**3)
    np.testing.assert_allclose(task.exact.per_datum(), special.logsumexp(terms, axis=0), rtol=1e-10)
    fit = run(vector, x, "em")
    assert fit.verified.kind == "exact" and fit.claimed.value == pytest.approx(fit.verified.value, rel=1e-9)


@pytest.mark.parametrize("D", [1, 5, 60])
def test_patterns_that_few_and_many_rows_have_each_row_by_itself(D):
    rng = np.random.default_rng(D)
    patterns = np.concatenate([rng.random((8, D)) < 0.4, np.zeros((1, D), bool), np.ones((1, D), bool)])
    which = np.repeat(np.arange(10), [1, 2, 3, 40, 5, 9, 17, 1, 30, 4])
    x = torch.tensor(np.where(patterns[rng.permutation(which)], np.nan, rng.normal(size=(len(which), D))))
    tril = torch.tensor(np.linalg.cholesky([np.cov(rng.normal(size=(D, 3 * D + 3))).reshape(D, D) for _ in range(2)]))
    params, weights = {"loc": torch.tensor(rng.normal(size=(2, D))), "scale_tril": tril}, torch.rand(len(x), 2).double()
    family = MultivariateNormal(x)
    found, moments = family.log_prob(x, params), family.statistics(x, weights, params)["moments"]
    expected = torch.zeros_like(moments)
    for i, a in itertools.product(range(len(x)), range(2)):
        seen, covariance, loc = ~x[i].isnan(), tril[a] @ tril[a].mT, params["loc"][a]
        if not seen.any():
            assert found[i, a] == 0
            continue
        inner = covariance[seen][:, seen]
        density = stats.multivariate_normal(loc[seen].numpy(), inner.numpy()).logpdf(x[i][seen].numpy())
        assert found[i, a].item() == pytest.approx(density, rel=1e-10)
        gain = torch.linalg.solve(inner, covariance[seen]).mT  # of all entries from the seen ones
        u = torch.cat([loc + gain @ (x[i] - loc)[seen], torch.ones(1).double()])
        u[:-1] -= family.center
        rest = torch.nn.functional.pad(covariance - gain @ covariance[seen], (0, 1, 0, 1))
        expected[a] += weights[i, a] * (torch.outer(u, u) + rest)
    torch.testing.assert_close(moments, expected, rtol=1e-9, atol=1e-9)


def test_rows_are_sorted_once_and_solved_once_an_e_step_but_never_for_other_rows_or_parameters(monkeypatch):
    rng = np.random.default_rng(2)
    x = torch.tensor(np.where(rng.random((300, 6)) < 0.2, np.nan, rng.normal(size=(300, 6))))
    calls = []
    for module, name in ((_patterns, "alike"), (multivariate_normal, "solved")):
        whole = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, of=whole, by=name: calls.append(by) or of(*given))
    task = task_of("gmm", x.numpy(), components=2)
    first, solved = task.engine.e_step(), calls.count("solved")
    assert calls.count("alike") == 1 and solved > 0
    second = task.engine.e_step()
    for passes, look in enumerate((task.engine.per_datum, task.engine.responsibilities), 3):
        look()
        assert calls.count("alike") == 1 and calls.count("solved") == passes * solved
    torch.testing.assert_close(first.sites["x"]["moments"], second.sites["x"]["moments"], rtol=0, atol=0)

    family, weights = MultivariateNormal(x), torch.rand(300, 1).double()
    params = [
        {"loc": torch.full((1, 6), v).double(), "scale_tril": v * torch.eye(6).double()[None]} for v in (1.0, 2.0)
    ]
    with torch.no_grad():
        family.density(params[0])(x)
        known, other = (family.statistics(x, weights, p)["moments"] for p in params)
        fresh = [MultivariateNormal(x).statistics(x, weights, p)["moments"] for p in params]
        torch.testing.assert_close([known, other], fresh, rtol=0, atol=0)
        x[:100] = x[:100].flip(0)  # other patterns in the same place
        changed = (f.statistics(x, weights, params[1])["moments"] for f in (family, MultivariateNormal(x)))
        torch.testing.assert_close(*changed)
