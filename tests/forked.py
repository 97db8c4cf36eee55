"""A process that has everything imported, and forks one of its own for each call of `zoo`: start-up costs nothing.

`Forked().call("run", …)` runs a command to its end; `kill=(after, from_writing)` ends it with -9 after so many seconds, counted
from its start or from the first temporary file it makes. As a script, this file is that process.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

STARTS = (".zoo-", ".work-")  # of the names of temporary files and folders
PATIENCE = 20.0  # seconds for the processes of a killed command to end


@dataclass(frozen=True)
class Done:
    """What became of a call: its exit status (-9 where it was killed), and what it printed."""

    status: int
    out: str
    err: str
    seconds: float
    writing: float | None  # seconds until its first temporary file
    orphans: int  # processes of it that were alive `PATIENCE` later


class Forked:
    """The warm process, seen from a test."""

    def __init__(self, logs: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self.logs = logs
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def call(self, *call: str, watch: str = ".", kill: tuple[float, bool] | None = None) -> Done:
        """`watch`: the folder in which its temporary files appear."""
        assert self.process.stdin is not None and self.process.stdout is not None
        asked = {"call": call, "cwd": str(Path.cwd()), "watch": watch, "kill": kill, "logs": str(self.logs)}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        found = json.loads(self.process.stdout.readline())
        return Done(out=(self.logs / "out").read_text(), err=(self.logs / "err").read_text(), **found)

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


# ---- the warm process ------------------------------------------------------------------------------------------------


def _warm() -> None:
    """Import whatever a command imports, by a run of each in a folder that is thrown away."""
    import tempfile

    import joblib  # noqa: F401
    from typer.testing import CliRunner

    from zoo.__main__ import app

    fitted, before = ("gmm", "--data", "faithful", "--set", "max_iter=1"), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("holes.csv").write_text("a,b\n1,2\n3,\n4,5\n6,7\n")
        for call in (
            ("run", *fitted, "--out", "whole"),
            ("run", "gmm", "--data", "holes.csv", "--set", "components=1", "--out", "holes"),
            (
                "run",
                "gmm",
                "--data",
                "faithful",
                "--method",
                "svi",
                "--set",
                "epochs=1",
                "--checkpoint",
                "0",
                "--out",
                "svi",
            ),
            ("infer", "whole", "--method", "em", "--out", "again"),
            ("plot", "whole"),
            ("impute", "holes"),
        ):
            result = CliRunner().invoke(app, list(call))
            assert result.exit_code == 0, (call, result.output, result.stderr)
        os.chdir(before)


def _writing(folder: str, depth: int = 1) -> bool:
    """Whether a temporary file, or folder with something in it, lies in `folder` or in a folder of it."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            inside = entry.is_dir(follow_symlinks=False)
            if entry.name.startswith(STARTS) and not (inside and _empty(entry.path)):
                return True
            if inside and depth and _writing(entry.path, depth - 1):
                return True
    return False


def _empty(folder: str) -> bool:
    try:
        return not any(os.scandir(folder))
    except OSError:
        return True


def _in_session(session: int) -> list[int]:
    """Living processes that the command started."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] not in ("Z", "X"):
                    found.append(int(entry.name))
    return found


def _watch(child: int, folder: str, kill: tuple[float, bool] | None) -> dict[str, float | int | None]:
    """Wait for the child, or kill it in time."""
    began = time.perf_counter()
    writing: float | None = None
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        now = time.perf_counter() - began
        if pid:
            break
        if writing is None and _writing(folder):
            writing = now
        if kill is not None:
            start = writing if kill[1] else 0.0
            if start is not None and now >= start + kill[0]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                break
        time.sleep(0.0005)
    seconds, orphans = time.perf_counter() - began, _in_session(child)
    until = time.monotonic() + PATIENCE
    while orphans and time.monotonic() < until:
        time.sleep(0.05)
        orphans = _in_session(child)
    for pid in orphans:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    return {"status": code, "seconds": seconds, "writing": writing, "orphans": len(orphans)}


def _become(call: list[str], cwd: str, logs: str) -> None:
    """In the child: the command, to the end of the interpreter."""
    os.setsid()
    os.chdir(cwd)
    for number, name in ((1, "out"), (2, "err")):
        descriptor = os.open(Path(logs, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    sys.argv = ["zoo", *call]
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    from zoo.__main__ import app

    code: object = 0
    try:
        app()
    except SystemExit as error:
        code = error.code
    # what an interpreter does at its end, but for tearing down its modules, of which this one has very many
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def main() -> None:
    """Read calls, one JSON document a line; answer each by one."""
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    _warm()
    gc.collect()
    gc.freeze()
    for line in iter(sys.stdin.readline, ""):
        asked = json.loads(line)
        for stale in ("out", "err"):
            Path(asked["logs"], stale).write_text("")
        child = os.fork()
        if child == 0:
            _become(asked["call"], asked["cwd"], asked["logs"])
            return
        watched = str(Path(asked["cwd"], asked["watch"]))
        print(json.dumps(_watch(child, watched, asked["kill"])), flush=True)


if __name__ == "__main__":
    main()
