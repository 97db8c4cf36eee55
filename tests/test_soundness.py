"""No claim is false: random small programs, and every claim that a method makes of one against quadrature."""

from __future__ import annotations

import itertools
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import in_full
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from scipy import stats
from soundness_claims import OPTIONS, FalseClaim, _check, outcome
from soundness_grammar import JOINS, build
from soundness_programs import (
    BERNOULLI,
    BIVARIATE,
    NORMAL,
    Global,
    Latent,
    Observed,
    Outside,
    Program,
    combine,
    const,
    plus,
    simulate,
    times,
    var,
)

from inference._method.fit import Evidence

PHASES = (Phase.explicit, Phase.generate)  # the programs are small as they are
SERVED = {"exact", "lower bound", "upper bound", "estimate"}


@st.composite
def programs(draw, ordinary=None):
    return build(lambda options: draw(st.sampled_from(options)), ordinary)


def examples(count):
    unhurried = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.large_base_example]
    return settings(max_examples=count, phases=PHASES, suppress_health_check=unhurried)


def tried(folder, count, ways, ordinary=None, part=0):
    """(way, ordinary or not, what it ended in) → how many of `count` programs. Raises `FalseClaim`.

    `part`: which programs; those of two parts differ.
    """
    found = Counter()

    @seed(part)
    @examples(count)
    @given(programs(ordinary))
    def check(program):
        number = found["programs"]
        found["programs"] += 1
        for way in ways(number):
            found[way, "ordinary" if program.ordinary else "odd", outcome(program, way, folder).kind] += 1

    check()
    return found


def shown(found):
    rows = sorted((*key, n) for key, n in found.items() if isinstance(key, tuple))
    return "\n".join([f"{found['programs']} programs", *(f"{w:14}{o:10}{kind:14}{n:5}" for w, o, kind, n in rows)])


def share(found, way, kinds):
    """The share of the programs tried that ended so."""
    of = {key: n for key, n in found.items() if isinstance(key, tuple) and key[0] == way}
    return sum(n for key, n in of.items() if key[2] in kinds) / sum(of.values())


@pytest.mark.parametrize("programs", [15, *in_full(100)])
def test_no_claim_is_false(tmp_path, programs):
    found = tried(tmp_path, programs, lambda number: ("em", "importance") if number % 5 == 0 else ("em",))
    print(shown(found))
    assert share(found, "em", {"exact"}) > 0.25
    assert share(found, "importance", SERVED) > 0.2


def test_ordinary_programs_are_called_exact(tmp_path):
    """Or refusing everything would do."""
    found = tried(tmp_path, 12, lambda number: ("em",), ordinary=True)
    assert found["em", "ordinary", "exact"] == found["programs"], shown(found)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(1, 16))
def test_no_claim_about_two_thousand_programs_is_false(tmp_path, part):
    """In fifteen parts, which can run side by side."""
    others = [way for way in OPTIONS if way != "em"]
    found = tried(tmp_path, 134, lambda number: ("em", others[number % len(others)]), part=part)
    print(shown(found))
    assert share(found, "em", {"exact"}) > 0.2


# ---- the truths ------------------------------------------------------------------------------------------------------


def program_of(*body, n=4, columns=("y",), head=(), seed=0, **more):
    empty = Program(head, body, columns, np.zeros((n, len(columns))), **more)
    return Program(head, body, columns, simulate(empty, seed), **more)


def test_the_truth_of_a_linear_gaussian_program_is_its_normal():
    z = Latent("z", NORMAL, (const(1.0), const(2.0)))
    y = Observed("y", BIVARIATE, (var("z"), times(const(-2.0), var("z")), const(0.5)), (0, 1))
    p = program_of(z, y, columns=("*y", ""))
    p.x[0, 0] = p.x[1, 1] = p.x[2] = np.nan
    w = np.array([1.0, -2.0])
    cov = 4 * np.outer(w, w) + 0.25 * np.array([[1, 0.5], [0.5, 1]])
    truth = stats.norm.logpdf(p.x[0, 1], -2, cov[1, 1] ** 0.5) + stats.norm.logpdf(p.x[1, 0], 1, cov[0, 0] ** 0.5)
    truth += stats.multivariate_normal(w, cov).logpdf(p.x[3])
    assert p.given({}).value == pytest.approx(truth, abs=1e-6)


