"""Two hundred kills with -9, over all commands that write, at moments spread over each command's whole duration.

A third of the moments are uniform over the call, the others over the part of it in which it writes. After each: every file
under its final name is whole, no process is left, and the next call ends with the same numbers and leaves nothing behind.

Slow: about 20 minutes on one core that has nothing else to do; a part for each command, side by side under pytest-xdist.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from forked import Done, Forked

from inference import load

pytestmark = pytest.mark.slow
TABLE = "a,b\n" + "".join(f"{i % 7},{i % 5 or ''}\n" for i in range(40))
SUITE = """
[[fit]]
models = "gmm"
data = "faithful"
methods = { name = "em", max_iter = 3 }
pictures = true

[[swap]]
models = "gmm"
data = "faithful"
theta = { name = "em", max_iter = 3 }
methods = "em"
"""
FITTED = ("gmm", "--data", "faithful")
TRAINED = (*FITTED, "--method", "svi", "--set", "epochs=12", "--set", "optimizer=adam", "--checkpoint", "0")
CALLS = {  # name: the call, how many times it is killed, and where its temporary files appear
    "run": (("run", *FITTED, "--out", "runs/one"), 23, "runs"),
    "train": (("run", *TRAINED, "--out", "runs/one"), 23, "runs"),
    "resume": (("run", "--resume", "runs/one"), 23, "runs"),
    "infer": (("infer", "whole", "--method", "laplace", "--out", "runs/one"), 23, "runs"),
    "compare": (("compare", *FITTED, "--methods", "em,laplace", "--out", "runs/one"), 23, "runs"),
    "impute": (("impute", "holes", "--out", "runs/one"), 23, "runs"),
    "plot": (("plot", "whole"), 23, "whole"),
    "report": (("report", "results", "--out", "runs/page.html"), 23, "runs"),
    "bench": (("bench", "one.toml", "--out", "results", "--jobs", "2"), 8, "results"),
    "bench alone": (("bench", "one.toml", "--out", "results", "--jobs", "1"), 8, "results"),
}
INPUTS = {"infer": ("whole",), "plot": ("whole",), "impute": ("holes",), "report": ("results",)}
CHANGING = ("seconds", "peak_memory_mb", "run", "files", "digest", "wall_seconds", "date", "versions", "machine")


@dataclass
class Stage:
    """A warm process, and a folder that holds what commands start from."""

    root: Path
    forked: Forked

    def begin(self, place: str, name: str) -> None:
        """An empty current folder with what the command starts from."""
        folder = self.root / place
        folder.mkdir(parents=True)
        os.chdir(folder)
        Path("runs").mkdir()
        Path("one.toml").write_text(SUITE)
        for each in INPUTS.get(name, ()):
            shutil.copytree(self.root / "inputs" / each, each)
        if name == "resume":
            shutil.copytree(self.root / "inputs/runs/.one.unfinished", "runs/.one.unfinished")

    def call(self, name: str, other: bool = False, kill: tuple[float, bool] | None = None) -> Done:
        call, _, watch = CALLS[name]
        renamed = [a.replace("/one", "/two") for a in call] if other else list(call)
        return self.forked.call(*renamed, watch=watch, kill=kill)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    root, before = tmp_path_factory.mktemp("kills"), Path.cwd()
    (root / "logs").mkdir()
    stage = Stage(root, Forked(root / "logs"))
    stage.begin("inputs", "")
    Path("holes.csv").write_text(TABLE)
    for call in (
        ("run", *FITTED, "--out", "whole"),
        ("run", "gmm", "--data", "holes.csv", "--out", "holes"),
        CALLS["bench"][0],
    ):
        done = stage.forked.call(*call)
        assert done.status == 0, done.err
    while not Path("runs/.one.unfinished/request.json").exists():  # a training that is stopped in its middle
        shutil.rmtree("runs")
        Path("runs").mkdir()
        stage.call("train", kill=(0.1, True))
    yield stage
    os.chdir(before)
    stage.forked.close()


def listing() -> set[str]:
    return {str(p) for p in Path().rglob("*")}


def plainly(document: object) -> object:
    """A document without what differs between two runs of the same."""
    if isinstance(document, dict):
        return {k: plainly(v) for k, v in document.items() if k not in CHANGING}
    return [plainly(v) for v in document] if isinstance(document, list) else document


def is_same_run(one: Path, other: Path) -> None:
    """Two run folders hold the same numbers, to the last bit."""
    first, second = load(one), load(other)
    assert plainly(first.json) == plainly(second.json)
    assert first.state.keys() == second.state.keys()
    assert all(torch.equal(v, second.state[k]) for k, v in first.state.items())
    assert first.tree.equals(second.tree)


def is_whole(dry: Path) -> None:
    """Every file under its final name is what the call that nobody killed wrote there."""
    for path in sorted(p for p in Path().rglob("*") if p.is_file() and not any(n.startswith(".") for n in p.parts)):
        other = dry / str(path).replace("/two", "/one")
        if path.name in ("run.json", "fit.nc", "state.safetensors"):
            assert (path.parent / "run.json").is_file(), path
            if path.name == "run.json":
                is_same_run(path.parent, other.parent)
        elif path.suffix == ".json":
            assert plainly(json.loads(path.read_text())) == plainly(json.loads(other.read_text())), path
        else:
            assert path.read_bytes() == other.read_bytes(), path


def go_on(stage: Stage, name: str) -> Done:
    """What a user does next: resume, the same call again, or, where its result is there, another one."""
    begun, there = Path("runs/.one.unfinished/request.json").exists(), os.path.lexists("runs/one")
    if name in ("train", "resume"):
        return stage.call("resume" if begun and not there else "train", other=there)
    return stage.call(name, other=there)


@pytest.mark.parametrize("name", CALLS)
def test_kills(name: str, stage: Stage) -> None:
    stage.begin(f"dry/{name}", name)
    done = stage.call(name)
    assert done.status == 0 and done.orphans == 0, done
    dry, expected = Path.cwd(), listing()
    begins = done.writing or 0.0
    wanted, killed, tried = CALLS[name][1], 0, 0
    while killed < wanted:
        chance = random.Random(f"{name} {tried}")
        writes = tried % 3 > 0
        moment = chance.uniform(0, (done.seconds - begins if writes else done.seconds))
        stage.begin(f"{name}/{tried}", name)
        ended = stage.call(name, kill=(moment, writes))
        tried += 1
        assert ended.status in (0, -9) and ended.orphans == 0, ended
        killed += ended.status == -9
        is_whole(dry)
        again = go_on(stage, name)
        assert again.status == 0 and again.orphans == 0, (tried, moment, writes, again)
        is_whole(dry)
        found, other = listing(), {p.replace("/one", "/two") for p in expected}
        assert found <= expected | other, (tried, moment, writes, found - expected - other)
        assert expected <= found or other <= found
        shutil.rmtree(stage.root / name / str(tried - 1))
        assert tried < 4 * wanted
