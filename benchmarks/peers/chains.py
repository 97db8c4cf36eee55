"""Hidden Markov models against hmmlearn, and a Gaussian chain against statsmodels: time over time at equal likelihood.

All sides take the same data and the same θ, alternating in one process, each with the threads that it takes by itself. Ours
are plain programs with a `for` loop over the steps; the peers are written for these models, and compiled.

- `normal`, `categorical`, `poisson`: an E-step, which gives log p(x), the posterior of all states and the expected numbers of
  moves. hmmlearn's recursions go by logarithms unless it is told to scale, which is faster; it is timed both ways.
- `em`: ten iterations of EM on normal emissions, as hmmlearn's `fit` does them.
- `length`: our E-step of a chain 16 times as long as another, against 16 of that other, and of one 4 times as long against 4:
  1 where the cost is proportional, less where a part of it is the same for all lengths. By the processor's time, which other
  programs disturb less.
- `gaussian`: log p(x) of one series by a linear Gaussian chain of four latents a step, against statsmodels' Kalman filter.
- `gaussian_length`: that of a series 16 times and 4 times as long as another, likewise.

What is timed is the E-step, or log p(x), of an engine that has taken a few, as in EM. Reading the program is done once, and not
timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from benchmarks._suite.documents import Document
from benchmarks.peers._turns import OURS, Side, timed, turns
from inference._families._family import Floor
from inference._method.task import Task
from inference._run.cost import versions
from zoo._options import Count
from zoo._program.describe import describe
from zoo._program.load import load

SEED = 0
EXACT = 1e-9  # relative difference between two sides' figures
WARM = 4  # of them, after which ours replays what leads from θ to its tables
ITERATIONS = 10
LONGER = (16, 4)  # times
SYMBOLS = 4
Name = Literal["normal", "categorical", "poisson", "em", "length", "gaussian", "gaussian_length"]
Program = Callable[..., object]
Theta = dict[str, np.ndarray]


def measure(
    *,
    program: Name = "normal",
    n: Count | None = None,
    steps: Count | None = None,
    k: Count = 5,
    rounds: Count = 5,
    quick: bool = False,
) -> Document:
    """The document: times, their ratios, log-likelihoods, and who is not installed.

    `n` series of `steps` steps: 500 of 200 when None; one of 2,000 for `gaussian`, 50 of 250 and of 4,000 for `length`, and one
    of each for `gaussian_length`.
    """
    usual = {"gaussian": (1, 2000), "length": (50, 4000), "gaussian_length": (1, 4000)}.get(program, (500, 200))
    n, steps = n or (min(usual[0], 20) if quick else usual[0]), steps or (32 if quick else usual[1])
    sides, skipped, peer = dict[str, Side](), list[str](), "statsmodels" if program == "gaussian" else "hmmlearn"
    if program in ("length", "gaussian_length"):
        sides = _lengths(n, steps, k, program == "gaussian_length")
    elif program == "gaussian":
        sides = _gaussian(n, steps)
    else:
        sides = _em(n, steps, k) if program == "em" else _e_steps(program, n, steps, k)
    if "length" not in program and find_spec(peer) is None:
        sides, skipped = {OURS: sides[OURS]}, [f"{peer} is not installed"]
    return {
        "benchmark": "peers/chains",
        "what": f"{WHAT.get(program, f'E-step, hidden Markov model, {program} emissions')}: n={n:,}, steps={steps:,}, "
        + ("four latents a step" if "gaussian" in program else f"k={k}"),
        "short": f"chains {program}",
        **turns(sides, rounds, agree=_agree),
        "skipped": skipped,
        "program": program,
        "n": n,
        "steps": steps,
        "k": 4 if "gaussian" in program else k,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


WHAT = {
    "em": f"EM, {ITERATIONS} iterations, hidden Markov model, normal emissions",
    "length": "E-step, beside those of shorter series as often as make the steps",
    "gaussian": "log-likelihood, linear Gaussian chain",
    "gaussian_length": "log-likelihood, linear Gaussian chain, beside those of shorter series as often as make the steps",
}


def _agree(ours: float, theirs: float) -> bool:
    return abs(ours - theirs) <= EXACT * abs(theirs)


def _same(what: str, ours: Tensor, theirs: np.ndarray) -> None:
    if not np.allclose(ours, theirs, rtol=EXACT, atol=EXACT * np.abs(theirs).max()):
        raise ArithmeticError(f"{what} differ between the sides: no ratio of times.")


def _task(program: Program, x: np.ndarray) -> Task:
    data = torch.as_tensor(x)
    loaded = load(program, data)
    return Task(loaded, describe(loaded, data), data, seed=SEED, quiet=True)


# ------------------------------------------------------------------------------------------------ hidden Markov models


def theta(family: str, k: int) -> Theta:
    """A random θ: of the first state, of the moves, and of the emissions."""
    rng = np.random.default_rng(SEED)
    out = {"start": rng.dirichlet(np.ones(k)), "moves": rng.dirichlet(np.ones(k), k)}
    if family == "categorical":
        return {**out, "probs": rng.dirichlet(np.ones(SYMBOLS), k)}
    if family == "poisson":
        return {**out, "rates": rng.gamma(2.0, 3.0, size=k)}
    return {**out, "locs": 2 * rng.normal(size=k), "scales": rng.uniform(0.5, 1.5, size=k)}


def hidden_markov(family: str, steps: int, at: Theta) -> Program:
    """A hidden Markov model as anyone would write it."""

    def program(x: Tensor | None = None, size: int | None = None) -> Tensor:
        free = {
            name: pyro.param(name, torch.tensor(value), constraint=constraint_of(name)) for name, value in at.items()
        }
        with pyro.plate("data", size if x is None else len(x)):
            z, out = None, []
            for t in range(steps):
                z = pyro.sample(f"z{t}", dist.Categorical(free["start"] if z is None else free["moves"][z]))
                obs = None if x is None else x[:, t]
                out.append(pyro.sample(f"x{t}", _emission(family, free, z), obs=obs))
            return torch.stack(out, -1)

    return program


def constraint_of(name: str) -> constraints.Constraint:
    """Where a parameter lives."""
    if name in ("start", "moves", "probs"):
        return constraints.simplex
    return constraints.positive if name in ("rates", "scales") else constraints.real


def _emission(family: str, free: dict[str, Tensor], z: Tensor) -> Any:
    if family == "categorical":
        return dist.Categorical(free["probs"][z])
    return dist.Poisson(free["rates"][z]) if family == "poisson" else dist.Normal(free["locs"][z], free["scales"][z])


def series(family: str, n: int, steps: int, at: Theta) -> np.ndarray:
    """Draws from the model [n, steps]."""
    rng, k = np.random.default_rng(SEED), len(at["start"])
    z = np.empty((n, steps), int)
    z[:, 0] = rng.choice(k, n, p=at["start"])
    cumulated = at["moves"].cumsum(1)
    for t in range(1, steps):
        z[:, t] = (rng.random((n, 1)) > cumulated[z[:, t - 1]]).sum(1).clip(max=k - 1)
    if family == "categorical":
        return (rng.random((n, steps, 1)) > at["probs"].cumsum(1)[z]).sum(-1).clip(max=SYMBOLS - 1).astype(float)
    return (
        rng.poisson(at["rates"][z]).astype(float) if family == "poisson" else rng.normal(at["locs"][z], at["scales"][z])
    )


def _e_steps(family: str, n: int, steps: int, k: int) -> dict[str, Side]:
    at = theta(family, k)
    x = series(family, n, steps, at)
    task = _task(hidden_markov(family, steps, at), x)
    sides: dict[str, Side] = {OURS: _side(_our_e_step(task))}
    if find_spec("hmmlearn") is not None:
        flat, lengths = x.reshape(-1, 1).astype(float if family == "normal" else int), np.full(n, steps)
        models = {how: _hmmlearn(family, at, how) for how in ("scaling", "log")}
        _check(task, models["scaling"]._do_estep(flat, lengths)[0])
        sides |= {f"hmmlearn, {how}": _side(_their_e_step(m, flat, lengths)) for how, m in models.items()}
    return sides


def _our_e_step(task: Task) -> Callable[[], float]:
    return _warm(lambda: task.engine.e_step().log_joint)


def _our_log_likelihood(task: Task) -> Callable[[], float]:
    return _warm(lambda: float(task.engine.per_datum().sum()))


def _warm(work: Callable[[], float]) -> Callable[[], float]:
    for _ in range(WARM):
        work()
    return work


def _side(work: Callable[[], float]) -> Side:
    def side() -> tuple[float, float]:
        found = list[float]()
        seconds = timed(lambda: found.append(work()))
        return seconds, found[-1]

    return side


def _their_e_step(model: Any, flat: np.ndarray, lengths: np.ndarray) -> Callable[[], float]:
    return lambda: float(model._do_estep(flat, lengths)[1])


def _check(task: Task, theirs: dict[str, np.ndarray]) -> None:
    """Before any timing: the expected numbers of moves, first states and all states are the same."""
    sites = task.engine.e_step().sites
    _same("expected moves", sites["z1"]["counts"][:, 0], theirs["trans"])
    each = task.engine.marginals(task.engine.responsibilities())
    _same("first states", each["z0"].sum(0), theirs["start"])
    states = theirs["obs"].sum(1) if "post" not in theirs else theirs["post"]
    _same("expected states", torch.stack(list(each.values())).sum((0, 1)), states)


def _hmmlearn(family: str, at: Theta, how: str = "scaling", **options: Any) -> Any:
    """hmmlearn's model at θ, with no priors."""
    from hmmlearn import hmm

    k, options = len(at["start"]), {"init_params": "", "implementation": how, **options}
    if family == "categorical":
        model = hmm.CategoricalHMM(k, n_features=SYMBOLS, **options)
        model.emissionprob_ = at["probs"]
    elif family == "poisson":
        model = hmm.PoissonHMM(k, lambdas_prior=0.0, **options)
        model.lambdas_, model.n_features = at["rates"][:, None], 1
    else:
        model = hmm.GaussianHMM(k, "diag", covars_prior=0.0, min_covar=0.0, **options)
        model.n_features = 1
        model.means_, model.covars_ = at["locs"][:, None], at["scales"][:, None] ** 2
    model.startprob_, model.transmat_ = at["start"], at["moves"]
    return model


