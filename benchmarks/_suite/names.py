"""What `zoo bench` can be given: the bundled suites, the benchmarks that are programs, or a user's suite file.

Imports nothing heavy: naming them must not cost the seconds that torch takes.
"""

from __future__ import annotations

import json as json_
from pathlib import Path

from zoo import _atomic, _registry, _show
from zoo._errors import UsageError, unknown

SUITES = Path(__file__).parent.parent / "suites"


def suites() -> dict[str, str]:
    """Name → first line, for every bundled suite."""
    return {p.stem: about(p)[0] for p in sorted(SUITES.glob("*.toml"))}


def listing() -> dict[str, str]:
    """Name → one line, for everything that can be named: suites first."""
    return {**suites(), **_registry.benchmarks()}


def show(json: bool) -> None:
    """Print everything that can be named."""
    groups = {"suites": suites(), "benchmarks": _registry.benchmarks()}
    if json:
        print(json_.dumps(groups, indent=1, ensure_ascii=False))
        return
    for title, entries in groups.items():
        _show.listing(title, entries)


def find(spec: str) -> Path | None:
    """The file of the suite that `spec` names, None where it names a benchmark that is a program.

    Raises `UsageError` for anything else.
    """
    if spec in suites():
        return SUITES / f"{spec}.toml"
    if spec in _registry.benchmarks():
        return None
    if not spec.endswith(".toml"):
        raise unknown("benchmark", spec, listing())
    path = _atomic.place(spec)
    if not path.is_file():
        raise UsageError(f"there is no file '{spec}'; give a suite's .toml file, or one of {', '.join(suites())}.")
    return path


def about(path: Path) -> list[str]:
    """The lines of the comment that a suite file begins with, without their signs; [""] where it has none."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    return lines or [""]
