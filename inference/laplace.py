"""Laplace's approximation: a Gaussian at the mode, with the inverse Hessian for its covariance.

Discrete local latents are enumerated. Continuous ones get a Gaussian for each row: for a log joint that is quadratic in them
one Newton step from anywhere gives the mode, the Gaussian is the posterior itself, and log p(x) is exact; else the modes of
all data are found at once by damped Newton steps, and log p(x) is an estimate (`newton`). With global latents there is a
Gaussian over them, or a grid where they are few, with the local latents integrated out inside (nested Laplace; Rue, Martino &
Chopin 2009). Without latents it is the large-sample Gaussian over θ: standard errors (`globals`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from inference._density import local
from inference._laplace import globals as _laplace_globals
from inference._laplace import locals as _laplace_locals
from inference._laplace.inner import Exact, Inner, Nested
from inference._laplace.search import Globals, Options
from inference._method.fit import Fit
from inference._method.start import Start
from inference._method.summed import completed, summed
from inference._method.task import Task
from zoo._options import Count, Limits, Positive
from zoo._program.structure import Structure

WEIGHTS = True  # rows may have weights


def refusal(structure: Structure) -> str | None:
    """Why Laplace's approximation cannot serve the program, or None."""
    for site in structure.global_latents:
        if site.discrete:
            return f"laplace puts a Gaussian on the global latents, and '{site.name}' is discrete"
    if structure.is_exact or structure.cut:
        return structure.cut or None
    own = structure if structure.global_latents else structure.summed
    reason = local.refusal(own, given_globals=True)
    return None if reason is None else f"laplace puts a Gaussian on each row's own continuous latents, and {reason}"


def fit(
    task: Task,
    *,
    max_iter: Count = 500,
    tol: Positive = 1e-9,
    start: Start = "auto",
    restarts: Count = 1,
    globals: Globals = "auto",
    inner: Literal["auto", "laplace", "quadrature"] = "auto",
    tries: Annotated[int, Limits(least=0)] = 10,
    samples: Annotated[int, Limits(least=0)] = 200,
    epochs: Count = 100,
    batch: Count = 256,
    lr: Positive = 0.01,
) -> Fit:
    """Climb to the mode, and take the Hessian there; one that is not positive definite is damped, and the fit says so.

    - `max_iter`: iterations of the climb at most.
    - `tol`: the Newton decrement (nats still to be gained) at which a mode counts as found.
    - `start`: of θ: `kmeans`, `random`, or the `program`'s own values; `auto` chooses.
    - `restarts`: climbs over global latents and θ, from starts far apart; the fit is of the mode with the most mass.
    - `globals`: `laplace`, a Gaussian over the global latents; `grid`, for up to three numbers, a grid wherever their density
      is not negligible. `auto` is the grid where they are so few and evaluations are cheap.
    - `inner`: with global latents beside local ones that are not exact: `laplace` for each row, or `quadrature` about its
      mode, for one or two numbers a row. `auto` is quadrature where it can be.

    For local latents that are not exact:

    - `tries`: draws from the prior at which to begin, besides its middle; the climb starts where the density is highest.
    - `samples`: draws from each row's Gaussian, whose importance weights give its k-hat and effective sample size; 0: no such
      check, which takes longer than the climb where the data are wide.
    - `epochs`: of mini-batches by which θ is learned, by the total derivative of the Laplace evidence, where at most `max_iter`
      steps of L-BFGS on all data at once take too long.
    - `batch`: rows of a mini-batch.
    - `lr`: the rate of Adam.
    """
    structure = task.structure
    if not structure.is_exact and not structure.global_latents:
        options = _laplace_locals.Options(max_iter, tol, tries, samples, epochs, batch, lr)
        own = summed(task)
        return completed(task, own, _laplace_locals.fit(own, start, options))
    inside: Inner = Exact(task)
    if not structure.is_exact:
        by_nodes = None if inner == "auto" else inner == "quadrature"
        inside = Nested(task.doubled(), max_iter, tol, tries, samples, by_nodes)
    return _laplace_globals.fit(task, inside, Options(max_iter, tol, restarts, globals, start))
