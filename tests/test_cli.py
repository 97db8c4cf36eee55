"""The `zoo` command: what it prints and where, its exit status, and that bad input writes nothing and shows no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import user_programs as user
from helpers import started
from typer.testing import CliRunner

from zoo import _registry
from zoo.__main__ import ENUMERATION_LIMIT, app

pytestmark = pytest.mark.usefixtures("here")


def zoo(*arguments: str):
    """The command in this process: exit status, standard output, standard error."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def zoo_process(*arguments: str) -> subprocess.CompletedProcess:
    """The command as a process of its own."""
    return subprocess.run([sys.executable, "-m", "zoo", *arguments], capture_output=True, text=True, check=False)


def document(text: str):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def flat(text: str) -> str:
    """Text without the line breaks of a terminal, or the frames of a table."""
    return " ".join(text.replace("│", " ").split())


def refused(says: str, *arguments: str) -> str:
    """Exit status 2, the error in plain words on standard error, nothing on standard output, nothing written."""
    before = sorted(Path.cwd().rglob("*"))
    status, out, err = zoo(*arguments)
    assert status == 2, (status, out, err)
    assert out == ""
    assert says in flat(err), err
    assert "Traceback" not in err and len(err.strip().splitlines()) <= 3
    assert sorted(Path.cwd().rglob("*")) == before
    return err


# ---- bad input: a clear error, exit status 2, nothing written ----------------------------------------------------


FAITHFUL = ("gmm", "--data", "faithful")


def test_more_components_than_rows():
    refused("got components=300 for 272 rows", "run", *FAITHFUL, "--set", "components=300")


@pytest.mark.parametrize(
    ("says", "arguments"),
    [
        ("unknown model 'gm'; did you mean gmm?", ("run", "gm", "--data", "faithful")),
        ("unknown method 'emm'; did you mean em?", ("run", *FAITHFUL, "--method", "emm")),
        ("unknown method 'lap'", ("compare", *FAITHFUL, "--methods", "em,lap")),
        ("did you mean faithful?", ("run", "gmm", "--data", "faithfull")),
        ("did you mean components?", ("run", *FAITHFUL, "--set", "componnets=3")),
        ("did you mean max_iter?", ("run", *FAITHFUL, "--set", "max_itr=3")),
        ("unknown benchmark 'peers/eM'", ("bench", "peers/eM")),
        ("unknown format 'gif'", ("plot", "nothing", "--format", "gif")),
    ],
)
def test_unknown_names_come_with_near_matches(says, arguments):
    refused(says, *arguments)


@pytest.mark.parametrize(
    ("says", "setting"),
    [
        ("components must be more than zero, got -1", "components=-1"),
        ("components must be more than zero, got 0", "components=0"),
        ("components must be a whole number, got '2.5'", "components=2.5"),
        ("components must be a whole number, got 'two'", "components=two"),
        ("components must be a whole number, got 'nan'", "components=nan"),
        ("max_iter must be more than zero, got -5", "max_iter=-5"),
        ("max_iter must be a whole number, got '1e-3'", "max_iter=1e-3"),
        ("restarts must be more than zero, got 0", "restarts=0"),
        ("covariance must be one of full, tied, diagonal, spherical, EII", "covariance=none"),
        ("--set expects key=value, got 'components'", "components"),
        ("'seed' cannot be set with --set; use the option --seed", "seed=3"),
    ],
)
def test_counts_that_are_none(says, setting):
    refused(says, "run", *FAITHFUL, "--set", setting)


def test_counts_of_rows():
    refused("rows must be a whole number, 1 or more, got -3", "run", *FAITHFUL, "--rows", "-3")
    refused("must be at most 272", "run", *FAITHFUL, "--rows", "300")
    status, out, err = zoo("run", *FAITHFUL, "--rows", "1.5")
    assert status == 2 and out == "" and "--rows" in err and "integer" in err
    status, out, err = zoo("run", *FAITHFUL, "--seed", "-1")
    assert status == 2 and out == "" and "--seed" in err
    assert list(Path.cwd().iterdir()) == []


def test_a_folder_that_cannot_be_written():
    Path("file").write_text("")
    refused("cannot write to 'file'", "run", *FAITHFUL, "--out", "file/run")
    Path("taken").mkdir()
    refused("'taken' exists already; name another folder with --out", "run", *FAITHFUL, "--out", "taken")
    refused("exists already", "compare", *FAITHFUL, "--out", "taken")