def _em(n: int, steps: int, k: int) -> dict[str, Side]:
    at = theta("normal", k)
    x = series("normal", n, steps, at)
    flat, lengths = x.reshape(-1, 1), np.full(n, steps)
    task = _task(hidden_markov("normal", steps, at), x)
    start = task.theta()

    def ours() -> tuple[float, float]:
        task.program.assign(start)
        last = list[float]()
        plan, floor = task.plan({}), Floor(1e-6, set())

        def work() -> None:
            for _ in range(ITERATIONS):
                stats = task.engine.e_step()
                task.m_step(plan, stats, {}, floor)
                last.append(stats.log_joint)

        return timed(work), last[-1]

    def theirs(how: str) -> Side:
        def side() -> tuple[float, float]:
            model = _hmmlearn("normal", at, how, n_iter=ITERATIONS, tol=-np.inf)
            return timed(lambda: model.fit(flat, lengths)), float(model.monitor_.history[-1])

        return side

    return {OURS: ours, **{f"hmmlearn, {how}": theirs(how) for how in ("scaling", "log")}}


def _lengths(n: int, steps: int, k: int, gaussian: bool) -> dict[str, Side]:
    """The long chain's work, and as many times a shorter one's as make its length; they have no likelihood in common."""
    at, short = theta("normal", k), {times: max(2, steps // times) for times in LONGER}

    def side(length: int, times: int) -> Side:
        if gaussian:
            run = _our_log_likelihood(_task(tracking(length), tracks(n, length).reshape(n, -1)))
        else:
            run = _our_e_step(_task(hidden_markov("normal", length, at), series("normal", n, length, at)))
        return lambda: (timed(lambda: [run() for _ in range(times)], time.process_time), None)

    return {
        OURS: side(steps, 1),
        **{f"zoo, {times} × {each} steps": side(each, times) for times, each in short.items()},
    }


# ------------------------------------------------------------------------------------------------------ Gaussian chain

MOVE = np.array([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.95, 0.0], [0.0, 0.0, 0.0, 0.95]])
SHAKE, BLUR = np.array([0.1, 0.1, 0.3, 0.3]), 0.5  # standard deviations of a step, and of what is seen of a place


def tracking(steps: int) -> Program:
    """A point with a place and a speed in the plane, whose place is seen at each step."""

    def program(x: Tensor | None = None, size: int | None = None) -> Tensor:
        blur = pyro.param("blur", torch.tensor(BLUR), constraint=constraints.positive)
        move, shake = torch.tensor(MOVE).to(blur.dtype), torch.tensor(SHAKE).to(blur.dtype)
        with pyro.plate("data", size if x is None else len(x)):
            z, out = torch.zeros(4, dtype=blur.dtype), []
            for t in range(steps):
                z = pyro.sample(f"z{t}", dist.Normal(z @ move.T, shake if t else torch.ones_like(shake)).to_event(1))
                obs = None if x is None else x[:, 2 * t : 2 * t + 2]
                out.append(pyro.sample(f"x{t}", dist.Normal(z[..., :2], blur).to_event(1), obs=obs))
            return torch.cat(out, -1)

    return program


def tracks(n: int, steps: int) -> np.ndarray:
    """Draws from the model [n, steps, 2]."""
    rng = np.random.default_rng(SEED)
    z, x = rng.normal(size=(n, 4)), np.empty((n, steps, 2))
    for t in range(steps):
        z = z @ MOVE.T + SHAKE * rng.normal(size=z.shape) if t else z
        x[:, t] = z[:, :2] + BLUR * rng.normal(size=(n, 2))
    return x


def _gaussian(n: int, steps: int) -> dict[str, Side]:
    x = tracks(n, steps)
    task = _task(tracking(steps), x.reshape(n, -1))
    return {OURS: _side(_our_log_likelihood(task)), "statsmodels": lambda: _statsmodels(x)}


def _statsmodels(x: np.ndarray) -> tuple[float, float]:
    from statsmodels.tsa.statespace.kalman_filter import KalmanFilter

    filters = []
    for one in x:
        made = KalmanFilter(k_endog=2, k_states=4, loglikelihood_burn=0)
        made.bind(np.asfortranarray(one.T))
        made["design"], made["obs_cov"] = np.eye(2, 4), BLUR**2 * np.eye(2)
        made["transition"], made["selection"], made["state_cov"] = MOVE, np.eye(4), np.diag(SHAKE**2)
        made.initialize_known(np.zeros(4), np.eye(4))
        made.tolerance = 0.0  # no short cut where the variance stands still
        filters.append(made)
    found = list[float]()
    seconds = timed(lambda: found.append(sum(float(f.loglike()) for f in filters)))
    return seconds, found[0]
