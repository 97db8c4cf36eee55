"""Bidirectional Monte Carlo: bounds around exact evidence and quadrature, unbiased weights in both directions, and sabotage."""

from __future__ import annotations

import json
from dataclasses import replace

import local_programs as local
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import in_full, task_of, tensor
from scipy import special

from benchmarks._report import rank
from benchmarks._sandwich import bounds
from benchmarks._sandwich.bounds import Sandwich, exact_evidence, sandwiches
from benchmarks._sandwich.simulated import Simulated, simulate
from benchmarks._sandwich.study import Asked, sandwich
from benchmarks._select.criteria import Entry, Value, best
from inference._method.fit import Evidence, Fit
from inference._run._own.disagreement import Disagreement
from inference._run.verify import verify
from zoo._errors import Refusal, UsageError

LOADINGS = np.array([[1.0, 0.5, -1.0, 0.0], [0.0, 1.0, 0.5, -0.5]])
CAUSES = 8


def factors(x=None, size=None):
    """z ~ N(0, I₂), x | z ~ N(z W, ½²)."""
    with local.rows(x, size):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        return pyro.sample("x", dist.Normal(z @ tensor(LOADINGS).to(z), 0.5).to_event(1), obs=x)


def mixture(x=None, size=None):
    means = tensor([[-2.0, 0.0], [1.0, 1.5], [2.0, -2.0]])
    with local.rows(x, size):
        k = pyro.sample("k", dist.Categorical(tensor([0.5, 0.25, 0.25])))
        return pyro.sample("x", dist.Normal(means[k], 1.0).to_event(1), obs=x)


def causes(x=None, size=None, bits: int = CAUSES):
    """Binary causes that add to six measurements; with 30 of them 2³⁰ joint values."""
    W = tensor(np.random.default_rng(5).normal(size=(bits, 6)) * (3 / bits) ** 0.5)
    with local.rows(x, size):
        z = pyro.sample("z", dist.Bernoulli(0.3 * torch.ones(bits, dtype=W.dtype)).to_event(1))
        return pyro.sample("x", dist.Normal(z.to(W) @ W, 0.7).to_event(1), obs=x)


def thirty_causes(x=None, size=None):
    return causes(x, size, 30)


WIDTHS = {factors: 4, mixture: 2, causes: 6, thirty_causes: 6, local.counts: 1, local.bent: 2, local.logistic: 6}


def simulated(program, n: int, seed: int = 0) -> Simulated:
    width = WIDTHS[program]
    task = task_of(program, np.random.default_rng(0).integers(0, 2, (12, width)).astype(float))
    task.learn = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return simulate(task, n)


def bounded(found: Simulated, steps: int, chains: int = 8, leapfrog: int = 3, start: str = "prior") -> Sandwich:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return sandwiches(found, [steps], chains, leapfrog, start)[0]


def truth(program, found: Simulated) -> np.ndarray:
    """log p(x_i), by quadrature or by all joint values."""
    x = found.task.x.numpy()
    if program is local.counts:
        return local.counts_truth(x)
    if program is local.bent:
        return special.logsumexp(local.bent_joint(x), axis=1)
    evidence = exact_evidence(found.task)
    assert evidence is not None and evidence.kind == "exact"
    return evidence.per_datum


# ---- truth --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["modes", *in_full("prior")])
@pytest.mark.parametrize("program", [factors, *in_full(causes, mixture, local.counts, local.bent)])
def test_the_exact_value_lies_between(program, start):
    """Of 20 data sets of five rows, and the bounds are near each other."""
    found = simulated(program, 100)
    exact = truth(program, found)
    both = bounded(found, steps=40, chains=16, start=start)
    assert (both.lower.kind, both.upper.kind) == ("lower bound", "upper bound")
    for at in range(0, 100, 5):
        part = both.part(slice(at, at + 5))
        assert part.contains(Evidence.from_per_datum(exact[at : at + 5], "exact"))
    both.check(Evidence.from_per_datum(exact, "exact"))
    assert both.lower.value < exact.sum() + 3 * both.lower.se and both.upper.value > exact.sum() - 3 * both.upper.se
    assert abs(both.width) < 0.3


