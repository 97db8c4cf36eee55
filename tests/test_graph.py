"""What depends on what: the parents that are read off programs, the picture of them, and refusals with their lines."""

from __future__ import annotations

import inspect
import os
import re
import stat

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import in_full, tensor
from hypothesis import given, settings
from hypothesis import strategies as st

from inference._pictures._views import graph as picture
from zoo._errors import UsageError
from zoo._program.axes import Axes
from zoo._program.describe import describe
from zoo._program.graph import graph, of_parameters
from zoo._program.load import load
from zoo._program.trace import drawn_in_full, is_latent, sample_nodes
from zoo._reading.sites import read
from zoo._reading.witness import JOINED, PLACE, Witness

MOVES = torch.tensor([[0.8, 0.2], [0.3, 0.7]])


def program_of(dag: list[tuple[str, list[int]]]):
    """A program whose site i is of that kind ("discrete", "normal", "seen") and is computed from those before it."""

    def model(x=None, size=None):
        n, values, column = size if x is None else len(x), [], 0
        with pyro.plate("data", n):
            for i, (kind, parents) in enumerate(dag):
                total = sum((torch.tanh(values[p].to(torch.float64)) for p in parents), torch.zeros(()))
                if kind == "discrete":
                    p = torch.sigmoid(total)
                    values.append(pyro.sample(f"s{i}", dist.Categorical(torch.stack([p, 1 - p], -1))))
                elif kind == "normal":
                    values.append(pyro.sample(f"s{i}", dist.Normal(total, 1.0)))
                else:
                    seen = None if x is None else x[:, column]
                    values.append(pyro.sample(f"s{i}", dist.Normal(total, 1.0), obs=seen))
                    column += 1

    return model, sum(kind == "seen" for kind, _ in dag)


@st.composite
def dags(draw, most=10):
    size = draw(st.integers(2, most))
    kinds = [draw(st.sampled_from(["discrete", "normal", "seen"])) for _ in range(size - 1)] + ["seen"]
    return [
        (kind, sorted(draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else [])) for i, kind in enumerate(kinds)
    ]


