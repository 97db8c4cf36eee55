"""A progress bar on standard error, shown once the work has taken two seconds."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

Step = Callable[..., None]  # step(advance=1, note="")


@contextlib.contextmanager
def progress(what: str, total: int | None = None, quiet: bool = False) -> Iterator[Step]:
    """Yields a function to call at every step."""
    bar = _Bar(what, total, quiet)
    try:
        yield bar.step
    finally:
        bar.close()


class _Bar:
    def __init__(self, what: str, total: int | None, quiet: bool) -> None:
        self.what, self.total, self.quiet = what, total, quiet
        self.done, self.began, self.id = 0, time.monotonic(), None
        self.bar: Any = None

    def step(self, advance: int = 1, note: str = "") -> None:
        self.done += advance
        if self.quiet or time.monotonic() - self.began < 2.0:
            return
        if self.bar is None:
            self._open()
        self.bar.update(self.id, completed=self.done, note=note)

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(file=sys.stderr)
        columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}")]
        columns += [TimeRemainingColumn(), TextColumn("{task.fields[note]}")]
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.id = self.bar.add_task(self.what, total=self.total, note="")
        self.bar.start()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
