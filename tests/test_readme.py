"""The README: its programs and commands run; its tables, and those of the site, are what the kept results say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import readme as generator
from inference import run
from zoo.__main__ import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "readme.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", generator.PAGES)
def test_the_tables_are_those_of_the_kept_results(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert generator.places(text) and generator.rewritten(text, RESULTS) == text, "run `zoo bench readme_tables`"


def test_the_command_writes_them(tmp_path, monkeypatch):
    for page in generator.PAGES:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        emptied = generator.PLACE.sub(r"\1\n\3", (ROOT / page).read_text(encoding="utf-8"))
        (tmp_path / page).write_text(emptied, encoding="utf-8")
    monkeypatch.setattr(generator, "ROOT", tmp_path)
    assert CliRunner().invoke(app, ["bench", "readme_tables"]).exit_code == 0
    assert all((tmp_path / page).read_bytes() == (ROOT / page).read_bytes() for page in generator.PAGES)


def test_it_is_short():
    assert README.count("\n") <= 120
    assert README.split("<!-- table costs")[1].split("<!-- end")[0].count("\n|") <= 10


def test_its_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)", README):
        assert (ROOT / link).is_file(), link


def test_the_exact_rows_come_out_again():
    for row in [*RESULTS["faithful"], *RESULTS["wine"]]:
        if row["name"] in ("em", "ppca"):
            model, data, method = ("gmm", "faithful", "em") if row["name"] == "em" else ("ppca", "wine", "em")
            fit = run(model, data, method, standardize=data == "wine", **row["options"])
            assert fit.claimed.value == pytest.approx(row["log_evidence"]["value"], abs=1e-4)


def test_the_users_program_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = next(c for c in re.findall(r"```python\n(.*?)```", README, re.S) if c.startswith("# poisson.py"))
    (tmp_path / "poisson.py").write_text(code, encoding="utf-8")
    (tmp_path / "counts.csv").write_text(
        "n\n" + "\n".join(map(str, [0, 1, 2, 0, 1, 9, 7, 8, 11, 6, 1, 0])), encoding="utf-8"
    )
    result = CliRunner().invoke(app, ["run", "poisson.py:mixture", "--data", "counts.csv", "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["notes"]["closed_form"] == ["weights", "rates"]
    assert document["log_evidence"]["kind"] == "exact"


@pytest.mark.full
def test_the_commands_of_the_table_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "holes.csv").write_text(
        "a,b\n" + "".join(f"{i % 7},{i % 5 or ''}\n" for i in range(40)), encoding="utf-8"
    )
    runner = CliRunner()
    assert runner.invoke(app, ["run", "gmm", "--data", "holes.csv", "--out", "RUN"]).exit_code == 0
    page = (ROOT / "docs" / "command.md").read_text(encoding="utf-8")
    commands = [c for c in re.findall(r"^\| `zoo ([^`]*)` \|", page, re.M) if not c.startswith("bench")]
    assert len(commands) >= 7
    for command in commands:
        result = runner.invoke(app, command.split())
        assert result.exit_code == 0, f"zoo {command}: {result.output}"


def test_the_five_lines_for_a_table_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f"{i % 7},{i % 5 or ''}\n" for i in range(40)]
    (tmp_path / "table.csv").write_text("a,b\n" + "".join(lines), encoding="utf-8")
    (tmp_path / "new.csv").write_text("b,a\n1,2\n,3\n", encoding="utf-8")
    section = README.split("## Your own table")[1].split("```")[1]
    commands = section.removeprefix("sh\n").strip().splitlines()
    assert len(commands) == 5
    for command in commands:
        result = CliRunner().invoke(app, command.split()[1:])
        assert result.exit_code == 0, f"{command}: {result.output}"


def test_the_python_of_the_readme_runs():
    code = next(c for c in re.findall(r"```python\n(.*?)```", README, re.S) if "from latent_zoo import" in c)
    scope: dict[str, object] = {}
    exec(code, scope)
    assert scope["fit"].claimed.kind == "exact"


def test_the_bench_commands_work_in_small(capsys):
    assert generator.main(quick=True)["faithful"]
    assert "| `em` |" in capsys.readouterr().out
