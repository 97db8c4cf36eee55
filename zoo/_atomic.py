"""Write files and folders whole or not at all, and clean up after processes that were killed.

A file is first written under a temporary name beside the final one, `.zoo-XXXXXXXX.writing`, which its process holds a lock on.
The lock ends with the process, so `sweep` can tell what a dead process left behind from what is being written.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from zoo._errors import NotWritten, UsageError

try:
    import fcntl
except ImportError:  # Windows has no such locks: nothing is swept there
    fcntl = None  # type: ignore[assignment]

START, ENDING = ".zoo-", ".writing"
LONGEST = 230  # bytes of a name, which leave room for the names made of it
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # a failure to write; other errors mean a wrong path


def place(path: str | os.PathLike[str]) -> Path:
    """The path, `~` read as the home folder. Raises `UsageError` for what cannot be one."""
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"Expected the path of a file or folder, got {path!r:.40}.")
    text = os.fspath(path)
    if not text or "\0" in text:
        raise UsageError(f"Expected the path of a file or folder, got {text!r}.")
    try:
        out = Path(text).expanduser()
    except RuntimeError:
        raise UsageError(f"'{text}': there is no such user for '~'; write the folder out in full.") from None
    for part in out.parts:
        if len(os.fsencode(part)) > LONGEST:
            raise UsageError(f"'{part[:20]}…' is {len(part)} characters long; a name takes at most {LONGEST} bytes.")
    return out


def check_parent(path: Path) -> None:
    """Raise `UsageError` where nothing can be written beside `path`. Removes what dead processes left there."""
    parent = path.absolute().parent
    sweep(parent)
    while not os.path.lexists(parent):
        parent = parent.parent
    try:
        if not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with _claimed(parent, folder=True) as (probe, _):
            os.rmdir(probe)
    except OSError as error:
        if error.errno in FULL:  # the result can still be shown
            return
        raise UsageError(f"cannot write to '{path.parent}': {error.strerror or error}.") from error


@contextlib.contextmanager
def workspace(final: Path) -> Iterator[Path]:
    """A new folder beside `final`, to be filled and renamed. Otherwise it is removed afterwards, with parents made for it.

    Raises `NotWritten` where the system refuses.
    """
    parent = final.parent
    made = _make(parent)
    done = False
    try:
        with _plainly(final, wrong=False), _claimed(parent, folder=True) as (folder, _):
            try:
                yield folder
                done = True
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        if not done:
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()


def write(path: Path, content: bytes | str) -> Path:
    """Write a file, whole or not at all. Raises `NotWritten` on a full disk, `UsageError` for an impossible path."""
    made = _make(path.parent)
    data = content.encode() if isinstance(content, str) else content
    try:
        with _plainly(path), _claimed(path.parent, folder=False) as (temporary, descriptor):
            try:
                with os.fdopen(os.dup(descriptor), "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
                flush(path.parent)
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink()
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    return path


def flush(path: Path) -> None:
    """Make the system write a file or folder to the disk now (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of(document: Mapping[str, object]) -> str:
    """SHA-256 of a JSON document without its own key `digest`, whatever its layout."""
    rest = json.loads(json.dumps({k: v for k, v in document.items() if k != "digest"}))
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sweep(parent: Path) -> None:
    """Remove what killed processes left half written in `parent`, or in a folder of it, as `compare` makes one."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):
        for left in (p for where in ("", "*/") for p in parent.glob(f"{where}{START}*{ENDING}")):
            with contextlib.suppress(OSError):
                descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its process lives
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
                    if left.parent != parent:
                        left.parent.rmdir()  # it was made for this alone; it stays where there is more in it
                finally:
                    os.close(descriptor)


@contextlib.contextmanager
def _claimed(parent: Path, folder: bool) -> Iterator[tuple[Path, int]]:
    """A new folder or file with a lock on it, and its descriptor; permissions as the umask says."""
    while True:
        path = parent / f"{START}{secrets.token_hex(4)}{ENDING}"
        try:
            if folder:
                path.mkdir()
            descriptor = os.open(path, os.O_RDONLY if folder else os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue
        try:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.exists():  # a sweep of another process removed it
                continue
            yield path, descriptor
            return
        finally:
            os.close(descriptor)


def _make(folder: Path) -> list[Path]:
    """Make a folder and those it lies in; those that were made, the innermost first."""
    missing = []
    at = folder.absolute()
    while not os.path.lexists(at):
        missing.append(at)
        at = at.parent
    with _plainly(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return missing


@contextlib.contextmanager
def _plainly(path: Path, wrong: bool = True) -> Iterator[None]:
    """Turn an `OSError` into one sentence: `UsageError` where the path may be wrong (`wrong`), else `NotWritten`."""
    try:
        yield
    except (NotWritten, UsageError):
        raise
    except OSError as error:
        said = f"cannot write '{path}': {error.strerror or error}"
        if error.errno in FULL or not wrong:
            raise NotWritten(f"{said}; nothing was left behind.") from error
        raise UsageError(f"{said}.") from error
