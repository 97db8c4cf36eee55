"""The gallery's scripts: each runs at a small size, draws its pictures, and holds what it asserts of its numbers."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import pytest
from helpers import in_full
from matplotlib import pyplot
from matplotlib.figure import Figure

GALLERY = Path(__file__).parent.parent / "docs" / "gallery"
NAMES = sorted(p.stem for p in GALLERY.glob("plot_*.py"))
FAST = ("plot_divergences", "plot_jensen")
MAY_BE_EMPTY = ("plot_faces",)  # its data are not in the package


@pytest.mark.parametrize("name", [*FAST, *in_full(*(n for n in NAMES if n not in FAST))])
def test_a_script_runs_and_draws(name, tmp_path, monkeypatch):
    made: list[Figure] = []
    initial = Figure.__init__

    def remembered(self, *args, **keywords):
        initial(self, *args, **keywords)
        made.append(self)

    monkeypatch.setenv("ZOO_GALLERY_SMALL", "1")
    monkeypatch.setattr(Figure, "__init__", remembered)
    monkeypatch.chdir(tmp_path)
    with pyplot.rc_context({"backend": "agg"}):
        kept = runpy.run_path(str(GALLERY / f"{name}.py"))
        for figure in made:
            figure.canvas.draw()
        pyplot.close("all")
    assert made or name in MAY_BE_EMPTY
    assert kept["__doc__"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_script_tells_its_story_first(name):
    """A title, underlined, and a few sentences."""
    text = ast.get_docstring(ast.parse((GALLERY / f"{name}.py").read_text(encoding="utf-8")))
    title, line, blank, *story = text.split("\n")
    assert set(line) == {"="} and len(line) >= len(title) and not blank
    assert 3 <= " ".join(story).count(". ") + 1 <= 7
