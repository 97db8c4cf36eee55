"""Checkpoints of a run that is not finished: the folder `.NAME.unfinished` beside the run's own, until it is.

It holds what was asked for (`request.json`) and the last two states of training. A state is a file with its own digest at
its end, so that one that was cut short is known and the one before it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference._run.request import NAMED, Request
from zoo import _atomic
from zoo._errors import UsageError
from zoo._program import source

DIGEST = 32  # bytes at the end of a state
INTERVAL = 30.0  # seconds
FORMAT = 3


def check_interval(seconds: object) -> None:
    """Raise `UsageError` unless it can be the time between two checkpoints."""
    if isinstance(seconds, bool) or not isinstance(seconds, Real) or not float(seconds) >= 0:
        raise UsageError(f"Expected a number of seconds, 0 or more, for checkpoint, got {seconds!r:.40}.")


def place(run: str | os.PathLike[str]) -> Path:
    """Where the checkpoints of the run folder `run` are."""
    folder = _atomic.place(run)
    return folder.with_name(f".{folder.name}.unfinished")


class Checkpoints:
    """The checkpoints of one run, written at most every `interval` seconds.

    `request`: what was asked for; a model or data that are no names are not kept, and have to be given again. `program`: the
    fingerprint of its text.

    Raises `UsageError` when there are checkpoints already and the run is not to resume from them, or when they are of
    other data.
    """

    def __init__(
        self,
        run: Path,
        request: Request,
        program: Mapping[str, str] | None,
        x: Tensor,
        interval: float = INTERVAL,
        resume: bool = False,
    ) -> None:
        self.folder, self.interval, self.resume = place(run), interval, resume
        digest = hashlib.sha256(x.contiguous().numpy().data).hexdigest()
        told = {"format": FORMAT, "version": version(), "digest": digest}
        self.document: dict[str, object] = {**told, **request.to_json(), "program": program}
        self.failed = False
        _atomic.sweep(self.folder)
        if not resume:
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # of a run that was killed before anything was in it
        if self.folder.exists() and not resume:
            raise UsageError(
                f"'{run}' is unfinished: continue it with --resume {run}, name another folder with --out, or "
                f"remove '{self.folder}'."
            )
        if resume and _read(run)["digest"] != digest:
            raise UsageError(f"the data differ from those that '{run}' was started with.")
        if resume and _read(run).get("program") != program:
            raise UsageError(f"the program changed since '{run}' was started: run it again, to another folder.")
        self.last = time.monotonic()
        self.count = 0

    def due(self) -> bool:
        """Whether it is time for the next."""
        return time.monotonic() - self.last >= self.interval

    def write(self, state: Mapping[str, object]) -> None:
        """Write `state`, flushed and renamed into place, and drop all but the last two.

        Where the disk is full a message says so once, and training continues.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        self.count += 1
        try:
            self._begin()
            _atomic.write(self.folder / f"state-{self.count:06d}.pt", content + self._seal(content))
        except (OSError, UsageError) as error:
            if not self.failed:
                print(f"zoo: no checkpoint was written: {error}", file=sys.stderr)
            self.failed = True
            if not self._states():
                self.discard()
        for old in self._states()[:-2]:
            with contextlib.suppress(OSError):
                old.unlink()
        self.last = time.monotonic()

    def _begin(self) -> None:
        """`request.json`, which names the request of the states."""
        request = self.folder / "request.json"
        if not request.exists():
            check = {"check": _atomic.digest_of(self.document)}
            _atomic.write(request, json.dumps({**self.document, **check}, indent=1))

    def read(self) -> dict[str, Any] | None:
        """The last state that is whole, None where none was written. Says of one that is not whole.

        Raises `UsageError` where none is.
        """
        if not self.resume:
            return None
        for path in reversed(self._states()):
            content = path.read_bytes() if path.is_file() else b""
            body, digest = content[:-DIGEST], content[-DIGEST:]
            if self._seal(body) == digest:
                self.count = int(path.stem.split("-")[1])
                state: dict[str, Any] = torch.load(io.BytesIO(body), weights_only=True, map_location="cpu")
                return state
            print(f"zoo: the checkpoint '{path}' is damaged; resuming from the one before.", file=sys.stderr)
        if self._states():
            raise UsageError(
                f"'{self.folder}' is damaged: no checkpoint in it is what was written. Remove it and run it again."
            )
        return None

    def _seal(self, content: bytes) -> bytes:
        """A digest of a state and of the request that it belongs to: a state of another run is none of this one."""
        check = json.loads((self.folder / "request.json").read_text(encoding="utf-8"))["check"]
        return hashlib.sha256(str(check).encode() + content).digest()

    def discard(self) -> None:
        """The run is finished: they are not needed any more."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _states(self) -> list[Path]:
        return sorted(self.folder.glob("state-*.pt")) if self.folder.is_dir() else []


def resumed(run: str | os.PathLike[str], given: Request, trust: bool = False) -> Request:
    """What was asked for when the unfinished run `run` was begun; `given`: what is asked for now, which must not differ.

    `trust`: the Python files that it names may be executed. Raises `UsageError` where there is nothing to resume, something
    else was asked for, or a file would be executed that the user has not named.
    """
    begun = Request.from_json(_read(run))
    for key in NAMED:
        now, then = getattr(given, key), getattr(begun, key)
        if now is None and then is None:
            raise UsageError(f"'{run}' was started with a {key} that has no name: give it again.")
        if now is not None and then is not None and str(now) != then:
            raise UsageError(f"Expected {key} '{then}', with which '{run}' was started, got '{now}'.")
    usual = Request(None, None)
    for key in ("seed", "limit", "dtype", "device", "init"):
        if (now := getattr(given, key)) != getattr(usual, key) and now != (then := getattr(begun, key)):
            raise UsageError(f"Expected {key} {then}, with which '{run}' was started, got {now}.")
    for key, value in given.preparation.items():
        if value != (then := begun.preparation.get(key)):
            raise UsageError(f"Expected {key} {then}, with which '{run}' was started, got {value}.")
    for key, value in given.options.items():
        if str(begun.options.get(key)) != str(value):
            raise UsageError(f"'{run}' was started with other options: {key} cannot be changed.")
    named = {str(given.model), *map(str, given.options.values())}
    for spec in (begun.model, *begun.options.values()):
        if source.is_file(spec) and not (trust or spec in named or source.was_executed(str(spec))):
            raise UsageError(
                f"resuming '{run}' would execute the Python file '{spec}'. If you know that file, name it again, or trust the "
                "checkpoint (--trust, in Python trust=True)."
            )
    model, data = (then if now is None else now for now, then in ((given.model, begun.model), (given.data, begun.data)))
    return replace(begun, model=model, data=data, options={**begun.options, **given.options})


def after_interrupt(run: str | os.PathLike[str], request: Request, trust: bool = False) -> str:
    """What was left of the run that was interrupted, and the command that goes on with it."""
    left = place(run)
    if not any(left.glob("state-*.pt")):
        again = f": {line}" if (line := request.command()) else ""
        return f"interrupted before there was a checkpoint; no file was left half written. Run it again{again}"
    names_file = trust or any(source.is_file(spec) for spec in (request.model, *request.options.values()))
    words = ["zoo", "run", "--resume", str(run), *["--trust"] * names_file]
    return f"interrupted; its last checkpoint is kept. Resume it: {shlex.join(words)}"


def sweep(parent: Path) -> None:
    """Remove the checkpoints of runs in `parent` that were killed between their last step and the end: these are finished."""
    with contextlib.suppress(OSError):
        for left in parent.glob(".*.unfinished"):
            run = left.with_name(left.name[1:].removesuffix(".unfinished")) / "run.json"
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                asked, made = (json.loads(p.read_text(encoding="utf-8")) for p in (left / "request.json", run))
                newer = run.stat().st_mtime >= max(p.stat().st_mtime for p in left.iterdir())
                if newer and all(asked[k] == made[k] for k in ("method", "seed")):
                    shutil.rmtree(left)


def _read(run: str | os.PathLike[str]) -> dict[str, object]:
    path = place(run) / "request.json"
    sweep(path.parent.parent)
    finished = (_atomic.place(run) / "run.json").is_file()
    if finished or not path.is_file():
        what = "there is no checkpoint of it; run it again"
        if finished:
            what = "it is finished"
        elif path.parent.is_dir() and any(path.parent.iterdir()):
            what = f"its request.json is missing; remove '{path.parent}' and run it again"
        elif path.parent.is_dir():
            what = "it was stopped before its first checkpoint; run it again"
        raise UsageError(f"'{run}' cannot be resumed: {what}.")
    try:
        request = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"'{path}' cannot be read: {error}.") from error
    if not isinstance(request, dict):
        raise UsageError(f"'{path}' is damaged: it is not what was written. Remove '{path.parent}' and run it again.")
    if (request.get("format"), request.get("version")) != (FORMAT, version()):
        raise UsageError(f"the checkpoint of '{run}' was written by another version of this package; run it again.")
    if request.pop("check", None) != _atomic.digest_of(request):
        raise UsageError(f"'{path}' is damaged: it is not what was written. Remove '{path.parent}' and run it again.")
    return request


def version() -> str:
    """Of this package."""
    try:
        return importlib.metadata.version("latent-zoo")
    except importlib.metadata.PackageNotFoundError:
        return ""
