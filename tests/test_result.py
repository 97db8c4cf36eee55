"""Requests and runs: what was asked for, once; the same run made and read back; a user's file executed once."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import user_programs as user
from helpers import hide, in_full, run_of
from matplotlib.figure import Figure
from typer.testing import CliRunner

import latent_zoo
from inference import Fit, Run, compare, infer, load, run
from inference._method.fit import Evidence
from inference._pictures import _draw as drawing
from inference._run import folder as _store
from inference._run import request as _request
from inference._run import runner
from inference._run.request import Request, written
from zoo import _atomic
from zoo.__main__ import app
from zoo._data import datasets
from zoo._errors import UsageError
from zoo._program.structure import ENUMERATION_LIMIT

FAITHFUL = datasets.load("faithful").x


def zoo(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done.stdout


# ---- requests --------------------------------------------------------------------------------------------------------

REQUESTS = [
    Request("gmm", "faithful", "em", {"components": 3, "priors": True}),
    Request("gmm", "faithful", seed=4, limit=50, dtype="float64", device="cpu"),
    Request(
        "deep_latent_gaussian", "digits", "svi", {"hidden": [50, 50]}, {"binarize": 8, "rows": 40, "missing": "top"}
    ),
    Request("a folder/mine.py:model", "some data.csv", "laplace", {"note": "it's"}, {"standardize": True}),
    Request(None, None, "importance", {"samples": 20}, seed=3, of="runs/one"),
    Request("gmm", "new.csv", "em", {}, {"missing": "random:0.1"}, of="runs/one"),
]


@pytest.mark.parametrize("asked", REQUESTS)
def test_a_request_goes_through_json(asked):
    assert Request.from_json(json.loads(json.dumps(asked.to_json()))) == asked


def test_the_json_of_a_request_has_the_fields_of_a_checkpoint():
    document = Request("gmm", Path("d.csv"), "em", {"tol": np.float64(0.5)}, {"rows": 3}).to_json()
    assert document == {
        "model": "gmm",
        "data": "d.csv",
        "method": "em",
        "seed": 0,
        "limit": 10_000,
        "dtype": "auto",
        "device": "auto",
        "preparation": {"rows": 3, "standardize": False, "binarize": None, "missing": None},
        "options": {"tol": 0.5},
    }
    assert _request.LIMIT == ENUMERATION_LIMIT


def test_the_command_of_a_request():
    said = [asked.command() for asked in REQUESTS]
    assert said == [
        "zoo run gmm --data faithful --method em --set components=3 --set priors=true --seed 0",
        "zoo run gmm --data faithful --method em --limit 50 --dtype float64 --device cpu --seed 4",
        "zoo run deep_latent_gaussian --data digits --rows 40 --binarize 8 --missing top --method svi --set hidden=50,50 "
        "--seed 0",
        "zoo run 'a folder/mine.py:model' --data 'some data.csv' --standardize --method laplace --set 'note=it'\"'\"'s' "
        "--seed 0",
        "zoo infer runs/one --method importance --set samples=20 --seed 3",
        "zoo infer runs/one --data new.csv --missing random:0.1 --method em --seed 0",
    ]
    assert written((True, 2, "x")) == "true,2,x"


@pytest.mark.parametrize(
    "asked",
    [
        Request(user.poisson, "faithful"),
        Request("gmm", FAITHFUL),
        Request("gmm", "faithful", "svi", {"guide": user.poisson}),
        Request("gmm", "faithful", "em", {}, {"rows": 20, "seed": 1}),
    ],
)
def test_what_has_no_name_has_no_command(asked):
    assert asked.command() is None


@pytest.mark.full
def test_a_command_gives_the_same_run_again(here):
    first = run(
        "gmm", "digits", "em", rows=40, missing="random:0.2", covariance="spherical", max_iter=3, seed=2, out="one"
    )
    words = shlex.split(load("one").request.command())
    again = json.loads(zoo(*words[1:], "--out", "two", "--json"))
    assert again["log_evidence"]["value"] == first.claimed.value
    assert load("two").request.command() == load("one").request.command()
    other = infer("one", "laplace", out="three", seed=5)
    words = shlex.split(load("three").request.command())
    assert json.loads(zoo(*words[1:], "--out", "four", "--json"))["log_evidence"]["value"] == other.claimed.value


def test_a_run_json_of_before_tells_its_request(here):
    run("gmm", "faithful", "em", components=3, rows=50, seed=1, out="new")
    document = _store.load("new").json
    old = {k: v for k, v in document.items() if k not in ("request", "digest")}
    found = Request.from_json(old)
    assert (found.model, found.data, found.method, found.seed) == ("gmm", "faithful", "em", 1)
    assert found.options == {"components": 3} and found.preparation["rows"] == 50
    assert found.command() is not None
    assert Request.from_json({**old, "data": "table"}).command() is None  # the file's own name is all that is known
    assert Request.from_json({**old, "learned": False}).command() is None  # whose θ it kept is not


def test_a_checkpoint_holds_the_request(here, monkeypatch):
    def stop(self, state):
        self._begin()
        raise KeyboardInterrupt

    monkeypatch.setattr("inference._run.checkpoint.Checkpoints.write", stop)
    with pytest.raises(KeyboardInterrupt):
        run("gmm", "faithful", "svi", epochs=3, seed=2, out="stopped", checkpoint=0)
    document = json.loads(Path(".stopped.unfinished/request.json").read_text())
    asked = Request("gmm", "faithful", "svi", {"epochs": 3}, seed=2)
    assert Request.from_json(document) == asked
    assert {k: document[k] for k in asked.to_json()} == asked.to_json()


# ---- a user's file is executed once ----------------------------------------------------------------------------------

PROGRAM = """
import pyro, torch
import pyro.distributions as dist
from pathlib import Path

