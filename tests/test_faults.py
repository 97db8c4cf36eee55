"""Faults, strangers, settings: what is damaged is named, what is foreign not executed, what fails leaves nothing."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
import user_programs as user
from families import CASES
from helpers import started
from typer.testing import CliRunner

import latent_zoo
from inference import compare, infer, run
from inference._pictures import _draw as drawing
from inference._run import checkpoint
from inference._run import folder as _store
from inference._run import result as _result
from inference._run.entrance import SETTINGS, own_settings
from inference._run.folder import load
from zoo import _atomic
from zoo.__main__ import app
from zoo._errors import NotWritten, UsageError

COUNTS = CASES["poisson"].data(np.random.default_rng(0), 50)
PROGRAM = """
import pyro, torch
import pyro.distributions as dist

SCALE = 1.0

def model(x=None, size=None):
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", size if x is None else len(x)):
        return pyro.sample("x", dist.Normal(loc * SCALE, 5.0).to_event(1), obs=x)
"""
pytestmark = pytest.mark.usefixtures("here")


def zoo(*arguments: str):
    """The command in this process: exit status, standard output, standard error."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def numbers(fit):
    """Everything of a fit that is a number, to the last bit."""
    return (
        fit.claimed.value,
        fit.verified.value,
        *(v.tobytes() for v in fit.parameters.values()),
        *(v.tobytes() for v in fit.draws.values()),
        *(v.tobytes() for v in fit.predictive.values()),
    )


def small(method):
    options = {"svi": {"epochs": 2}, "importance": {"epochs": 1, "samples": 30}}.get(method, {"max_iter": 5})
    return numbers(run("gmm", "faithful", method, **options))


METHODS = ("em", "svi", "importance")


@pytest.fixture(scope="module")
def usual():
    return {method: small(method) for method in METHODS}


# ---- the user's settings neither change our numbers nor are changed by us ---------------------------------------------


@contextlib.contextmanager
def dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def seeds():
    torch.manual_seed(77)
    random.seed(77)
    np.random.seed(77)  # noqa: NPY002
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    yield
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])  # noqa: NPY002


@contextlib.contextmanager
def pyro_settings():
    other = {"validate_distributions_pyro": False, "cholesky_relative_jitter": 1e6, "module_local_params": True}
    with pyro.settings.context(**other):
        yield
        assert {k: pyro.settings.get()[k] for k in other} == other


@contextlib.contextmanager
def handlers():
    """In the middle of a program of the user's own, which hides, seeds and replaces sites."""
    with pyro.poutine.block(), pyro.poutine.seed(rng_seed=3), pyro.plate("data", 7), pyro.poutine.scale(scale=9.0):
        yield


@contextlib.contextmanager
def store():
    pyro.clear_param_store()
    pyro.param("locs", torch.full((2, 2), 9.0))
    yield
    assert list(pyro.get_param_store().keys()) == ["locs"]
    pyro.clear_param_store()


@contextlib.contextmanager
def strict_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        yield
        assert warnings.filters == before


@contextlib.contextmanager
def precision():
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


AROUND = {
    "dtype": dtype,
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "seeds": seeds,
    "pyro's settings": pyro_settings,
    "pyro's handlers": handlers,
    "pyro's store": store,
    "numpy's errors": lambda: np.errstate(all="raise"),
    "warnings": strict_warnings,
    "matmul precision": precision,
}


@pytest.mark.parametrize("around", AROUND)
def test_settings_of_the_user(around, usual):
    before = torch.is_grad_enabled(), torch.get_num_threads()
    with AROUND[around]():
        inside = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        found = {method: small(method) for method in METHODS}
        assert inside == (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    assert found == usual
    assert before == (torch.is_grad_enabled(), torch.get_num_threads())


def test_pyros_settings_are_what_a_fresh_process_has():
    """Also those that a newer Pyro may have."""
    script = "import pyro, json; print(json.dumps(pyro.settings.get()))"
    fresh = json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)
    assert fresh == SETTINGS


def test_modules_made_in_inference_mode_are_learned():
    with torch.inference_mode():
        module = user.Decoder()
        x = torch.randn(30, 3)
        fit = run(module, x, "em", start="program", max_iter=3)
    assert np.isfinite(fit.claimed.value)


