"""Inference methods, one a file, and the runner that they share: `from inference import run, compare, infer`.

Four values, each made from the one before: a `Request` (`_run/request`: what is asked for), `Prepared` (`_run/prepare`: the
program on its data, checked), a `Fit` (`_method/fit`: what a method found), a `Run` (`_run/result`: all of it, with the
verified evidence and the cost; to be saved, read back, drawn, imputed).

A room imports from those before it: `_numerics`, `_families`, `_sampling`; `_exact` (exact posteriors), `_density` (each
row's own continuous latents); `_method` (what a method is given and gives); `_training`; `_laplace`; then the methods. `_run`
stands on `_method`, `_pictures` on `_run`. `docs/architecture.md` says more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inference._method.fit import Evidence, Fit
    from inference._run.result import Run, load
    from inference._run.runner import compare, infer, run

__all__ = ["Evidence", "Fit", "Run", "compare", "infer", "load", "run"]
__distribution__ = "latent-zoo"

_WHERE = {"Evidence": "_method.fit", "Fit": "_method.fit", "Run": "_run.result", "load": "_run.result"}
_WHERE |= dict.fromkeys(("compare", "infer", "run"), "_run.runner")


def __getattr__(name: str) -> Any:
    """Load on first use: naming a method must not cost the seconds that torch takes."""
    if name not in _WHERE:
        raise AttributeError(f"module 'inference' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(f"inference.{_WHERE[name]}"), name)