@pytest.mark.parametrize(
    ("program", "start"),
    [
        (causes, "prior"),
        *in_full(
            (factors, "prior"),
            (mixture, "prior"),
            (local.bent, "prior"),
            (local.bent, "modes"),
            (local.counts, "modes"),
        ),
    ],
)
def test_the_weights_are_unbiased_in_both_directions(program, start, monkeypatch):
    """Though the path is short: E w = p(x) forwards, and E w = 1 / p(x) backwards, from a draw of each row's own."""
    found, kept = simulated(program, 1500), []
    monkeypatch.setattr(bounds, "_sandwich", lambda steps, forth, back: kept.append((forth, back)))
    bounded(found, steps=6 if start == "prior" else 2, chains=2, start=start)
    exact = tensor(truth(program, found))
    for log_weights, log_p in zip(kept[0], (exact, -exact), strict=True):
        ratio = (log_weights - log_p).exp().mean(0)  # both chains of a row begin at one draw
        assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / 1500**0.5
        assert float((log_weights - log_p).mean()) < -0.02  # and their logarithm is low


@pytest.mark.full
def test_thirty_binary_causes_move_by_gibbs():
    both = bounded(simulated(thirty_causes, 10), steps=200)
    both.check(None)
    assert abs(both.width) < 1 and both.interval[0] < both.interval[1]


@pytest.mark.full
def test_from_a_guide_the_bounds_are_as_right_and_nearer():
    from inference import run

    found = simulated(factors, 100)
    fitted = run(factors, found.task.x.numpy(), "svi", epochs=200)
    found = replace(found, task=replace(found.task, guide=fitted.fit.guide))
    prior, guide = (bounded(found, steps=5, start=s) for s in ("prior", "guide"))
    exact = exact_evidence(found.task)
    assert guide.contains(exact) and prior.contains(exact)
    assert guide.width < 0.3 * prior.width


def test_a_single_row_has_no_standard_error_above():
    both = bounded(simulated(mixture, 1), steps=5)
    assert both.upper.se is None and both.width_se is None
    assert both.interval == (both.lower.value - np.log(40), both.upper.value + np.log(40))


# ---- sabotage -----------------------------------------------------------------------------------------------------------


def test_backward_chains_from_another_z_are_caught():
    """A short path shows it: chains that begin where the posterior is not have weights that are too large."""
    found = simulated(factors, 40)
    wrong = replace(found, latents={k: v.roll(1, 0) for k, v in found.latents.items()})
    right, both = bounded(found, steps=3), bounded(wrong, steps=3)
    right.check(exact_evidence(found.task))
    with pytest.raises(Disagreement, match=r"lies .* nats above the upper bound"):
        both.check(None)
    with pytest.raises(Disagreement, match="exact value"):
        replace(both, lower=replace(both.lower, value=-1e6)).check(exact_evidence(found.task))


def test_a_lower_bound_above_the_exact_value_is_caught():
    found = simulated(mixture, 20)
    both, exact = bounded(found, steps=20), exact_evidence(found.task)
    high = Sandwich(20, *(replace(b, value=exact.value + 9) for b in (both.lower, both.upper)))
    with pytest.raises(Disagreement, match="lower bound"):
        high.check(exact)


# ---- refusals -----------------------------------------------------------------------------------------------------------


def scaled(x=None, size=None):
    with pyro.poutine.scale(scale=0.5):
        return factors(x, size)


def with_a_factor(x=None, size=None):
    with local.rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("more", -z.square())
        return pyro.sample("x", dist.Normal(z.unsqueeze(-1) + torch.zeros(4), 1.0).to_event(1), obs=x)


def simulates_another(x=None, size=None):
    with local.rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        spread = 1.0 if x is None else 2.0
        return pyro.sample("x", dist.Normal(z.unsqueeze(-1) + torch.zeros(4), spread).to_event(1), obs=x)


def rounds_what_it_returns(x=None, size=None):
    with local.rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        sides = (("left", 0), ("right", 2))
        two = [dist.Normal(z.unsqueeze(-1) + torch.zeros(2), 1.0).to_event(1) for _ in sides]
        seen = [
            pyro.sample(s, d, obs=None if x is None else x[:, i : i + 2]) for (s, i), d in zip(sides, two, strict=True)
        ]
        return torch.cat(seen, -1) if x is not None else torch.cat(seen, -1).round()


def without_the_last_column(x=None, size=None):
    with local.rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        left = pyro.sample("left", dist.Normal(z, 1.0), obs=None if x is None else x[:, 0])
        if x is None:
            return left.unsqueeze(-1) + torch.zeros(4)
        pyro.sample("right", dist.Normal(z.unsqueeze(-1) + torch.zeros(3), 1.0).to_event(1), obs=x[:, 1:])
        return x


def given_a_column(x=None, size=None):
    with local.rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        loc = z if x is None else z + x[:, 3]
        seen = None if x is None else x[:, :3]
        return pyro.sample("x", dist.Normal(loc.unsqueeze(-1) + torch.zeros(3), 1.0).to_event(1), obs=seen)


