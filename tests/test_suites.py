"""Suites: what is wrong is said before any work, what is finished stays, what is missing is done, whatever happens."""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks._suite import bench as _bench
from benchmarks._suite import cells as _cells
from benchmarks._suite import checks, imputing, limits, names, synthetic
from benchmarks._suite import folder as _folder
from benchmarks._suite import progress as _progress
from benchmarks._suite import suite as _suite
from benchmarks._suite import work as _work
from zoo.__main__ import app
from zoo._atomic import digest_of
from zoo._errors import UsageError

pytestmark = pytest.mark.usefixtures("here")

FIT = """# A small suite.
[[fit]]
models = "gmm"
data = "faithful"
methods = [{ name = "em", max_iter = 2 }]
"""
MANY = FIT + "seeds = 40\n"


def zoo(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def suite(text: str, name: str = "mine") -> str:
    Path(f"{name}.toml").write_text(text, encoding="utf-8")
    return f"{name}.toml"


def bench(text: str, out: str = "out", **how: Any) -> dict[str, Any]:
    return _bench.bench(suite(text), Path(out), **{"backend": "sequential", "quiet": True} | how)


def faked(monkeypatch: pytest.MonkeyPatch, work: Callable[..., Any] | None = None) -> Path:
    """Cells do next to nothing, with pictures and a run folder, and leave a line in the file returned when they begin."""
    log = Path("begun").absolute()
    log.touch()

    def default(cell: Any, results: Any, place: Path) -> dict[str, Any]:
        with log.open("a") as file:
            file.write(cell.id + "\n")
        time.sleep(0.015)
        for part in ("pictures", *(["run"] if cell.keeps else [])):
            (place / part).mkdir()
            (place / part / "a").write_bytes(b"a" * 5000)
        return {"pictures": ["a"]}

    for kind in _work.DO:
        monkeypatch.setitem(_work.DO, kind, work or default)
    return log


# ---- what is wrong is said before any work ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "text"),
    [
        ("cannot be read as TOML: Expected '='", "models"),
        ("mine.toml, unknown key 'fits' of a suite; did you mean fit?", "[[fits]]\n"),
        ("write the block as [[fit]]", "[fit]\n"),
        ("the suite is empty", "[budget]\nseconds = 3\n"),
        ("unknown key 'second' of [budget]; did you mean seconds?", "[budget]\nsecond = 3\n" + FIT),
        ("seconds expects a number above zero, got -3", "[budget]\nseconds = -3\n" + FIT),
        ("jobs expects a whole number, 1 or more, got 0", "[budget]\njobs = 0\n" + FIT),
        ("[[fit]] 1: unknown key 'model' of [[fit]]; did you mean models?", FIT.replace("models", "model")),
        ("[[fit]] 1: 'data' is missing", FIT.replace('data = "faithful"', "")),
        ("unknown model 'gmn'; did you mean gmm?", FIT.replace('"gmm"', '"gmn"')),
        ("unknown method 'lapace'; did you mean laplace?", FIT.replace('"em"', '"lapace"')),
        ("[[fit]] 2: unknown data set 'faithfull'; did you mean faithful?", FIT + FIT.replace("faithful", "faithfull")),
        ("unknown option 'epochs' of em, which belongs to", FIT.replace("max_iter", "epochs")),
        ("unknown option 'max_itr' of em; did you mean max_iter?", FIT.replace("max_iter", "max_itr")),
        ("max_iter must be a whole number, got 'two'", FIT.replace("= 2", '= "two"')),
        ("unknown option 'latents' of model 'gmm'", FIT.replace('"gmm"', '{ name = "gmm", latents = 2 }')),
        ("unknown key 'row' of the data 'faithful'", FIT.replace('"faithful"', '{ name = "faithful", row = 2 }')),
        ("rows must be at most 272", FIT.replace('"faithful"', '{ name = "faithful", rows = 300 }')),
        ("there is no file 'nothing.csv'", FIT.replace('"faithful"', '"nothing.csv"')),
        ("there is no file 'nothing.py'", FIT.replace('"gmm"', '"nothing.py:f"')),
        ("models expects names, or tables", FIT.replace('"gmm"', "3")),
        ("methods is empty", FIT.replace('[{ name = "em", max_iter = 2 }]', "[]")),
        ("vary of models expects lists", FIT.replace('"gmm"', '{ name = "gmm", vary = { components = 2 } }')),
        ("seeds expects a whole number, 1 or more, got 0", FIT + "seeds = 0\n"),
        ("seeds expects a whole number from 1 to 10,000, or a list of seeds, got 10001", FIT + "seeds = 10001\n"),
        ("pictures expects true or false, got 1", FIT + "pictures = 1\n"),
        ("theta expects one method, which fits θ, got 2", FIT.replace("[[fit]]", '[[swap]]\ntheta = ["em", "svi"]')),
        ("hide expects random:P", FIT.replace("[[fit]]", '[[impute]]\nhide = "high:0.9"')),
        ("unknown baseline 'knm'", FIT.replace("[[fit]]", '[[impute]]\nhide = "high:0.2"\nbaselines = "knm"')),
        ("draws expects 19, 39, 59", FIT.replace("[[fit]]", '[[impute]]\nhide = "high:0.2"\ndraws = 20')),
        ("unknown benchmark 'peers/emm'", '[[benchmark]]\nnames = "peers/emm"\n'),
        ("option 'sizes' of the benchmark peers/em", '[[benchmark]]\nnames = { name = "peers/em", sizes = 3 }\n'),
    ],
)
def test_one_clear_error_before_any_work(says, text, monkeypatch):
    monkeypatch.setattr(_work, "run_cell", lambda *_: pytest.fail("work was begun"))
    status, out, err = zoo("bench", suite(text))
    assert status == 2 and out == ""
    assert says in " ".join(err.split()), err
    assert "Traceback" not in err and len(err.strip().splitlines()) == 1
    assert str(Path.cwd()) not in err
    assert [p.name for p in Path.cwd().iterdir()] == ["mine.toml"]


