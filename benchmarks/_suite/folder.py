"""The results folder of a suite: a file for each cell, written whole or not at all.

    suite.json         what the suite is, and its cells in order
    cells/ID.json      a finished cell
    pictures/ID/       its pictures, where it has any
    runs/ID/           its run folder, where others take its θ from there
    .work-HOST-PID-…   what a process is working on now; once that process is dead, what is in it is swept away

A cell's own file is renamed into place last, so where it is, everything that belongs to it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from benchmarks._suite import cells as _cells
from benchmarks._suite.cells import Cell
from benchmarks._suite.documents import CellDocument, Content, Document, Machine, SuiteDocument
from zoo import _atomic
from zoo._atomic import digest_of
from zoo._errors import NotWritten, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 2  # 1 had digests in cells alone, or none: it is read, and cannot be checked
RESULTS = Path("results")  # where a suite's folder goes when nothing else is said
DPI = 130  # of pictures
ABANDONED = 86_400  # seconds after which what another machine's process was working on counts as left behind
AGAIN = ("timeout", "failed")  # what `--retry` does again


class Results:
    """A results folder. Any number of processes may write to one at once."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = _atomic.place(folder)

    # ---- the suite ---------------------------------------------------------------------------------------------------

    def begin(self, name: str, spec: str, about: str, cells: Sequence[Cell]) -> None:
        """Make the folder, sweep out what dead processes left, and write down what the cells are."""
        new = not self.folder.exists()
        try:
            for part in ("cells", "pictures", "runs"):
                (self.folder / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write to '{self.folder}': {error.strerror or error}.") from error
        known = self.manifest()
        if known is not None and known["suite"] != name:
            raise UsageError(
                f"'{self.folder}' holds results of the suite {known['suite']}; give another folder with --out."
            )
        self.sweep()
        manifest = {"format": FORMAT, "suite": name, "spec": spec, "about": about}
        manifest["cells"] = [{"id": c.id, **c.content} for c in cells]
        manifest["digest"] = digest_of(manifest)
        try:
            with self.workspace("suite") as work:
                self._put(work, "suite.json", self.folder / "suite.json", _json(manifest, 1))
        except OSError as error:
            if new:
                shutil.rmtree(self.folder, ignore_errors=True)
            raise NotWritten(f"cannot write '{self.folder}': {error.strerror or error}.") from error

    def manifest(self) -> Document | None:
        """`suite.json`, None where there is none. Raises `UsageError` when a newer version wrote it."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = _parsed(self.folder / "suite.json", ("format", "suite", "spec", "about", "cells"))
            if found["format"] > FORMAT:
                raise UsageError(
                    f"'{self.folder}' was written by a newer version of Latent Zoo; update it to read this folder."
                )
            if not _is_whole(found):
                path = self.folder / "suite.json"
                raise UsageError(f"'{path}' is damaged: it is not what was written. Remove it and re-run the suite.")
            return found
        return None

    # ---- cells -------------------------------------------------------------------------------------------------------

    def read(self, id: str) -> CellDocument | None:
        """A finished cell's document, None where it is not finished."""
        with contextlib.suppress(FileNotFoundError):
            path = self.folder / "cells" / f"{id}.json"
            found = _parsed(path, ("format", "id", "cell", "status"))
            if not _is_whole(found) or found["id"] != id:
                raise UsageError(f"'{path}' is damaged: it is not what was written. Remove it and re-run the suite.")
            return cast(CellDocument, found)
        return None

    def done(self, cell: Cell, redo: str = "") -> bool:
        """Whether nothing is left to do for `cell`; `redo` is "", "failed" or "all".

        One that ran out of a smaller budget than it has now is not done.
        """
        found = self.read(cell.id)
        if found is None or redo == "all" or (redo == "failed" and found["status"] in AGAIN):
            return False
        if cell.keeps and found["status"] == "ok" and not self.run(cell.id).is_dir():
            return False
        spent = found.get("budget") or {}
        mine = {"seconds": cell.seconds, "memory_mb": cell.memory_mb}
        more = (had is not None and (now is None or now > had) for k, now in mine.items() for had in [spent.get(k)])
        return not (found["status"] == "timeout" and any(more))

    def run(self, id: str) -> Path:
        """Where the run folder of a cell that keeps it is."""
        return self.folder / "runs" / id

    def write(self, content: Mapping[str, object], document: Mapping[str, object], work: Path) -> None:
        """Put a finished cell in its place, with `work/pictures` and `work/run` where there are such."""
        id, files = _cells.identity(content), dict[str, str]()
        for part, target in (("pictures", self.folder / "pictures" / id), ("run", self.run(id))):
            if (work / part).is_dir():
                for path in sorted((work / part).rglob("*")):
                    _flush(path)
                    if path.is_file():
                        files[f"{part}/{path.relative_to(work / part)}"] = hashlib.sha256(path.read_bytes()).hexdigest()
                if target.exists():  # of a cell that is done again
                    with contextlib.suppress(FileNotFoundError):  # another process was first
                        target.rename(work / f"old-{part}")
                with contextlib.suppress(OSError):  # another process put the same there meanwhile
                    (work / part).rename(target)
                    _flush(target.parent)
        whole = {"format": FORMAT, "id": id, "cell": dict(content), **document, **({"files": files} if files else {})}
        text = _json({**whole, "digest": digest_of(whole)})
        self._put(work, "cell.json", self.folder / "cells" / f"{id}.json", text)

    def collected(self) -> SuiteDocument:
        """The whole as one document: the suite, and every cell in order; one not done yet has the status `missing`."""
        found = self.manifest()
        if found is None:
            raise UsageError(f"'{self.folder}' holds no results: there is no suite.json. Run `zoo bench SUITE` first.")
        cells: list[CellDocument] = []
        for entry in found["cells"]:
            if not isinstance(entry, dict) or not _ID.fullmatch(str(entry.get("id"))):
                raise UsageError(
                    f"'{self.folder / 'suite.json'}' is damaged: a cell has no id. Remove it and re-run the suite."
                )
            content = cast(Content, {k: v for k, v in entry.items() if k != "id"})
            nothing: CellDocument = {"id": entry["id"], "cell": content, "status": "missing", "reason": None}
            cells.append(self.read(entry["id"]) or nothing)
        counts: dict[str, int] = {}
        for cell in cells:
            counts[cell["status"]] = counts.get(cell["status"], 0) + 1
            cell["command"] = _cells.command(cell["cell"], found["spec"])
        versions, machine = _shared(cells)
        return {
            "format": found["format"],
            "suite": found["suite"],
            "about": found["about"],
            "command": f"zoo bench {found['spec']}",
            "date": max((c["date"] for c in cells if "date" in c), default=None),
            "counts": counts,
            "versions": versions,
            "machine": machine,
            "cells": cells,
        }

    # ---- many processes at once --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def workspace(self, id: str) -> Iterator[Path]:
        """A folder for what is not finished. It is gone afterwards, and is swept away later if the process is killed."""
        work = Path(tempfile.mkdtemp(prefix=f".work-{_host()}-{os.getpid()}-{id}-", dir=self.folder))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def sweep(self) -> list[str]:
        """Remove what dead processes left behind; the ids of the cells that they were at."""
        left = []
        for work in self.folder.glob(".work-*"):
            _, host, pid, id, _ = work.name.split("-", 4)
            with contextlib.suppress(FileNotFoundError):
                old = time.time() - work.stat().st_mtime > ABANDONED
                if old or (host == _host() and not _alive(int(pid))):
                    left.append(id)
                    shutil.rmtree(work, ignore_errors=True)
        return left

    @contextlib.contextmanager
    def claim(self, id: str) -> Iterator[bool]:
        """Whether this process may run the cell: False while another process is running it. Claims end with their process.

        One byte of a file is locked, at an offset of the id's: such locks end with their process, however it ends.
        """
        import fcntl

        with (self.folder / ".claims").open("ab") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(id[:7], 16))
            except OSError:
                yield False
                return
            yield True

    def _put(self, work: Path, name: str, target: Path, text: str) -> None:
        path = work / name
        path.write_text(text + "\n", encoding="utf-8")
        _flush(path)
        path.replace(target)
        _flush(target.parent)


