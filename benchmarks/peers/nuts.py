"""No-U-Turn sampling against Pyro's own on the same program: seconds for a thousand effective draws, start-up included.

The fewest effective draws (bulk, Vehtari et al. 2021) of any latent count; ours are four chains, Pyro's is one as long as each
of them. Seconds are of the processor, one thread. Eight schools with one measurement error, a logistic
regression with 60 random intercepts, and a mixture of two normals, the lower mean first: of two orders chains
that start apart would each keep their own. Both sides sum the labels out.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from benchmarks._references.programs import DATA, logistic_intercepts, normal_mixture
from benchmarks._suite.documents import Document
from benchmarks.peers._turns import OURS, Side, turns
from inference import nuts
from inference._method.task import Task
from inference._numerics.psis import agreement
from inference._numerics.threads import one_thread
from inference._run.cost import versions
from inference._run.prepare import prepare
from zoo._options import Count

PLAIN, COMPILED = "Pyro", "Pyro, jit_compile"
Name = Literal["schools", "logistic", "mixture"]


def measure(*, program: Name = "schools", rounds: Count = 3, quick: bool = False) -> Document:
    """The document: seconds for a thousand effective draws of each side, and their ratios."""
    model, x = PROGRAMS[program], data(program)
    length = 100 if quick else 1000

    def ours() -> tuple[float, None]:
        began = time.process_time()
        ready = prepare(model, x, {}, ["nuts"])
        fit = nuts.fit(
            Task(ready.program(), ready.structure, ready.x, quiet=True),
            warmup=length,
            samples=length,
            marginalise=False,
        )
        spent = time.process_time() - began
        ess = fit.notes["ess_bulk"]
        assert isinstance(ess, dict)
        return 1000 * spent / min(v for k, v in ess.items() if k != "log density"), None

    sides: dict[str, Side] = {OURS: ours}
    sides |= {name: partial(_pyros, program, x, length, jit) for name, jit in JITS.items()}
    with one_thread():
        out = turns(sides, rounds, warm_up=[])
    return {
        "benchmark": "peers/nuts",
        "what": f"NUTS, {program}, seconds for 1,000 effective draws",
        **out,
        "program": program,
        "draws": length,
        "threads": 1,
        "versions": versions(),
    }


JITS = {PLAIN: False, COMPILED: True}


def _pyros(program: Name, x: np.ndarray, length: int, jit: bool) -> tuple[float, None]:
    """Processor seconds that Pyro takes for a thousand effective draws."""
    from pyro.infer import MCMC, NUTS, config_enumerate

    model, before = PROGRAMS[program], torch.get_default_dtype()
    seen = torch.as_tensor(x[:, 0] if x.shape[1] == 1 else x)
    torch.set_default_dtype(torch.float64)
    try:
        began = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            enumerated = config_enumerate(model) if program == "mixture" else model
            kernel = NUTS(enumerated, max_plate_nesting=1, jit_compile=jit, ignore_jit_warnings=True)
            chain = MCMC(kernel, num_samples=length, warmup_steps=length, disable_progbar=True)
            chain.run(seen)
        spent = time.process_time() - began
        draws = [v.reshape(length, -1).mT.numpy()[:, None] for v in chain.get_samples().values()]
    finally:
        torch.set_default_dtype(before)
    return 1000 * spent / float(min(agreement(np.ascontiguousarray(d))[1].min() for d in draws)), None


# ---------------------------------------------------------------------------------------------------------- programs


def schools(x: torch.Tensor | None = None, size: int | None = None) -> object:
    """Eight schools, not centred, with one measurement error for all."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("data", size if x is None else len(x)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(mu + tau * eta, 10.0), obs=x)


PROGRAMS: dict[Name, Callable[..., object]] = {
    "schools": schools,
    "logistic": logistic_intercepts,
    "mixture": normal_mixture,
}


def data(program: Name) -> np.ndarray:
    """The schools' effects (Rubin 1981), or simulated rows."""
    if program == "schools":
        return DATA["eight_schools"]()[:, :1]
    return DATA["logistic_intercepts" if program == "logistic" else "normal_mixture"]()