def test_programs_that_break_the_contract():
    Path("program.py").write_text(
        "import pyro, pyro.distributions as dist\n"
        "def no_plate(x=None, size=None):\n"
        "    pyro.sample('x', dist.Normal(0., 1.).expand([len(x), 2]).to_event(2), obs=x)\n"
        "def raises(x=None, size=None):\n"
        "    return [][1]\n"
        "def blind(x=None, size=None):\n"
        "    with pyro.plate('data', len(x)):\n"
        "        pyro.sample('z', dist.Normal(0., 1.))\n"
    )
    refused("a plate named 'data' around", "run", "program.py:no_plate", "--data", "faithful")
    refused("IndexError at program.py:5: list index out of range", "run", "program.py:raises", "--data", "faithful")
    refused("observes nothing", "describe", "program.py:blind", "--data", "faithful")
    refused(
        "unknown callable 'raise' of 'program.py'; did you mean raises?",
        "run",
        "program.py:raise",
        "--data",
        "faithful",
    )
    refused("name the callable in it too", "run", "program.py", "--data", "faithful")
    refused("there is no file 'none.py'", "run", "none.py:model", "--data", "faithful")


def test_data_that_cannot_be_used():
    Path("t.csv").write_text("a,b\n1,2\n3,x\n")
    refused("line 3, column 'b': 'x' is not a number", "run", "gmm", "--data", "t.csv")
    refused("there is no file 'u.csv'; did you mean t.csv?", "run", "gmm", "--data", "u.csv")
    refused(
        "outside the support of site 'x'", "run", f"{user.__file__}:bernoulli", "--data", save(np.full((5, 3), 7.0))
    )


def save(x: np.ndarray) -> str:
    np.save("data.npy", x)
    return "data.npy"


def test_a_refusal_is_status_2_and_names_what_can():
    err = refused("Methods that can: ", "run", *FAITHFUL, "--set", "priors=true", "--method", "gibbs")
    assert "em" in err and "laplace" in err


def test_a_refusal_in_json():
    status, out, err = zoo("run", *FAITHFUL, "--set", "priors=true", "--method", "gibbs", "--json")
    assert status == 2 and "belong to all of them" in flat(err)
    result = document(out)
    assert result["status"] == "refused" and "belong to all of them" in result["reason"]
    assert (result["model"], result["data"], result["method"], result["seed"]) == ("gmm", "faithful", "gibbs", 0)
    assert result["log_evidence"] is None and result["run"] is None and result["parameters"] is None
    assert list(Path.cwd().iterdir()) == []


def test_an_unusable_run():
    refused("is not a run", "infer", "nothing", "--method", "em")
    refused("is not a run", "plot", "nothing")


def test_a_failure_that_is_nobodys_fault_is_status_1(monkeypatch):
    from inference._run import runner

    monkeypatch.setattr(runner, "run_request", lambda *a, **k: (_ for _ in ()).throw(KeyError("inner")))
    status, out, err = zoo("run", *FAITHFUL)
    assert status == 1 and out == ""
    assert "KeyError" in err and "Traceback" not in err and "ZOO_DEBUG" in err
    monkeypatch.setenv("ZOO_DEBUG", "1")
    with pytest.raises(KeyError):
        zoo("run", *FAITHFUL)


def test_a_missing_argument_is_status_2():
    assert zoo("run", "gmm")[0] == 2
    assert zoo("fit")[0] == 2


# ---- as a process of its own ---------------------------------------------------------------------------------------


@pytest.mark.full
def test_json_is_all_that_is_on_standard_output():
    done = zoo_process("run", *FAITHFUL, "--json", "--out", "a run φ")
    assert done.returncode == 0, done.stderr
    result = document(done.stdout)
    assert result["status"] == "ok" and result["n"] == 272
    assert result["log_evidence"]["value"] == pytest.approx(-1130.264, abs=0.001)
    assert result["verified_log_evidence"]["kind"] == "exact"
    assert Path(result["run"], "run.json").is_file()
    assert done.stderr == ""


