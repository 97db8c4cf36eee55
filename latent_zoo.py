"""Latent Zoo: one Pyro program, every inference method, evidence you can trust.

    >>> from latent_zoo import run
    >>> run("gmm", data="faithful", method="em").claimed.kind
    'exact'

`run` fits a model to data, `compare` fits it by several methods, `infer` takes another method to the θ of a saved run, and
`load` reads a saved run back. `select` chooses among models, `calibrate` says whether a method's posteriors can be believed
(`calibrate_models`: its evidence), and `Estimator` is any model as a scikit-learn estimator. The packages that do it are called
`zoo`, `guides`, `inference` and `benchmarks`. Other distributions use such names too; where one of theirs stands in the place
of ours, the first use of this module says so.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks._calibration.calibrate import calibrate
    from benchmarks._calibration.evidence import calibrate_models
    from benchmarks._select.select import select
    from inference import Estimator, Evidence, Fit, Run, compare, infer, load, run

__all__ = [
    "Estimator",
    "Evidence",
    "Fit",
    "Run",
    "calibrate",
    "calibrate_models",
    "compare",
    "infer",
    "load",
    "run",
    "select",
]
WHERE = {  # all else is in `inference`
    "calibrate": "benchmarks._calibration.calibrate",
    "calibrate_models": "benchmarks._calibration.evidence",
    "select": "benchmarks._select.select",
}

PACKAGES = ("zoo", "guides", "inference", "benchmarks")
MARK = '__distribution__ = "latent-zoo"'  # a line of each package's __init__.py


def __getattr__(name: str) -> Any:
    """Load on first use: importing this module must not cost the seconds that torch takes."""
    if name == "__version__":
        from importlib.metadata import version

        return version("latent-zoo")
    if name not in __all__:
        raise AttributeError(f"module 'latent_zoo' has no attribute '{name}'")
    if (obstacle := foreign()) is not None:
        raise ImportError(obstacle)
    return getattr(importlib.import_module(WHERE.get(name, "inference")), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def foreign() -> str | None:
    """Which package stands in the place of one of ours, and what to do; None where none does."""
    for name in PACKAGES:
        try:
            spec = importlib.util.find_spec(name)
        except ValueError:  # a module that somebody put together by hand has none
            spec = None
        origin = getattr(sys.modules.get(name), "__file__", None) or (spec.origin if spec is not None else None)
        if origin is None or MARK not in Path(origin).read_text(encoding="utf-8", errors="replace"):
            return _said(name, origin)
    return None


def _said(name: str, origin: str | None) -> str:
    if origin is None:
        return (
            f"Latent Zoo's package '{name}' is not there: install it again (pip install --force-reinstall latent-zoo)."
        )
    from importlib.metadata import packages_distributions

    owners = [d for d in packages_distributions().get(name, []) if d != "latent-zoo"]
    if owners:
        remedy = f"It belongs to {' and '.join(owners)}: install Latent Zoo in a virtual environment without that."
    else:
        remedy = "Rename it, or start Python in another folder."
    return f"'{origin}' is imported in the place of Latent Zoo's package '{name}'. {remedy}"


def main() -> None:
    """The console script `zoo`."""
    if (obstacle := foreign()) is not None:
        sys.exit(f"zoo: {obstacle}")
    from zoo.__main__ import main as command

    command()