def parents_found(dag):
    model, columns = program_of(dag)
    x = torch.randn(5, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    program = load(model, x)
    nodes = sample_nodes(program.trace(x, raw=True))
    latents = {n["name"]: drawn_in_full(n) for n in nodes if is_latent(n)}
    first = read(program, x, latents, -1)
    found = first if first.again is None else read(program, x, latents, -1, codes=first.again)
    return {name: set(site.parents) for name, site in found.sites.items()}


def parents_of(dag):
    return {f"s{i}": {f"s{p}" for p in parents} for i, (_, parents) in enumerate(dag)}


@settings(max_examples=8)
@given(dags())
def test_parents_are_those_of_the_dag_that_made_the_program(dag):
    assert parents_found(dag) == parents_of(dag)


@pytest.mark.full
@settings(max_examples=40)
@given(dags(most=70))
def test_so_are_those_of_programs_with_more_sites_than_bits(dag):
    assert parents_found(dag) == parents_of(dag)


# ------------------------------------------------------------------------------------------------------- the picture


def hmm(x=None, size=None):
    n, z = size if x is None else len(x), None
    start = pyro.param("start", torch.tensor(0.3))
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    with pyro.plate("data", n):
        for t in range(30):
            p = torch.stack([start, 1 - start]) if z is None else MOVES[z]
            z = pyro.sample(f"z{t}", dist.Categorical(p))
            pyro.sample(f"x{t}", dist.Normal(loc[z], 1.0), obs=None if x is None else x[:, t])


def tree(x=None, size=None):
    n, z = size if x is None else len(x), []
    with pyro.plate("data", n):
        for i in range(15):
            z.append(pyro.sample(f"z{i}", dist.Categorical(MOVES[0] if i == 0 else MOVES[z[(i - 1) // 2]])))
            if i >= 7:
                pyro.sample(f"x{i}", dist.Normal(1.0 * z[i], 1.0), obs=None if x is None else x[:, i - 7])


def drawn_of(model, columns):
    x = torch.randn(6, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    program = load(model, x)
    structure = describe(program, x)
    return structure, graph(structure, of_parameters(program, x[:3]))


def test_a_chain_is_folded_and_every_edge_that_is_drawn_is_one_of_the_structure():
    structure, found = drawn_of(hmm, 30)
    kinds = {v.name: v.kind for v in found.vertices}
    names = {"z0", "z1", "z…", "z29", "x0", "x1", "x…", "x29", "start", "loc"}
    assert (
        kinds.keys() == names and kinds["x1"] == "observed" and kinds["z1"] == "latent" and kinds["loc"] == "parameter"
    )
    place = {site: v.name for v in found.vertices for site in v.sites}
    between = {(place[p], place[s.name]) for s in structure.sites for p in s.parents}
    of_theta = {("start", "z0")} | {("loc", name) for name in ("x0", "x1", "x…", "x29")}
    assert found.edges == {(a, b) for a, b in between if a != b} | of_theta
    assert {("z0", "z1"), ("z1", "z…"), ("z…", "z29"), ("z…", "x…")} <= found.edges and ("z0", "z29") not in found.edges


def test_a_tree_stays_whole_with_parents_above_and_between_their_children():
    structure, found = drawn_of(tree, 8)
    assert {v.name for v in found.vertices} == {s.name for s in structure.sites}
    assert found.edges == {(p, s.name) for s in structure.sites for p in s.parents}
    places = picture.laid_out(found)
    assert len(set(places.values())) == len(places)
    assert all(places[a][1] < places[b][1] for a, b in found.edges)
    for i in range(7):
        left, right = places[f"z{2 * i + 1}"][0], places[f"z{2 * i + 2}"][0]
        assert left < places[f"z{i}"][0] < right


@pytest.mark.parametrize("suffix", ["svg", *in_full("png", "pdf")])
def test_the_picture_is_written(tmp_path, suffix):
    path = tmp_path / f"out.{suffix}"
    picture.check(path)
    picture.draw(drawn_of(hmm, 30)[1], path, "hmm")
    assert path.stat().st_size > 2000


def test_a_picture_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    with pytest.raises(UsageError, match="svg"):
        picture.check(tmp_path / "out.txt")
    with pytest.raises(UsageError, match="no folder"):
        picture.check(tmp_path / "none" / "out.svg")


def test_graphviz_says_where_sites_stand_where_it_is_installed(tmp_path, monkeypatch):
    _, found = drawn_of(program_of([("discrete", []), ("seen", [0])])[0], 1)
    dot = tmp_path / "dot"
    plain = "graph 1 5 5\nnode 0 1.5 4.0 x\nnode 1 2.5 2.0 x\nstop"
    dot.write_text(f"#!/bin/sh\ncat > /dev/null\necho '{plain}'\n")
    dot.chmod(dot.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert picture.laid_out(found) == {"s0": (0.0, 0.0), "s1": (1.0, 2.0)}
    dot.write_text("#!/bin/sh\nexit 1\n")
    assert picture.laid_out(found)["s1"][1] > 0


# ---------------------------------------------------------------------------------------------- refusals, with their lines


def sees_all(x=None, size=None):
    n = size if x is None else len(x)
    with pyro.plate("data", n):
        z = [pyro.sample(f"z{t}", dist.Categorical(MOVES[0])) for t in range(16)]
        pyro.sample("x", dist.Normal(1.0 * sum(z), 1.0), obs=None if x is None else x[:, 0])


def switching(x=None, size=None):
    n, level, k = size if x is None else len(x), 0.0, 0
    with pyro.plate("data", n):
        for t in range(50):
            k = pyro.sample(f"k{t}", dist.Categorical(MOVES[k]))
            level = pyro.sample(f"l{t}", dist.Normal(level, 0.1 + k))
            pyro.sample(f"x{t}", dist.Normal(level, 1.0), obs=None if x is None else x[:, t])


def clamped(x=None, size=None):
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(torch.clamp(z, -50, 50), 1.0), obs=None if x is None else x[:, 0])


def data_dependent(x=None, size=None):
    with pyro.plate("data", size if x is None else len(x)):
        z, k = (pyro.sample(name, dist.Categorical(MOVES[0])) for name in "zk")
        chosen = z if z.sum() > 3 else k
        pyro.sample("x", dist.Normal(1.0 * chosen, 1.0), obs=None if x is None else x[:, 0])


REFUSED = {
    sees_all: ("'x'.* depends on 'z0', 'z1' … 'z15' together", 'pyro.sample("x"'),
    switching: ("'l0' \\(Normal\\) is continuous, and depends on 'k0'", 'pyro.sample(f"k{t}"'),
    clamped: ("at site 'x' \\(Normal\\), `clamp`", "torch.clamp"),
    data_dependent: ("turns a tensor that depends on 'z' into a Python value", "if z.sum()"),
}


@pytest.mark.parametrize(
    "model", [sees_all, clamped, *in_full(switching, data_dependent)], ids=lambda model: model.__name__
)
def test_a_refusal_names_the_site_and_the_line(model):
    said, text = REFUSED[model]
    found = describe(load(model, x := torch.randn(6, 50, dtype=torch.float64)), x)
    lines, first = inspect.getsourcelines(model)
    line = first + next(k for k, each in enumerate(lines) if text in each)
    assert not found.is_exact
    assert re.search(said, found.reason) and f"test_graph.py:{line}" in found.reason


def driven(x=None, size=None):
    """What was seen drives the next state."""
    n, z, seen = size if x is None else len(x), torch.tensor(0), torch.tensor(0.0)
    with pyro.plate("data", n):
        for t in range(4):
            p = torch.sigmoid(seen + z)
            z = pyro.sample(f"z{t}", dist.Categorical(torch.stack([p, 1 - p], -1)))
            seen = pyro.sample(f"x{t}", dist.Normal(1.0 * z, 1.0), obs=None if x is None else x[:, t])


def test_holes_in_what_drives_the_next_state_are_latents():
    x = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[::3, 1] = torch.nan
    found = describe(load(driven, x), x)
    assert "x1_missing" in {s.name for s in found.local_latents} and "sigmoid" in found.reason


def counts(x=None, size=None):
    with pyro.plate("data", size if x is None else len(x)):
        exposure = torch.ones(()) if x is None else x[:, 0]
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("y", dist.Poisson(rate * exposure), obs=None if x is None else x[:, 1])


def test_an_exposure_of_zero_is_named():
    x = tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 3.0], [1.5, 0.0], [1.0, 1.0]])
    assert "no derivative in some row, as where an exposure is exactly 0" in describe(load(counts, x), x).reason
    assert describe(load(counts, x[1:]), x[1:]).conjugate


# ---------------------------------------------------------------------------- the witness of programs of many sites


def long(change):
    def model(x=None, size=None):
        n, z = size if x is None else len(x), torch.tensor(0)
        with pyro.plate("data", n):
            for t in range(30):
                z = pyro.sample(f"z{t}", dist.Categorical(MOVES[z]))
                pyro.sample(f"x{t}", dist.Normal(change(1.0 * z, t, n), 1.0), obs=None if x is None else x[:, t])

    return model


WRONG = {
    "two runs": lambda loc, t, n: loc + torch.rand(()) if t == 7 else loc,
    PLACE: lambda loc, t, n: loc + torch.arange(n) if t == 7 else loc,
    JOINED: lambda loc, t, n: loc + loc.mean() if t == 7 else loc,
}


@pytest.mark.parametrize("said", [JOINED, "", *in_full("two runs", PLACE)])
def test_many_sites_are_looked_at_all_at_once(said):
    x = torch.randn(9, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    program = load(long(WRONG.get(said, lambda loc, t, n: loc)), x)
    found = Witness(program, x, Axes(1, -1)).complaint()
    assert found.startswith(said) and bool(found) == bool(said)
