"""Training that can be relied on: killed and resumed, cut short, held out, not a number."""

from __future__ import annotations

import json
import multiprocessing
import re
import time
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from helpers import in_full, started, task_of
from safetensors.torch import load_file

from inference import run
from inference._run import checkpoint, runner
from inference._training import elbo, loop, recorded
from zoo._errors import UsageError

PIXELS = (np.random.default_rng(0).random((200, 36)) < 0.4).astype(float)
SMALL = {"likelihood": "bernoulli", "latents": 2, "hidden": (16,), "batch": 50}


def state(folder):
    return load_file(Path(folder) / "state.safetensors")


def same(a, b):
    one, other = state(a), state(b)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one)
    first, second = (json.loads((Path(f) / "run.json").read_text()) for f in (a, b))
    assert first["log_evidence"] == second["log_evidence"]
    assert first["verified_log_evidence"] == second["verified_log_evidence"]


class Stop(Exception):
    """In the place of a kill."""


def stopped_at(monkeypatch, writes, call):
    """Run `call` until it has written so many checkpoints, and stop it there."""
    original, count = checkpoint.Checkpoints.write, 0

    def write(self, found):
        nonlocal count
        original(self, found)
        count += 1
        if count == writes:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "write", write)
        with pytest.raises(Stop):
            call()


# ---- going on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {"schedule": "cosine"},
        {"schedule": "plateau", "held_out": 0.2, "patience": 1, "tol": 1.0},
        {"particles": 3},
    ],
    ids=["cosine", "held out", "particles"],
)
@pytest.mark.parametrize("writes", [3, *in_full(8)])  # in the middle of an epoch, and at the end of one
def test_a_run_that_goes_on_ends_with_the_same_numbers(tmp_path, monkeypatch, how, writes):
    asked = {**SMALL, "epochs": 3, "seed": 3, "binarize": "dynamic", "checkpoint": 0.0, **how}
    source = str(tmp_path / "pixels.npy")
    np.save(source, np.random.default_rng(1).random((200, 36)))
    run("deep_latent_gaussian", source, "svi", out=tmp_path / "whole", **asked)
    stopped_at(monkeypatch, writes, lambda: run("deep_latent_gaussian", source, "svi", out=tmp_path / "parts", **asked))
    assert not (tmp_path / "parts").exists()
    run(resume=tmp_path / "parts")
    same(tmp_path / "whole", tmp_path / "parts")
    assert not checkpoint.place(tmp_path / "parts").exists()


@pytest.mark.full
def test_an_array_has_to_be_given_again(tmp_path, monkeypatch):
    asked = {**SMALL, "epochs": 4, "checkpoint": 0.0}
    stopped_at(monkeypatch, 2, lambda: run("deep_latent_gaussian", PIXELS, "svi", out=tmp_path / "a", **asked))
    with pytest.raises(UsageError, match="started with a data that has no name: give it again"):
        run(resume=tmp_path / "a")
    with pytest.raises(UsageError, match="the data differ from those that"):
        run(data=1 - PIXELS, resume=tmp_path / "a")
    run("deep_latent_gaussian", PIXELS, "svi", out=tmp_path / "b", **asked)
    run(data=PIXELS, resume=tmp_path / "a")
    same(tmp_path / "a", tmp_path / "b")


