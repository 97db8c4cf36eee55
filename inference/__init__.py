"""Inference methods, one a file, and the runner that they share: `from inference import run, compare, infer, load`.
`Estimator` is any model as a scikit-learn estimator.

A file directly here is a method. All else is in rooms, each of which imports only from those above it:

    _numerics/  coordinates, L-BFGS, Pareto k-hat; knows no program
    _families/  distributions with sufficient statistics, one a file
    _sampling/  importance weights, particle filters
    _exact/     exact posteriors, evidence and M-steps, behind the interface `Engine`
    _density/   the density of each row in its continuous latents, its modes, Gaussians at them
    _method/    what a method is given (`Task`) and returns (`Fit`)
    _training/  objectives and training loops
    _laplace/   Laplace's approximation over local and over global latents
    _mcmc/      Markov chains: their density and recorded gradient, No-U-Turn trees, diagnostics
    _answers/   what a fit says of rows and parameters, as tables
    _run/       a run: request, checks, seeds, verification, files
    _new_rows/  new rows at the θ of a run
    _pictures/  pictures, one a file
    _estimator/ models as scikit-learn's estimators
    _compare/   methods side by side, held against a reference

Four values, each made from the one before: a `Request` (`_run/request`: what is asked for), `Prepared` (`_run/prepare`: the
program and its data, checked), a `Fit` (`_method/fit`: what a method found), a `Run` (`_run/result`: all of it, with the
verified evidence and the cost; it can be saved, read back, drawn, imputed).

A method is two functions. `refusal` says why it cannot serve a program, or None; `fit` learns θ in `task.program`. Its
keyword-only arguments are its options. Seeds, cost and the check of its claim are the runner's:

    >>> import torch
    >>> from inference._method.fit import Evidence, Fit
    >>> def refusal(structure):
    ...     return None if structure.is_exact else f"gradient needs an exact posterior, and {structure.reason}"
    >>> def fit(task, *, steps: int = 100, lr: float = 0.05):
    ...     optimiser = torch.optim.Adam(task.program.parameters(), lr=lr)
    ...     for _ in range(steps if task.learn else 0):
    ...         optimiser.zero_grad()
    ...         total, _ = task.engine.log_evidence()  # log p(x; θ), nats
    ...         (-total / len(task.x)).backward()
    ...         optimiser.step()
    ...     theta = {name: value.numpy() for name, value in task.theta().items()}
    ...     return Fit(theta, Evidence.from_per_datum(task.engine.per_datum().numpy(), "exact"))

`zoo run gmm --data faithful --method gradient` would run it from `inference/gradient.py`. By hand:

    >>> from inference._method.task import Task
    >>> from inference._run.prepare import prepare
    >>> ready = prepare("gmm", "faithful", {}, ["em"])
    >>> task = Task(ready.program(), ready.structure, ready.x)
    >>> before = float(task.engine.per_datum().sum())
    >>> fit(task, steps=20).claimed.value > before
    True

`docs/architecture.md` says more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference._compare.comparison import Comparison, compare
    from inference._estimator.estimator import Estimator
    from inference._method.fit import Evidence, Fit
    from inference._run.result import Run, load
    from inference._run.runner import infer, run

__all__ = ["Comparison", "Estimator", "Evidence", "Fit", "Run", "compare", "infer", "load", "run"]
__distribution__ = "latent-zoo"

_WHERE = {"Evidence": "_method.fit", "Fit": "_method.fit", "Run": "_run.result", "load": "_run.result"}
_WHERE |= {"Estimator": "_estimator.estimator"}
_WHERE |= dict.fromkeys(("Comparison", "compare"), "_compare.comparison") | dict.fromkeys(
    ("infer", "run"), "_run.runner"
)


def __getattr__(name: str) -> object:
    """Load on first use: naming a method must not cost the seconds that torch takes."""
    if name not in _WHERE:
        raise AttributeError(f"module 'inference' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(f"inference.{_WHERE[name]}"), name)