with Path("executed").open("a") as log:
    log.write("once\\n")

network = torch.randn(2)

def model(x=None, size=None, spread=1.0):
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(loc + z.unsqueeze(-1) * network, spread).to_event(1), obs=x)

def q(x, size=None):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))
"""


@pytest.fixture
def log(here):
    """How often the program's file was executed."""
    Path("program.py").write_text(PROGRAM)

    def count() -> int:
        file = Path("executed")
        number = len(file.read_text().split()) if file.exists() else 0
        file.unlink(missing_ok=True)
        return number

    return count


def test_a_users_file_is_executed_once_in_a_run(log):
    run("program.py:model", "faithful", "em", max_iter=2)
    assert log() == 1
    run("program.py:model", "faithful", "svi", epochs=2, out="svi", checkpoint=0, guide="program.py:q")
    assert log() == 1
    zoo("run", "program.py:model", "--data", "faithful", "--set", "max_iter=2", "--out", "one")
    assert log() == 1
    compare("program.py:model", "faithful", ["em", "laplace", "svi", "importance"], out="all", epochs=1, samples=20)
    assert log() == 1
    zoo("compare", "program.py:model", "--data", "faithful", "--methods", "em,laplace", "--out", "both")
    assert log() == 1
    infer("one", "laplace", model="program.py:model", out="two")
    assert log() == 1
    zoo("infer", "one", "--method", "em", "--model", "program.py:model", "--out", "three")
    assert log() == 1


def test_a_prepared_program_executes_nothing_more(log):
    prepared = runner.prepare("program.py:model", "faithful", {}, [])
    fits = [runner.run_prepared(prepared, method, {}) for method in ("em", "laplace")]
    assert log() == 1 and fits[0].verified.value == pytest.approx(fits[1].verified.value, abs=1e-3)


def test_what_a_file_draws_follows_the_seed(log):
    one, two = (run("program.py:model", FAITHFUL[:30], "em", start="program", max_iter=1, seed=s) for s in (0, 1))
    again = run("program.py:model", FAITHFUL[:30], "em", start="program", max_iter=1, seed=0)
    assert one.claimed.value == again.claimed.value != two.claimed.value
    assert log() == 3


def test_a_file_that_was_edited_is_another_program_in_the_next_run(log):
    first = run("program.py:model", "faithful", "em", max_iter=2)
    Path("program.py").write_text(PROGRAM.replace("spread=1.0", "spread=5.0"))
    assert run("program.py:model", "faithful", "em", max_iter=2).claimed.value != first.claimed.value
    assert log() == 2


# ---- the same run, made and read back --------------------------------------------------------------------------------


def test_a_fit_has_few_fields_and_is_frozen():
    assert len(dataclasses.fields(Fit)) <= 16
    with pytest.raises(dataclasses.FrozenInstanceError):
        Fit({}, None).converged = True


WAYS = {
    "em": ("gmm", {"components": 3, "missing": "random:0.1"}),
    "laplace": ("gmm", {"priors": True}),
    "svi": ("ppca", {"latents": 1, "epochs": 3, "standardize": True}),
    "importance": ("ppca", {"latents": 1, "proposal": "prior", "samples": 200, "start": "program"}),
}


