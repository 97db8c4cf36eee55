"""A recorded step: what may be recorded draws the same numbers and gives the same gradients, and what may not is found out."""

from __future__ import annotations

import collections
import copy
import functools
import importlib
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch.distributions import Binomial, Dirichlet, Gamma, Poisson

from inference._numerics import tape
from inference._numerics.adam import Adam
from inference._training.recorded import Compiled
from inference._training.state import fingerprint

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


SEEN_BY_OTHERS = {
    "numpy": lambda x: x.detach().numpy().max(),
    "an array": lambda x: np.asarray(x).max(),
    "a list": lambda x: max(x.tolist()),
    "a list of tensors": lambda x: torch.tensor([x.max(), 0.0]).max(),
    "a copy": lambda x: copy.deepcopy(x).max(),
    "text": lambda x: float("200" in repr(x)) * 200,
    "memory": lambda x: 200 * (x.untyped_storage()[3] > 65),
    "how many": lambda x: 100 * len(x.clamp(min=100).unique()),
    "how many are not 0": lambda x: 101 * x.clamp(min=100).sub(100).to_sparse()._nnz(),
    "all alike": lambda x: 0 if torch.allclose(x, x.clamp(max=100)) else 200,
}


@pytest.mark.parametrize("look", SEEN_BY_OTHERS.values(), ids=SEEN_BY_OTHERS)
def test_a_number_that_is_read_outside_torch_is_in_no_record(look):
    """None of them is seen at small numbers, such as those that a record is checked at."""
    with pytest.raises(NotImplementedError):
        tape.record(lambda x: [x * (2 if look(x) > 150 else 1)], [torch.ones(2)])


class Squares(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a * a

    @staticmethod
    def backward(ctx, slope):
        (a,) = ctx.saved_tensors
        return 2 * a * slope if a.numpy().max() < 100 else slope


STATE, SEEN = torch.zeros(2), torch.zeros(2)
STATEFUL = {
    "a gradient of its own": lambda x, p: Squares.apply(p * x).sum(),
    "a counter": lambda x, p: (p * x).sum() + 0 * STATE.add_(1).sum(),
    "a buffer of draws": lambda x, p: (p * x * SEEN.normal_()).sum(),
    "a generator": lambda x, p: (p * torch.rand(2, generator=torch.Generator()) * x).sum(),
    "an input": lambda x, p: (p * x.clamp_(max=100)).sum(),
    "a parameter": lambda x, p: (p.data.clamp_(max=100) * x * p).sum(),
}


@pytest.mark.parametrize("function", STATEFUL.values(), ids=STATEFUL)
def test_what_changes_a_state_is_in_no_record(function):
    p = torch.ones(2, requires_grad=True)
    step = lambda x: torch.autograd.grad(function(x, p), [p])  # noqa: E731
    with pytest.raises(NotImplementedError):
        tape.record(step, [torch.ones(2)], held=[p], random=True)


def test_a_constant_that_changes_is_noted_as_it_is_and_zero_keeps_its_sign():
    def function(x):
        mask = torch.zeros(2)
        mask[0] = 1.0
        first = x * mask
        mask[1] = 1.0
        return [first, x * mask, (x + 0.0).reciprocal()]

    x = torch.tensor([-0.0, 2.0])
    graph = tape.record(function, [torch.ones(2)])
    assert all(torch.equal(a, b) for a, b in zip(graph(x), function(x), strict=True))


calls = [0]


def counting(step):
    calls[0] += step


class Remembers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.ones(2)), {"best": 0.0}
        self.register_buffer("mean", torch.zeros(2))
        self.noise = np.random.default_rng(0)


REMEMBERS = {
    "nothing": lambda m: 1.0,
    "a global counter": lambda m: counting(1) or 1.0,
    "a number": lambda m: m.seen.update(best=m.seen["best"] + 1) or 1.0,
    "a buffer": lambda m: setattr(m, "mean", m.mean + 1) or 1.0,
    "a generator": lambda m: 1.0 + 0 * m.noise.random(),
    "NumPy's draws": lambda m: 1.0 + 0 * np.random.rand(),  # noqa: NPY002
    "Python's draws": lambda m: 1.0 + 0 * random.random(),
    "a clock": lambda m: 1.0 + 0 * (time.time() > 1),
}


@pytest.mark.parametrize("name", REMEMBERS)
def test_a_program_that_remembers_anything_is_not_recorded(name):
    """At its first steps what it computes is the same; at its 1000th it could be another."""
    module, scale = Remembers(), REMEMBERS[name]
    objective = lambda rows, x: -(module.weight * x).square().sum() * scale(module)  # noqa: E731
    compiled = Compiled(objective, [module.weight], [module])
    x = torch.ones(2)
    for _ in range(2):
        compiled(torch.arange(2), x)
    before = module.mean.clone()
    compiled.prepare(torch.arange(2), x, torch.arange(2), 2 * x)
    assert (compiled.records.get(x.shape) is not None) == (name == "nothing")
    assert torch.equal(module.mean, before)


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


def test_of_what_is_too_large_to_look_at_nothing_is_told():
    table = np.broadcast_to(0.0, (2**24,))  # no memory of its own
    assert fingerprint([lambda: table]) is None


@pytest.mark.parametrize("ticks", [iter(range(9)), iter([1, 2]), zip((1, 2), (3, 4), strict=True), (i for i in (1, 2))])
def test_where_an_iterator_stands_is_not_told(ticks):
    assert fingerprint([lambda: next(ticks)]) is None
    assert fingerprint([lambda: len((1, 2))]) is not None


class InSlots:
    __slots__ = ("calls",)

    def __init__(self):
        self.calls = 0


class OfTheClass:
    calls = 0


def places_of_a_counter(tmp_path, monkeypatch):
    """A program each that counts its calls somewhere."""
    (tmp_path / "a_users_module.py").write_text("calls = 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("a_users_module")
    slots, queue = InSlots(), collections.deque([0])

    def of(thing):
        def program():
            thing.calls += 1

        return program

    def by_keyword(*, box=[0]):  # noqa: B006
        box[0] += 1

    def in_a_queue():
        queue.append(queue.popleft() + 1)

    return [of(module), of(OfTheClass), of(slots), by_keyword, in_a_queue, functools.partial(by_keyword)]


@pytest.mark.parametrize("place", range(6))
def test_a_counter_is_found_wherever_it_stands(tmp_path, monkeypatch, place):
    program = places_of_a_counter(tmp_path, monkeypatch)[place]
    before = fingerprint([program])
    assert before is not None and before == fingerprint([program])
    program()
    assert before != fingerprint([program])