def test_names_that_are_none():
    assert "unknown benchmark 'smok'; did you mean smoke?" in zoo("bench", "smok")[2]
    assert "there is no file 'none.toml'" in zoo("bench", "none.toml")[2]
    assert "unknown backend 'lokky'" in zoo("bench", suite(FIT), "--backend", "lokky")[2]
    assert "no cell of the suite 'mine' has an id that starts with 'zz'" in zoo("bench", suite(FIT), "--only", "zz")[2]
    assert "--quick is for benchmarks" in zoo("bench", suite(FIT), "--quick")[2]
    assert "has no option --retry" in zoo("bench", "peers/em", "--retry")[2]
    assert not Path("results").exists()


def test_a_folder_that_holds_another_suite(monkeypatch):
    faked(monkeypatch)
    bench(FIT)
    status, _, err = zoo("bench", suite(FIT, "other"), "--out", "out")
    assert status == 2 and "'out' holds results of the suite mine" in err
    Path("file").touch()
    assert "cannot write to 'file" in zoo("bench", suite(FIT), "--out", "file/results")[2]


def test_the_list():
    status, out, _ = zoo("bench", "--json")
    found = json.loads(out)
    assert status == 0
    assert {"smoke", "zoo", "methods", "missing", "scaling", "peers"} <= set(found["suites"])
    assert {"peers/em", "readme"} <= set(found["benchmarks"])
    assert all(15 < len(line) < 130 for line in found["suites"].values())
    assert "smoke" in zoo("bench")[1]