def equal(one, other) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.mark.parametrize("method", ["em", *in_full(*(w for w in WAYS if w != "em"))])
def test_a_run_reads_back_as_it_was_made(method, here):
    model, options = WAYS[method]
    made = run(model, "faithful", method, out="run", **options)
    read = latent_zoo.load("run")
    assert isinstance(made, Run) and type(read) is type(made)
    assert read.to_json() == made.to_json()
    assert repr(read) == repr(made) and len(repr(made).splitlines()) == 6
    assert read.request == made.request
    for name in ("parameters", "draws", "means", "deviations", "probabilities", "standard_errors", "trace"):
        equal(getattr(made, name), getattr(read, name))
    equal(made.predictive, read.predictive)
    equal(made.observed, read.observed)
    for name in ("x", "khat", "ess", "log_likelihood"):
        np.testing.assert_array_equal(getattr(made, name), getattr(read, name), err_msg=name)
    for name in ("data", "columns", "method", "seed", "options", "n", "converged", "warnings", "local_sites", "run"):
        assert getattr(read, name) == getattr(made, name), name
    for one, other in ((made.claimed, read.claimed), (made.verified, read.verified)):
        assert (one is None) == (other is None)
        assert one is None or (one.value, one.se, one.kind, one.given) == (
            other.value,
            other.se,
            other.kind,
            other.given,
        )
        if one is not None:
            np.testing.assert_array_equal(one.per_datum, other.per_datum)
            np.testing.assert_array_equal(one.se_per_datum, other.se_per_datum)
    theta = read.program.values()
    assert all(np.array_equal(made.parameters[n], v.detach().numpy()) for n, v in theta.items())
    assert (read.guide is None) == (made.guide is None or made.guide.recipe is None)


@pytest.mark.filterwarnings("ignore:Estimated shape parameter")
def test_a_run_that_was_read_back_imputes_is_judged_and_saved_again(here):
    made = run("gmm", hide(FAITHFUL, 0.1), "laplace", out="run", covariance="spherical")
    read = load("run")
    one, other = made.impute(draws=5, seed=3), read.impute(draws=5, seed=3)
    np.testing.assert_array_equal(one.mean, other.mean)
    np.testing.assert_array_equal(one.draws, other.draws)
    assert read.loo().elpd == made.loo().elpd
    assert read.save("copy") == "copy" and _atomic.place("copy").is_dir()
    assert {**load("copy").to_json(), "run": None} == {**made.to_json(), "run": None}
    assert infer("copy", "em").claimed.value == infer("run", "em").claimed.value
    assert read.idata.identical(load("copy").idata)
    with pytest.raises(UsageError, match="from 1 to 1,000,000 for draws"):
        read.impute(draws=0)


def test_names_with_a_slash_come_back(here):
    def program(x=None, size=None):
        import pyro
        import pyro.distributions as dist
        import torch

        loc = pyro.param("net/loc", torch.zeros(2))
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("a/z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(loc + z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    made = run(program, FAITHFUL[:30], "em", out="run")
    read = load("run")
    assert set(read.parameters) == set(made.parameters) == {"net/loc"}
    assert set(read.draws) == set(read.means) == {"a/z"} == set(read.local_sites)


def test_a_folder_of_before_is_read(here):
    """Without the request, the standard errors and the means: they came later in format 2."""
    made = run("gmm", "faithful", "laplace", out="run")
    document = json.loads(Path("run/run.json").read_text())
    assert document["format"] == _store.FORMAT == 2
    del document["request"]
    Path("run/run.json").write_text(_store.text_of(document))
    read = load("run")
    assert read.to_json() == made.to_json() and read.request.method == "laplace"


def test_figures_that_are_not_finite_come_back(here):
    made = run("gmm", "faithful", "em", max_iter=1)
    made.verified = Evidence(-np.inf, np.inf, "estimate")
    made.save("run")
    assert load("run").verified.value == -np.inf and load("run").verified.se == np.inf


def test_what_a_run_says_of_itself():
    claimed = Evidence(-12.34567, 0.5, "estimate", given="the mode of μ")
    text = repr(run_of(model="gmm", data="d", method="em", x=np.zeros((4, 2)), claimed=claimed, warnings=["a", "b"]))
    assert text.splitlines() == [
        "Run of gmm on d (4 × 2)",
        "  by em, seed 0",
        "  log p(x) = -12.346 ± 0.500 nats, estimate given the mode of μ",
        "  verified: no",
        "  2 warnings",
        "  0.00 s; not saved",
    ]


# ---- pictures ---------------------------------------------------------------------------------------------------------


def test_a_live_run_is_drawn(here):
    made = run("gmm", "faithful", "em")
    assert isinstance(made.plot("clusters"), Figure)
    assert list(Path.cwd().iterdir()) == []
    with pytest.raises(UsageError, match=r"Expected a picture of this run \(clusters, .*got 'cluster'"):
        made.plot("cluster")
    with pytest.raises(UsageError, match="not saved: name a folder"):
        made.plot()
    names = {p.name for p in made.plot(out="pictures", format="svg")}
    made.save("run")
    assert {p.name for p in made.plot()} == {n.replace("svg", "png") for n in names}
    saved = [p.read_bytes() for p in sorted(Path("run/plots").iterdir())]
    drawing.plot("run", "again")
    assert saved == [p.read_bytes() for p in sorted(Path("again").iterdir())]


def test_asking_imports_nothing_heavy():
    script = """
    import sys
    from inference._run.request import Request
    assert Request("gmm", "faithful").command()
    assert not {"torch", "numpy", "pyro", "xarray"} & set(sys.modules), sys.modules.keys()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, env=os.environ)
