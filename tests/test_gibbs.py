"""Gibbs sampling: against enumeration, within its own standard errors; and what becomes of a fit that claims no evidence."""

from __future__ import annotations

import itertools
import json

import local_programs as local
import numpy as np
import profit_programs as profits
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from helpers import in_full, structure_of, task_of, tensor, zoo_refusal
from scipy import special, stats

from benchmarks._report import figures, fits, leaderboard
from inference import compare, gibbs, infer, run
from inference._method.fit import Fit
from inference._method.task import Task
from inference._numerics.psis import mixing
from zoo import _show
from zoo._data.datasets import load
from zoo._errors import Refusal, UsageError

HOLES = (8, 10, 12, 3, 0, 64)  # missing pixels of each image
NET = {"net": "made", "hidden": (15,)}


def at_theta(program, x, theta=None, **options) -> Task:
    """A task that keeps θ: the program's own, or `theta`."""
    task = task_of(program, x, **options)
    task.program.assign({k: tensor(v) for k, v in (theta or {}).items()})
    task.learn = False
    return task


def sample(task: Task, seed: int = 0, **options) -> Fit:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return gibbs.fit(task, **options)


def chains_of(task: Task, chains: int, warmup: int, sweeps: int) -> tuple[np.ndarray, np.ndarray]:
    """p(entry = 1) of the first site [n, entries] by so many independent chains, and its standard error."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        found = gibbs._Chains(task, task.x, chains)
        gibbs._walk(found, warmup, sweeps, 1, lambda: None)
    share = found.sums[0][..., 1] / sweeps  # [C, n, entries]
    return share.mean(0).numpy(), (share.std(0) / chains**0.5).numpy()


def exact_means(task: Task, site: str) -> np.ndarray:
    """p(entry = 1 | x) [n, entries] of a vector of 0 and 1, over all of its values."""
    return (task.exact.responsibilities() @ task.exact.assignments[site][:, 0].to(task.x.dtype)).numpy()


@pytest.fixture(scope="module")
def theta():
    """Of a net that has seen some digits: its pixels hang together, and are not certain."""
    x = load("digits", binarize=0.5 * 16).x[:150]
    task = task_of("missing_pixels", x, **NET)
    optimiser = torch.optim.Adam(task.program.parameters(), 0.03)
    for _ in range(40):
        optimiser.zero_grad()
        (-task.program.trace(task.x).log_prob_sum() / len(x)).backward()
        optimiser.step()
    return {n: v.detach().numpy() for n, v in task.program.values().items()}


def holed(holes=HOLES) -> np.ndarray:
    """Digits with so many pixels missing, among those that differ from digit to digit."""
    rng = np.random.default_rng(0)
    x = load("digits", binarize=0.5 * 16).x.astype(float)
    uncertain = np.argsort(-x.var(0))[:24]
    x = x[300 : 300 + len(holes)].copy()
    for row, count in zip(x, holes, strict=True):
        row[rng.choice(uncertain, count, replace=False) if count < 64 else slice(None)] = np.nan
    return x


# ---- truth --------------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_missing_pixels_against_enumeration(theta):
    """Rows that miss 8, 10, 12, 3, none and all of their pixels, side by side."""
    task = at_theta("missing_pixels", holed(), theta, **NET)
    assert task.structure.local_latents[0].event_shape == (12,) and task.structure.exact == "enumerable"
    means, error = chains_of(task, chains=60, warmup=10, sweeps=20)
    truth = exact_means(task, "x_missing")
    meant = np.arange(12) < np.array([c if c < 64 else 0 for c in HOLES])[:, None]
    assert np.abs(means - truth)[meant].max() < 0.05 and truth[meant].std() > 0.2
    assert np.all(np.abs(means - truth)[meant] < 4 * error[meant] + 1e-6)


@pytest.mark.full
def test_too_many_to_enumerate(theta):
    """The same means where no more than 100 joint values may be enumerated, which is what it is for."""
    x = holed((8, 0, 5))
    task = at_theta("missing_pixels", x, theta, limit=100, **NET)
    assert task.structure.exact == "no" and gibbs.refusal(task.structure) is None
    fit = sample(task, sweeps=50, warmup=10, chains=20)
    truth = exact_means(at_theta("missing_pixels", x, theta, **NET), "x_missing")
    assert np.abs(fit.means["x_missing"] - truth).max() < max(0.01, 6 * fit.notes["standard_error"]["max"])
    assert fit.notes["standard_error"]["rms"] < 0.02
    np.testing.assert_array_equal(fit.means["x_missing"][1], 0.5)  # what stands for nothing: fair coins
    np.testing.assert_allclose(fit.deviations["x_missing"] ** 2, (m := fit.means["x_missing"]) * (1 - m))
    np.testing.assert_array_equal(fit.probabilities["x_missing"][..., 1], m)
    assert fit.draws["x_missing"].shape == (200, 3, 8) and set(np.unique(fit.draws["x_missing"])) == {0.0, 1.0}
    assert np.abs(fit.draws["x_missing"].mean(0) - truth).max() < 6 * 0.5 / 200**0.5
    assert fit.claimed is None and fit.khat is None and not fit.warnings
    assert fit.ess.shape == (3,) and fit.ess[1] == 1000 and np.all(fit.ess > 200)


def test_a_mixture_is_drawn_exactly():
    """One latent a datum: each full conditional is the posterior itself."""
    x = np.random.default_rng(0).normal(size=(40, 2)) * 2
    x[3, 1], x[7] = np.nan, np.nan
    task = at_theta("gmm", x, components=3)
    task.program.assign({"locs": tensor([[-1.0, 0.0], [1.0, 1.0], [0.0, -1.0]]), "weights": tensor([0.5, 0.3, 0.2])})
    fit = sample(task, sweeps=50, warmup=2)
    truth = task.exact.responsibilities().numpy()
    np.testing.assert_allclose(fit.probabilities["z"], truth, atol=1e-10)
    often = (fit.draws["z"][..., None] == np.arange(3)).mean(0)
    assert np.all(np.abs(often - truth) < 4.5 * np.sqrt(truth * (1 - truth) / 200) + 1e-9)
    assert fit.means == {} and fit.draws["z"].shape == (200, 40) and fit.draws["z"].dtype == np.int64


@pytest.mark.parametrize(("program", "sites"), [(user.two_sites, ("z1", "z2")), (user.causes_apart, ("on",))])
def test_latents_that_depend_on_each_other(program, sites):
    """In two sites of 2 and 3 values; in a plate."""
    near = 0.3 * np.random.default_rng(2).normal(
        size=(2, 3, 3)
    )  # far apart, two sites that depend on each other mix slowly
    theta = {"locs": near} if program is user.two_sites else {}
    task = at_theta(program, np.random.default_rng(1).normal(size=(12, 3)), theta)
    fit = sample(task, sweeps=50, warmup=10, chains=50)
    r = task.exact.responsibilities().numpy()
    for name in sites:
        values = task.exact.assignments[name].reshape(r.shape[1], -1).numpy()  # [A, copies in a plate]
        for v in range(fit.probabilities[name].shape[-1]):
            truth = (r @ (values == v)).reshape(fit.probabilities[name][..., v].shape)
            assert np.abs(fit.probabilities[name][..., v] - truth).max() < max(
                1e-6, 5 * fit.notes["standard_error"]["max"]
            )
    assert fit.notes["standard_error"]["max"] < 0.03
    if program is user.causes_apart:
        assert fit.means["on"].shape == (12, 3) and fit.draws["on"].shape == (200, 12, 3)


W = np.array([[1.0, -0.5], [0.5, 1.0], [-1.0, 0.3]])


def switches(x=None, size=None):
    """A vector of three switches a datum, whose joint values Pyro does not enumerate; x [n, 2]."""
    with user.rows(x, size):
        b = pyro.sample("b", dist.Bernoulli(tensor([0.2, 0.5, 0.7])).to_event(1))
        return pyro.sample("x", dist.Normal(b @ tensor(W), 0.7).to_event(1), obs=x)


def switches_truth(x: np.ndarray) -> np.ndarray:
    """p(b_j = 1 | x) [n, 3]."""
    values = np.array(list(itertools.product([0.0, 1.0], repeat=3)))
    prior = stats.bernoulli.logpmf(values, [0.2, 0.5, 0.7]).sum(1)
    return special.softmax(stats.norm.logpdf(x[:, None], values @ W, 0.7).sum(2) + prior, axis=1) @ values


def test_a_vector_of_switches():
    x = np.random.default_rng(2).normal(size=(10, 2))
    task = at_theta(switches, x)
    assert task.structure.assignments == 2**3
    means, error = chains_of(task, 40, 10, 40)
    assert np.all(np.abs(means - switches_truth(x)) < 4.5 * error) and error.max() < 0.02


def both(x=None, size=None):
    """x = 1 if both switches are on, and 0 else."""
    with user.rows(x, size):
        a, b = (pyro.sample(name, dist.Bernoulli(tensor(0.5))) for name in "ab")
        return pyro.sample("x", dist.Bernoulli((a * b).unsqueeze(-1)).to_event(1), obs=x)


def test_a_start_from_which_no_step_is_possible():
    fit = sample(at_theta(both, np.array([[1.0], [0.0]])), sweeps=50, warmup=60, chains=40)
    assert fit.means["a"][0] == pytest.approx(1) and fit.means["b"][0] == pytest.approx(1)
    assert abs(fit.means["a"][1] - 1 / 3) < 0.06
    assert fit.ess[0] == 2000 and not fit.warnings


# ---- the rows and the work -----------------------------------------------------------------------------------------------


def test_one_row(theta):
    x = holed((6,))
    task = at_theta("missing_pixels", x, theta, **NET)
    fit = sample(task, sweeps=15, warmup=10, chains=50)
    truth = exact_means(task, "x_missing")
    assert np.abs(fit.means["x_missing"] - truth).max() < max(0.01, 6 * fit.notes["standard_error"]["max"])
    filled = fit.draws["x_missing"]
    assert filled.shape == (200, 1, 6)


def test_what_stands_for_nothing_costs_nothing(theta, monkeypatch):
    """A pass of the program holds the rows that miss the entry, no others."""
    from inference._sampling import weights

    rows, real = [], weights.log_terms
    monkeypatch.setattr(
        weights, "log_terms", lambda program, structure, x, z: (rows.append(len(x)), real(program, structure, x, z))[1]
    )
    sample(at_theta("missing_pixels", holed((4, 0, 2, 0)), theta, **NET), sweeps=4, warmup=1, chains=2)
    assert sorted(rows) == 10 * [1] + 10 * [2]


def test_chunks_only_divide_the_work(theta, monkeypatch):
    x = holed((3, 0, 4, 1))
    monkeypatch.setattr("inference._sampling.weights.NUMBERS", 2 * 64 * 30)
    task = at_theta("missing_pixels", x, theta, **NET)
    fit = sample(task, sweeps=20, warmup=10, chains=30)
    truth = exact_means(task, "x_missing")
    assert fit.draws["x_missing"].shape == (200, 4, 4) and fit.ess.shape == (4,)
    assert np.abs(fit.means["x_missing"] - truth).max() < max(0.01, 6 * fit.notes["standard_error"]["max"])


def test_the_same_seed_gives_the_same_bits():
    task = at_theta(switches, np.random.default_rng(2).normal(size=(4, 2)))
    one, two, other = (sample(task, seed=s, sweeps=5, warmup=1) for s in (1, 1, 2))
    assert np.array_equal(one.means["b"], two.means["b"]) and np.array_equal(one.draws["b"], two.draws["b"])
    assert not np.array_equal(one.means["b"], other.means["b"])


def test_draws_come_from_all_chains_and_sweeps():
    """Fewer than there are states, or more."""
    task = at_theta(switches, np.random.default_rng(2).normal(size=(4, 2)))
    for task.draws in (1, 7, 300):
        assert sample(task, sweeps=5, warmup=0).draws["b"].shape == (task.draws, 4, 3)


# ---- what it says of itself -----------------------------------------------------------------------------------------------


def sticky(x=None, size=None):
    """Two switches that are on or off together, all but one time in 10⁵."""
    with user.rows(x, size):
        a = pyro.sample("a", dist.Bernoulli(tensor(0.6)))
        b = pyro.sample("b", dist.Bernoulli(torch.where(a > 0.5, 1 - 1e-5, 1e-5)))
        return pyro.sample("x", dist.Normal((a + b).unsqueeze(-1), tensor(100.0)).to_event(1), obs=x)


def test_chains_that_do_not_agree_are_reported():
    fit = sample(at_theta(sticky, np.zeros((12, 1))), sweeps=10, warmup=0)
    bad = round(12 * fit.notes["rhat"]["frac_above_1.01"])
    assert bad >= 5 and f"R-hat is above 1.01 for {bad} of 12 rows" in fit.warnings[0]
    assert "raise sweeps" in fit.warnings[0]


def test_rhat_and_ess_of_what_is_known():
    rng = np.random.default_rng(0)
    free = rng.normal(size=(4, 500))
    apart = free + np.array([[0.0], [3.0], [0.0], [0.0]])
    still, stuck = np.full((4, 500), -3.0), np.repeat([[1.0], [2.0], [1.0], [1.0]], 500, axis=1)
    noise = still + 1e-9 * rng.normal(size=(4, 500)) + np.array([[0.0], [1e-8], [0.0], [2e-8]])
    lost = np.where(np.arange(500) < 3, -np.inf, free)
    rhat, ess = mixing(np.stack([free, apart, still, stuck, noise, lost], -1))
    assert rhat[0] < 1.01 and 1500 < ess[0] < 2700
    assert rhat[1] > 1.3 and ess[1] < 50
    assert rhat[2] == rhat[4] == 1.0 and ess[2] == ess[4] == 2000
    assert rhat[3] == rhat[5] == np.inf and ess[3] < 50 and ess[5] == 0


# ---- what it refuses ------------------------------------------------------------------------------------------------------


def test_it_keeps_theta():
    with pytest.raises(Refusal, match=r"gibbs keeps θ as it is.*zoo infer RUN --method gibbs"):
        run("gmm", "faithful", "gibbs")


def neighbours(x=None, size=None):
    with user.rows(x, size):
        z = pyro.sample("z", dist.Bernoulli(tensor(0.5)))
        return pyro.sample("x", dist.Normal((z + z.sum()).unsqueeze(-1), 1.0).to_event(1), obs=x)


def test_what_it_cannot_do():
    def says(program, width, **options):
        return gibbs.refusal(structure_of(program, np.ones((9, width)), **options))

    assert "the global latents 'weights', 'locs'" in says("gmm", 2, priors=True)
    assert "the global latents 'level' belong to all" in says(local.both_kinds, 1)
    assert says(user.normal_mean, 1) is not None
    assert says(local.bent, 2) == "gibbs draws Bernoulli and Categorical latents, and 'z' is a Normal"
    assert "'k' is a Poisson" in says(local.unbounded_choice, 1)
    assert "the rows are not independent" in zoo_refusal("gibbs", structure_of(neighbours, np.ones((9, 1))))
    assert says(user.poisson, 3) is None and says(switches, 2) is None
    complete = structure_of("missing_pixels", np.eye(4))
    assert gibbs.refusal(complete) == "gibbs needs a latent to draw, and the program has none"


def test_draws_that_cannot_go_side_by_side():
    with pytest.raises(Refusal, match="mixes up draws"):
        sample(at_theta(user.causes, np.zeros((4, 3))))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sweeps": 3}, "sweeps must be at least 4"),
        ({"warmup": -1}, "warmup must be at least zero"),
        ({"chains": 1}, "chains must be at least 2"),
    ],
)
def test_options(options, says):
    with pytest.raises(UsageError, match=says):
        run(switches, np.zeros((3, 2)), "gibbs", **options)


# ---- a fit without a claim -------------------------------------------------------------------------------------------------


def test_on_the_theta_of_another_run(here, capsys):
    run("gmm", "faithful", "em", rows=30, max_iter=3, out="one")
    fit = infer("one", "gibbs", out="two", sweeps=10, warmup=2)
    assert fit.claimed is None and fit.verified.kind == "exact" and fit.converged is None
    document = json.loads((here / "two" / "run.json").read_text(encoding="utf-8"))
    assert document["log_evidence"] is None and document["verified_log_evidence"]["kind"] == "exact"
    assert document["notes"]["chains"] == 4
    stats = fit.idata["sample_stats"]
    assert {"ess", "verified_log_evidence", "z_probability"} <= set(stats) and "log_evidence" not in stats
    assert "log_evidence" not in fit.idata.attrs and "verified_log_evidence" in fit.idata.attrs
    _show.verdict(document, "30 × 2")
    out = capsys.readouterr().out
    assert "log p(x): gibbs claims none" in out and "θ kept" in out
    _show.verdict({**document, "learned": True}, "30 × 2")
    assert "kept" not in capsys.readouterr().out  # it learned θ, and does not know whether it converged
    assert infer("two", "em").claimed.value == pytest.approx(fit.verified.value)  # and on from there


def test_side_by_side_with_what_makes_a_claim(capsys):
    x = np.random.default_rng(2).normal(size=(10, 2))
    found = compare(switches, x, ["importance", "gibbs"], sweeps=5, proposal="prior", samples=20)
    results = [r.to_json() for r in found]
    _show.comparison(found.to_json())
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "│ gibbs" in line)
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells[1] == "-" and cells[2].endswith("exact") and cells[3] == "-"
    content = {"model": "m", "model_options": {}, "data": {"name": "d"}, "method_options": {}, "seed": 0}
    for kind, column in (("fit", "log p(x)"), ("infer", "claimed")):
        more = {"theta": {"method": "em", "method_options": {}, "seed": 0}} if kind == "infer" else {}
        cells = [
            {"cell": {**content, **more, "kind": kind, "method": r["method"]}, "status": "ok", "result": r}
            for r in results
        ]
        (group,) = fits.groups(cells, lambda name: 0)
        (table,) = leaderboard.leaderboards(group)
        ranks = {row[1].text: row[0].text for row in table.rows}
        assert ranks["importance"].startswith("1") and (ranks["gibbs"] == "–") == (kind == "infer")
        at = [c.name for c in table.columns].index(column)
        assert next(row[at].text for row in table.rows if row[1].text == "gibbs").startswith(
            "–" if kind == "infer" else "="
        )
        assert figures.of_fits(group) is not None


# -------------------------------------------------------------------------------------------------------------- chains


@pytest.mark.parametrize("coupled", in_full(False, True))
def test_chains_are_drawn_whole(coupled):
    T, x = 4, np.random.default_rng(0).normal(size=(2, 4)) + 0.8
    task = task_of(profits.two_chains(T, coupled), x)
    a, b = [f"a{t}" for t in range(T)], [f"b{t}" for t in range(T)]
    torch.manual_seed(0)
    fit = gibbs.fit(task, sweeps=300, warmup=20)
    whole = [[n for pair in zip(a, b, strict=True) for n in pair]] if coupled else [a, b]
    assert fit.notes["drawn_together"] == whole
    truth = task.engine.marginals(task.engine.responsibilities())
    for name in (*a, *b):
        assert (
            np.abs(fit.probabilities[name] - truth[name].numpy()).max()
            < 4 * max(fit.notes["standard_error"]["max"], 1e-9) + 1e-3
        )
    if coupled:  # all that there is, drawn together: independent draws
        assert np.abs(fit.ess / 1200 - 1).max() < 0.25
    drawn = fit.draws["a2"].mean(0)
    assert np.abs(drawn - truth["a2"][:, 1].numpy()).max() < 4 * 0.5 / 200**0.5


def test_a_chain_too_wide_to_sum_is_drawn_one_by_one():
    structure = task_of(profits.two_chains(4, True), np.ones((2, 4))).structure
    assert gibbs.blocks(structure, 7) == [] and len(gibbs.blocks(structure, 8)) == 1