def test_an_error_of_the_process():
    done = started("run", "gmmm", "--data", "faithful")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "zoo: unknown model 'gmmm'; did you mean gmm? " + known("models") + "\n"
    assert list(Path.cwd().iterdir()) == []


def known(kind: str) -> str:
    return f"known: {', '.join(getattr(_registry, kind)())}."


def test_the_help_of_plot_lists_the_pictures():
    status, out, _ = zoo("plot", "--help")
    assert status == 0 and all(f"{name}: {line}." in flat(out) for name, line in _registry.pictures().items())


def test_help_and_list_load_nothing_heavy():
    """So that they answer at once."""
    script = (
        "import sys\nfrom zoo.__main__ import app\n"
        "heavy = {'torch', 'numpy', 'pyro', 'scipy', 'sklearn', 'arviz_stats', 'xarray', 'matplotlib', 'pandas'}\n"
        "for call in sys.argv[1:]:\n"
        "    try:\n        app(call.split(), prog_name='zoo')\n    except SystemExit as end:\n        code = end.code\n"
        "    print(code, sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    calls = ["--help", "list", "list --json", "run --help"]
    done = subprocess.run([sys.executable, "-c", script, *calls], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["0 []"] * len(calls)
    assert all(words in done.stdout for words in ("Usage: zoo [OPTIONS]", '"models":', "Usage: zoo run"))


def test_the_limit_of_enumeration_is_the_same_in_both_places():
    from zoo._program import structure

    assert ENUMERATION_LIMIT == structure.ENUMERATION_LIMIT


def interrupted(monkeypatch, states: int) -> str:
    """What `zoo run … --out r` says of Ctrl-C, with so many checkpoints written."""
    from inference._run import checkpoint, runner

    def stopped(asked, **how):
        left = checkpoint.place(how["out"])
        left.mkdir()
        for i in range(states):
            (left / f"state-{i:06d}.pt").write_bytes(b"")
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_request", stopped)
    status, out, err = zoo("run", *FAITHFUL, "--drop", "waiting", "--out", "my run")
    assert (status, out) == (130, "")
    return err


def test_an_interrupted_run_says_how_to_resume(monkeypatch):
    assert interrupted(monkeypatch, 2) == (
        "zoo: interrupted; its last checkpoint is kept. Resume it: zoo run --resume 'my run'\n"
    )


def test_an_interrupted_run_without_a_checkpoint_says_how_to_run_again(monkeypatch):
    assert interrupted(monkeypatch, 0) == (
        "zoo: interrupted before there was a checkpoint; no file was left half written. Run it again: zoo run gmm --data "
        "faithful --drop waiting --method em --seed 0\n"
    )


# ---- what it does ----------------------------------------------------------------------------------------------------


def test_list():
    status, out, _ = zoo("list", "--json")
    assert status == 0
    groups = document(out)
    assert {"gmm"} <= set(groups["models"])
    assert {"em", "laplace", "svi", "importance"} <= set(groups["methods"])
    assert {"faithful", "digits", "mnist5k"} <= set(groups["data"])
    assert all(line and "\n" not in line for group in groups.values() for line in group.values())
    status, out, _ = zoo("list")
    assert status == 0
    assert all(name in out for group in groups.values() for name in group)


def test_describe():
    status, out, _ = zoo("describe", *FAITHFUL)
    assert status == 0
    text = flat(out)
    assert "exact: enumerable, because all 2 joint values of 'z' can be enumerated" in text
    for word in (
        "weights",
        "scale_tril",
        "Categorical",
        "MultivariateNormal",
        "local latent",
        "observed",
        "importance",
    ):
        assert word in text
    status, out, _ = zoo("describe", *FAITHFUL, "--set", "priors=true", "--json")
    found = document(out)
    assert found["methods"]["em"] == "yes" and "belong to all of them" in found["methods"]["gibbs"]
    assert found["exact"] == "enumerable" and found["n"] == 272


def test_describe_a_users_program_with_a_limit():
    path = f"{user.__file__}:causes"
    data = save(np.zeros((5, 3)))
    assert document(zoo("describe", path, "--data", data, "--json")[1])["assignments"] == 8
    found = document(zoo("describe", path, "--data", data, "--json", "--limit", "7")[1])
    assert found["exact"] == "no" and "8 joint values" in found["reason"]


def test_run_and_infer():
    status, out, _ = zoo("run", *FAITHFUL, "--set", "components=2", "--out", "first")
    assert status == 0
    assert "log p(x) = -1130.264 nats, exact" in flat(out) and "first" in out and "converged" in out
    status, out, err = zoo("infer", "first", "--method", "laplace", "--json")
    assert status == 0, err
    result = document(out)
    assert result["method"] == "laplace"
    assert result["parameters"] == document(Path("first/run.json").read_text())["parameters"]
    assert Path(result["run"]).parent == Path("runs") and Path(result["run"], "run.json").is_file()


def test_folders_without_a_name_get_one_each():
    runs = {document(zoo("run", *FAITHFUL, "--set", "max_iter=1", "--json")[1])["run"] for _ in range(2)}
    assert len(runs) == 2
    assert all(Path(r, "fit.nc").is_file() and Path(r).name.startswith("gmm-faithful-em-") for r in runs)


def test_compare():
    settings = ("--set", "max_iter=3", "--set", "samples=20", "--set", "epochs=1")
    status, out, err = zoo("compare", *FAITHFUL, "--methods", "em, importance", *settings, "--out", "both", "--json")
    assert status == 0, err
    runs = document(out)["runs"]
    assert [r["method"] for r in runs] == ["em", "importance"]
    assert all(r["status"] == "ok" and r["verified_log_evidence"]["kind"] == "exact" for r in runs)
    assert sorted(p.name for p in Path("both").iterdir()) == ["compare.json", "compare.png", "em", "importance"]
    status, out, _ = zoo("compare", *FAITHFUL, "--methods", "em,gibbs", "--set", "priors=true", "--set", "max_iter=2")
    assert status == 0
    assert "refused" in out and "belong to all of them" in flat(out)


def test_preparations_stand_in_the_result():
    options = ("--rows", "50", "--standardize", "--missing", "random:0.1", "--seed", "4", "--set", "max_iter=2")
    result = document(zoo("run", *FAITHFUL, *options, "--json")[1])
    assert result["n"] == 50 and result["seed"] == 4
    chosen = result["options"]["data"]
    assert (chosen["rows"], chosen["standardize"], chosen["missing"], chosen["seed"]) == (50, True, "random:0.1", 4)
    assert result["options"]["method"] == {"max_iter": 2}


def test_a_program_and_data_with_spaces_and_greek_in_their_paths():
    folder = Path("my programs λ")
    folder.mkdir()
    program = folder / "mixture of μ.py"
    program.write_text(Path(user.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    data = folder / "data ψ.csv"
    data.write_text("x0,x1,x2\n" + "\n".join("1,0,2" if i % 2 else "5,9,4" for i in range(20)) + "\n")
    arguments = ("run", f"{program}:poisson", "--data", str(data), "--json")
    status, out, err = zoo(*arguments)
    assert status == 0, err
    result = document(out)
    assert result["notes"]["numeric"] == []
    assert Path(result["run"]).is_dir()
    status, out, err = zoo(
        "infer", result["run"], "--method", "importance", "--set", "samples=20", "--set", "epochs=1", "--json"
    )
    assert status == 0, err
    assert document(out)["parameters"] == result["parameters"]


def test_an_option_may_be_written_with_hyphens():
    result = document(zoo("run", *FAITHFUL, "--set", "max-iter=2", "--json")[1])
    assert result["options"]["method"] == {"max_iter": 2}


def test_the_last_of_a_repeated_option_wins():
    result = document(zoo("run", *FAITHFUL, "--set", "max_iter=5", "--set", "max_iter=2", "--json")[1])
    assert result["notes"]["iterations"] == 2


def test_warnings_go_to_standard_error():
    status, out, err = zoo("run", *FAITHFUL, "--set", "max_iter=1")
    assert status == 0
    assert "did not converge" in flat(err) and "did not converge" not in flat(out)
    assert "not converged" in flat(out)


def test_the_verdict_says_how_far_behind_other_starts_were():
    from zoo._show import _starts

    assert _starts({"kmeans": -12.0, "program": -10.5}) == (
        "start: program, the best after a few iterations; kmeans 1.50 nats behind"
    )
    assert _starts({"kmeans": -12.0, "seeds": None}) == _starts({}) == ""
