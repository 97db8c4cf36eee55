"""Progress of a suite on standard error: a bar with the time left in a terminal, else a line for each cell."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from benchmarks._suite.work import Outcome
from zoo._command import visible
from zoo._show import escape

if TYPE_CHECKING:
    from rich import progress

SHOWN = {"ok": "green", "refused": "yellow", "skipped": "yellow", "failed": "red", "timeout": "red"}


class Progress:
    """Counts outcomes. The time left is the mean time of cells like those that are left, over the cells at once."""

    def __init__(self, keys: list[str], jobs: int, quiet: bool = False) -> None:
        self.left, self.jobs, self.quiet = list(keys), max(1, jobs), quiet
        self.total, self.done, self.began = len(keys), 0, time.monotonic()
        self.seconds: dict[str, list[float]] = {}
        self.bar: progress.Progress | None = None
        self.terminal = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        if self.terminal and not self.quiet and self.total:
            from rich import progress
            from rich.console import Console

            words = [progress.TextColumn(t) for t in ("{task.completed}/{task.total}", "{task.fields[note]}")]
            self.bar = progress.Progress(
                words[0], progress.BarColumn(), words[1], console=Console(file=sys.stderr), transient=True
            )
            self.id = self.bar.add_task("", total=self.total, note="")
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def step(self, outcome: Outcome) -> None:
        """One more cell is done."""
        self.done += 1
        if outcome.key in self.left:
            self.left.remove(outcome.key)
            self.seconds.setdefault(outcome.key, []).append(outcome.seconds)
        elif self.left:
            self.left.pop()
        left = self.time_left()
        note = "" if left is None else f"{spoken(left)} left"
        text = f"{outcome.title}: {outcome.status}" + (f" ({outcome.reason})" if outcome.reason else "")
        if self.bar is not None:
            self.bar.update(self.id, completed=self.done, note=note)
            if outcome.status not in ("ok", "refused"):
                self.bar.console.print(f"[{SHOWN.get(outcome.status, 'red')}]{escape(text)}[/]", soft_wrap=True)
        elif not self.quiet:
            line = f"[{self.done}/{self.total}] {text}, {outcome.seconds:.1f} s" + (f"; {note}" if note else "")
            print(visible(line), file=sys.stderr, flush=True)

    def time_left(self) -> float | None:
        """Seconds, None while nothing is known."""
        every = [s for seconds in self.seconds.values() for s in seconds]
        if not every or not self.left:
            return None
        usual = sum(every) / len(every)
        of = {k: sum(v) / len(v) for k, v in self.seconds.items()}
        return sum(of.get(k, usual) for k in self.left) / self.jobs


def spoken(seconds: float) -> str:
    """ "40 s", "3 min", "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