def test_the_list_and_the_page_load_nothing_heavy():
    """So that they answer at once."""
    bench(FIT)
    script = (
        "import sys\nfrom zoo.__main__ import app\n"
        "heavy = {'torch', 'pyro', 'sklearn', 'matplotlib', 'xarray', 'joblib'}\n"
        "for call in sys.argv[1:]:\n"
        "    try:\n        app(call.split())\n    except SystemExit as end:\n        code = end.code\n"
        "    print(code, sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    calls = ["bench", "bench --help", "report --help", "report out"]
    done = subprocess.run([sys.executable, "-c", script, *calls], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["0 []"] * len(calls)


@pytest.mark.parametrize("name", sorted(names.suites()))
def test_the_bundled_suites_are_right(name):
    found = _suite.load(name)
    assert len({c.id for c in found.cells}) == len(found.cells) > 0
    for cell in found.cells:
        json.dumps(cell.content, allow_nan=False)
        assert cell.title and str(Path.cwd()) not in json.dumps(cell.content)


# ---- cells -----------------------------------------------------------------------------------------------------------


def test_a_cell_is_what_it_says():
    first = _suite.load(suite(MANY)).cells
    again = _suite.load(suite("[budget]\nseconds = 9\n" + MANY.replace("small", "tiny"))).cells
    assert [c.id for c in first] == [c.id for c in again]
    other = _suite.load(suite(MANY.replace("= 2", "= 3"))).cells
    assert not {c.id for c in first} & {c.id for c in other}
    assert len({c.id for c in first}) == 40 and {c.content["seed"] for c in first} == set(range(40))


def test_a_changed_file_is_another_cell():
    Path("d.csv").write_text("a,b\n" + "1,2\n3,5\n" * 9)
    text = FIT.replace('"faithful"', '"d.csv"')
    before = _suite.load(suite(text)).cells[0]
    Path("d.csv").write_text("a,b\n" + "1,2\n3,6\n" * 9)
    after = _suite.load(suite(text)).cells[0]
    assert before.id != after.id and {**before.content, "data": 0} == {**after.content, "data": 0}


def test_products_and_variations():
    models = 'models = [{ name = "gmm", covariance = "tied", vary = { components = [1, 2, 3] } }, "ppca"]'
    cells = _suite.load(suite(FIT.replace('models = "gmm"', models) + "seeds = [3, 5]\n")).cells
    assert [c.content["model_options"].get("components") for c in cells[::2]] == [1, 2, 3, None]
    assert {c.content["seed"] for c in cells} == {3, 5}
    every = _suite.load(suite(FIT.replace('[{ name = "em", max_iter = 2 }]', '"all"'))).cells
    assert {c.content["method"] for c in every} == set(json.loads(zoo("list", "--json")[1])["methods"])


@pytest.mark.parametrize(
    ("data", "command"),
    [
        ('"faithful"', "zoo run gmm --data faithful --method em --set max_iter=2 --seed 1"),
        (
            '{ name = "faithful", standardize = true, rows = 50, seed = 1 }',
            "zoo run gmm --data faithful --rows 50 --standardize --method em --set max_iter=2 --seed 1",
        ),
        ('{ name = "faithful", rows = 50 }', "zoo bench my.toml --only "),
    ],
)
def test_the_command_of_a_cell(data, command):
    (cell,) = _suite.load(suite(FIT.replace('"faithful"', data) + "seeds = [1]\n")).cells
    assert _cells.command(cell.content, "my.toml").startswith(command)


def test_the_command_of_a_cell_gives_its_numbers():
    found = bench(FIT + "seeds = [3]\n")["cells"][0]
    result = json.loads(zoo(*found["command"].split()[1:], "--json")[1])
    assert result["log_evidence"] == found["result"]["log_evidence"]


# ---- running ---------------------------------------------------------------------------------------------------------


def test_only_what_is_missing_is_done(monkeypatch):
    log = faked(monkeypatch)
    bench(FIT + "seeds = 3\n")
    assert len(log.read_text().split()) == 3
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in Path("out/cells").iterdir()}
    bench(FIT + "seeds = 3\n")
    assert len(log.read_text().split()) == 3
    document = bench(FIT + "seeds = 5\n")
    assert len(log.read_text().split()) == 5 and document["counts"] == {"ok": 5}
    assert all(Path("out/cells", n).stat().st_mtime_ns == t for n, (t, _) in before.items())
    document = bench(FIT.replace("= 2", "= 3") + "seeds = 2\n")
    assert len(log.read_text().split()) == 7 and len(document["cells"]) == 2
    id = document["cells"][1]["id"]
    assert bench(FIT.replace("= 2", "= 3") + "seeds = 2\n", only=[id[:6]])["counts"] == {"ok": 2}
    assert log.read_text().split()[7:] == [id]


def test_failures_and_refusals_are_recorded_and_the_rest_goes_on():
    Path("mine.py").write_text(
        "import pyro, time, pyro.distributions as dist\n"
        "def wrong(x=None, size=None):\n    return [][1]\n"
        "def slow(x=None, size=None):\n    for _ in range(10000):\n        time.sleep(0.01)\n"
        "def flat(x=None, size=None):\n"
        "    mu = pyro.sample('mu', dist.Normal(0.0, 1.0).mask(False))\n"
        "    with pyro.plate('data', size if x is None else len(x)):\n"
        "        return pyro.sample('x', dist.Normal(mu.unsqueeze(-1), 9.0).expand([2]).to_event(1), obs=x)\n"
    )
    text = """
[[fit]]
models = ["mine.py:wrong", { name = "gmm", components = 300 }, "mine.py:flat", "gmm"]
data = [{ name = "faithful", rows = 100 }]
methods = [{ name = "em", max_iter = 1 }, { name = "importance", epochs = 1, samples = 5 }]
[[fit]]
models = "mine.py:slow"
data = "faithful"
methods = "em"
seconds = 0.5
"""
    document = bench(text)
    found = [(c["status"], c["reason"] or "") for c in document["cells"]]
    assert [status for status, _ in found] == ["failed"] * 4 + ["ok", "refused", "ok", "ok", "timeout"]
    assert "IndexError at mine.py:3" in found[0][1] and "for 100 rows" in found[2][1]
    assert "Methods that can: " in found[5][1]
    assert found[8][1] == "not done within 0.5 s, the cell's budget"
    assert str(Path.cwd()) not in json.dumps(document)
    status, out, err = zoo("bench", "mine.toml", "--out", "out", "--backend", "sequential")
    assert status == 1 and "failed" in out and "Traceback" not in err


def test_a_larger_budget_gives_another_chance(monkeypatch):
    tried = []

    def work(cell, results, place):
        tried.append(cell.seconds)
        while cell.seconds < 1:
            time.sleep(0.01)
        return {}

    faked(monkeypatch, work)
    assert bench("[budget]\nseconds = 0.1\n" + FIT)["counts"] == {"timeout": 1}
    assert bench("[budget]\nseconds = 0.1\n" + FIT)["counts"] == {"timeout": 1} and tried == [0.1]
    assert bench("[budget]\nseconds = 0.2\n" + FIT)["counts"] == {"timeout": 1} and tried == [0.1, 0.2]
    assert bench("[budget]\nseconds = 2\n" + FIT)["counts"] == {"ok": 1}


def test_retry(monkeypatch):
    def fail(cell, results, place):
        raise RuntimeError("no luck")

    faked(monkeypatch, fail)
    document = bench(FIT)
    assert document["counts"] == {"failed": 1} and document["cells"][0]["reason"] == "RuntimeError: no luck"
    faked(monkeypatch)
    assert bench(FIT)["counts"] == {"failed": 1}
    assert bench(FIT, retry=True)["counts"] == {"ok": 1}


def test_a_missing_package_is_named_and_skipped(monkeypatch):
    def absent(cell, results, place):
        raise ModuleNotFoundError("No module named 'pomegranate'", name="pomegranate")

    faked(monkeypatch, absent)
    document = bench(FIT)
    assert (document["cells"][0]["status"], document["cells"][0]["reason"]) == (
        "skipped",
        "pomegranate is not installed",
    )


def test_different_log_likelihoods_are_an_error_and_no_ratio():
    from benchmarks.peers._turns import table, turns

    out = turns({"zoo": lambda: (1.0, -100.0), "same": lambda: (2.0, -100.00001), "other": lambda: (2.0, -100.1)}, 2)
    assert out["ratios"] == {"same": {"median": 0.5, "min": 0.5, "max": 0.5}}
    assert len(out["errors"]) == 1 and "-100.1 (other)" in out["errors"][0]
    with pytest.raises(ArithmeticError, match="no ratio"):
        table(out)


@pytest.mark.full
def test_methods_on_one_theta():
    text = FIT.replace("[[fit]]", '[[swap]]\ntheta = "em"\npictures = true').replace(
        '[{ name = "em", max_iter = 2 }]', '["em", { name = "importance", epochs = 1, samples = 20 }]'
    )
    document = bench(text)
    assert document["counts"] == {"ok": 3} and document["command"] == "zoo bench mine.toml"
    theta, *swapped = document["cells"]
    assert theta["cell"]["kind"] == "theta" and {c["cell"]["kind"] for c in swapped} == {"infer"}
    exact = {round(c["result"]["verified_log_evidence"]["value"], 6) for c in document["cells"]}
    assert exact == {-1130.26396}
    assert "clusters.png" in swapped[0]["result"]["pictures"]
    assert [p.name for p in Path("out/runs").iterdir()] == [theta["id"]]
    stamp = (Path("out/cells") / f"{theta['id']}.json").stat().st_mtime_ns
    bench(text, only=[swapped[0]["id"]])  # with the θ that there is
    assert (Path("out/cells") / f"{theta['id']}.json").stat().st_mtime_ns == stamp
    (Path("out/runs") / theta["id"]).rename("elsewhere")  # θ is fitted anew for what is missing
    assert bench(text.replace("samples = 20", "samples = 30"))["counts"] == {"ok": 3}


def test_no_theta_no_methods_on_it(monkeypatch):
    def fail(cell, results, place):
        raise RuntimeError("no luck")

    monkeypatch.setitem(_work.DO, "theta", fail)
    document = bench(FIT.replace("[[fit]]", '[[swap]]\ntheta = "em"'))
    assert [c["reason"] for c in document["cells"]] == [
        "RuntimeError: no luck",
        "the cell that fits θ has no result (RuntimeError: no luck); re-run it with --retry.",
    ]


@pytest.mark.full
def test_ones_own_models_and_data_files():
    Path("deep/er").mkdir(parents=True)
    Path("deep/poisson.py").write_text(
        "import pyro, torch, pyro.distributions as dist\nfrom torch.distributions import constraints\n"
        "def mixture(x=None, size=None, *, parts: int = 2):\n"
        "    w = pyro.param('w', torch.ones(parts) / parts, constraint=constraints.simplex)\n"
        "    r = pyro.param('r', torch.linspace(1.0, 5.0, parts)[:, None], constraint=constraints.positive)\n"
        "    with pyro.plate('data', size if x is None else len(x)):\n"
        "        z = pyro.sample('z', dist.Categorical(w))\n"
        "        return pyro.sample('x', dist.Poisson(r[z]).to_event(1), obs=x)\n"
    )
    Path("deep/er/counts.csv").write_text("n\n0\n1\n2\n0\n1\n9\n7\n8\n11\n6\n1\n0\n")
    Path("deep/own.toml").write_text(
        FIT.replace('"gmm"', '{ name = "poisson.py:mixture", parts = 3 }').replace('"faithful"', '"er/counts.csv"')
    )
    status, out, err = zoo("bench", "deep/own.toml", "--backend", "sequential", "--json")
    assert status == 0, err
    document = json.loads(out)
    assert document["suite"] == "own" and document["counts"] == {"ok": 1}
    assert document["cells"][0]["result"]["log_evidence"]["kind"] == "exact"
    assert str(Path.cwd()) not in out and Path("results/own/suite.json").is_file()
    assert document["command"] == "zoo bench deep/own.toml"


def test_the_whole_as_one_document():
    status, out, err = zoo("bench", suite(FIT + "seeds = 2\n"), "--backend", "sequential", "--json")
    assert status == 0
    document = json.loads(out)
    assert set(document) >= {"format", "suite", "about", "command", "date", "counts", "versions", "machine", "cells"}
    assert document["about"] == "A small suite."
    assert set(document["machine"]) == {"cpu", "cores", "memory_gb", "system"}
    assert all("versions" not in c and "parameters" not in c["result"] for c in document["cells"])
    assert len(re.findall(r"^\[\d/2\] gmm, faithful, em max_iter=2, seed \d: ok", err, re.M)) == 2
    import socket

    assert socket.gethostname() not in out
    assert json.loads(_folder.text_of(document)) == document


# ---- being stopped ---------------------------------------------------------------------------------------------------


def whole(folder: Path) -> dict[str, bytes]:
    """Finished cells; each with all that belongs to it."""
    found = {}
    for path in (folder / "cells").glob("*"):
        document = json.loads(path.read_bytes())
        assert path.name == f"{document['id']}.json" and document["status"] == "ok"
        assert (folder / "pictures" / document["id"] / "a").stat().st_size == 5000
        found[document["id"]] = path.read_bytes()
    return found


@pytest.mark.full
def test_kill_9_ten_times_over(monkeypatch):
    """Nothing that was finished is lost or touched, and nothing is half written."""
    log = faked(monkeypatch)
    spec, out, luck = suite(MANY), Path("out"), random.Random(0)
    fork = multiprocessing.get_context("fork")
    before: dict[str, bytes] = {}
    how = {"spec": spec, "out": out, "backend": "sequential", "quiet": True}
    kills = 0
    for _ in range(10):
        process = fork.Process(target=_bench.bench, kwargs=how)
        process.start()
        time.sleep(luck.uniform(0.0, 0.25))
        if process.is_alive():
            kills += 1
        process.kill()
        process.join()
        after = whole(out) if out.exists() else {}
        assert {id: after[id] for id in before} == before
        begun = list(dict.fromkeys(log.read_text().split()))
        assert set(begun[:-1]) <= set(after) <= set(begun)  # one at a time: at most the last was in flight
        before = after
    assert kills >= 5
    document = _bench.bench(**how)
    assert document["counts"] == {"ok": 40}
    assert not list(out.glob(".work-*"))
    assert sorted(p.name for p in out.iterdir()) == [".claims", "cells", "pictures", "runs", "suite.json"]
    assert len(log.read_text().split()) <= 40 + kills


def test_two_at_once_share_the_work(monkeypatch):
    log = faked(monkeypatch)
    fork = multiprocessing.get_context("fork")
    how = {"spec": suite(MANY), "out": Path("out"), "backend": "sequential", "quiet": True}
    both = [fork.Process(target=_bench.bench, kwargs=how) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [p.exitcode for p in both] == [0, 0]
    assert len(whole(Path("out"))) == 40
    assert len(log.read_text().split()) == 40  # each cell once
    assert not list(Path("out").glob(".work-*"))


def test_a_cell_that_another_run_is_at_is_waited_for(monkeypatch):
    faked(monkeypatch)
    cell = _suite.load(suite(FIT)).cells[0]
    results = _folder.Results("out")
    results.begin("mine", "mine.toml", "", [cell])

    def hold() -> None:
        with results.claim(cell.id) as mine:
            assert mine
            Path("held").touch()
            time.sleep(0.5)
            os._exit(0)  # without finishing it

    process = multiprocessing.get_context("fork").Process(target=hold)
    process.start()
    while not Path("held").exists():
        time.sleep(0.01)
    assert _work.run_cell(cell, "out").status == "busy"
    monkeypatch.setattr(_bench, "WAIT", 0.05)
    began = time.monotonic()
    assert bench(FIT)["counts"] == {"ok": 1}
    assert time.monotonic() - began > 0.2
    process.join()


def test_what_living_processes_are_at_is_not_swept_away(monkeypatch):
    faked(monkeypatch)
    bench(FIT)
    results = _folder.Results("out")
    with results.workspace("abc") as mine:
        dead = mine.with_name(mine.name.replace(f"-{os.getpid()}-", "-4194303-"))
        dead.mkdir()
        elsewhere = mine.with_name(".work-01234567-1-def-x")
        elsewhere.mkdir()
        assert results.sweep() == ["abc"]
        assert mine.is_dir() and elsewhere.is_dir() and not dead.exists()
        os.utime(elsewhere, (0, 0))
        assert results.sweep() == ["def"]


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_process_that_dies_takes_only_its_cell(start, monkeypatch):
    """However it was started: a fork has imported everything."""
    monkeypatch.setattr(_bench, "get_context", lambda _: multiprocessing.get_context(start))
    Path("mine.py").write_text(
        "import os, signal\ndef dies(x=None, size=None):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    text = FIT.replace('"gmm"', '["gmm", "mine.py:dies", { name = "gmm", components = 3 }]')
    status, out, err = zoo("bench", suite(text), "--out", "out", "--backend", "sequential", "--json")
    document = json.loads(out)
    assert status == 1 and [c["status"] for c in document["cells"]] == ["ok", "failed", "ok"], err
    assert "its process died" in document["cells"][1]["reason"]
    assert not list(Path("out").glob(".work-*"))


@pytest.mark.slow
def test_a_process_of_several_that_dies_takes_only_its_cell():
    Path("mine.py").write_text(
        "import os, signal\ndef dies(x=None, size=None):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    text = FIT.replace('"gmm"', '["gmm", "mine.py:dies", { name = "gmm", components = 3 }]') + "seeds = 3\n"
    document = bench(text, jobs=2, backend="loky")
    assert document["counts"] == {"ok": 6, "failed": 3}


@pytest.mark.slow
def test_kill_9_of_the_command_ten_times_over():
    """The same as above with real cells, in parallel, of the command as a process."""
    spec, out, luck = suite(FIT + "seeds = 60\npictures = true\n"), Path("out"), random.Random(1)
    before: dict[str, bytes] = {}
    for _ in range(10):
        command = [sys.executable, "-m", "zoo", "bench", spec, "--out", str(out), "--jobs", "2"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        finished = 0
        assert process.stderr is not None
        for _line in process.stderr:
            finished += 1
            if finished >= luck.randint(1, 4):
                break
        time.sleep(luck.uniform(0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        after = {p.name: p.read_bytes() for p in (out / "cells").iterdir()}
        assert all(json.loads(text)["status"] == "ok" for text in after.values())
        assert {name: after[name] for name in before} == before and len(after) >= len(before) + min(finished, 1)
        before = after
    assert bench(FIT + "seeds = 60\npictures = true\n")["counts"] == {"ok": 60}
    assert not list(out.glob(".work-*"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_nobody_goes_on_working_for_a_command_that_was_killed(jobs):
    command = [sys.executable, "-m", "zoo", "bench", suite(FIT + "seeds = 300\n"), "--jobs", jobs]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    for _ in range(3):
        process.stderr.readline()
    process.kill()
    process.wait()
    process.stderr.close()
    end = time.monotonic() + 30
    while any(_session(p) == process.pid for p in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < end
        time.sleep(0.2)


def _session(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[3])
    except (OSError, IndexError):
        return -1


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c(jobs):
    spec = suite(FIT + "seeds = 300\n")
    command = [sys.executable, "-m", "zoo", "bench", spec, "--jobs", jobs]
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs do not hear it
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heard)
    assert process.stderr is not None
    lines = [process.stderr.readline() for _ in range(3)]
    os.killpg(process.pid, signal.SIGINT)
    rest = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert "zoo: interrupted; no file was left half written." in rest and "Traceback" not in "".join(lines) + rest
    assert len(list(Path("results/mine/cells").iterdir())) >= 3


@pytest.mark.slow
def test_a_dask_cluster():
    pytest.importorskip("distributed", reason="dask.distributed is not installed")
    status, out, err = zoo("bench", suite(FIT + "seeds = 4\n"), "--backend", "dask", "--jobs", "2", "--json")
    assert status == 0, err
    assert json.loads(out)["counts"] == {"ok": 4}


@pytest.mark.slow
def test_smoke_takes_a_minute():
    """On two cores: two minutes of processor time, whatever else the machine does meanwhile."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "zoo", "bench", "smoke"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = subprocess.run([sys.executable, "-m", "zoo", "report"], capture_output=True, text=True, check=False)
    assert page.returncode == 0 and Path("results/smoke/report.html").is_file()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 120


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_a_time_limit():
    began = time.monotonic()

    def stubborn() -> None:
        while True:
            with contextlib.suppress(Exception):  # as a library might
                time.sleep(0.001)

    with pytest.raises(limits.OutOfTime, match=r"not done within 0\.1 s"):
        limits.within(0.1, None, stubborn)
    assert time.monotonic() - began < 5
    for seconds in np.geomspace(1e-6, 1e-2, 100):  # around the time that the work takes: never afterwards
        with contextlib.suppress(limits.OutOfTime):
            assert limits.within(float(seconds), None, lambda: time.sleep(0.001)) is None
        sum(range(1000))
    assert limits.within(None, None, lambda: 3) == 3


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a memory limit needs Linux")
def test_a_memory_limit(monkeypatch):
    import torch

    with pytest.raises((RuntimeError, MemoryError)):
        limits.within(None, 200, lambda: torch.zeros(400 * 2**17, dtype=torch.float64))
    torch.zeros(40 * 2**17, dtype=torch.float64)

    def hungry(cell, results, place):
        return {"sum": float(torch.zeros(400 * 2**17, dtype=torch.float64).sum())}

    faked(monkeypatch, hungry)
    document = bench("[budget]\nmemory_mb = 200\n" + FIT)
    assert document["cells"][0]["reason"] == "out of memory; the cell's budget is 200 MB"


def test_time_left():
    keys = ["a"] * 4 + ["b"] * 2
    progress = _progress.Progress(keys, jobs=2, quiet=True)
    assert progress.time_left() is None
    progress.step(_work.Outcome("", "", "ok", None, 3.0, "a"))
    assert progress.time_left() == pytest.approx((3 * 3.0 + 2 * 3.0) / 2)
    progress.step(_work.Outcome("", "", "ok", None, 1.0, "b"))
    assert progress.time_left() == pytest.approx((3 * 3.0 + 1 * 1.0) / 2)
    assert [_progress.spoken(s) for s in (3, 600, 9000)] == ["3 s", "10 min", "2.5 h"]


def test_what_is_hidden():
    at_random = imputing.hidden("wine", "random:0.3", 4, {"standardize": True})
    high = imputing.hidden("wine", "high:0.3", 4, {"standardize": True})
    for data in (at_random, high):
        gone = np.isnan(data.x)
        assert gone.mean() == pytest.approx(0.3, abs=4 * (0.21 / gone.size) ** 0.5)
        assert np.array_equal(data.x[~gone], data.truth[~gone]) and not np.isnan(data.truth).any()
    assert np.array_equal(np.isnan(high.x), np.isnan(imputing.hidden("wine", "high:0.3", 4, {"standardize": True}).x))

    def upper(data):
        return np.isnan(data.x)[data.truth > np.median(data.truth, 0)].mean()

    assert upper(at_random) == pytest.approx(0.3, abs=0.06) and upper(high) == pytest.approx(0.45, abs=0.06)


def test_intervals_hold_what_they_say():
    rng = np.random.default_rng(0)
    for draws in (19, 39):
        truth, drawn = rng.normal(size=20_000), rng.normal(size=(draws, 20_000))
        low, high = imputing.interval(drawn)
        assert ((low <= truth) & (truth <= high)).mean() == pytest.approx(0.9, abs=4 * (0.09 / 20_000) ** 0.5)


@pytest.mark.full
def test_imputation_by_the_gaussian_and_by_scikit_learn():
    text = FIT.replace("[[fit]]", "[[impute]]").replace('"faithful"', '[{ name = "iris", standardize = true }]')
    text = text.replace('"gmm"', '[{ name = "gmm", components = 1 }]').replace("max_iter = 2", "max_iter = 200")
    document = bench(text + 'hide = "random:0.3"\nbaselines = ["mean", "knn", "iterative"]\n')
    assert document["counts"] == {"ok": 4}
    gaussian, mean, knn, iterative = (c["result"] for c in document["cells"])
    assert gaussian["rmse"] < knn["rmse"] < mean["rmse"] == pytest.approx(1.0, abs=0.1)
    assert gaussian["rmse"] < iterative["rmse"] * 1.1
    assert gaussian["hidden"] == mean["hidden"] == knn["hidden"]
    assert gaussian["coverage"] == pytest.approx(0.9, abs=0.1) and mean["coverage"] is None
    held = gaussian["held_out"]
    assert held["kind"] == "exact" and held["per_entry"] == pytest.approx(held["value"] / gaussian["hidden"])


def test_held_out_is_the_conditional_density():
    """log p(hidden | seen) by its own formula, for a Gaussian whose parameters are the fit's."""
    from inference._run import runner
    from inference._run.folder import load

    data = imputing.hidden("iris", "random:0.3", 0, {"standardize": True})
    prepared = runner.prepare("gmm", data, {"components": 1}, [])
    fit = runner.run_prepared(prepared, "em", {}, folder=Path("fit"))
    full = runner.prepare("gmm", np.asarray(data.truth), {"components": 1}, [])
    found = _work._held_out(fit, full, load("fit"), 1)
    loc, root = fit.parameters["locs"][0], fit.parameters["scale_tril"][0]
    cov, expected = root @ root.T, 0.0
    for x, truth in zip(data.x, data.truth, strict=True):
        m, s = np.isnan(x), ~np.isnan(x)
        gain = cov[np.ix_(m, s)] @ np.linalg.inv(cov[np.ix_(s, s)])
        mean = loc[m] + gain @ (x[s] - loc[s])
        c = cov[np.ix_(m, m)] - gain @ cov[np.ix_(s, m)]
        d = truth[m] - mean
        expected -= 0.5 * (d @ np.linalg.solve(c, d) + np.linalg.slogdet(2 * np.pi * c)[1]) if m.any() else 0.0
    assert found is not None and found["value"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.full
def test_scaling_cells():
    text = """
[budget]
jobs = 1
[[scaling]]
models = [{ name = "gmm", components = 2 }]
methods = [{ name = "em", max_iter = 2, tol = 0.0 }]
n = 200
d = 3
vary = { n = [100, 200], d = [2, 3], components = [2, 3] }
"""
    document = bench(text)
    assert document["counts"] == {"ok": 6}
    assert [(c["cell"]["axis"], c["cell"]["at"]) for c in document["cells"]] == [
        ("n", 100), ("n", 200), ("d", 2), ("d", 3), ("components", 2), ("components", 3)
    ]  # fmt: skip
    assert [c["result"]["n"] for c in document["cells"]] == [100, 200, 200, 200, 200, 200]
    assert all(c["result"]["notes"]["iterations"] == 2 for c in document["cells"])
    assert synthetic.table(50, 3).shape == (50, 3)


def test_a_peer_in_a_suite():
    document = bench('[[benchmark]]\nnames = [{ name = "peers/em", quick = true, rounds = 1, iterations = 3 }]\n')
    (cell,) = document["cells"]
    assert cell["status"] == "ok" and cell["result"]["ratios"]["scikit-learn"]["median"] > 0
    assert cell["result"]["iterations"] == 3 and "versions" not in cell["result"]


@pytest.mark.full
@pytest.mark.parametrize("program", ["normal", "categorical", "poisson", "em", "gaussian"])
def test_chains_agree_with_their_peers(program):
    """To 1e-9, or there is no ratio; where a peer is not installed, it is named."""
    options = f'program = "{program}", n = 3, steps = 10, k = 4, rounds = 1'
    (cell,) = bench(f'[[benchmark]]\nnames = [{{ name = "peers/chains", {options} }}]\n')["cells"]
    result, peer = cell["result"], "statsmodels" if program == "gaussian" else "hmmlearn"
    assert cell["status"] == "ok" and result["log_likelihood"]["zoo"] < 0
    if find_spec(peer) is None:
        assert result["skipped"] == [f"{peer} is not installed"] and not result["ratios"]
    else:
        assert not result["skipped"] and all(r["median"] > 0 for r in result["ratios"].values())
        assert set(result["ratios"]) == ({peer} if program == "gaussian" else {f"{peer}, scaling", f"{peer}, log"})


def test_options_of_measuring_functions():
    with pytest.raises(UsageError, match="covariance must be one of full, diagonal"):
        checks.benchmark("peers/em", {"covariance": "tied"})


# ---- what is damaged, foreign or full ----------------------------------------------------------------------------------


def test_a_damaged_result_is_named():
    bench(FIT)
    (file,) = Path("out/cells").iterdir()
    whole = file.read_text()
    assert "digest" not in _folder.Results("out").collected()["cells"][0]
    for damaged in (whole.replace("-11", "-12"), whole[:50], "[]", ""):
        file.write_text(damaged)
        for call in (("report", "out"), ("bench", "mine.toml", "--out", "out")):
            status, out, err = zoo(*call)
            assert status == 2 and out == "" and f"{file}' is damaged" in " ".join(err.split())
    file.unlink()
    assert bench(FIT)["counts"] == {"ok": 1}


def test_an_id_that_leads_out_of_the_folder_is_refused():
    bench(FIT)
    manifest = json.loads(Path("out/suite.json").read_text())
    manifest["cells"][0]["id"] = "../../../secret"
    manifest["digest"] = digest_of(manifest)
    Path("out/suite.json").write_text(json.dumps(manifest))
    status, _, err = zoo("report", "out")
    assert status == 2 and "a cell has no id" in err


def test_only_pictures_inside_the_results_are_embedded():
    bench(FIT + "pictures = true\n")
    Path("secret.png").write_bytes(b"not for others")
    (folder,) = Path("out/pictures").iterdir()
    pictures = sorted(folder.iterdir())
    assert zoo("report", "out", "--out", "page.html")[0] == 0
    shown = Path("page.html").read_text().count("data:image/png")
    assert shown == len(pictures) > 1
    pictures[0].unlink()
    pictures[0].symlink_to(Path("secret.png").absolute())  # a link leads out
    pictures[1].write_bytes(b"GIF89a")  # and this is no picture
    assert zoo("report", "out", "--out", "page.html")[0] == 0
    assert Path("page.html").read_text().count("data:image/png") == shown - 2


def test_threads_take_turns():
    document = bench(FIT + "seeds = 4\n", jobs=3, backend="threading")
    assert document["counts"] == {"ok": 4}
    alone = bench(FIT + "seeds = 4\n", out="alone")
    values = [[c["result"]["log_evidence"]["value"] for c in d["cells"]] for d in (document, alone)]
    assert values[0] == values[1]


def test_a_full_disk_ends_a_suite_in_one_sentence(monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    bench(FIT)
    monkeypatch.setattr(_folder.Results, "write", full)
    monkeypatch.setattr(
        _bench, "_alone", lambda cells, folder, redo="": (_work.run_cell(c, folder, redo) for c in cells)
    )
    status, out, err = zoo("bench", suite(FIT + "seeds = 3\n"), "--out", "out", "--jobs", "1", "--json")
    assert status == 1 and json.loads(out)["counts"] == {"ok": 1, "missing": 2}
    assert "cannot write to 'out': No space left on device." in " ".join(err.split()) and "Traceback" not in err


def test_seeds_that_no_generator_takes():
    status, _, err = zoo("bench", suite(FIT + "seeds = [18446744073709551616]\n"))
    assert status == 2 and "whole numbers from 0 to 4,000,000,000" in err