def of_a_global(x=None, size=None):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with local.rows(x, size):
        z = pyro.sample("z", dist.Normal(m, 1.0))
        return pyro.sample("x", dist.Normal(z.unsqueeze(-1) + torch.zeros(4), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (scaled, "weighs its density at 'z'"),
        (with_a_factor, "weighs its density at 'more'"),
        (simulates_another, "simulates 'x' from another density"),
        (rounds_what_it_returns, "simulates 'left' from another density"),
        (without_the_last_column, "'right' when it simulates"),
        (given_a_column, "given covariates"),
        (of_a_global, "global latents: 'm'"),
    ],
    ids=lambda p: getattr(p, "__name__", ""),
)
def test_what_has_no_exact_draw_is_refused(program, why):
    with pytest.raises(Refusal, match=why):
        sandwich(Asked(program, np.random.default_rng(0).normal(size=(10, 4)), steps=(3,), rows=3))


def test_the_document_has_every_data_set():
    x = np.random.default_rng(0).normal(size=(30, 2))
    found = sandwich(Asked(mixture, x, steps=(10, 3, 10), rows=4, datasets=3, chains=8))
    said = json.loads(json.dumps(found.to_json()))
    assert [s["steps"] for s in said["sandwiches"]] == [3, 10] and len(said["each"]) == said["datasets"] == 3
    assert said["contained"] == found.held == 3 and said["exact"]["kind"] == "exact"
    assert {e["upper"]["kind"] for e in said["each"]} == {"upper bound"} and "in 3 of 3 data sets" in found.sentence()


def test_what_is_asked_for_in_vain():
    x = np.zeros((5, 4))
    with pytest.raises(UsageError, match="needs a MODEL"):
        sandwich(Asked(factors))
    with pytest.raises(Refusal, match="needs a guide"):
        sandwich(Asked(factors, x, steps=(3,), rows=3, start="guide"))


# ---- an upper bound among other evidence ----------------------------------------------------------------------------------


def test_an_upper_bound_never_ranks_above_anything():
    said = [
        {"value": v, "se": 0.0, "kind": k} for v, k in ((0.0, "upper bound"), (-5.0, "exact"), (-9.0, "lower bound"))
    ]
    assert rank.ranks([rank.standing([s]) for s in said]) == [3, 1, 2]
    high = rank.standing([{"value": 5.0, "se": 0.0, "kind": "upper bound"}])
    assert rank.ranks([rank.standing([said[0]]), high]) == [1, 1]


def test_a_selection_does_not_choose_by_an_upper_bound():
    values = Value(0.0, "upper bound"), Value(-9.0, "lower bound")
    entries = [Entry({"k": i}, ("k",), {}, {"heldout": v}) for i, v in enumerate(values)]
    assert best(entries, "heldout") == [entries[1]]


def test_an_upper_bound_that_a_method_claims_is_held_to_the_exact_value():
    task = simulated(mixture, 10).task
    exact = exact_evidence(task).value
    for away in (+3.0, -0.2):
        assert verify(task, Fit({}, Evidence(exact + away, 0.1, "upper bound")))[0].claimed.kind == "upper bound"
    with pytest.raises(Disagreement, match="upper bound"):
        verify(task, Fit({}, Evidence(exact - 3.0, 0.1, "upper bound")))


# ---- the command --------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_command_writes_a_picture_and_prints_one_document(tmp_path, capsys):
    from benchmarks._suite import bench

    settings = {"data": "wine", "standardize": "true", "latents": "2", "steps": "3,10", "rows": "4", "datasets": "3"}
    bench.main("sandwich", json=True, model="ppca", settings=settings, out=tmp_path)
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads((tmp_path / "sandwich.json").read_text()) and (tmp_path / "sandwich.png").stat().st_size
    assert [s["steps"] for s in said["sandwiches"]] == [3, 10] and len(said["each"]) == said["datasets"] == 3
    assert said["contained"] == 3 and said["exact"]["kind"] == "exact"
    assert {e["upper"]["kind"] for e in said["each"]} == {"upper bound"}


def test_a_model_is_for_benchmarks_that_take_one():
    from benchmarks._suite import bench

    for name, why in (("soundness", "takes no MODEL"), ("smoke", "its file names its models")):
        with pytest.raises(UsageError, match=why):
            bench.main(name, model="gmm")
    with pytest.raises(UsageError, match="latnts"):
        bench.main("sandwich", model="ppca", settings={"data": "wine", "latnts": "2"})
