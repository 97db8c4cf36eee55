"""Programs written to fool claims of exactness: each is refused in words, or its numbers are right."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import task_of, tensor
from torch.distributions import constraints

from inference import em, laplace
from inference._exact import choose
from zoo._errors import UsageError
from zoo._program.trace import sample_nodes
from zoo._reading.density import _by_rule, _followed
from zoo._reading.reader import DATA, FIRST_SITE, PLACE, Reader, rows_along

RNG = np.random.default_rng(0)
MANY = np.column_stack([RNG.normal(size=400), np.zeros(400)])  # with a code that is 1 in two rows alone
MANY[[17, 301], 1] = 1
TABLE = torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=torch.float64)


def rows(x, size):
    return pyro.plate("data", size if x is None else len(x))


def theta(name, value, constraint=constraints.real):
    return pyro.param(name, tensor(value), constraint=constraint)


def seen(x, c):
    return None if x is None else x[:, c]


def picked(how, bent):
    """x ~ N(f(z1), 1), f the identity, and `bent` where a covariate says so."""

    def model(x=None, size=None):
        with rows(x, size):
            code = (torch.zeros(size) if x is None else x[:, 1]).long()
            z = pyro.sample("z0", dist.Normal(0.0, 1.0))
            z1 = pyro.sample("z1", dist.Normal(z, 1.0))
            one, other, code = torch.broadcast_tensors(z1, bent(z, z1), code)
            both = torch.stack([one, other], -1)
            if how == "gather":
                loc = both.gather(-1, code.unsqueeze(-1)).squeeze(-1)
            else:
                flat = both.reshape(-1, 2)
                loc = flat[torch.arange(len(flat)), code.reshape(-1)].reshape(code.shape)
            return pyro.sample("x", dist.Normal(loc, 1.0), obs=seen(x, 0))

    return model


@pytest.mark.parametrize("how", ["gather", "index"])
def test_a_rare_choice_that_bends_is_refused(how):
    structure = task_of(picked(how, lambda z, z1: z1.tanh()), MANY).structure
    assert not structure.is_exact and "tanh" in structure.reason


@pytest.mark.parametrize("how", ["gather", "index"])
def test_a_rare_choice_of_another_latent_is_a_parent(how, monkeypatch):
    monkeypatch.setattr(choose, "LEAST_NUMBERS", 1)
    monkeypatch.setattr(choose, "SAVING", 1e-9)
    task = task_of(picked(how, lambda z, z1: z), MANY)
    assert {s.name: set(s.parents) for s in task.structure.sites}["x"] == {"z0", "z1"}
    variance = np.where(MANY[:, 1] == 1, 2.0, 3.0)
    truth = -0.5 * (np.log(2 * np.pi * variance) + MANY[:, 0] ** 2 / variance)
    np.testing.assert_allclose(task.engine.per_datum(), truth, rtol=1e-9)


def test_a_power_that_is_a_tensor_is_no_constant():
    def model(x=None, size=None):
        a = pyro.sample("a", dist.Normal(1.0, 0.1))
        with rows(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(z ** torch.where(a > 0, 1.0, 3.0), 1.0), obs=seen(x, 0))

    assert not task_of(model, MANY).structure.is_exact


def clamped(top):
    def model(x=None, size=None):
        m, z = theta("m", [0.0, 1.0]), None
        with rows(x, size):
            for t in range(4):
                z = pyro.sample(f"z{t}", dist.Categorical(TABLE[0] if z is None else TABLE[z]))
                loc = m if t < 3 else m.clamp(max=top)
                pyro.sample(f"x{t}", dist.Normal(loc[z], 1.0), obs=seen(x, t))

    return model


def test_sites_that_are_alike_at_the_start_alone_are_told_apart():
    x = 20 + RNG.normal(size=(20, 4))
    with pytest.raises(UsageError, match="share their parameters at most"):
        em.fit(task_of(clamped(12.0), x, limit=4), start="program")


def detached(cut):
    def model(x=None, size=None):
        m = theta("m", 0.0)
        with rows(x, size):
            z = pyro.sample("z", dist.Normal(cut(m), 1.0))
            pyro.sample("x0", dist.Normal(z + m, 1.0), obs=seen(x, 0))
            pyro.sample("x1", dist.Normal(z, 1.0), obs=seen(x, 1))

    return model


def without_gradient(m):
    with torch.no_grad():
        return 0.5 * m


@pytest.mark.parametrize("cut", [lambda m: 0.5 * m.detach(), lambda m: 0.5 * m.data, without_gradient])
def test_a_detached_parameter_is_refused_by_what_follows_derivatives(cut):
    structure = task_of(detached(cut), MANY).structure
    assert "test_fooled.py" in (em.refusal(structure) or "") and em.refusal(structure) == laplace.refusal(structure)
    assert em.refusal(task_of(detached(lambda m: 0.5 * m), MANY).structure) is None


def test_a_parameter_that_enters_elsewhere_beyond_a_kink():
    def model(x=None, size=None):
        m = theta("m", 0.0)
        with rows(x, size):
            z = pyro.sample("z", dist.Normal(m, 1.0))
            pyro.sample("x0", dist.Normal(z, 1.0), obs=seen(x, 0))
            pyro.sample("x1", dist.Normal(5 * torch.relu(m - 20), 2.0), obs=seen(x, 1))

    x = 60 + RNG.normal(size=(30, 2))
    fit = em.fit(task_of(model, x), start="program")
    a, b = x.mean(0)  # the mode of −(a − m)²/4 − (b − 5(m − 20))²/8
    np.testing.assert_allclose(fit.parameters["m"], (a / 2 + 1.25 * (b + 100)) / (0.5 + 6.25), rtol=1e-5)
    assert fit.converged and not fit.notes["closed_form"]


def test_a_global_precision_of_a_chain_has_its_closed_form(monkeypatch):
    monkeypatch.setattr(choose, "LEAST_NUMBERS", 1)
    monkeypatch.setattr(choose, "SAVING", 1e-9)

    def model(x=None, size=None):
        tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
        with rows(x, size):
            z = pyro.sample("z0", dist.Normal(0.0, 2.0))
            for t in range(3):
                z = z if t == 0 else pyro.sample(f"z{t}", dist.Normal(0.8 * z, 1.0))
                pyro.sample(f"x{t}", dist.Normal(z, tau**-0.5), obs=seen(x, t))

    x = RNG.normal(size=(8, 3))
    fit = em.fit(task_of(model, x), start="program")
    prior = np.array([[4.0, 3.2, 2.56], [3.2, 3.56, 2.848], [2.56, 2.848, 3.2784]])

    def log_joint(tau):
        C = prior + np.eye(3) / tau
        return -4 * np.linalg.slogdet(C)[1] - 0.5 * np.trace(np.linalg.solve(C, x.T @ x)) + np.log(tau) - tau

    at = float(fit.parameters["tau"])
    assert fit.converged and fit.notes["closed_form"] == ["tau"]
    assert abs(log_joint(at + 1e-4) - log_joint(at - 1e-4)) / 2e-4 < 0.02


LOC = tensor(RNG.normal(size=(5, 3)))
FAMILIES = {  # with a rule: value, and the distribution given some numbers [5, 3]
    "normal": (lambda u: dist.Normal(u, 1.5), LOC),
    "scale": (lambda u: dist.Normal(0.5, u.exp()), LOC),
    "categorical": (lambda u: dist.Categorical(logits=u), torch.tensor([0, 1, 2, 0, 1])),
    "probs": (lambda u: dist.Categorical(probs=u.exp()), torch.tensor([0, 1, 2, 0, 1])),
    "bernoulli": (lambda u: dist.Bernoulli(logits=u).to_event(1), (LOC > 0).double()),
    "rows": (lambda u: dist.Bernoulli(probs=u.softmax(0)), (LOC > 0).double()),
    "poisson": (lambda u: dist.Poisson(u.exp()), LOC.abs().round()),
    "exponential": (lambda u: dist.Exponential(u[:, :1].exp()).expand([5, 3]).to_event(1), LOC.abs()),
    "gamma": (lambda u: dist.Gamma(u.exp(), 2.0), LOC.abs()),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("degree", [0, 1])
def test_a_rule_knows_no_less_than_running_the_density(family, degree):
    of, value = FAMILIES[family]
    reader, u, value = Reader(5), LOC.clone(), value.clone()
    bits = rows_along(u, 0) | (1 << (FIRST_SITE + torch.arange(3)))
    reader.put(u, bits, degree)
    reader.put(value, DATA | rows_along(value, 0), 0)
    with reader.reading():
        trace = pyro.poutine.trace(lambda: pyro.sample("x", of(u), obs=value)).get_trace()
    (node,) = sample_nodes(trace)
    rule = _by_rule(reader, node)
    with reader.reading():
        log_prob, given, _ = _followed(reader, node)
    if rule is None:
        assert degree and family not in ("normal", "scale")
        return
    mask = torch.broadcast_to(rule.shadow.mask, log_prob.shape)
    assert not bool((reader.of(log_prob).mask & ~mask).any())
    assert not reader.of(given).union()[0] & ~(rule.given | PLACE)  # a constant value is none of x's
    assert bool((rule.shadow.degree >= reader.of(log_prob).degree).all())
