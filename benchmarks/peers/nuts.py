"""No-U-Turn sampling against Pyro's own and NumPyro's: seconds for a thousand effective draws, start-up included and not.

The fewest effective draws (bulk, Vehtari et al. 2021) of any latent count; ours and NumPyro's are four chains, Pyro's is one as
long as each of them. Seconds are of the processor, one thread. Start-up is what a run of a few transitions takes, or what a
second run with the same compiled code does not. Eight schools with one measurement error, a logistic regression with 60 random
intercepts, and a mixture of two normals, the lower mean first: of two orders chains that start apart would each keep their own.
All sides sum the labels out.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Literal

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from benchmarks._references.programs import DATA, logistic_intercepts, normal_mixture
from benchmarks._suite.documents import Document
from benchmarks.peers._turns import OURS, Side, one_core, turns
from inference import nuts
from inference._method.task import Task
from inference._numerics.psis import agreement
from inference._run.cost import versions
from inference._run.prepare import prepare
from zoo._options import Count

if find_spec("numpyro") is not None:
    from benchmarks._references import with_numpyro

JITS, NUMPYRO = {"Pyro": False, "Pyro, jit_compile": True}, "NumPyro"
FEW = 20  # transitions of a run that is all start-up
Name = Literal["schools", "logistic", "mixture"]
Sampler = Callable[[int], tuple[float, float]]  # a chain's draws → seconds, and the fewest effective draws
Parts = tuple[float, float, float]  # seconds with start-up and without, and the fewest effective draws


def measure(*, program: Name = "schools", rounds: Count = 3, quick: bool = False) -> Document:
    """The document: seconds for a thousand effective draws of each side, and their ratios."""
    x, length = data(program), 100 if quick else 1000
    runs: dict[str, Callable[[int], Parts]] = {OURS: partial(_parts, partial(_ours, program, x))}
    runs |= {name: partial(_parts, partial(_pyros, program, x, jit)) for name, jit in JITS.items()}
    numpyros = find_spec("numpyro") is not None
    runs |= {NUMPYRO: partial(_numpyros, program, x)} if numpyros else {}
    after: dict[str, list[float]] = {name: [] for name in runs}  # what start-up takes
    sides: dict[str, Side] = {name: partial(_side, run, length, after[name]) for name, run in runs.items()}
    with one_core():
        out = turns(sides, rounds, warm_up=[])
    steady = {name: statistics.median(spent) for name, spent in after.items()}
    return {
        "benchmark": "peers/nuts",
        "what": f"NUTS, {program}, seconds for 1,000 effective draws",
        **out,
        "seconds_without_startup": steady,
        "ratios_without_startup": {name: steady[OURS] / spent for name, spent in steady.items() if name != OURS},
        "program": program,
        "draws": length,
        "threads": 1,
        "skipped": [] if numpyros else ["numpyro is not installed"],
        "versions": versions() | ({"numpyro": version("numpyro")} if numpyros else {}),
    }


def _side(run: Callable[[int], Parts], length: int, after: list[float]) -> tuple[float, None]:
    """Seconds for a thousand effective draws; `after` gets those without start-up."""
    spent, steady, effective = run(length)
    after.append(1000 * steady / effective)
    return 1000 * spent / effective, None


def _parts(run: Sampler, length: int) -> Parts:
    """Start-up is what a run of a few transitions takes."""
    startup, _ = run(FEW)
    spent, effective = run(length)
    return spent, max(0.0, spent - startup), effective


def _ours(program: Name, x: np.ndarray, length: int) -> tuple[float, float]:
    began = time.process_time()
    ready = prepare(PROGRAMS[program], x, {}, ["nuts"])
    task = Task(ready.program(), ready.structure, ready.x, quiet=True)
    fit = nuts.fit(task, warmup=length, samples=length, marginalise=False)
    spent, ess = time.process_time() - began, fit.notes["ess_bulk"]
    assert isinstance(ess, dict)
    return spent, min(v for k, v in ess.items() if k != "log density")


def _pyros(program: Name, x: np.ndarray, jit: bool, length: int) -> tuple[float, float]:
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
        draws = [v.reshape(1, length, -1).numpy() for v in chain.get_samples().values()]
    finally:
        torch.set_default_dtype(before)
    return spent, _fewest(draws)


def _numpyros(program: Name, x: np.ndarray, length: int) -> Parts:
    """NumPyro's run, and the same again with what is compiled."""
    import jax
    from numpyro.infer import MCMC, NUTS

    model, times = with_numpyro.MODELS[REFERENCES[program]], []
    seen = np.column_stack([x, np.full(8, 10.0)]) if program == "schools" else x
    with jax.enable_x64(True):
        jax.clear_caches()
        many = {"num_warmup": length, "num_samples": length, "num_chains": 4, "chain_method": "vectorized"}
        chains = MCMC(NUTS(model), progress_bar=False, **many)
        for _ in range(2):
            began = time.process_time()
            chains.run(jax.random.PRNGKey(0), seen)
            draws = {
                n: np.asarray(v).reshape(4, length, -1) for n, v in chains.get_samples(group_by_chain=True).items()
            }
            times.append(time.process_time() - began)
    return times[0], times[1], _fewest(v for n, v in draws.items() if n != "u")  # u: free coordinates of mu


def _fewest(draws: Iterable[np.ndarray]) -> float:
    """The fewest effective draws of any number of draws [C, S, numbers]."""
    return float(min(agreement(np.ascontiguousarray(d.transpose(2, 0, 1)))[1].min() for d in draws))


# ---------------------------------------------------------------------------------------------------------- programs


def schools(x: torch.Tensor | None = None, size: int | None = None) -> object:
    """Eight schools, not centred, with one measurement error for all."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("data", size if x is None else len(x)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(mu + tau * eta, 10.0), obs=x)


# the same in NumPyro, among those that references are held against
REFERENCES = {"schools": "eight_schools", "logistic": "logistic_intercepts", "mixture": "normal_mixture"}
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
