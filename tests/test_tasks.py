"""The page of tasks: every command and every line of Python on it runs, on messy files that are made here."""

from __future__ import annotations

import ast
import gzip
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_iris
from typer.testing import CliRunner

from zoo.__main__ import app

PAGE = (Path(__file__).parent.parent / "docs" / "tasks.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([^|]+?) \| `(zoo [^|]*)` \| `([^|]*)` \|$", PAGE, re.M)
MEASURED = ["sepal_length", "sepal_width", "petal_length", "petal_width"]


def write_files(folder: Path) -> None:
    """The files of the page."""
    rng, iris = np.random.default_rng(0), load_iris()
    x = pd.DataFrame(iris.data[::3], columns=MEASURED)
    cells = x.map(lambda v: f"{v:.1f}".replace(".", ","))
    cells.iloc[3, 1], cells.iloc[10, 0], cells.iloc[20, 3] = "-999", "?", ""
    cells.insert(0, "id", [f"F-{i:03}" for i in range(len(x))])
    cells["species"] = iris.target_names[iris.target[::3]]
    (folder / "flowers.csv").write_text(cells.to_csv(sep=";", index=False), encoding="utf-8")
    new = pd.DataFrame(iris.data[1:40:8], columns=MEASURED)[MEASURED[::-1]]
    new.iloc[0, 2] = np.nan
    new.to_csv(folder / "new.csv", index=False)
    skills = rng.normal(size=(60, 2)) @ rng.normal(size=(2, 6)) + rng.normal(size=(60, 6))
    marks = pd.DataFrame((50 + 10 * skills).round(1), columns=[f"exam_{i}" for i in range(1, 7)])
    marks = marks.mask(rng.random(marks.shape) < 0.05)
    with gzip.open(folder / "marks.tsv.gz", "wt", encoding="utf-8") as file:
        file.write(marks.to_csv(sep="\t", index=False, na_rep="n/a".upper()))
    corr = pd.DataFrame(np.corrcoef(skills.T), columns=[f"test_{i}" for i in range(1, 7)])
    corr.to_csv(folder / "ability.csv", index=False)
    group = rng.integers(0, 2, 80)
    survey = pd.DataFrame({
        "votes": 1 + (rng.random(80) < 0.2 + 0.6 * group),
        "reads": np.where(rng.random(80) < 0.3 + 0.5 * group, "daily", "never"),
        "visits": rng.poisson(2 + 6 * group),
        "height": (170 + 8 * group + 5 * rng.normal(size=80)).round(1),
    }).astype(object)  # fmt: skip
    survey.mask(rng.random(survey.shape) < 0.05).to_csv(folder / "survey.csv", index=False)
    dose = rng.uniform(0, 4, 60)
    response = np.where(rng.random(60) < 0.5, 1 + 2 * dose, 8 - dose) + 0.3 * rng.normal(size=60)
    doses = pd.DataFrame({"response": response.round(3), "dose": dose.round(3), "times": rng.integers(1, 5, 60)})
    doses.to_csv(folder / "doses.csv", index=False)
    busy = np.repeat([0, 1, 0], 10)
    visits = pd.DataFrame({"month": np.arange(1, 31), "visits": rng.poisson(4 + 10 * busy)})
    visits.to_csv(folder / "visits.csv", index=False)
    child = np.repeat(["Ann", "Bo", "Cy"], [8, 6, 7])
    height = (90 + 2 * np.concatenate([np.arange(n) for n in (8, 6, 7)]) + rng.normal(size=21)).round(1)
    growth = pd.DataFrame({"child": child, "height": height, "weight": (height / 7 + rng.normal(size=21)).round(1)})
    growth.to_csv(folder / "growth.csv", index=False)


def ran(line: str, names: dict[str, object]) -> object:
    """The value of a line of Python; an assignment's is what it assigns."""
    tree = ast.parse(line)
    exec(compile(tree, "docs/tasks.md", "exec"), names)
    last = tree.body[-1]
    return (
        eval(compile(ast.Expression(last.value), "docs/tasks.md", "eval"), names) if isinstance(last, ast.Expr) else 1
    )


def test_the_page_names_every_file_that_it_uses(tmp_path):
    write_files(tmp_path)
    assert len(ROWS) >= 20
    made = {p.name for p in tmp_path.iterdir()}
    used = {f for row in ROWS for f in re.findall(r"[\w.]+\.(?:csv|tsv)(?:\.gz)?", " ".join(row[1:]))}
    written = set(re.findall(r"--out ([\w.]+\.csv)", PAGE))
    assert used - written == made


@pytest.mark.full
def test_every_command_runs(tmp_path, monkeypatch):
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    for _, command, _ in ROWS:
        found = CliRunner().invoke(app, shlex.split(command)[1:])
        assert found.exit_code == 0, f"{command}: {found.output}"


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_every_line_of_python_runs(tmp_path, monkeypatch):
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(re.search(r"```python\n(.*?)```", PAGE, re.S)[1], names)
    names["run"]("gmm", "flowers.csv", na=-999, drop="id", labels="species", components=3, out="flowers")
    for _, _, line in ROWS:
        assert ran(line, names) is not None, line