def test_settings_come_back_from_a_failure():
    def breaks(x=None, size=None):
        torch.set_default_dtype(torch.float64)
        pyro.poutine.block().__enter__()
        raise RuntimeError("on purpose")

    with torch.no_grad(), pytest.raises(UsageError, match="on purpose"):
        run(breaks, COUNTS)
    assert torch.get_default_dtype() is torch.float32
    assert small("em")


def test_a_warning_is_given_to_the_users_filters():
    with pytest.warns(UserWarning, match="look out"), own_settings():
        warnings.warn("look out", stacklevel=1)


# ---- threads ---------------------------------------------------------------------------------------------------------


def test_threads_take_turns(usual):
    found = []
    threads = [threading.Thread(target=lambda m=m: found.append((m, small(m)))) for m in (*METHODS, *METHODS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and all(usual[method] == result for method, result in found)
    assert torch.get_default_dtype() is torch.float32 and not pyro.poutine.runtime._PYRO_STACK


@pytest.mark.full
def test_a_fork_while_another_thread_fits_can_fit_too():
    """In a process of its own: one that has run many tests holds other libraries' locks and threads."""
    script = (
        "import os, threading, torch\nfrom latent_zoo import run\n"
        "from inference._run.entrance import entrance\ntorch.set_num_threads(1)\n"
        "held, go = threading.Event(), threading.Event()\n"
        "@entrance\ndef hold():\n    held.set(); go.wait()\n"
        "threading.Thread(target=hold).start(); held.wait()\n"
        "if (child := os.fork()) == 0:\n"
        "    os._exit(0 if run('gmm', 'faithful', max_iter=1).n == 272 else 1)\n"
        "code = os.waitpid(child, 0)[1]; go.set(); os._exit(code)\n"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", script], timeout=120, check=False).returncode == 0


# ---- a run folder says what was computed -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run of a program in a file, in a folder of its own."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "program.py").write_text(PROGRAM)
    run(f"{folder / 'program.py'}:model", "faithful", out=folder / "run")
    return folder


def test_one_flipped_bit_is_seen(kept):
    """In any file: it is refused by name, or it changed nothing that the file says."""
    whole, chance = load(kept / "run"), np.random.default_rng(0)
    for name in ("state.safetensors", "fit.nc", "run.json"):
        for trial in range(20):
            shutil.copytree(kept / "run", "damaged")
            content = bytearray(Path("damaged", name).read_bytes())
            content[chance.integers(len(content))] ^= 1 << int(chance.integers(8))
            Path("damaged", name).write_bytes(content)
            said, found = "", None
            try:
                found = load("damaged")
            except UsageError as error:
                said = str(error)
            if found is None:
                assert name in said or "format" in said, (name, trial, said)
            else:
                assert name == "run.json" and found.json == whole.json, (name, trial)
            shutil.rmtree("damaged")


def test_an_older_format_is_read_and_a_newer_one_refused(kept):
    shutil.copytree(kept / "run", "old")
    document = json.loads(Path("old/run.json").read_text())
    old = {k: v for k, v in document.items() if k not in ("digest", "files", "program")} | {"format": 1}
    Path("old/run.json").write_text(json.dumps(old))
    assert load("old").json["method"] == "em"
    Path("old/run.json").write_text(json.dumps(document | {"format": 1}))  # digests that nobody would look at
    with pytest.raises(UsageError, match="damaged"):
        load("old")
    Path("old/run.json").write_text(json.dumps(document | {"format": 3}))
    with pytest.raises(UsageError, match="newer version"):
        load("old")


def edited(kept) -> str:
    shutil.copytree(kept / "run", "run")
    Path("program.py").write_text(PROGRAM.replace("SCALE = 1.0", "SCALE = 2.0"))
    return "program.py:model"


def test_a_changed_program_is_told(kept):
    named = edited(kept)
    with pytest.raises(UsageError, match="the program changed since this run") as told:
        infer("run", "em", model=named)
    assert "--changed-program" in str(told.value)
    status, _, err = zoo("infer", "run", "--method", "em", "--model", named)
    assert status == 2 and "changed" in err
    fit = infer("run", "em", model=named, changed_program=True)
    assert fit.claimed.value != json.loads(Path("run/run.json").read_text())["log_evidence"]["value"]
    Path("program.py").write_text(PROGRAM)
    assert infer("run", "em", model=named).claimed.value == pytest.approx(
        json.loads(Path("run/run.json").read_text())["log_evidence"]["value"], abs=1e-9
    )


def test_another_callable_of_the_same_file_is_another_program(kept):
    Path("program.py").write_text(PROGRAM + "\n\ndef other(x=None, size=None):\n    return model(x, size)\n")
    first = run("program.py:model", "faithful", out="first")
    with pytest.raises(UsageError, match="changed since"):
        infer("first", "em", model="program.py:other")
    assert infer("first", "em", model="program.py:model").claimed.value == first.claimed.value


def test_a_helper_beside_the_program_counts_too(monkeypatch):
    monkeypatch.syspath_prepend(Path.cwd())
    Path("beside_program.py").write_text("SCALE = 1.0\n")
    Path("program.py").write_text(
        PROGRAM.replace("SCALE = 1.0", "from beside_program import SCALE\nimport beside_program")
    )
    run("program.py:model", "faithful", out="first")
    del sys.modules["beside_program"]
    Path("beside_program.py").write_text("SCALE = 1.5  # edited\n")
    with pytest.raises(UsageError, match="changed since"):
        infer("first", "em", model="program.py:model")


def test_a_callable_given_again_serves_a_run_of_one():
    run(user.poisson, COUNTS, out="first")
    assert infer("first", "em", model=user.poisson).n == 50
    with pytest.raises(UsageError, match="changed since"):
        infer("first", "em", model=user.exponential)


# ---- strangers' folders ----------------------------------------------------------------------------------------------


@pytest.fixture
def strangers(kept):
    """A folder whose program writes a file when it is executed; this process has not executed it."""
    evil = PROGRAM + "\nfrom pathlib import Path\nPath('executed').write_text('')\n"
    Path("evil.py").write_text(evil)
    run("evil.py:model", "faithful", out="theirs")
    Path("executed").unlink()
    Path("evil.py").write_text(evil + "# not what this process has executed\n")
    return Path("theirs")


@pytest.mark.parametrize("call", [("infer", "theirs", "--method", "em"), ("impute", "theirs"), ("plot", "theirs")])
def test_a_strangers_program_is_not_executed(call, strangers):
    status, _, err = zoo(*call)
    assert "would execute the Python file of its program, 'evil.py:model'" in " ".join(err.split())
    assert status == (0 if call[0] == "plot" else 2)  # what the folder itself holds can be drawn
    assert not Path("executed").exists() and "Traceback" not in err


def test_it_is_where_the_user_says_so(strangers):
    fit = infer(strangers, "em", trust=True, changed_program=True)
    assert fit.n == 272 and Path("executed").exists()
    Path("executed").unlink()
    assert zoo("infer", "theirs", "--method", "em", "--model", "evil.py:model", "--changed-program")[0] == 0
    assert Path("executed").exists()


def test_a_strangers_guide_is_not_executed(kept):
    Path("q.py").write_text("from pathlib import Path\nPath('executed').write_text('')\n")
    run("gmm", "faithful", "svi", epochs=1, out="theirs")
    document = json.loads(Path("theirs/run.json").read_text())
    document["guide"]["name"] = "q.py:guide"
    Path("theirs/run.json").write_text(_store.text_of(document))  # all its digests are right
    with pytest.raises(UsageError, match=r"would execute the Python file of its guide, 'q\.py:guide'"):
        infer("theirs", "svi", epochs=1)
    assert not Path("executed").exists()


@pytest.mark.parametrize("key", ["model", "guide"])
def test_a_strangers_checkpoint_executes_nothing(key, monkeypatch):
    Path("evil.py").write_text(PROGRAM + "\nfrom pathlib import Path\nPath('executed').write_text('')\n")
    unfinished(monkeypatch)
    file = Path(".begun.unfinished/request.json")
    request = json.loads(file.read_text())
    request |= (
        {"model": "evil.py:model"} if key == "model" else {"options": request["options"] | {"guide": "evil.py:q"}}
    )
    file.write_text(
        json.dumps(request | {"check": _atomic.digest_of({k: v for k, v in request.items() if k != "check"})})
    )
    with pytest.raises(UsageError, match=r"would execute the Python file 'evil\.py:"):
        run(resume="begun")
    assert not Path("executed").exists()


def test_a_link_in_a_folder_leads_no_picture_out(kept):
    shutil.copytree(kept / "run", "theirs")
    Path("elsewhere").mkdir()
    Path("theirs/plots").symlink_to(Path("elsewhere").absolute())
    with pytest.raises(UsageError, match="is a link to elsewhere"):
        drawing.plot("theirs")
    assert not list(Path("elsewhere").iterdir())


def test_permissions_follow_the_umask():
    before = os.umask(0o027)
    try:
        run("gmm", "faithful", out="group", max_iter=1)
        drawing.plot("group", dpi=30)
    finally:
        os.umask(before)
    for path in (Path("group"), *Path("group").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path


def test_names_that_steer_a_terminal_or_a_spreadsheet_are_shown_and_quoted():
    Path("t.csv").write_text("=cmd(),\x1b[31mred,-a\n" + "".join(f"{i % 7},{i % 5 or ''},{i % 3}\n" for i in range(40)))
    status, out, err = zoo("run", "gmm", "--data", "t.csv", "--set", "covariance=diagonal", "--out", "run", "--json")
    assert status == 0 and "\x1b" not in out + err
    assert zoo("impute", "run")[0] == 0
    header = Path("run/imputed/mean.csv").read_text().splitlines()[0]
    assert header.startswith("'=cmd(),") and header.endswith(",'-a")
    status, out, err = zoo("run", "gmm", "--data", "no\x1b[2Jsuch\u202e.csv")
    assert status == 2 and "\x1b" not in err and "\u202e" not in err and "\\x1b" in err


# ---- a full disk, and leftovers --------------------------------------------------------------------------------------


def limited(*arguments: str, blocks: int = 4):
    """The command in a process that cannot write a file of over `blocks` KiB: the system says no, as on a full disk."""
    size = 1024 * blocks
    return started(*arguments, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))


def test_a_full_disk_leaves_the_result_and_nothing_else():
    done = limited("run", "gmm", "--data", "faithful", "--set", "max_iter=3", "--out", "deep/run", "--json")
    assert done.returncode == 1 and json.loads(done.stdout)["log_evidence"]["kind"] == "exact"
    assert json.loads(done.stdout)["run"] is None
    assert "cannot write 'deep/run': File too large" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.slow
def test_a_full_disk_under_every_command(kept, monkeypatch):
    shutil.copytree(kept / "run", "run")
    holes = "a,b\n" + "".join(f"{i % 7},{i % 5 or ''}\n" for i in range(300))
    Path("holes.csv").write_text(holes)
    assert zoo("run", "gmm", "--data", "holes.csv", "--out", "holes")[0] == 0
    Path("one.toml").write_text('[[fit]]\nmodels = "gmm"\ndata = "faithful"\nmethods = "em"\n')
    assert zoo("bench", "one.toml", "--out", "results")[0] == 0
    unfinished(monkeypatch)
    before = sorted(Path.cwd().rglob("*"))
    calls: list[tuple[str, ...]] = [
        ("infer", "holes", "--method", "laplace", "--out", "new"),
        ("compare", "gmm", "--data", "faithful", "--methods", "em,laplace", "--out", "new"),
        (
            "run",
            "gmm",
            "--data",
            "faithful",
            "--method",
            "svi",
            "--set",
            "epochs=3",
            "--checkpoint",
            "0",
            "--out",
            "new",
        ),
        ("plot", "holes"),
        ("impute", "holes"),
        ("report", "results", "--out", "page.html"),
        ("run", "--resume", "begun"),
    ]
    for call in calls:
        done = limited(*call, blocks=2)
        assert done.returncode == 1, (call, done.stderr)
        assert "Traceback" not in done.stderr and "This should not happen" not in done.stderr
        assert "File too large" in done.stderr
        assert sorted(Path.cwd().rglob("*")) == before, call
    done = limited("bench", "one.toml", "--out", "fresh", blocks=0)
    assert done.returncode == 1 and "cannot write 'fresh'" in done.stderr and not Path("fresh").exists()
    done = limited("bench", "one.toml", "--out", "fresh", "--jobs", "1", blocks=1)  # its list fits, and no cell does
    assert done.returncode == 1 and "cannot write to 'fresh'" in done.stderr and "Traceback" not in done.stderr
    assert not [
        p
        for p in Path("fresh").rglob("*")
        if (p.suffix == ".json" and p.name != "suite.json") or p.name[:6] == ".work-"
    ]


def test_compare_on_a_full_disk_returns_every_fit(monkeypatch):
    real = os.fsync

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NotWritten, match="No space left") as caught:
        compare("gmm", "faithful", ["em", "laplace"], out="c", max_iter=2)
    monkeypatch.setattr(os, "fsync", real)
    assert [f.method for f in caught.value.result] == ["em", "laplace"]
    assert list(Path.cwd().iterdir()) == []


def unfinished(monkeypatch, program="gmm"):
    """The folder that a training leaves which is killed after its second checkpoint."""

    class Killed(BaseException):
        pass

    write = checkpoint.Checkpoints.write

    def last(self, state):
        write(self, state)
        if self.count == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "write", last)
        with pytest.raises(Killed):
            run(program, "faithful", "svi", epochs=6, out="begun", checkpoint=0.0)


def test_a_program_edited_before_it_is_resumed(monkeypatch):
    Path("program.py").write_text(PROGRAM.replace("loc * SCALE", "pyro.sample('z', dist.Normal(loc, 1.0).to_event(1))"))
    unfinished(monkeypatch, "program.py:model")
    Path("program.py").write_text(Path("program.py").read_text().replace("5.0", "6.0"))
    with pytest.raises(UsageError, match="the program changed since 'begun' was started"):
        run("program.py:model", resume="begun")


def test_a_damaged_request_is_refused(monkeypatch):
    unfinished(monkeypatch)
    file = Path(".begun.unfinished/request.json")
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(UsageError, match="is damaged"):
        run(resume="begun")


def test_a_run_killed_before_its_first_checkpoint_says_so():
    Path(".begun.unfinished").mkdir()
    with pytest.raises(UsageError, match="stopped before its first checkpoint"):
        run(resume="begun")


def test_what_was_left_behind_is_swept_and_what_is_being_written_is_not():
    with _atomic.workspace(Path("a").absolute()) as mine:
        left, file = Path(".zoo-00000000.writing"), Path(".zoo-00000001.writing")
        left.mkdir()
        (left / "x").write_text("")
        file.write_text("")
        _store.check_out("b")
        assert mine.is_dir() and not left.exists() and not file.exists()
    assert list(Path.cwd().iterdir()) == []


def test_the_printed_path_is_where_the_run_is(monkeypatch):
    """Another run took the name between the look and the renaming."""
    fit, free = run("gmm", "faithful", max_iter=1), _store.free

    def late(folder):
        found = free(folder)
        if not Path("same/taken").exists():
            found.mkdir(exist_ok=True)
            (found / "taken").write_text("")
        return found

    monkeypatch.setattr(_store, "free", late)
    assert str(_result.save(fit, Path("same"))) == fit.run == "same-2"
    assert load("same-2").json["run"] == "same-2"


# ---- small things that each went wrong once ---------------------------------------------------------------------------


@pytest.mark.full
def test_a_home_folder_is_written_with_a_tilde(monkeypatch):
    Path("home").mkdir()
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    Path("home/one.toml").write_text('[[fit]]\nmodels = "gmm"\ndata = "faithful"\nmethods = "em"\n')
    for call in (
        ("run", "gmm", "--data", "faithful", "--set", "max_iter=1", "--out=~/run"),
        ("infer", "~/run", "--method", "em", "--out=~/again"),
        ("compare", "gmm", "--data", "faithful", "--methods", "em", "--out=~/both"),
        ("plot", "~/run", "--out=~/pictures"),
        ("bench", "~/one.toml", "--jobs", "1", "--backend", "sequential", "--out=~/results"),
        ("report", "~/results", "--out=~/page.html"),
    ):
        status, _, err = zoo(*call)
        assert status == 0, (call, err)
    made = {"run", "again", "both", "pictures", "one.toml", "results", "page.html"}
    assert {p.name for p in Path("home").iterdir() if p.name[0] != "."} == made and [
        p.name for p in Path.cwd().iterdir()
    ] == ["home"]


def test_an_archive_that_unpacks_to_more_than_the_memory(monkeypatch):
    np.savez_compressed("bomb.npz", x=np.zeros((9999, 9)))
    real = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: 1 if name == "SC_PHYS_PAGES" else real(name))
    status, _, err = zoo("run", "gmm", "--data", "bomb.npz")
    assert status == 2 and "unpacks to more than the memory of this machine" in err and "empty" not in err


