"""CONTRIBUTING.md: each example is put into a copy of the packages, and the commands below it run there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import in_full

ROOT = Path(__file__).parent.parent
SECTIONS = dict(
    re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M | re.S)
)

DRIVER = """
import sys
from typer.testing import CliRunner
from zoo.__main__ import app
for command in sys.stdin.read().splitlines():
    import shlex
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    print("$", command); print(done.output)
    if done.exit_code: sys.exit(f"{command}: {done.exit_code}")
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy")
    for package in ("zoo", "guides", "inference", "benchmarks"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "results"))
    return folder


def test_every_kind_of_thing_has_a_section():
    assert [name.split()[-1] for name in SECTIONS] == ["model", "method", "family", "picture", "suite", "peer"]


@pytest.mark.parametrize("name", SECTIONS)
def test_at_most_three_files_to_read_first_and_all_are_there(name):
    (line,) = re.findall(r"^Read first: (.*)$", SECTIONS[name], re.M)
    files = re.findall(r"`([^`]+)`", line)
    assert 1 <= len(files) <= 3 and all((ROOT / f).is_file() for f in files)


QUICK = ("A family", "A peer")


@pytest.mark.parametrize("name", [*QUICK, *in_full(*(s for s in SECTIONS if s not in QUICK))])
def test_the_example_runs(name, copy):
    written = []
    for block in re.findall(r"```(?:python|toml)\n(.*?)```", SECTIONS[name], re.S):
        place, _, text = block.partition("\n")
        written.append(copy / place.removeprefix("# "))
        written[-1].write_text(text, encoding="utf-8")
    (commands,) = re.findall(r"```sh\n(.*?)```", SECTIONS[name], re.S)
    assert written and all(shlex.split(c)[0] == "zoo" for c in commands.strip().splitlines())
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=commands.strip(),
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_tutorial_has_the_same_method():
    (code,) = re.findall(r"```python\n# inference/gradient.py\n(.*?)```", SECTIONS["A method"], re.S)
    assert code in (ROOT / "docs" / "tutorials" / "add_method.md").read_text(encoding="utf-8")
