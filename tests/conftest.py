"""What all tests share: one thread a worker, the same random examples each time, and a folder to write in."""

from __future__ import annotations

import os

# before NumPy, scikit-learn and torch start threads that wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("zoo", deadline=None, derandomize=True, print_blob=False)
hypothesis.settings.load_profile("zoo")


@pytest.fixture(autouse=True)
def _seeded():
    """Programs that draw where they start begin the same whatever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, with a space and Greek in its name."""
    folder = tmp_path / "a folder φ"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


FULL = {
    line
    for line in (Path(__file__).with_name("full.txt")).read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
}


@pytest.hookimpl(tryfirst=True)  # before `-m` deselects
def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid.removeprefix("tests/") in FULL:
            item.add_marker(pytest.mark.full)