def test_a_page_of_a_damaged_document():
    for text in (
        "",
        "[]",
        "{}",
        '{"format": 1}',
        '{"format": 1, "cells": 3}',
        '{"format": 1, "cells": [3]}',
        "[" * 9999,
    ):
        Path("document.json").write_text(text)
        status, _, err = zoo("report", "document.json")
        assert status == 2 and "document.json" in err and "should not happen" not in err, (text[:9], err)


def test_suites_with_impossible_seeds():
    for seeds in ("[-1]", "[18446744073709551616]", "99999999999999999999", "0", "[1.5]", '"x"'):
        Path("one.toml").write_text(f'[[fit]]\nmodels = "gmm"\ndata = "faithful"\nmethods = "em"\nseeds = {seeds}\n')
        status, _, err = zoo("bench", "one.toml")
        assert status == 2 and "seeds" in err, (seeds, err)


def test_out_of_memory_is_said_in_a_sentence(monkeypatch):
    def none_left(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("inference.em.fit", none_left)
    status, _, err = zoo("run", "gmm", "--data", "faithful")
    assert status == 1 and "memory" in err and "should not happen" not in err


def test_a_program_that_ends_the_process_is_refused():
    Path("program.py").write_text("raise SystemExit(0)\n")
    status, _, err = zoo("run", "program.py:model", "--data", "faithful")
    assert status == 2 and "raised SystemExit" in err
    Path("program.py").write_text(PROGRAM.replace("    loc = ", "    raise SystemExit(0)\n    loc = "))
    assert zoo("run", "program.py:model", "--data", "faithful")[0] == 2


def test_two_sites_of_one_name_are_refused():
    """A trace holds one of them, and its density would be called exact."""
    twice = PROGRAM.replace(
        "        return pyro", "        pyro.sample('x', dist.Normal(loc, 1.0).to_event(1), obs=x)\n        return pyro"
    )
    Path("program.py").write_text(twice)
    status, _, err = zoo("run", "program.py:model", "--data", "faithful")
    assert status == 2 and "site 'x'" in err and "twice" in err


def test_a_resumed_run_is_what_it_was_begun_as(monkeypatch):
    unfinished(monkeypatch)
    for key, value in (
        ("seed", 5),
        ("rows", 9),
        ("standardize", True),
        ("dtype", "float32"),
        ("device", "cpu"),
        ("limit", 7),
    ):
        with pytest.raises(UsageError, match=f"Expected {key} .* with which 'begun' was started"):
            run(resume="begun", **{key: value})
    assert run(resume="begun").n == 272


def test_checkpoints_of_a_finished_run_are_swept(monkeypatch):
    unfinished(monkeypatch)
    shutil.copytree(".begun.unfinished", "kept")
    run(resume="begun")
    Path("kept").rename(".begun.unfinished")  # as it was killed after it was written
    os.utime("begun/run.json")
    with pytest.raises(UsageError, match="it is finished"):
        run(resume="begun")
    assert [p.name for p in Path.cwd().iterdir()] == ["begun"]


# ---- names -----------------------------------------------------------------------------------------------------------


def test_the_documented_way_in():
    import inference

    for name in ("run", "compare", "infer", "load", "Fit", "Evidence"):
        assert getattr(latent_zoo, name) is getattr(inference, name)
    assert latent_zoo.__version__ and "run" in dir(latent_zoo)
    with pytest.raises(AttributeError):
        latent_zoo.nothing  # noqa: B018


@pytest.mark.full
@pytest.mark.parametrize("name", latent_zoo.PACKAGES)
def test_another_package_in_the_place_of_ours_is_told(name):
    Path(f"{name}.py").write_text("run = None\n")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, ''); import {name}; from latent_zoo import run"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert (
        done.returncode == 1 and f"imported in the place of Latent Zoo's package '{name}'" in last and "Rename" in last
    )


def test_the_command_says_so_without_a_traceback(monkeypatch, capsys):
    monkeypatch.setattr(latent_zoo, "foreign", lambda: "'x' is imported in the place of ours.")
    with pytest.raises(SystemExit, match="zoo: 'x' is imported in the place of ours"):
        latent_zoo.main()
