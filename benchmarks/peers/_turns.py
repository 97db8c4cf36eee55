"""Sides timed in turn in one process. Where their log-likelihoods differ there is no ratio of times, but an error."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from zoo import _show

AGREEMENT = 1e-6  # the largest relative difference between log-likelihoods at which times can be compared
OURS = "zoo"

Side = Callable[[], tuple[float, float]]  # seconds, and the log-likelihood at the end (nats)


def turns(sides: Mapping[str, Side], rounds: int) -> dict[str, Any]:
    """Run all sides `rounds` times in turn, ours first; how our time compares with each other's.

    Gives `seconds` and `log_likelihood` (side → number), `ratios` (peer → `{median, min, max}`) and `errors`: a sentence for
    each peer whose log-likelihood is another, which has no ratio.
    """
    for side in sides.values():
        side()  # what only the first call pays for is nobody's time
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    ends: dict[str, float] = {}
    for _ in range(rounds):
        for name, side in sides.items():
            spent, ends[name] = side()
            seconds[name].append(spent)
    out: dict[str, Any] = {
        "seconds": {name: statistics.median(spent) for name, spent in seconds.items()},
        "log_likelihood": ends,
        "ratios": {},
        "errors": [],
        "rounds": rounds,
    }
    for name in sides:
        if name == OURS:
            continue
        if not abs(ends[OURS] - ends[name]) <= AGREEMENT * abs(ends[name]):
            out["errors"].append(
                f"the log-likelihoods differ, {ends[OURS]!r} (ours) and {ends[name]!r} ({name}): no ratio of times."
            )
            continue
        pairs = [ours / theirs for ours, theirs in zip(seconds[OURS], seconds[name], strict=True)]
        out["ratios"][name] = {"median": statistics.median(pairs), "min": min(pairs), "max": max(pairs)}
    return out


def table(out: Mapping[str, Any]) -> str:
    """The document of a benchmark as text. Raises `ArithmeticError` where log-likelihoods differ."""
    if out["errors"]:
        raise ArithmeticError(" ".join(out["errors"]))
    lines = [out["what"], "", f"{'':22}{'seconds':>10}{'log-likelihood':>22}{'ours / theirs':>16}"]
    for name, spent in out["seconds"].items():
        ratio = out["ratios"].get(name)
        shown = "" if ratio is None else f"{ratio['median']:>16.3f}   ({ratio['min']:.3f} to {ratio['max']:.3f})"
        lines.append(f"{name:22}{spent:>10.3f}{out['log_likelihood'][name]:>22.4f}{shown}")
    return "\n".join([*lines, *(f"skipped: {why}" for why in out["skipped"])])


def show(out: dict[str, Any], json: bool) -> dict[str, Any]:
    """Print a document, as JSON or as a table, and return it."""
    from json import dumps

    text = table(out)  # which raises where there is nothing to compare
    if json:
        print(dumps(out, indent=2))
    else:
        _show.console().print(text, soft_wrap=True, markup=False)
    return out
