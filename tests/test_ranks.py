"""Several processes of one run: they share the rows, and give the numbers of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from inference._numerics import ranks
from inference._numerics.slices import slices

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [1024, 1025, 5000])
def test_each_row_belongs_to_one_process(monkeypatch, processes, rows):
    monkeypatch.setattr(ranks, "size", lambda: processes)
    taken = np.zeros(rows, int)
    for rank in range(processes):
        monkeypatch.setattr(ranks.dist, "get_rank", lambda rank=rank: rank)
        for some in ranks.mine(slices(rows, 300), rows):
            assert some.stop - some.start <= 300
            taken[some] += 1
    assert (taken == 1).all()


def test_few_rows_are_not_shared(monkeypatch):
    monkeypatch.setattr(ranks, "size", lambda: 4)
    assert list(ranks.mine(slices(1000, 300), 1000)) == list(slices(1000, 300))
    sums = {"a": [np.ones(2)]}
    assert ranks.total(sums, 1000) is sums


UNSEEDED = """
import numpy as np, pyro, pyro.distributions as dist, torch

START = torch.tensor(np.random.default_rng().normal(size=(2, 4)))

def model(x=None, size=None):
    means = pyro.param("means", lambda: START.clone())
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        return pyro.sample("x", dist.Normal(means[z.long()], 1.0).to_event(1), obs=x)
"""


def ask(processes: int, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", "29517", "-m"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*start, "zoo", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 4)) + 3 * rng.integers(3, size=3000)[:, None]
    np.save(folder / "whole.npy", x)
    np.save(folder / "wide.npy", rng.normal(size=(1025, 3)) @ rng.normal(size=(3, 600)) + rng.normal(size=(1025, 600)))
    x[rng.random(x.shape) < 0.1] = np.nan
    np.save(folder / "holes.npy", x)
    (folder / "unseeded.py").write_text(UNSEEDED)
    return folder


@pytest.mark.full
@pytest.mark.parametrize(
    "request_",
    [
        ("gmm", "holes.npy", "components=3"),
        ("ppca", "whole.npy", "latents=2"),
        ("factor_analysis", "holes.npy", "latents=1"),
    ],
)
def test_two_processes_give_the_numbers_of_one(tables, request_):
    model, data, option = request_
    arguments = ("run", model, "--data", data, "--set", option, "--json", "--out")
    alone = json.loads(ask(1, *arguments, f"{model}-1", folder=tables).stdout)
    both = ask(2, *arguments, f"{model}-2", folder=tables)
    together = json.loads(both.stdout)  # one document: the second process says nothing
    for field in ("log_evidence", "verified_log_evidence"):
        assert together[field]["kind"] == "exact"
        assert together[field]["value"] == pytest.approx(alone[field]["value"], rel=1e-10)
    for name, value in alone["parameters"].items():
        np.testing.assert_allclose(together["parameters"][name], value, rtol=1e-5, atol=1e-6)
    assert (tables / f"{model}-2" / "run.json").is_file()


@pytest.mark.full
def test_a_share_may_have_fewer_rows_than_columns(tables):
    """Two processes have 512 and 513 of the rows of 600 columns."""
    arguments = ("run", "ppca", "--data", "wide.npy", "--set", "latents=10", "--set", "max_iter=3", "--json", "--out")
    alone, together = (json.loads(ask(n, *arguments, f"wide-{n}", folder=tables).stdout) for n in (1, 2))
    assert together["log_evidence"]["value"] == pytest.approx(alone["log_evidence"]["value"], rel=1e-10)


@pytest.mark.full
def test_processes_that_begin_at_another_theta_are_told(tables):
    asked = ask(2, "run", "unseeded.py:model", "--data", "whole.npy", "--out", "unseeded", folder=tables)
    assert asked.returncode != 0 and "begin with other data or another θ" in asked.stderr
    assert not (tables / "unseeded").exists()


@pytest.mark.full
@pytest.mark.parametrize("of", ["infer", "resume"])
def test_what_is_not_shared_runs_in_one_process(tables, of):
    asked = ("infer", "none", "--method", "em") if of == "infer" else ("run", "--resume", "none")
    assert f"Expected one process {'for zoo infer' if of == 'infer' else 'to resume a run'}, got 2" in (
        ask(2, *asked, folder=tables).stderr
    )


@pytest.mark.full
def test_a_method_that_does_not_share_says_so(tables):
    asked = ask(2, "run", "gmm", "--data", "whole.npy", "--method", "laplace", folder=tables)
    assert asked.returncode != 0 and asked.stderr.count("Expected one process for laplace, got 2") == 1


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("rows", [2, 3, 7])
def test_the_mean_of_a_batch_is_that_of_its_parts(monkeypatch, processes, rows):
    """Also where the parts are of different lengths, and where there are fewer rows than processes."""
    batch, parts, sums = torch.arange(float(rows)) ** 2, [], torch.zeros(3)
    monkeypatch.setattr(ranks, "size", lambda: processes)
    monkeypatch.setattr(ranks, "_all_reduce", lambda flat: sums.add_(flat))
    for rank in range(processes):
        monkeypatch.setattr(ranks.dist, "get_rank", lambda rank=rank: rank)
        parts.append(ranks.part(batch))
        ranks.mean([parts[-1].mean(), 2 * parts[-1].mean()], len(parts[-1]))
    taken = batch if rows >= processes else batch.repeat(processes)
    assert torch.equal(torch.cat(parts), taken)
    assert torch.allclose(sums / sums[-1], torch.stack([batch.mean(), 2 * batch.mean(), torch.tensor(1.0)]))


@pytest.mark.full
@pytest.mark.parametrize(
    ("model", "method", "option", "within"),
    [
        ("gmm", "svi", "components=3", 1e-9),  # the components are summed out, and nothing is drawn
        pytest.param("factor_analysis", "svi", "latents=1", 2e-3, marks=pytest.mark.slow),
        pytest.param("factor_analysis", "importance", "latents=1", 1e-2, marks=pytest.mark.slow),
    ],
)
def test_two_processes_learn_what_one_does(tables, model, method, option, within):
    arguments = ("run", model, "--data", "whole.npy", "--method", method, "--set", option, "--set", "epochs=8")
    rate = ("--set", "batch=301", "--set", "lr=0.02", "--json", "--out")
    alone, together = (
        json.loads(ask(n, *arguments, *rate, f"{model}-{method}-{n}", folder=tables).stdout) for n in (1, 2)
    )
    first, second = (document["verified_log_evidence"]["value"] for document in (alone, together))
    assert second == pytest.approx(first, rel=within)
    if within < 1e-6:
        for name, value in alone["parameters"].items():
            np.testing.assert_allclose(together["parameters"][name], value, rtol=1e-5, atol=1e-6)
