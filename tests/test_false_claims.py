"""Kinds of programs of which a false claim is easily made: the right value, or a refusal of a sentence or two.

Each kind stands here in a few variants, with truths by closed forms, sums and quadrature. What serves a program must be right;
whether it is served is another matter, except where a test says so.
"""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import optimize, special, stats
from soundness_claims import is_sound
from soundness_programs import Truth
from torch.distributions import constraints

from inference import run
from zoo._errors import UsageError


def rows(x, size):
    return pyro.plate("data", size if x is None else len(x))


def column(x, c):
    return None if x is None else x[:, c]


def tried(model, x, method, **options):
    """The fit, or None for a refusal in words."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what the programs here do is odd, to torch too
            return run(model, x, method, **options)
    except UsageError as refusal:
        said = str(refusal)
    assert "Traceback" not in said and 20 < len(said) < 900
    return None


def right(model, x, truth, method="em", error=0.0, **options):
    """No claim of the fit is false, where there is a fit; returns it. `truth`: log p(x), or a function of the fit."""
    fit = tried(model, x, method, **options)
    if fit is not None:
        value = float(truth(fit) if callable(truth) else truth)
        for evidence in (fit.claimed, fit.verified):
            if evidence is not None:
                said = f"{method}: {evidence.value} ± {evidence.se} {evidence.kind}, truth {value}; {fit.warnings}"
                assert is_sound(evidence, fit.warnings, Truth(value, error)), said
    return fit


def served(model, x, truth, method="em", **options):
    """As `right`, and the claim is exact."""
    fit = right(model, x, truth, method, **options)
    assert fit is not None and fit.claimed.kind == "exact"
    return fit


def integral(log_joint, low, high, count=20_001):
    """Σ_rows log ∫ exp log_joint(z) dz, by the midpoint rule; log_joint: [points] -> [n, points]."""
    edges = np.linspace(low, high, count + 1)
    z = (edges[1:] + edges[:-1]) / 2
    return special.logsumexp(log_joint(z), axis=1).sum() + len(log_joint(z[:1])) * np.log(edges[1] - edges[0])


def of_z(prior, curve, scale):
    """A program z ~ prior, x ~ N(curve(z), scale)."""

    def model(x=None, size=None):
        with rows(x, size):
            z = pyro.sample("z", dist.Normal(*prior))
            return pyro.sample("x", dist.Normal(curve(z).unsqueeze(-1), scale).to_event(1), obs=x)

    return model


# ---- what lies between a latent and its site ---------------------------------------------------------------------------

BINARY = {
    "where": (lambda z: torch.where(z > -0.25, 4.0, 0.0), -0.25, 4.0, 0.0),
    "a comparison times a number": (lambda z: 2.0 * (z < 1.5), 1.5, 0.0, 2.0),
    "sign": (torch.sign, 0.0, 1.0, -1.0),
    "heaviside": (lambda z: torch.heaviside(z - 1.0, torch.zeros(())), 1.0, 1.0, 0.0),
    "index": (lambda z: torch.tensor([-1.0, 2.0])[(z > 0.5).long()], 0.5, 2.0, -1.0),
    "cast": (lambda z: (z > 2.0).to(z.dtype) * 3, 2.0, 3.0, 0.0),
}


@pytest.mark.parametrize("kind", BINARY)
def test_a_threshold_on_a_latent_is_not_linear(kind):
    curve, at, above, below = BINARY[kind]
    p, rng = stats.norm.sf(at), np.random.default_rng(5)
    x = np.where(rng.random((40, 1)) < 0.5, above, below) + 0.5 * rng.normal(size=(40, 1))
    each = np.log(p) + stats.norm.logpdf(x, above, 0.5), np.log1p(-p) + stats.norm.logpdf(x, below, 0.5)
    truth = np.logaddexp(*each).sum()
    right(of_z((0.0, 1.0), curve, 0.5), x, truth)
    if kind in ("where", "index"):
        right(of_z((0.0, 1.0), curve, 0.5), x, truth, "importance", proposal="prior", epochs=0)


CLAMPS = {
    "min": ((-200.0, 20.0), lambda z: z.clamp(min=-230.0), lambda z: np.maximum(z, -230), 4.0),
    "relu": ((50.0, 4.0), lambda z: torch.relu(z - 52.0), lambda z: np.maximum(z - 52, 0), 1.0),
    "minimum": (
        (0.0, 0.01),
        lambda z: torch.minimum(z, torch.full_like(z, 0.02)),
        lambda z: np.minimum(z, 0.02),
        0.005,
    ),
    "square": ((1000.0, 10.0), lambda z: 1e-3 * z**2, lambda z: 1e-3 * z**2, 5.0),
}


@pytest.mark.parametrize("kind", CLAMPS)
def test_a_bend_where_the_prior_lies_is_seen_however_far_from_zero(kind):
    (loc, scale), curve, same, noise = CLAMPS[kind]
    rng = np.random.default_rng(6)
    x = (same(loc + scale * rng.normal(size=60)) + noise * rng.normal(size=60))[:, None]

    def joint(z):
        return stats.norm.logpdf(x, same(z), noise) + stats.norm.logpdf(z, loc, scale)

    right(of_z((loc, scale), curve, noise), x, integral(joint, loc - 9 * scale, loc + 9 * scale), error=1e-5)


@pytest.mark.parametrize(("bend", "falling"), [(torch.abs, False), (torch.square, True)])
def test_a_bend_that_few_rows_have_is_seen(bend, falling):
    """In a file sorted by the covariate it is in none of the first rows."""
    rng = np.random.default_rng(7)
    u = np.sort(rng.random(80))[:: -1 if falling else 1]

    def model(x=None, size=None):
        with rows(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            u = torch.zeros(size) if x is None else x[:, 0]
            bent = (u < 0.1) if falling else (u > 0.9)
            return pyro.sample("y", dist.Normal(torch.where(bent, bend(z), z), 0.5), obs=column(x, 1))

    x = np.stack([u, rng.normal(size=80)], 1)
    same = {torch.abs: np.abs, torch.square: np.square}[bend]
    bent = ((u < 0.1) if falling else (u > 0.9))[:, None]

    def joint(z):
        return stats.norm.logpdf(x[:, 1:], np.where(bent, same(z), z), 0.5) + stats.norm.logpdf(z)

    right(model, x, integral(joint, -9, 9), error=1e-5)


def test_a_logistic_is_not_gaussian_where_its_prior_is_vague():
    rng = np.random.default_rng(8)
    x = (rng.random((30, 4)) < 0.6) * 1.0

    def model(x=None, size=None):
        a = pyro.sample("a", dist.Normal(torch.tensor(0.0), 200.0))
        with rows(x, size):
            b = pyro.sample("b", dist.Normal(torch.zeros(()), 1.0))
            return pyro.sample("x", dist.Bernoulli(logits=(a + b).unsqueeze(-1).expand(*b.shape, 4)).to_event(1), obs=x)

    assert tried(model, x, "em") is None
    fit = tried(model, x, "laplace")
    assert fit is None or all(e is None or e.kind != "exact" for e in (fit.claimed, fit.verified))


def test_a_binomial_whose_count_is_another_latent_has_every_value_that_it_may_take():
    def model(x=None, size=None):
        with rows(x, size):
            z = pyro.sample("z", dist.Bernoulli(0.01))
            k = pyro.sample("k", dist.Binomial(2 + 2 * z, 0.5))
            return pyro.sample("x", dist.Normal(k.to(torch.get_default_dtype()).unsqueeze(-1), 0.25).to_event(1), obs=x)

    x = np.array([0.0, 1, 2, 3, 4, 2, 1])[:, None] + 0.1
    terms = [
        np.log([0.99, 0.01][z]) + stats.binom.logpmf(k, 2 + 2 * z, 0.5) + stats.norm.logpdf(x[:, 0], k, 0.25)
        for z in (0, 1)
        for k in range(3 + 2 * z)
    ]
    right(model, x, special.logsumexp(terms, axis=0).sum())


def test_a_binomial_whose_count_is_a_covariate():
    def model(x=None, size=None):
        with rows(x, size):
            count = torch.full((size,), 3.0) if x is None else x[:, 0]
            k = pyro.sample("k", dist.Binomial(count, 0.25))
            return pyro.sample("y", dist.Normal(k, 0.5), obs=column(x, 1))

    rng = np.random.default_rng(9)
    x = np.stack([rng.integers(1, 5, 30) * 1.0, rng.normal(1, 1, 30)], 1)
    x[-1, 0] = 7
    each = [
        special.logsumexp([stats.binom.logpmf(k, c, 0.25) + stats.norm.logpdf(y, k, 0.5) for k in range(int(c) + 1)])
        for c, y in x
    ]
    right(model, x, sum(each))


def test_operations_without_a_derivative_are_no_crash():
    x = np.random.default_rng(10).normal(size=(20, 1))
    p = stats.norm.sf(0)
    truth = np.logaddexp(np.log(p) + stats.norm.logpdf(x, 1, 0.5), np.log(p) + stats.norm.logpdf(x, 0, 0.5)).sum()
    for curve in (lambda z: torch.signbit(z) * 1.0, lambda z: torch.heaviside(z, torch.ones_like(z))):
        for method, options in (("em", {}), ("importance", {"proposal": "prior", "epochs": 0}), ("svi", {"epochs": 2})):
            right(of_z((0.0, 1.0), curve, 0.5), x, truth, method, **options)


# ---- rows that are joined ----------------------------------------------------------------------------------------------

CHAINS = {
    "the row before": lambda v: torch.cat([torch.zeros_like(v[..., :1]), v[..., :-1]], -1),
    "the row after": lambda v: torch.cat([v[..., 1:], torch.zeros_like(v[..., :1])], -1),
    "the mean": lambda v: v.mean(-1, keepdim=True).expand(v.shape),
    "the sum so far": lambda v: v.cumsum(-1),
    "the last row": lambda v: v[..., -1:].expand(v.shape),
}


def chain(prior, link):
    def model(x=None, size=None):
        with rows(x, size):
            z = pyro.sample("z", prior())
            return pyro.sample("x", dist.Normal((z + 1.5 * link(z)).unsqueeze(-1), 1.0).to_event(1), obs=x)

    return model


SAMPLERS = {
    "em": ("em", {}),
    "importance": ("importance", {"proposal": "prior", "epochs": 0}),
    "svi": ("svi", {"epochs": 30}),
    "weighted svi": ("svi", {"epochs": 30, "particles": 8}),
}


@pytest.mark.parametrize("link", CHAINS)
def test_joined_rows_with_normal_latents(link):
    n = 9
    x = np.random.default_rng(11).normal(size=(n, 1)) + 1
    B = np.eye(n) + 1.5 * CHAINS[link](torch.eye(n, dtype=torch.float64)).numpy().T
    truth = stats.multivariate_normal(np.zeros(n), B @ B.T + np.eye(n)).logpdf(x[:, 0])
    for method, options in SAMPLERS.values():
        right(chain(lambda: dist.Normal(0.0, 1.0), CHAINS[link]), x, truth, method, **options)


@pytest.mark.parametrize("link", CHAINS)
def test_joined_rows_with_switches(link):
    n = 8
    x = np.random.default_rng(12).normal(size=(n, 1)) + 1
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=torch.float64)
    mean = (every + 1.5 * CHAINS[link](every)).numpy()
    p = 0.25 ** every.sum(1).numpy() * 0.75 ** (n - every.sum(1).numpy())
    truth = special.logsumexp(stats.norm.logpdf(x[:, 0], mean).sum(1) + np.log(p))
    model = chain(lambda: dist.Bernoulli(0.25), CHAINS[link])
    for method, options in SAMPLERS.values():
        right(model, x, truth, method, **options)
    assert tried(model, x, "gibbs", sweeps=20) is None


def test_rows_joined_through_the_data_of_a_program_without_latents():
    x = np.random.default_rng(13).normal(size=(40, 1)) + 2

    def model(x=None, size=None):
        s = pyro.param("s", torch.tensor(1.5), constraint=constraints.positive)
        with rows(x, size):
            middle = torch.zeros(size, 1) if x is None else x.median(0, keepdim=True).values.expand(len(x), 1)
            return pyro.sample("x", dist.Normal(middle, s).to_event(1), obs=x)

    def truth(fit):
        return stats.norm.logpdf(x, np.sort(x[:, 0])[19], float(fit.parameters["s"])).sum()

    right(model, x, truth)
    right(model, x, truth, "svi", epochs=5, batch=16)


# ---- the place of a row ------------------------------------------------------------------------------------------------


def _numbered(how, values):
    def model(x=None, size=None):
        slope = pyro.param("slope", torch.tensor(0.5))
        n = size if x is None else len(x)
        with pyro.plate("data", n) as i:
            at = {"index": i * 1.0, "arange": torch.arange(n) * 1.0, "array": torch.as_tensor(values)[:n]}[how]
            return pyro.sample("x", dist.Normal((slope * at / len(values)).unsqueeze(-1), 1.0).to_event(1), obs=x)

    return model


@pytest.mark.parametrize("how", ["index", "arange", "array"])
@pytest.mark.parametrize(("method", "options"), [("em", {}), ("svi", {"epochs": 2, "batch": 64})])
def test_a_row_that_knows_its_number(how, method, options):
    n = 9000 if method == "em" else 100  # more than are looked at in one go
    rng = np.random.default_rng(14)
    values = rng.permutation(n) * 1.0 if how == "array" else np.arange(n) * 1.0
    x = (3 * values / n + rng.normal(size=n))[:, None]
    model = _numbered(how, values)

    def truth(fit):
        return stats.norm.logpdf(x[:, 0], float(fit.parameters["slope"]) * values / n).sum()

    fit = right(model, x, truth, method, **options)
    if fit is not None and method == "em":
        best = (x[:, 0] @ values) * n / (values @ values)
        assert float(fit.parameters["slope"]) == pytest.approx(best, rel=1e-4)


def test_a_row_that_reads_the_row_before():
    n, rng = 9000, np.random.default_rng(15)
    y = np.cumsum(rng.normal(size=n)) * 0.1

    def model(x=None, size=None):
        with rows(x, size):
            before = torch.zeros(size, 1) if x is None else torch.cat([torch.zeros(1, 1), x[:-1]])
            return pyro.sample("x", dist.Normal(before, 1.0).to_event(1), obs=x)

    right(model, y[:, None], stats.norm.logpdf(y - np.r_[0, y[:-1]]).sum())


def test_a_density_that_counts_the_rows():
    x = np.random.default_rng(16).normal(size=(50, 1))

    def model(x=None, size=None):
        n = size if x is None else len(x)
        with pyro.plate("data", n):
            return pyro.sample("x", dist.Normal(torch.tensor(10.0 / n), 1.0).expand([1]).to_event(1), obs=x)

    truth = stats.norm.logpdf(x, 0.2).sum()
    right(model, x, truth)
    right(model, x, truth, "svi", epochs=2, batch=8)


# ---- control flow ------------------------------------------------------------------------------------------------------


def test_an_if_on_the_data():
    x = np.random.default_rng(17).normal(size=(150, 1))
    x[111] = -8.0

    def model(x=None, size=None):
        with rows(x, size):
            wild = x is not None and float(x.min()) < -7
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(z.unsqueeze(-1), 3.0 if wild else 1.0).to_event(1), obs=x)

    truth = stats.norm.logpdf(x, 0, 10**0.5).sum()
    right(model, x, truth)
    right(model, x, truth, "svi", epochs=2, batch=16)


@pytest.mark.parametrize(
    "test", [lambda k: bool(k.reshape(-1)[0] == 1), lambda k: int(k.sum()) > 6, lambda k: k.max().item() > 0]
)
def test_an_if_on_a_draw(test):
    n = 6
    x = np.random.default_rng(18).normal(size=(n, 1))

    def model(x=None, size=None):
        with rows(x, size):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            scale = 2.0 if test(k) else 1.0
            return pyro.sample("x", dist.Normal(k.unsqueeze(-1), scale).to_event(1), obs=x)

    every = [torch.tensor(k) for k in itertools.product([0.0, 1.0], repeat=n)]
    terms = [stats.norm.logpdf(x[:, 0], k.numpy(), 2.0 if test(k) else 1.0).sum() for k in every]
    truth = special.logsumexp(terms) - n * np.log(2)
    right(model, x, truth)
    right(model, x, truth, "importance", proposal="prior", epochs=0)


# ---- handlers, and what stands outside the plate -------------------------------------------------------------------------


@pytest.mark.parametrize("times", [0.25, 3.0])
def test_a_scaled_prior_of_a_global(times):
    x, g = np.random.default_rng(19).normal(1, 1, (40, 1)), np.linspace(-12, 12, 20_001)

    def model(x=None, size=None):
        with pyro.poutine.scale(scale=times):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with rows(x, size):
            return pyro.sample("x", dist.Normal(mu.unsqueeze(-1), 1.0).expand([1]).to_event(1), obs=x)

    joint = stats.norm.logpdf(x, g).sum(0) + times * stats.norm.logpdf(g)
    right(model, x, special.logsumexp(joint) + np.log(g[1] - g[0]), "svi", epochs=60)
    fit = tried(model, x, "em")
    assert fit is None or float(fit.parameters["mu"]) == pytest.approx(x.sum() / (40 + times), abs=1e-5)


def test_a_prior_that_is_masked_out_is_flat():
    x = np.random.default_rng(20).normal(1, 1, (30, 1))

    def model(x=None, size=None):
        with pyro.poutine.mask(mask=False):
            mu = pyro.sample("mu", dist.Normal(-5.0, 0.05))
        with rows(x, size):
            return pyro.sample("x", dist.Normal(mu.unsqueeze(-1), 1.0).expand([1]).to_event(1), obs=x)

    fit = tried(model, x, "em")
    assert fit is None or float(fit.parameters["mu"]) == pytest.approx(x.mean(), abs=1e-5)


WEIGHTED = [
    ("em", {}),
    ("importance", {"proposal": "prior", "epochs": 0}),
    ("importance", {"epochs": 5}),
    ("svi", {"epochs": 5}),
    ("ais", {"temperatures": 10, "leapfrog": 2}),
]


@pytest.mark.parametrize(("site", "times"), [("z", 0.5), ("z", 2.0), ("x", 0.5)])
def test_a_scaled_site_of_each_row(site, times):
    x = np.random.default_rng(21).normal(size=(8, 1)) * 1.5
    a, b = (times if site == s else 1.0 for s in "zx")

    def model(x=None, size=None):
        with rows(x, size):
            with pyro.poutine.scale(scale=a):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.poutine.scale(scale=b):
                return pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    truth = integral(lambda z: b * stats.norm.logpdf(x, z) + a * stats.norm.logpdf(z), -20, 20)
    for method, options in WEIGHTED:
        right(model, x, truth, method, **options)


def test_a_switch_whose_prior_is_masked_out():
    x = np.random.default_rng(22).normal(size=(15, 1))

    def model(x=None, size=None):
        with rows(x, size):
            with pyro.poutine.mask(mask=False):
                k = pyro.sample("k", dist.Bernoulli(0.1))
            return pyro.sample("x", dist.Normal(k.unsqueeze(-1), 1.0).to_event(1), obs=x)

    truth = np.logaddexp(stats.norm.logpdf(x, 0), stats.norm.logpdf(x, 1)).sum()
    for method, options in WEIGHTED[:4]:
        right(model, x, truth, method, **options)


def test_rows_that_a_mask_leaves_out():
    x = np.random.default_rng(23).normal(size=(30, 1))
    seen = x[:, 0] < 0.5

    def masked(x=None, size=None):
        with rows(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.poutine.mask(mask=torch.ones(size).bool() if x is None else x[:, 0] < 0.5):
                return pyro.sample("y", dist.Normal(z, 1.0), obs=column(x, 0))

    def by_obs_mask(x=None, size=None):
        with rows(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            seen = torch.zeros(size).bool() if x is None else x[:, 0] < 0.5
            return pyro.sample("y", dist.Normal(z, 1.0), obs=column(x, 0), obs_mask=seen)

    truth = stats.norm.logpdf(x[seen], 0, 2**0.5).sum()
    for method, options in WEIGHTED[:4]:
        right(masked, x, truth, method, **options)
    for method, options in WEIGHTED[:2]:
        right(by_obs_mask, x, truth, method, **options)


@pytest.mark.parametrize("slope", [2.0, -0.5])
def test_a_delta_on_the_way(slope):
    x = np.random.default_rng(24).normal(size=(20, 1))

    def model(x=None, size=None):
        with rows(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            d = pyro.sample("d", dist.Delta(slope * z))
            return pyro.sample("x", dist.Normal(d.unsqueeze(-1), 1.0).to_event(1), obs=x)

    truth = stats.norm.logpdf(x, 0, (1 + slope**2) ** 0.5).sum()
    for method, options in [*WEIGHTED, ("laplace", {})]:
        right(model, x, truth, method, **options)


def test_an_observation_outside_the_plate_counts():
    x = np.random.default_rng(25).normal(size=(20, 1))

    def model(x=None, size=None):
        m = pyro.param("m", torch.tensor(0.0))
        with rows(x, size):
            found = pyro.sample("x", dist.Normal(m.unsqueeze(-1), 1.0).expand([1]).to_event(1), obs=x)
        pyro.sample("known", dist.Normal(m, 0.25), obs=torch.tensor(4.0))
        return found

    def truth(fit):
        m = float(fit.parameters["m"])
        return stats.norm.logpdf(x, m).sum() + stats.norm.logpdf(4, m, 0.25)

    for method, options in (("em", {}), ("laplace", {}), ("svi", {"epochs": 40})):
        fit = right(model, x, truth, method, **options)
        if fit is not None and method == "em":
            assert float(fit.parameters["m"]) == pytest.approx((x.sum() + 16 * 4) / (20 + 16), abs=1e-4)


def test_a_factor_outside_the_plate_counts():
    x = np.random.default_rng(26).normal(1, 1, (20, 1))

    def model(x=None, size=None):
        m = pyro.param("m", torch.tensor(0.5))
        pyro.factor("penalty", -5 * (m - 2) ** 2)
        with rows(x, size):
            z = pyro.sample("z", dist.Normal(m, 1.0))
            return pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def truth(fit):
        m = float(fit.parameters["m"])
        return stats.norm.logpdf(x, m, 2**0.5).sum() - 5 * (m - 2) ** 2

    for method, options in (("em", {}), ("laplace", {}), ("svi", {"epochs": 20}), ("importance", {"epochs": 5})):
        right(model, x, truth, method, **options)


# ---- missing parents and covariates --------------------------------------------------------------------------------------


def parent(family, map_):
    def model(x=None, size=None):
        with rows(x, size):
            a = pyro.sample("a", family(), obs=column(x, 0))
            b = pyro.sample("b", dist.Normal(map_(a), 1.0), obs=column(x, 1))
            return torch.stack([a, b], -1)

    return model


TABLE = np.array([-1.0, 0.5, 3.0])
PARENTS = {
    "bernoulli": (
        lambda: dist.Bernoulli(0.2),
        lambda a: 3.0 * a - 1,
        lambda a: 3 * a - 1,
        lambda a: stats.bernoulli.logpmf(a, 0.2),
        np.arange(2.0),
    ),
    "poisson": (
        lambda: dist.Poisson(2.0),
        lambda a: 0.5 * a,
        lambda a: 0.5 * a,
        lambda a: stats.poisson.logpmf(a, 2.0),
        np.arange(40.0),
    ),
    "categorical": (
        lambda: dist.Categorical(torch.tensor([0.5, 0.25, 0.25])),
        lambda a: torch.as_tensor(TABLE)[a.long()],
        lambda a: TABLE[np.nan_to_num(a).astype(int)],
        lambda a: np.log(np.where(a == 0, 0.5, 0.25)),
        np.arange(3.0),
    ),
}


@pytest.mark.parametrize("kind", PARENTS)
def test_a_missing_parent_is_summed_out(kind):
    family, map_, same, log_p, support = PARENTS[kind]
    rng = np.random.default_rng(27)
    a = rng.choice(support[:2], 40)
    x = np.stack([a, same(a) + rng.normal(size=40)], 1)
    x[::3, 0], x[1, 1] = np.nan, np.nan
    hidden = special.logsumexp(log_p(support) + stats.norm.logpdf(x[:, 1:], same(support)), axis=1)
    whole = log_p(x[:, 0]) + np.nan_to_num(stats.norm.logpdf(x[:, 1], same(x[:, 0])))
    truth = np.where(np.isnan(x[:, 0]), hidden, whole).sum()
    for method, options in (("em", {}), ("svi", {"epochs": 3}), ("importance", {"proposal": "prior", "epochs": 0})):
        right(parent(family, map_), x, truth, method, **options)


@pytest.mark.parametrize(("slope", "both"), [(2.0, False), (-1.5, True)])
def test_a_missing_normal_parent_is_integrated_out(slope, both):
    rng = np.random.default_rng(28)
    a = 1 + rng.normal(size=40)
    x = np.stack([a, slope * a + rng.normal(size=40)], 1)
    x[::3, 0] = np.nan
    if both:
        x[5] = np.nan
    cov = np.array([[1, slope], [slope, slope**2 + 1]])
    truth = 0.0
    for row in x:
        (k,) = np.nonzero(~np.isnan(row))
        if len(k):
            truth += stats.multivariate_normal(np.array([1, slope])[k], cov[np.ix_(k, k)]).logpdf(row[k])
    model = parent(lambda: dist.Normal(1.0, 1.0), lambda a: slope * a)
    for method, options in (("em", {}), ("svi" if both else "importance", {"epochs": 2})):
        right(model, x, truth, method, **options)


def test_a_missing_parent_beside_a_latent():
    rng = np.random.default_rng(29)
    z = rng.normal(size=30)
    a = z + rng.normal(size=30)
    x = np.stack([a, np.sin(z) + a + rng.normal(size=30)], 1)
    x[::4, 0] = np.nan

    def model(x=None, size=None):
        with rows(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            a = pyro.sample("a", dist.Normal(z, 1.0), obs=column(x, 0))
            b = pyro.sample("b", dist.Normal(torch.sin(z) + a, 1.0), obs=column(x, 1))
            return torch.stack([a, b], -1)

    def joint(z):
        hidden = stats.norm.logpdf(x[:, 1:], np.sin(z) + z, 2**0.5)
        whole = stats.norm.logpdf(x[:, :1], z) + stats.norm.logpdf(x[:, 1:], np.sin(z) + x[:, :1])
        return np.where(np.isnan(x[:, :1]), hidden, whole) + stats.norm.logpdf(z)

    truth = integral(joint, -9, 9)
    for method, options in (
        ("importance", {"proposal": "prior", "epochs": 0}),
        ("ais", {"temperatures": 10, "leapfrog": 2}),
    ):
        right(model, x, truth, method, **options)


COVARIATES = {
    "where": lambda g, b: torch.where(g > 0, b[0], b[1]),
    "index": lambda g, b: b[(g > 0).long()],
    "comparison": lambda g, b: b[0] * (g == 1),
    "nan_to_num": lambda g, b: b[0] + b[1] * g.clamp(min=0).nan_to_num(0.0),
    "product": lambda g, b: b[0] * g,
}


@pytest.mark.parametrize("kind", [k for k in COVARIATES if k != "nan_to_num"])
def test_a_missing_covariate_is_refused(kind):
    """However it reaches the density: a program that fills it in by its own rule says so with `nan_to_num`."""
    rng = np.random.default_rng(30)
    x = np.stack([rng.choice([-1.0, 1.0], 40), rng.normal(size=40)], 1)
    x[::6, 0] = np.nan

    def model(x=None, size=None):
        b = pyro.param("b", torch.tensor([0.0, 0.0]))
        with rows(x, size):
            g = torch.zeros(size) if x is None else x[:, 0]
            return pyro.sample("y", dist.Normal(COVARIATES[kind](g, b), 1.0), obs=column(x, 1))

    for method in ("em", "svi", "laplace"):
        assert tried(model, x, method) is None


# ---- numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [1e-3, 1e-5, 1e-6, 1e-7])
def test_latents_that_enter_alike_under_little_noise(noise):
    rng, n = np.random.default_rng(31), 40

    def model(x=None, size=None):
        with rows(x, size):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(0.0, 2.0))
            return pyro.sample("x", dist.Normal((a - b).unsqueeze(-1).expand(*a.shape, 2), noise).to_event(1), obs=x)

    x = rng.normal(size=(n, 1)) * 5**0.5 + noise * rng.normal(size=(n, 2))
    truth = stats.norm.logpdf(x.sum(1) / 2**0.5, 0, np.sqrt(10 + noise**2)).sum()
    truth += stats.norm.logpdf((x[:, 0] - x[:, 1]) / 2**0.5, 0, noise).sum()
    right(model, x, truth)


@pytest.mark.parametrize("unit", [1.0, 1e-4, 1e-6])
def test_em_finds_the_maximum_in_any_unit(unit):
    def model(x=None, size=None):
        s, e = (pyro.param(k, torch.tensor(unit), constraint=constraints.positive) for k in ("s", "e"))
        m = pyro.param("m", torch.tensor(0.0))
        with rows(x, size):
            z = pyro.sample("z", dist.Normal(0.0, s))
            return pyro.sample("x", dist.Normal((m + z).unsqueeze(-1).expand(*z.shape, 3), e).to_event(1), obs=x)

    rng, n = np.random.default_rng(32), 80
    x = unit * (2 + rng.normal(size=(n, 1)) + 0.5 * rng.normal(size=(n, 3)))
    between, within = 3 * x.mean(1).var(), np.square(x - x.mean(1, keepdims=True)).sum() / (2 * n)
    cov = (between - within) / 3 + within * np.eye(3)
    best = stats.multivariate_normal(np.full(3, x.mean()), cov, allow_singular=True).logpdf(x / 1).sum()
    best = stats.multivariate_normal(np.full(3, x.mean() / unit), cov / unit**2).logpdf(
        x / unit
    ).sum() - x.size * np.log(unit)
    fit = run(model, x, "em")
    assert not any("collapsed" in w for w in fit.warnings)
    assert fit.converged and fit.claimed.value == pytest.approx(best, abs=0.01)


def test_a_rate_that_turns_back_has_no_closed_form():
    x = np.random.default_rng(33).poisson(12, (40, 1)) * 1.0

    def model(x=None, size=None):
        r = pyro.param("r", torch.tensor(2.0), constraint=constraints.positive)
        with rows(x, size):
            rate = torch.where(r < 8, r, 16 - r).clamp(min=0.1)
            return pyro.sample("x", dist.Poisson(rate.expand([1])).to_event(1), obs=x)

    def truth(fit):
        r = float(fit.parameters["r"])
        return stats.poisson.logpmf(x, max(r if r < 8 else 16 - r, 0.1)).sum()

    fit = right(model, x, truth)
    if fit is not None and fit.converged:
        assert fit.claimed.value == pytest.approx(stats.poisson.logpmf(x, 8).sum(), abs=0.01)


def test_no_probability_is_stuck_at_zero():
    rng = np.random.default_rng(34)
    p = np.array([[[0.1, 0.2, 0.7]] * 4, [[0.6, 0.3, 0.1]] * 4])
    x = np.array([[rng.choice(3, p=p[k, j]) for j in range(4)] for k in rng.integers(0, 2, 80)]) * 1.0

    def started(w, probabilities):
        def model(x=None, size=None):
            weights = pyro.param("w", torch.as_tensor(w), constraint=constraints.simplex)
            table = pyro.param("p", torch.as_tensor(probabilities), constraint=constraints.simplex)
            with rows(x, size):
                k = pyro.sample("k", dist.Categorical(weights))
                return pyro.sample("x", dist.Categorical(table[k]).to_event(1), obs=x)

        return model

    fit = run(started(np.array([0.5, 0.5]), rng.dirichlet(np.ones(3), (2, 4))), x, "em")
    nudged = fit.parameters["p"].clip(1e-3)
    again = run(started(fit.parameters["w"], nudged / nudged.sum(-1, keepdims=True)), x, "em", start="program")
    assert not fit.converged or again.claimed.value < fit.claimed.value + 0.05


# ---- estimates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [2, 4])
def test_two_modes_are_not_one(power):
    rng = np.random.default_rng(35)
    x = ((2 + rng.random(12)) ** power + 0.2 * rng.normal(size=12))[:, None]
    model = of_z((0.0, 3.0), lambda z: z**power, 0.25)
    truth = integral(lambda z: stats.norm.logpdf(x, z**power, 0.25) + stats.norm.logpdf(z, 0, 3), -20, 20, 400_000)
    for method, options in (
        ("laplace", {}),
        ("importance", {"proposal": "laplace", "defensive": 0.0, "epochs": 0}),
        ("importance", {"proposal": "laplace", "epochs": 0}),
    ):
        right(model, x, truth, method, **options)


def test_estimates_of_many_rows_are_not_biased():
    rng = np.random.default_rng(36)
    x = (3 * rng.integers(0, 4, 5000) + rng.normal(size=5000))[:, None]

    def model(x=None, size=None):
        with rows(x, size):
            k = pyro.sample("k", dist.Categorical(torch.ones(4) / 4))
            return pyro.sample("x", dist.Normal(3.0 * k.unsqueeze(-1), 1.0).to_event(1), obs=x)

    truth = special.logsumexp(stats.norm.logpdf(x, 3 * np.arange(4)) - np.log(4), axis=1).sum()
    z = []
    for seed in range(3):
        fit = run(model, x, "importance", proposal="prior", samples=100, epochs=0, seed=seed)
        if fit.claimed.kind == "estimate":
            z.append((fit.claimed.value - truth) / fit.claimed.se)
    assert not z or (np.abs(z).max() < 4 and abs(np.mean(z)) < 4 / len(z) ** 0.5)


@pytest.mark.parametrize("rare", [0.001, 0.0002])
def test_a_component_that_no_draw_came_from(rare):
    x = np.r_[np.random.default_rng(37).normal(size=24), 15.0][:, None]

    def model(x=None, size=None):
        with rows(x, size):
            k = pyro.sample("k", dist.Bernoulli(rare))
            return pyro.sample("x", dist.Normal(15.0 * k.unsqueeze(-1), 1.0).to_event(1), obs=x)

    each = np.log1p(-rare) + stats.norm.logpdf(x, 0), np.log(rare) + stats.norm.logpdf(x, 15)
    for seed in range(3):
        options = {"proposal": "prior", "epochs": 0, "samples": 500, "seed": seed}
        right(model, x, np.logaddexp(*each).sum(), "importance", **options)


# ---- ends that are neither a claim nor a refusal ---------------------------------------------------------------------------


def test_laplace_serves_a_program_without_parameters():
    x = np.random.default_rng(38).normal(size=(20, 1))
    served(of_z((1.0, 2.0), lambda z: 3 * z, 0.5), x, stats.norm.logpdf(x, 3, 36.25**0.5).sum(), "laplace")

    def switch(x=None, size=None):
        with rows(x, size):
            k = pyro.sample("k", dist.Bernoulli(0.25))
            return pyro.sample("x", dist.Normal(k.unsqueeze(-1), 1.0).to_event(1), obs=x)

    each = np.log(0.75) + stats.norm.logpdf(x, 0), np.log(0.25) + stats.norm.logpdf(x, 1)
    served(switch, x, np.logaddexp(*each).sum(), "laplace")


PRIORS = {
    "bernoulli": (dist.Bernoulli(0.25), (0.75, 0.25)),
    "categorical": (dist.Categorical(torch.tensor([0.5, 0.25, 0.25])), (0.5, 0.25, 0.25)),
}


@pytest.mark.parametrize("kind", PRIORS)
def test_a_distribution_made_at_module_level(kind):
    prior, p = PRIORS[kind]
    means, cov = torch.tensor([0.0, 2.0, -2.0]), torch.eye(2)
    x = np.random.default_rng(39).normal(size=(15, 2)) + 1

    def model(x=None, size=None):
        with rows(x, size):
            k = pyro.sample("k", prior)
            mean = means[k.long()].unsqueeze(-1).expand(*k.shape, 2)
            return pyro.sample("x", dist.MultivariateNormal(mean, cov), obs=x)

    each = [np.log(q) + stats.norm.logpdf(x, m).sum(1) for q, m in zip(p, (0, 2, -2), strict=False)]
    truth = special.logsumexp(each, axis=0).sum()
    for method, options in (("em", {}), ("svi", {"epochs": 3}), ("importance", {"proposal": "prior", "epochs": 0})):
        fit = right(model, x, truth, method, **options)
        assert fit is not None


def test_predictive_draws_are_of_every_observed_site():
    rng = np.random.default_rng(40)
    z = rng.normal(size=30)
    x = np.stack([z, 3 * z - 20], 1) + 0.5 * rng.normal(size=(30, 2))

    def model(x=None, size=None):
        with rows(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            p = pyro.sample("p", dist.Normal(z, 0.5), obs=column(x, 0))
            q = pyro.sample("q", dist.Normal(3 * z - 20, 0.5), obs=column(x, 1))
            return torch.stack([p, q], -1)

    fit = run(model, x, "em")
    group = fit.idata["posterior_predictive"]
    if "x" in group:
        assert group["x"].shape[-2:] == x.shape
        assert np.allclose(group["x"].mean(("chain", "draw")).mean(group["x"].dims[-2]), x.mean(0), atol=1.0)
    else:
        assert {"p", "q"} <= set(group.data_vars)
        for name, values in zip("pq", x.T, strict=True):
            assert group[name].mean() == pytest.approx(values.mean(), abs=1.0)


@pytest.mark.slow
def test_svi_claims_nothing_where_its_bound_is_above():
    """A program of one global: the bound of the coin lies below the Beta function's evidence."""
    x = np.r_[np.ones(9), np.zeros(3)][:, None]

    def model(x=None, size=None):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with rows(x, size):
            return pyro.sample("x", dist.Bernoulli(p.unsqueeze(-1)).expand([1]).to_event(1), obs=x)

    truth = special.betaln(11, 5) - special.betaln(2, 2)
    fit = right(model, x, truth, "svi", epochs=300)
    if fit is not None and fit.converged:  # within a tenth of a nat of the best Gaussian in the logit
        assert fit.claimed.value > _best_gaussian_bound() - 0.1


def _best_gaussian_bound():
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)

    def loss(at):
        u = at[0] + np.exp(at[1]) * nodes
        log_joint = 11 * special.log_expit(u) + 5 * special.log_expit(-u) - special.betaln(2, 2)
        entropy = at[1] + 0.5 * np.log(2 * np.pi * np.e)
        return -(weights @ log_joint / weights.sum() + entropy)

    return -optimize.minimize(loss, [0.0, -0.5], method="Nelder-Mead").fun