@pytest.mark.full
def test_kill_9(tmp_path, monkeypatch):
    """A process of its own, killed at some moment of its training, and resumed by the command that the README has."""
    monkeypatch.chdir(tmp_path)
    np.save("pixels.npy", PIXELS)
    request = ("deep_latent_gaussian", "pixels.npy", "svi")
    asked = {**SMALL, "epochs": 8, "schedule": "cosine"}
    run(*request, out="whole", **asked)
    process = multiprocessing.get_context("spawn").Process(
        target=run, args=request, kwargs={**asked, "out": "killed", "checkpoint": 0.0}
    )
    process.start()
    unfinished = checkpoint.place(tmp_path / "killed")
    deadline = time.monotonic() + 120
    while len(list(unfinished.glob("state-*.pt"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not (tmp_path / "killed").exists() and unfinished.exists()
    done = started("run", "--resume", "killed", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "deep_latent_gaussian"
    same("whole", "killed")


def test_a_checkpoint_that_was_cut_short(tmp_path, monkeypatch, capsys):
    asked = {**SMALL, "epochs": 4, "checkpoint": 0.0}
    np.save(tmp_path / "x.npy", PIXELS)
    source = str(tmp_path / "x.npy")
    run("deep_latent_gaussian", source, "svi", out=tmp_path / "a", **asked)
    stopped_at(monkeypatch, 9, lambda: run("deep_latent_gaussian", source, "svi", out=tmp_path / "b", **asked))
    last = sorted(checkpoint.place(tmp_path / "b").glob("state-*.pt"))[-1]
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    run(resume=tmp_path / "b")
    assert re.search(
        r"checkpoint '.*state-000009.pt' is damaged; resuming from the one before", capsys.readouterr().err
    )
    same(tmp_path / "a", tmp_path / "b")


def test_what_cannot_be_gone_on_with(tmp_path, monkeypatch):
    asked = {**SMALL, "epochs": 4, "checkpoint": 0.0}
    np.save(tmp_path / "x.npy", PIXELS)
    source = str(tmp_path / "x.npy")
    with pytest.raises(UsageError, match="there is no checkpoint of it"):
        run(resume=tmp_path / "nothing")
    stopped_at(monkeypatch, 1, lambda: run("deep_latent_gaussian", source, "svi", out=tmp_path / "a", **asked))
    with pytest.raises(UsageError, match="is unfinished: continue it with --resume"):
        run("deep_latent_gaussian", source, "svi", out=tmp_path / "a", **asked)
    with pytest.raises(
        UsageError, match=r"Expected model .deep_latent_gaussian., with which .* was started, got .gmm."
    ):
        run("gmm", source, resume=tmp_path / "a")
    with pytest.raises(UsageError, match="other options: latents cannot be changed"):
        run(resume=tmp_path / "a", latents=3)
    with pytest.raises(UsageError, match="give resume or out, not both"):
        run(resume=tmp_path / "a", out=tmp_path / "b")
    request = checkpoint.place(tmp_path / "a") / "request.json"
    request.write_text(json.dumps(json.loads(request.read_text()) | {"version": "0.0.1"}))
    with pytest.raises(UsageError, match="written by another version"):
        run(resume=tmp_path / "a")
    run("deep_latent_gaussian", source, "svi", out=tmp_path / "done", **asked)
    with pytest.raises(UsageError, match="it is finished"):
        run(resume=tmp_path / "done")


def test_nothing_is_left_beside_a_run(tmp_path):
    run("deep_latent_gaussian", PIXELS, "svi", out=tmp_path / "a", epochs=2, checkpoint=0.0, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


# ---- a recorded step ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, *in_full({"particles": 4}, {"guide": "mean_field"}, {"layers": 2})], ids=str)
def test_a_recorded_step_changes_nothing_but_the_time(tmp_path, monkeypatch, how):
    folders, used = [], []
    original = recorded.Compiled.prepare
    monkeypatch.setattr(
        recorded.Compiled,
        "prepare",
        lambda c, r, x, *o: (original(c, r, x, *o), used.append(c.records[x.shape] is not None)),
    )
    for worth in (1, 10**9):
        monkeypatch.setattr(loop, "WORTH", worth)
        folders.append(tmp_path / str(worth))
        run("deep_latent_gaussian", PIXELS[:190], "svi", out=folders[-1], epochs=3, **SMALL | how)
    assert used == [True] * 6  # for both sizes of batches, once for each epoch of the first run
    same(*folders)


def test_a_program_with_a_state_of_its_own_is_not_recorded():
    """Its density changes with every call: a record would hold the first for ever."""
    calls = 0

    def warming(x=None, size=None):
        nonlocal calls
        calls += 1
        loc = pyro.param("loc", torch.zeros(1))
        with pyro.plate("data", size if x is None else len(x)):
            return pyro.sample("x", dist.Normal(loc, 1.0 + 1.0 / calls).to_event(1), obs=x)

    x = torch.ones(8, 1, dtype=torch.float64)
    task = task_of(warming, x)
    compiled = recorded.Compiled(elbo.objective(task, None, 1), list(task.program.parameters()))
    compiled.prepare(torch.arange(8), x, torch.arange(8), x)
    assert compiled.records == {x.shape: None}
    first, second = (float(compiled(torch.arange(8), x)) for _ in range(2))
    assert first != second


# ---- the data -------------------------------------------------------------------------------------------------------


def test_every_epoch_draws_its_own_binarisation():
    grey = np.random.default_rng(2).random((40, 9))
    grey[:, 0], grey[0, 1] = 1.0, np.nan
    prepared = runner.prepare("deep_latent_gaussian", grey, {"likelihood": "bernoulli"}, [], binarize="dynamic")
    task = runner.Task(prepared.program(), prepared.structure, prepared.x, intensities=prepared.intensities)
    epochs = torch.stack([task.at_epoch(e).clone() for e in range(400)])
    assert bool(torch.equal(task.at_epoch(7).nan_to_num(5), epochs[7].nan_to_num(5)))
    seen = ~np.isnan(grey)
    assert set(np.unique(epochs.numpy()[:, seen])) == {0.0, 1.0}
    assert bool(epochs[:, 0, 1].isnan().all())
    spread = np.sqrt(grey * (1 - grey) / 400)[seen]
    assert np.all(np.abs(epochs.numpy().mean(0)[seen] - grey[seen]) <= 5 * spread + 1e-12)
    assert set(np.unique(prepared.x.numpy()[seen])) == {0.0, 1.0}


def test_rows_held_out_are_not_learned_from():
    """θ goes to the mean of the rows that were kept, and stays where it was best on the others."""
    x = np.random.default_rng(4).normal(size=(50, 1))

    def mean(x=None, size=None):
        loc = pyro.param("loc", torch.zeros(1))
        with pyro.plate("data", size if x is None else len(x)):
            return pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    fit = run(mean, x, "svi", held_out=0.3, epochs=300, batch=50, lr=0.05, schedule="cosine", seed=5)
    aside = np.sort(torch.randperm(50, generator=torch.Generator().manual_seed(6)).numpy()[:15])
    kept = np.setdiff1d(np.arange(50), aside)
    best = fit.trace["log_likelihood_per_datum_held_out"].max()
    assert fit.trace["log_likelihood_per_datum_held_out"].shape == (300,)
    here = -0.5 * np.log(2 * np.pi) - 0.5 * np.square(x[aside] - fit.parameters["loc"]).mean()
    assert here == pytest.approx(best, abs=1e-9)  # the parameters of the best epoch are the ones that were kept
    assert abs(float(fit.parameters["loc"][0]) - x[kept].mean()) < 0.5


# ---- not a number -----------------------------------------------------------------------------------------------------


def breaks(x=None, size=None):
    loc = pyro.param("loc", torch.tensor(1.0))
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        mean = z.tanh().sum(-1, keepdim=True) + loc + 0 * loc.log()  # not a number from where loc is negative
        return pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


def test_a_figure_that_is_not_a_number_stops_with_step_and_site():
    x = np.random.default_rng(0).normal(size=(40, 1)) - 20
    with pytest.raises(ArithmeticError, match=r"stopped at step \d+ of epoch \d+.*site 'x' is .*smaller lr"):
        run(breaks, x, "svi", epochs=50, lr=0.05, batch=10)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"schedule": "linear"}, "schedule must be one of plateau, cosine, constant, got 'linear'"),
        ({"held_out": 1.0}, "held_out must be at least zero and less than 1, got 1"),
        ({"held_out": 0.99}, "held_out=0.99 leaves no row of 12"),
        ({"clip": 0}, "clip must be more than zero"),
        ({"patience": 0}, "patience must be more than zero"),
        ({"particles": 0}, "particles must be more than zero"),
    ],
)
def test_bad_settings(how, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        run(user.poisson, np.ones((12, 3)), "svi", **how)


# ---- devices ------------------------------------------------------------------------------------------------------------


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="torch finds no GPU here; take device=cpu"):
        run("deep_latent_gaussian", PIXELS, "svi", device="cuda", **SMALL)
    with pytest.raises(UsageError, match="unknown device 'tpu'"):
        run("deep_latent_gaussian", PIXELS, "svi", device="tpu", **SMALL)
    fit = run("deep_latent_gaussian", PIXELS, "svi", epochs=1, **SMALL)
    assert fit.options["device"] == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_learns_the_same(tmp_path):
    """But for rounding and its own draws; and the run is a run like any other."""
    options = {**SMALL, "epochs": 100, "held_out": 0.1}
    here, there = (
        run("deep_latent_gaussian", PIXELS, "svi", device=d, out=tmp_path / d, **options) for d in ("cpu", "cuda")
    )
    assert there.options["device"] == "cuda"
    assert abs(here.claimed.value - there.claimed.value) < 0.02 * abs(here.claimed.value)
    assert all(v.device.type == "cpu" for v in state(tmp_path / "cuda").values())