@pytest.mark.parametrize("kind", ["the row before", "cumsum", "flip", "centring"])
def test_the_truth_of_joined_rows_is_one_normal(kind):
    torch, numpy = JOINS[kind]
    mean = plus(var("z"), combine(torch, numpy, var("z"), joins=True))
    p = program_of(Latent("z", NORMAL, (const(0.0), const(1.0))), Observed("y", NORMAL, (mean, const(1.0)), (0,)), n=3)
    assert p.joined
    B = np.eye(3) + numpy(np.eye(3))
    truth = stats.multivariate_normal(np.zeros(3), B @ B.T + np.eye(3)).logpdf(p.x[:, 0])
    assert p.given({}).value == pytest.approx(truth, abs=1e-7)


def test_the_truth_of_joined_switches_is_a_sum_over_all_of_them():
    torch, numpy = JOINS["roll"]
    mean = plus(var("k"), times(const(2.0), combine(torch, numpy, var("k"), joins=True)))
    p = program_of(Latent("k", BERNOULLI, (const(0.25),)), Observed("y", NORMAL, (mean, const(1.0)), (0,)))
    terms = []
    for k in itertools.product([0, 1], repeat=4):
        prior = np.log([0.75, 0.25])[list(k)].sum()
        terms.append(prior + stats.norm.logpdf(p.x[:, 0], np.array(k) + 2 * np.roll(k, 1)).sum())
    assert p.given({}).value == pytest.approx(np.logaddexp.reduce(terms), abs=1e-9)


def test_the_truth_sums_a_missing_parent_out():
    a = Observed("a", NORMAL, (const(1.0), const(1.0)), (0,))
    b = Observed("b", NORMAL, (times(const(2.0), var("a")), const(1.0)), (1,))
    p = program_of(a, b, columns=("a", "b"))
    p.x[0, 0] = p.x[1, 1] = np.nan
    truth = stats.norm.logpdf(p.x[0, 1], 2, 5**0.5) + stats.norm.logpdf(p.x[1:, 0], 1).sum()
    truth += stats.norm.logpdf(p.x[2:, 1], 2 * p.x[2:, 0]).sum()
    assert p.given({}).value == pytest.approx(truth, abs=1e-9)


def test_the_truth_integrates_a_global_and_counts_what_is_outside():
    g, seen = Global("g", NORMAL, (0.0, 2.0)), Outside("", lambda e: stats.norm.logpdf(3.0, e["g"], 0.5))
    p = program_of(Observed("y", NORMAL, (var("g"), const(1.0)), (0,)), head=(g, seen))
    cov = 4 * np.ones((5, 5)) + np.diag([1, 1, 1, 1, 0.25])
    truth = stats.multivariate_normal(np.zeros(5), cov).logpdf([*p.x[:, 0], 3.0])
    assert p.evidence({}).value == pytest.approx(truth, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "away", "se", "false"),
    [
        ("exact", 1e-3, 0.0, True),
        ("exact", 1e-7, 0.0, False),
        ("lower bound", 0.5, 0.05, True),
        ("lower bound", -5.0, 0.05, False),
        ("estimate", -0.5, 0.05, True),
        ("estimate", 0.1, 0.05, False),
    ],
)
def test_a_false_claim_is_seen(kind, away, se, false):
    p = program_of(Latent("z", NORMAL, (const(0.0), const(1.0))), Observed("y", NORMAL, (var("z"), const(1.0)), (0,)))
    fit = SimpleNamespace(parameters={}, warnings=[], claimed=Evidence(p.given({}).value + away, se, kind))
    if not false:
        return _check(p, "em", fit, fit.claimed, {})
    with pytest.raises(FalseClaim, match="the truth is"):
        _check(p, "em", fit, fit.claimed, {})
