"""A recorded step: what may be recorded draws the same numbers and gives the same gradients, and what may not is found out."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.distributions import Binomial, Dirichlet, Gamma, Poisson

from inference._numerics import tape
from inference._numerics.adam import Adam
from inference._training.recorded import Compiled

RATES = torch.tensor([0.5, 1.0, 2.0])
DRAWS = {
    "normal": lambda: torch.randn(3),
    "normal, in place": lambda: torch.empty(3).normal_(),
    "normal, scaled in place": lambda: torch.empty(3).normal_().mul_(RATES).exp_(),
    "uniform": lambda: torch.rand(3) + torch.empty(3).uniform_(),
    "of another draw": lambda: torch.normal(torch.rand(3), 2.0) * torch.bernoulli(torch.rand(3)),
    "categories": lambda: torch.multinomial(RATES, 3, replacement=True) + torch.randint(5, (3,)) + torch.randperm(3),
    "gamma": lambda: Gamma(RATES, RATES).sample() + Dirichlet(RATES).sample(),
    "counts": lambda: Poisson(RATES).sample() + Binomial(10, RATES / 4).sample(),
    "twice the same": lambda: torch.rand(3) - torch.rand(3),
    "unused": lambda: (torch.rand(3), torch.rand(3))[1],
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_record_draws_what_the_function_draws(name):
    draw = DRAWS[name]
    graph = tape.record(lambda x: [x * draw(), x.exp()], [torch.ones(3)], random=True)
    x, state = torch.arange(3.0), torch.get_rng_state()
    wanted = [x * draw(), torch.rand(1)]
    torch.set_rng_state(state)
    found = [graph(x)[0], torch.rand(1)]  # the same numbers, and no more and no fewer of them
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


def test_what_is_held_is_read_anew():
    weight = torch.ones(3, requires_grad=True)

    def function(x):
        value = (weight.exp() * x).sum() + weight.detach().sum()
        return [value.detach(), *torch.autograd.grad(value, [weight])]

    graph = tape.record(function, [torch.ones(3)], held=[weight])
    with torch.no_grad():
        weight.mul_(2.0)
    value, slope = graph(2 * torch.ones(3), weight)
    assert torch.allclose(value, 6 * weight[0].exp() + 3 * weight[0]) and torch.allclose(slope, 2 * weight.exp())


def _fooling():
    """Objectives that a list of operations cannot stand for, and are right at the point that they are recorded at."""
    seen = []

    def counts(rows, x, p):
        seen.append(1)
        return -(p * x).square().sum() * min(1.0, len(seen) / 1000)

    def reads_a_number(rows, x, p):
        return -(p - float(x.mean())).square().sum()

    def turns(rows, x, p):
        return -(p * x).square().sum() if p.sum() > 0 else (p * x).sum()

    kept = {}

    def keeps_a_value(rows, x, p):
        return -(p * kept.setdefault("first", p.detach().numpy().copy()).sum() * x).sum()

    def keeps_a_draw(rows, x, p):
        noise = torch.empty(4)
        noise.view(2, 2).normal_()  # written through a view of what is read
        return -(p * noise[:2] * x).sum()

    def goes_by_numpy(rows, x, p):
        return -(p * torch.as_tensor(p.detach().numpy() ** 2) * x).sum()

    def shapes(rows, x, p):
        return -(p * x[x > 0].sum()).sum()

    def reads_the_data(rows, x, p):
        return -(p * float(x.numpy().sum())).sum()

    return [reads_the_data, counts, reads_a_number, turns, keeps_a_draw, goes_by_numpy, shapes, keeps_a_value]


@pytest.mark.parametrize("function", _fooling(), ids=lambda f: f.__name__)
def test_a_record_is_never_another_function(function):
    p = torch.ones(2, requires_grad=True)
    compiled = Compiled(lambda rows, x: function(rows, x, p), [p])
    compiled.prepare(torch.arange(2), torch.ones(2), torch.arange(2), 2 * torch.ones(2))
    assert compiled.records == {torch.Size([2]): None} or function.__name__ == "keeps_a_value"  # which is a constant
    for step in range(5):  # and what is done is what the function does
        x, state = torch.full((2,), float(step - 2)), torch.get_rng_state()
        found, slope = compiled(torch.arange(2), x), None if p.grad is None else p.grad.clone()
        torch.set_rng_state(state)
        if function.__name__ != "counts":
            value = function(torch.arange(2), x, p)
            assert torch.equal(found, value.detach())
            assert torch.equal(slope, torch.autograd.grad(-value, [p])[0])
        with torch.no_grad():
            p.sub_(0.5)


def test_adam_is_torchs():
    p, q = (torch.tensor([[1.0, -2.0]], requires_grad=True) for _ in range(2))
    ours, theirs = Adam([p], 0.1), torch.optim.Adam([q], lr=0.1, fused=True)
    for step in range(7):
        if step == 4:
            ours, before = Adam([p], 0.1), ours
            ours.load_state_dict(before.state_dict())
        for x, optimiser in ((p, ours), (q, theirs)):
            x.grad = None
            (x**4).sum().backward()
            optimiser.step()
        assert torch.equal(p, q)


WITHOUT = """
import sys
from inference import run
r = run("ppca", [[0.0, 1.0, 2.0], [1.0, 0.5, 0.2], [2.0, 1.5, 0.1], [0.3, 0.2, 1.0]], "{}", latents=1, **{})
print("torch._dynamo" in sys.modules)
"""


@pytest.mark.full
@pytest.mark.parametrize(("method", "how"), [("svi", {"epochs": 300}), ("laplace", {}), ("em", {})])
def test_nothing_imports_the_compiler(method, how):
    """It takes longer to import than small data take to fit."""
    out = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(method, how)], capture_output=True, text=True, check=True
    )
    assert out.stdout.split()[-1] == "False"
