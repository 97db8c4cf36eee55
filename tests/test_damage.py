"""Five hundred mutations of what is kept on a disk: each is refused by name, or the numbers are the same.

Of run folders, of the checkpoints of runs that are not finished, and of suites' results. Slow: about 3 minutes on one core.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks._report import page
from benchmarks._suite import folder as results_folder
from benchmarks._suite.bench import bench
from inference import load, run
from inference._method.fit import Fit
from inference._run import checkpoint
from zoo._errors import UsageError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("here")]
SUITE = """
[[fit]]
models = "gmm"
data = "faithful"
methods = { name = "em", max_iter = 2 }
seeds = 2
pictures = true

[[swap]]
models = [{ name = "gmm", components = 2 }, { name = "gmm", components = 3 }]
data = "faithful"
theta = { name = "em", max_iter = 2 }
methods = "em"
"""
CHANGING = (
    "seconds",
    "wall_seconds",
    "date",
    "peak_memory_mb",
    "versions",
    "machine",
    "files",
    "digest",
    "budget",
    "format",
)


# ---- mutations -------------------------------------------------------------------------------------------------------


def damage(folder: Path, other: Path, chance: random.Random) -> str:
    """Change one thing in `folder`; `other` holds the same files of something else. What was done."""
    file = chance.choice(sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".claims"))
    content = bytearray(file.read_bytes())
    at = chance.randrange(len(content))
    kind = chance.choice(
        ("bit", "byte", "cut", "insert", "drop", "empty", "unlink", "rename", "swap", "other", "folder", "json", "json")
    )
    if kind == "bit":
        content[at] ^= 1 << chance.randrange(8)
    elif kind == "byte":
        content[at] = chance.randrange(256)
    elif kind == "cut":
        content = content[:at]
    elif kind == "insert":
        content[at:at] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 9)))
    elif kind == "drop":
        content[at : at + chance.randint(1, 99)] = b""
    elif kind == "empty":
        content = bytearray()
    elif kind in ("unlink", "rename", "swap", "other", "folder"):
        _move(kind, file, folder, other, chance)
        return f"{kind} {file.name}"
    elif file.suffix == ".json":
        content = bytearray(_edited(content.decode(), chance).encode())
    else:
        content[: len(content) // 2] = content[len(content) // 2 :]
    file.write_bytes(content)
    return f"{kind} {file.name} at {at}"


def _move(kind: str, file: Path, folder: Path, other: Path, chance: random.Random) -> None:
    if kind == "rename":
        file.rename(file.with_name(chance.choice(("x", f"{file.name}~", f"old-{file.name}"))))
    elif kind == "swap":
        second = chance.choice(sorted(p for p in folder.rglob(f"*{file.suffix}") if p.is_file()))
        one, two = file.read_bytes(), second.read_bytes()
        file.write_bytes(two)
        second.write_bytes(one)
    elif kind == "other":
        theirs = sorted(p for p in other.rglob(f"*{file.suffix}") if p.name == file.name) or sorted(
            other.rglob(f"*{file.suffix}")
        )
        file.write_bytes(chance.choice(theirs).read_bytes())
    else:
        file.unlink()
        if kind == "folder":
            file.mkdir()


def _edited(text: str, chance: random.Random) -> str:
    """A JSON document with another value, or without a key, somewhere in it."""
    document = json.loads(text)
    at: Any = document
    while True:
        keys = sorted(at) if isinstance(at, dict) else list(range(len(at)))
        key = chance.choice(keys)
        if not isinstance(at[key], dict | list) or not at[key] or chance.random() < 0.3:
            break
        at = at[key]
    if chance.random() < 0.2:
        del at[key]
    elif isinstance(at[key], bool) or not isinstance(at[key], int | float):
        at[key] = chance.choice([None, 0, -1, "x", [], {}, True, 1e9])
    else:
        at[key] = chance.choice((at[key] + 1, -at[key] - 1, at[key] * 1.001 + 1e-6, str(at[key])))
    return json.dumps(document)


def numbers(fit: Fit) -> tuple[Any, ...]:
    claimed, verified = fit.claimed, fit.verified
    assert claimed is not None and verified is not None
    arrays = (*fit.parameters.values(), *fit.draws.values(), *fit.trace.values())
    return (claimed.value, verified.value, *(v.tobytes() for v in arrays))


def plainly(document: Any) -> Any:
    if isinstance(document, dict):
        return {k: plainly(v) for k, v in document.items() if k not in CHANGING}
    return [plainly(v) for v in document] if isinstance(document, list) else document


def each(count: int, first: int, whole: Path, other: Path, check: Callable[[Path], str]) -> dict[str, int]:
    """Damage a copy of `whole` so many times; how often each outcome came."""
    found: dict[str, int] = {}
    for seed in range(first, first + count):
        place = Path("damaged") / whole.name
        shutil.copytree(whole, place)
        done = damage(place, other, random.Random(seed))
        try:
            outcome, said = check(place), str(place)
        except UsageError as error:
            outcome, said = "refused", str(error)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {done}: {str(error)[:300]}") from error
        assert "damaged" in said or place.name in said, (seed, done, said)
        found[outcome] = found.get(outcome, 0) + 1
        shutil.rmtree("damaged")
    return found


# ---- what is damaged -------------------------------------------------------------------------------------------------


def test_run_folders() -> None:
    run("gmm", "faithful", out="kept", max_iter=5)
    run("gmm", "faithful", out="other", components=3, max_iter=5)
    whole = load("kept")

    def check(place: Path) -> str:
        found = load(place)
        assert found.json == whole.json
        assert found.state.keys() == whole.state.keys()
        assert all(torch.equal(found.state[k], v) for k, v in whole.state.items())
        assert found.tree.identical(whole.tree)
        return "same"

    found = each(200, 0, Path("kept"), Path("other"), check)
    assert sum(found.values()) == 200 and found["refused"] > 150, found


def test_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    how = {"epochs": 5, "optimizer": "adam", "checkpoint": 0.0}
    reference = numbers(run("gmm", "faithful", "svi", **how))
    _unfinished(monkeypatch, "kept", how)
    _unfinished(monkeypatch, "other", how | {"seed": 1})
    Path("one").mkdir()
    Path(".kept.unfinished").rename("one/.kept.unfinished")

    def check(place: Path) -> str:
        assert numbers(run(resume=place / "kept")) == reference
        return "same"

    found = each(150, 1000, Path("one"), Path(".other.unfinished"), check)
    assert sum(found.values()) == 150 and found["refused"] > 20 and found["same"] > 20, found


def _unfinished(monkeypatch: pytest.MonkeyPatch, name: str, how: dict[str, Any]) -> None:
    """What a training leaves that is killed after its third checkpoint."""

    class Killed(BaseException):
        pass

    write = checkpoint.Checkpoints.write

    def last(self: checkpoint.Checkpoints, state: dict[str, Any]) -> None:
        write(self, state)
        if self.count == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "write", last)
        with pytest.raises(Killed):
            run("gmm", "faithful", "svi", out=name, **how)


def test_results_of_suites() -> None:
    """First what is there is read, by a page of it; then the suite is run again, which does what is missing."""
    Path("one.toml").write_text(SUITE)
    Path("two.toml").write_text(SUITE.replace("max_iter = 2", "max_iter = 3"))
    whole = plainly(bench("one.toml", Path("kept"), backend="sequential", quiet=True))
    bench("two.toml", Path("other"), backend="sequential", quiet=True)
    before = page.html(results_folder.Results("kept").collected(), Path("kept"))
    cells = {c["id"]: c for c in whole["cells"]}

    def check(place: Path) -> str:
        read = plainly(results_folder.Results(place).collected())
        for cell in read["cells"]:
            assert cell["status"] == "missing" or cell == cells[cell["id"]]
        shown = page.html(results_folder.Results(place).collected(), place)
        if all(c["status"] != "missing" for c in read["cells"]):
            assert shown == before or len(shown) < len(before)  # a picture that is not there is not shown
        again = plainly(bench("one.toml", place, backend="sequential", quiet=True))
        failed = [c for c in again["cells"] if c["status"] != "ok"]
        assert all("damaged" in c["reason"] or "cannot be read" in c["reason"] for c in failed)
        assert [c for c in again["cells"] if c not in failed] == [
            c for c in whole["cells"] if c["id"] not in {f["id"] for f in failed}
        ]
        return "failed by name" if failed else "same"

    found = each(150, 2000, Path("kept"), Path("other"), check)
    assert sum(found.values()) == 150 and found["refused"] > 40 and found["same"] > 20, found