def put(path: Path, content: bytes | Figure) -> None:
    """Write a file beside the cells, a picture as PNG; whole or not at all."""
    if not isinstance(content, bytes):
        with io.BytesIO() as png:
            content.savefig(png, dpi=DPI, format="png")
            content = png.getvalue()
    _atomic.write(path, content)


_ID = re.compile("[0-9a-f]{16}")


def _is_whole(document: Document) -> bool:
    """Whether a document says what was written; takes its digest out of it."""
    digest = document.pop("digest", None)
    return digest == digest_of(document) if digest is not None else document["format"] < 2


def is_as_written(path: Path, name: str, cell: Mapping[str, object]) -> bool:
    """Whether a picture (`pictures/NAME`) or a file of a run (`run/NAME`) is what its cell says, where it says anything."""
    files = cell.get("files")
    wanted = files.get(name) if isinstance(files, dict) else None
    return wanted is None or hashlib.sha256(path.read_bytes()).hexdigest() == wanted


def _parsed(path: Path, keys: tuple[str, ...]) -> Document:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (IsADirectoryError, PermissionError) as error:
        raise UsageError(f"'{path}' cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"'{path}' is damaged: it is not JSON. Remove it and re-run the suite.") from error
    if not isinstance(found, dict) or any(k not in found for k in keys) or not isinstance(found["format"], int):
        raise UsageError(f"'{path}' is damaged: keys are missing. Remove it and re-run the suite.")
    return found


def _json(document: object, indent: int | None = None) -> str:
    return json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)


