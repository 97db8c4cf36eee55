"""Adding a model is one file; adding a method is one file; nothing else needs to know."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent

MODEL = '''
"""Mixture of coins: which of K biases did each row of tosses come from?"""

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch.distributions import constraints


class Model(PyroModule):
    def __init__(self, x, *, components: int = 2):
        super().__init__()
        self.weights = PyroParam(torch.full((components,), 1.0 / components), constraints.simplex)
        self.probs = PyroParam(torch.linspace(0.3, 0.7, components)[:, None].repeat(1, x.shape[1]), constraints.unit_interval)

    def forward(self, x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Categorical(self.weights))
            return pyro.sample("x", dist.Bernoulli(self.probs[z]).to_event(1), obs=x)
'''

METHOD = '''
"""The program as it comes: no learning, the exact evidence of its own first values."""

from inference._method.fit import Evidence, Fit
from zoo._options import Count


def refusal(structure):
    return None if structure.exact == "enumerable" else f"asis needs an exact posterior, and {structure.reason}"


def fit(task, *, pieces: Count = 1):
    values = {n: v.detach().numpy() for n, v in task.program.values().items()}
    return Fit(values, Evidence.from_per_datum(task.exact.per_datum().numpy(), "exact"), notes={"pieces": pieces})
'''


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the packages with one more model and one more method, and no other change."""
    folder = tmp_path_factory.mktemp("copy")
    for package in ("zoo", "guides", "inference", "benchmarks"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "results"))
    (folder / "zoo" / "coins.py").write_text(MODEL.lstrip(), encoding="utf-8")
    (folder / "inference" / "asis.py").write_text(METHOD.lstrip(), encoding="utf-8")
    x = np.random.default_rng(0).random((60, 5)) < np.where(np.arange(60) < 20, 0.9, 0.2)[:, None]
    np.save(folder / "tosses.npy", x.astype(float))
    return folder


SERVER = """
import contextlib, io, json, sys
from zoo.__main__ import app
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app(json.loads(line), prog_name="zoo")
        except SystemExit as end:
            status = end.code
    print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def zoo(copy):
    """The command of the copy: one process that serves all tests, for most of a process's time goes into its imports."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SERVER], cwd=copy, env=environment, **pipes) as process:

        def ask(*arguments: str):
            process.stdin.write(json.dumps([*arguments, "--json"]) + "\n")
            process.stdin.flush()
            status, out, err = json.loads(process.stdout.readline())
            return status, json.loads(out) if out else None, err

        yield ask
        process.stdin.close()


def test_a_new_file_is_in_the_list_with_its_first_line(zoo):
    _, groups, _ = zoo("list")
    assert groups["models"]["coins"] == "Mixture of coins: which of K biases did each row of tosses come from?"
    assert (
        groups["methods"]["asis"] == "The program as it comes: no learning, the exact evidence of its own first values"
    )


def test_a_new_model_gets_every_method_and_a_new_method_every_model(zoo):
    settings = [f"--set={s}" for s in ("samples=30", "epochs=2", "max_iter=50", "components=2", "pieces=3")]
    methods = "em,laplace,svi,importance,asis"
    status, found, err = zoo("compare", "coins", "--data", "tosses.npy", "--methods", methods, *settings)
    assert status == 0, err
    results = {r["method"]: r for r in found["runs"]}
    assert list(results) == methods.split(",")
    assert all(r["status"] == "ok" and r["verified_log_evidence"]["kind"] == "exact" for r in results.values())
    assert results["em"]["notes"]["numeric"] == []  # closed forms, with no formula in the model
    assert results["asis"]["notes"]["pieces"] == 3
    best = results["em"]["log_evidence"]["value"]
    assert all(r["verified_log_evidence"]["value"] <= best + 1e-6 for r in results.values())
    assert results["asis"]["log_evidence"]["value"] < best - 1
    status, found, err = zoo("run", "gmm", "--data", "faithful", "--method", "asis")
    assert status == 0, err
    assert found["log_evidence"]["value"] < -1130.3


def test_describe_asks_the_new_method_too(zoo):
    _, found, _ = zoo("describe", "gmm", "--data", "faithful")
    assert found["methods"]["asis"] == "yes"


def test_a_new_method_may_refuse(copy, zoo):
    program = copy / "counts.py"
    program.write_text(
        textwrap.dedent(
            """
            import pyro, pyro.distributions as dist
            def model(x=None, size=None):
                with pyro.plate("data", len(x)):
                    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
                    pyro.sample("x", dist.Poisson(rate.unsqueeze(-1)).expand([*rate.shape, 5]).to_event(1), obs=x)
            """
        )
    )
    status, found, err = zoo("run", f"{program}:model", "--data", "tosses.npy", "--method", "asis")
    assert status == 2
    assert found["status"] == "refused" and "'rate' (Gamma)" in err and "Methods that can: " in err


def test_its_options_are_checked_like_any(zoo):
    status, _, err = zoo("run", "coins", "--data", "tosses.npy", "--method", "asis", "--set", "peaces=3")
    assert status == 2 and "did you mean pieces?" in err
    status, _, err = zoo("run", "coins", "--data", "tosses.npy", "--method", "asis", "--set", "pieces=0")
    assert status == 2 and "pieces must be more than zero" in err
