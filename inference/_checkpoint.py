"""Checkpoints of a run that is not finished: the folder `.NAME.unfinished` beside the run's own, until it is.

It holds what was asked for (`request.json`) and the last two states of training. A state is a file with its own digest at
its end, so that one that was cut short is known and the one before it is used.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo._errors import UsageError

DIGEST = 32  # bytes at the end of a state
INTERVAL = 30.0  # seconds
FORMAT = 1
NAMED = ("model", "data", "method")  # of a request: what has to be given again when it has no name


def place(run: str | os.PathLike[str]) -> Path:
    """Where the checkpoints of the run folder `run` are."""
    folder = Path(run)
    return folder.with_name(f".{folder.name}.unfinished")


class Checkpoints:
    """The checkpoints of one run, written at most every `interval` seconds.

    `request`: what was asked for; a model or data that are no names are not kept, and have to be given again. Raises
    `UsageError` when there are checkpoints already and the run is not to go on from them, or when they are of other data.
    """

    def __init__(
        self, run: Path, request: Mapping[str, Any], x: Tensor, interval: float = INTERVAL, resume: bool = False
    ) -> None:
        self.folder, self.interval, self.resume = place(run), interval, resume
        digest = hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()
        named = {k: str(v) if isinstance(v, str | os.PathLike) else None for k, v in request.items() if k in NAMED}
        self.request = {"format": FORMAT, "version": version(), "digest": digest, **request, **named}
        if self.folder.exists() and not resume:
            raise UsageError(
                f"'{run}' was begun and is not finished: go on with --resume {run}, name another folder with --out, or "
                f"remove '{self.folder}'."
            )
        if resume and _read(run)["digest"] != digest:
            raise UsageError(f"the data are not those that '{run}' was begun with.")
        self.last = time.monotonic()
        self.count = 0

    def due(self) -> bool:
        """Whether it is time for the next."""
        return time.monotonic() - self.last >= self.interval

    def write(self, state: dict[str, Any]) -> None:
        """Write `state`, flushed and renamed into place, and drop all but the last two."""
        self.folder.mkdir(parents=True, exist_ok=True)
        request = self.folder / "request.json"
        if not request.exists():
            _write(request, json.dumps(self.request, indent=1, default=_plain).encode())
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        self.count += 1
        _write(self.folder / f"state-{self.count:06d}.pt", content + hashlib.sha256(content).digest())
        for old in self._states()[:-2]:
            old.unlink(missing_ok=True)
        self.last = time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """The last state that is whole, or None. Says of one that is not."""
        if not self.resume:
            return None
        for path in reversed(self._states()):
            content = path.read_bytes()
            body, digest = content[:-DIGEST], content[-DIGEST:]
            if hashlib.sha256(body).digest() == digest:
                self.count = int(path.stem.split("-")[1])
                return torch.load(io.BytesIO(body), weights_only=True, map_location="cpu")
            print(f"zoo: the checkpoint '{path}' was cut short; going on from the one before.", file=sys.stderr)
            path.unlink()
        return None

    def discard(self) -> None:
        """The run is finished: they are not needed any more."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _states(self) -> list[Path]:
        return sorted(self.folder.glob("state-*.pt")) if self.folder.is_dir() else []


def resumed(run: str | os.PathLike[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for when the unfinished run `run` was begun; `given`: what is asked for now, which must not differ.

    Raises `UsageError` where there is nothing to go on from, or it was something else.
    """
    request = _read(run)
    for key in NAMED:
        now, then = given[key], request[key]
        if now is None and then is None:
            raise UsageError(f"'{run}' was begun with a {key} that has no name: give it again.")
        if now is not None and then is not None and str(now) != then:
            raise UsageError(f"'{run}' was begun with {key} '{then}', and '{now}' is asked for now.")
        request[key] = then if now is None else now
    for key, value in given["options"].items():
        if str(request["options"].get(key)) != str(value):
            raise UsageError(f"'{run}' was begun with other options: {key} cannot be changed.")
    return request


def _read(run: str | os.PathLike[str]) -> dict[str, Any]:
    path = place(run) / "request.json"
    if not path.is_file():
        what = "it is finished" if (Path(run) / "run.json").is_file() else "there is no checkpoint of it"
        raise UsageError(f"'{run}' cannot be gone on with: {what}.")
    try:
        request = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"'{path}' cannot be read: {error}.") from error
    if (request.get("format"), request.get("version")) != (FORMAT, version()):
        raise UsageError(f"the checkpoint of '{run}' was written by another version of this package; begin anew.")
    return request


def version() -> str:
    """Of this package."""
    try:
        return importlib.metadata.version("latent-zoo")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
