"""What a run costs, and on what: seconds, peak memory, versions."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import platform
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Cost:
    """Of one run."""

    seconds: float = 0.0
    peak_mb: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)  # package -> version


@contextlib.contextmanager
def measured() -> Iterator[Cost]:
    """Wall-clock seconds, and the most memory the process held meanwhile (since its start, where that is all there is)."""
    cost, began = Cost(), time.perf_counter()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: reset the high-water mark
    yield cost
    cost.seconds = time.perf_counter() - began
    cost.peak_mb = _high_water()


def _high_water() -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    scale = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return dict(_versions())


@functools.cache  # reading them takes as long as a small fit
def _versions() -> dict[str, str]:
    out = {"python": platform.python_version()}
    for package in ("latent-zoo", "pyro-ppl", "torch", "numpy", "arviz-stats", "scikit-learn"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            out[package] = importlib.metadata.version(package)
    return out
