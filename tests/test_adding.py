"""Adding a model, a method, a family or a picture is one file; nothing else needs to know."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest
from helpers import served

from inference import run

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

FAMILY = '''
"""Geometric: each entry counts the failures before a success."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from inference._families._elementwise import Elementwise, inside
from inference._families._family import Params


class Geometric(Elementwise):
    distribution = dist.Geometric
    parameters = {"probs": constraints.unit_interval, "logits": constraints.real}
    one_of = ("probs", "logits")
    bordered = True

    def natural(self, params: Params) -> tuple[list[Tensor], Tensor]:
        probs = inside(params["probs"] if "probs" in params else params["logits"].sigmoid())
        return [torch.log1p(-probs)], -probs.log()

    def mean_to(self, name: str, mean: Tensor) -> Tensor:
        probs = 1 / (1 + mean)
        return torch.logit(inside(probs)) if name == "logits" else probs
'''

PICTURE = '''
"""The components' weights, as bars."""

from __future__ import annotations

from matplotlib.figure import Figure

from inference._pictures._views.oracle import Oracle
from inference._pictures._views.scene import Scene
from inference._pictures._views.style import OKABE_ITO, new_figure, styled


def subject(run: Scene) -> Oracle | None:
    return run.oracle if run.oracle is not None and run.oracle.A > 1 else None


def draw(run: Scene, oracle: Oracle) -> Figure:
    figure = new_figure(4.0, 3.0, run.title())
    styled(figure.add_subplot()).bar(range(oracle.A), oracle.weights, color=OKABE_ITO[0])
    return figure
'''

FAILURES = """
import pyro, torch
import pyro.distributions as dist
from torch.distributions import constraints

def mixture(x=None, size=None):
    w = pyro.param("w", torch.ones(2) / 2, constraint=constraints.simplex)
    p = pyro.param("p", torch.tensor([[0.2, 0.3, 0.4], [0.6, 0.5, 0.7]]), constraint=constraints.unit_interval)
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        return pyro.sample("x", dist.Geometric(p[z]).to_event(1), obs=x)
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the packages with one more model, method, family and picture, and no other change."""
    folder = tmp_path_factory.mktemp("copy")
    for package in ("zoo", "guides", "inference", "benchmarks"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "results"))
    (folder / "zoo" / "coins.py").write_text(MODEL.lstrip(), encoding="utf-8")
    (folder / "inference" / "asis.py").write_text(METHOD.lstrip(), encoding="utf-8")
    (folder / "inference" / "_families" / "geometric.py").write_text(FAMILY.lstrip(), encoding="utf-8")
    (folder / "inference" / "_pictures" / "weights.py").write_text(PICTURE.lstrip(), encoding="utf-8")
    (folder / "failures.py").write_text(FAILURES, encoding="utf-8")
    rng = np.random.default_rng(0)
    p = np.array([[0.15, 0.3, 0.5], [0.7, 0.6, 0.8]])[(np.arange(80) < 30).astype(int)]
    np.save(folder / "failures.npy", rng.geometric(p) - 1.0)
    x = np.random.default_rng(0).random((60, 5)) < np.where(np.arange(60) < 20, 0.9, 0.2)[:, None]
    np.save(folder / "tosses.npy", x.astype(float))
    return folder


@pytest.fixture(scope="module")
def zoo(copy):
    """The command of the copy: one process that serves all tests, for most of a process's time goes into its imports."""
    with served(copy) as ask:
        yield ask


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


def test_a_new_family_gives_em_its_closed_form(copy, zoo):
    """The maximum is the one that em climbs to numerically where there is no such family."""
    numeric = run(f"{copy}/failures.py:mixture", copy / "failures.npy", "em", start="program")
    assert numeric.notes["numeric"] == ["p"]
    request = ("run", "failures.py:mixture", "--data", "failures.npy", "--method", "em", "--set=start=program")
    status, closed, err = zoo(*request)
    assert status == 0, err
    assert closed["notes"]["numeric"] == []
    assert closed["log_evidence"]["kind"] == closed["verified_log_evidence"]["kind"] == "exact"
    assert closed["verified_log_evidence"]["value"] == pytest.approx(closed["log_evidence"]["value"], rel=1e-9)
    assert closed["log_evidence"]["value"] == pytest.approx(numeric.claimed.value, abs=1e-5)
    np.testing.assert_allclose(closed["parameters"]["p"], numeric.parameters["p"], atol=2e-3)


def test_a_new_picture_is_drawn_of_a_run_that_has_its_subject(copy, zoo):
    status, _, err = zoo("run", "gmm", "--data", "faithful", "--method", "em", "--out", "drawn")
    assert status == 0, err
    status, found, err = zoo("plot", "drawn")
    assert status == 0, err
    assert [Path(path).stem for path in found["plots"]] == ["clusters", "trace", "weights"]
    assert (copy / "drawn" / "plots" / "weights.png").stat().st_size > 1000