def text_of(document: SuiteDocument) -> str:
    """A collected document as JSON with a line for each cell, so that two of them can be compared line by line."""
    head = _json({k: v for k, v in document.items() if k != "cells"}, 1)[:-2]
    cells = ",\n  ".join(_json(c) for c in document["cells"])
    return f'{head},\n "cells": [\n  {cells}\n ]\n}}'


def _shared(cells: list[CellDocument]) -> tuple[dict[str, str], Machine]:
    """Versions and machine, said once: a cell keeps its own only where they differ from most cells'."""
    versions = _most([c["versions"] for c in cells if "versions" in c])
    machine = _most([c["machine"] for c in cells if "machine" in c])
    for cell in cells:
        if "versions" in cell and cell["versions"] == versions:
            del cell["versions"]
        if "machine" in cell and cell["machine"] == machine:
            del cell["machine"]
    return versions or {}, machine or cast(Machine, {})


def _most(found: list[T]) -> T | None:
    """What is there most often; None of nothing."""
    texts = [json.dumps(f, sort_keys=True) for f in found]
    most = max(sorted(set(texts)), key=texts.count, default=None)
    return None if most is None else found[texts.index(most)]


T = TypeVar("T")


def machine() -> Machine:
    """What times depend on: the processor, its cores and the memory; not whose machine it is."""
    cpu = platform.processor() or platform.machine()
    memory = None
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    with contextlib.suppress(OSError, ValueError):
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    system = f"{platform.system()} {platform.machine()}"
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gb": memory, "system": system}


def today() -> str:
    """The date, in UTC."""
    return datetime.now(UTC).date().isoformat()


def _host() -> str:
    """A machine's mark for names of temporary folders; it goes into no result."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _alive(pid: int) -> bool:
    """Whether a process of this machine is there, and is no zombie (ended, but not waited for)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return True


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
