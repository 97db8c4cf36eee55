"""Programs with global latents whose posteriors are kept as references, and their data: plain Pyro, for tests and benchmarks.

Every program has the name of its data, `DATA[name]()` [n, columns]. Data are typed in where they are public and small, else
drawn from the program's own story by NumPy with a fixed seed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import OrderedTransform
from torch import Tensor

Given = Tensor | None
SCHOOLS = [28, 8, -3, 7, -1, 1, 18, 12], [15, 10, 16, 11, 9, 11, 10, 18]  # effects and their standard errors
COUNTS = [40, 37, 29, 12, 4, 3, 9, 19, 77, 82, 33]  # at -10, -8, …, 10
RATS = """
151 199 246 283 320  145 199 249 293 354  147 214 263 312 328  155 200 237 272 297  135 188 230 280 323
159 210 252 298 331  141 189 231 275 305  159 201 248 297 338  177 236 285 350 376  134 182 220 260 296
160 208 261 313 352  143 188 220 273 314  154 200 244 289 325  171 221 270 326 358  163 216 242 281 312
160 207 248 288 324  142 187 234 280 316  156 203 243 283 317  157 212 259 307 336  152 203 246 286 321
154 205 253 298 334  139 190 225 267 302  146 191 229 272 302  157 211 250 285 323  132 185 237 286 331
160 207 257 303 345  169 216 261 295 333  157 205 248 289 316  137 180 219 258 291  153 200 244 286 324
"""
STEPS = 25  # of each series of the hidden Markov model


def rows(x: Given, size: int | None) -> pyro.plate:
    """The plate of the data."""
    return pyro.plate("data", size if x is None else len(x))


# -------------------------------------------------------------------- eight schools (Rubin 1981; Gelman et al. 2013, §5.5)


def eight_schools(x: Given = None, size: int | None = None) -> object:
    """Columns: effect, its standard error. Not centred."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    error = 10.0 if x is None else x[:, 1]
    with rows(x, size):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        return pyro.sample("effect", dist.Normal(mu + tau * eta, error), obs=None if x is None else x[:, 0])


def eight_schools_centred(x: Given = None, size: int | None = None) -> object:
    """The same, with the schools' effects themselves as latents."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    error = 10.0 if x is None else x[:, 1]
    with rows(x, size):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        return pyro.sample("effect", dist.Normal(theta, error), obs=None if x is None else x[:, 0])


def eight_schools_outside(x: Given = None, size: int | None = None) -> object:
    """Columns: effect, its standard error, which school. The effects are a vector outside `data`."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    eta = pyro.sample("eta", dist.Normal(torch.zeros(8), 1.0).to_event(1))
    error = 10.0 if x is None else x[:, 1]
    school = torch.arange(size or 8) % 8 if x is None else x[:, 2].long()
    with rows(x, size):
        return pyro.sample("effect", dist.Normal(mu + tau * eta[school], error), obs=None if x is None else x[:, 0])


# ----------------------------------------------------------------------------------------------- mixtures, and in time


def normal_mixture(x: Given = None, size: int | None = None) -> object:
    """Two normals, the lower mean first: mu = (u_1, u_1 + exp u_2) with u ~ N((-1, 1), 1)."""
    w = pyro.sample("w", dist.Beta(2.0, 2.0))
    mu = pyro.sample(
        "mu",
        dist.TransformedDistribution(dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1), [OrderedTransform()]),
    )
    sd = pyro.sample("sd", dist.LogNormal(torch.zeros(2), 0.5).to_event(1))
    with rows(x, size):
        z = pyro.sample("z", dist.Categorical(torch.stack([1 - w, w])))
        return pyro.sample("x", dist.Normal(mu[z], sd[z]), obs=x)


def hmm(x: Given = None, size: int | None = None) -> object:
    """Series of a chain with two states; `stay`: the chance to remain in each."""
    stay = pyro.sample("stay", dist.Beta(torch.tensor([4.0, 4.0]), 2.0).to_event(1))
    low = pyro.sample("low", dist.Normal(-1.0, 1.0))
    gap = pyro.sample("gap", dist.LogNormal(0.5, 0.5))
    sd = pyro.sample("sd", dist.LogNormal(0.0, 0.5))
    one = torch.stack([1 - stay[..., 0], stay[..., 1]], -1)  # the chance of state 1 after each
    with rows(x, size):
        z = pyro.sample("z0", dist.Bernoulli(0.5))
        for t in range(STEPS):
            if t:
                z = pyro.sample(f"z{t}", dist.Bernoulli(one[z.long()]))
            seen = dist.Normal(low + gap * z, sd)
            last = pyro.sample(f"x{t}", seen, obs=None if x is None else x[:, t])
        return last


def hmm_summed(x: Given = None, size: int | None = None) -> object:
    """The same with the states summed out by Pyro's own forward pass."""
    stay = pyro.sample("stay", dist.Beta(torch.tensor([4.0, 4.0]), 2.0).to_event(1))
    low = pyro.sample("low", dist.Normal(-1.0, 1.0))
    gap = pyro.sample("gap", dist.LogNormal(0.5, 0.5))
    sd = pyro.sample("sd", dist.LogNormal(0.0, 0.5))
    table = torch.stack([stay[..., 0], 1 - stay[..., 0], 1 - stay[..., 1], stay[..., 1]], -1).reshape(2, 2)
    seen = dist.Normal(torch.stack([low, low + gap], -1), sd)
    with rows(x, size):
        return pyro.sample("x", dist.DiscreteHMM(torch.zeros(2), table.log(), seen, duration=STEPS), obs=x)


# ------------------------------------------------------------------------------- generalised linear, with random effects


def _intercepts(x: Given, size: int | None, location: float, scale: float) -> object:
    mu = pyro.sample("mu", dist.Normal(0.0, location))
    tau = pyro.sample("tau", dist.HalfNormal(scale))
    with rows(x, size):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        logits = (mu + tau * b).unsqueeze(-1) * torch.ones(5)
        return pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def logistic_intercepts(x: Given = None, size: int | None = None) -> object:
    """Each row is a group of five answers, with a chance of its own."""
    return _intercepts(x, size, 5.0, 3.0)


def logistic_intercepts_wide(x: Given = None, size: int | None = None) -> object:
    """The same with priors that say next to nothing."""
    return _intercepts(x, size, 1000.0, 1000.0)


def rasch(x: Given = None, size: int | None = None) -> object:
    """Rows are persons, columns items: an ability each, a difficulty each (Rasch 1960)."""
    spread = pyro.sample("spread", dist.HalfNormal(2.0))
    difficulty = pyro.sample("difficulty", dist.Normal(torch.zeros(20), 2.0).to_event(1))
    with rows(x, size):
        ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
        logits = spread * ability.unsqueeze(-1) - difficulty
        return pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def two_pl(x: Given = None, size: int | None = None) -> object:
    """Items tell persons apart more or less well (Birnbaum 1968)."""
    slope = pyro.sample("slope", dist.LogNormal(torch.zeros(20), 0.5).to_event(1))
    difficulty = pyro.sample("difficulty", dist.Normal(torch.zeros(20), 2.0).to_event(1))
    with rows(x, size):
        ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
        logits = slope * (ability.unsqueeze(-1) - difficulty)
        return pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def poisson_gp(x: Given = None, size: int | None = None) -> object:
    """Columns: count, which place. A Gaussian process over eleven places: posteriordb's `gp_pois_regr`."""
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    f_tilde = pyro.sample("f_tilde", dist.Normal(torch.zeros(11), 1.0).to_event(1))
    places = torch.arange(-10.0, 11.0, 2.0)
    covariance = alpha**2 * torch.exp(-0.5 * (places[:, None] - places) ** 2 / rho**2)
    f = torch.linalg.cholesky(covariance + 1e-6 * torch.eye(11)) @ f_tilde
    at = torch.arange(size or 11) % 11 if x is None else x[:, 1].long()
    with rows(x, size):
        return pyro.sample("k", dist.Poisson(f[at].exp()), obs=None if x is None else x[:, 0])


# --------------------------------------------------------------------------------------------------------- closed forms


def beta_binomial(x: Given = None, size: int | None = None) -> object:
    """One chance for all rows."""
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    with rows(x, size):
        return pyro.sample("x", dist.Binomial(10, p), obs=x)


def normal_normal(x: Given = None, size: int | None = None) -> object:
    """One mean for all rows."""
    mu = pyro.sample("mu", dist.Normal(1.0, 3.0))
    with rows(x, size):
        return pyro.sample("x", dist.Normal(mu, 2.0), obs=x)


def rats(x: Given = None, size: int | None = None) -> object:
    """Rows are rats, columns their weights on days 8, 15, …, 36: a line each (Gelfand et al. 1990)."""
    mean = pyro.sample("mean", dist.Normal(torch.tensor([250.0, 6.0]), torch.tensor([50.0, 3.0])).to_event(1))
    spread = pyro.sample("spread", dist.HalfNormal(torch.tensor([50.0, 3.0])).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(20.0))
    days = torch.arange(-14.0, 15.0, 7.0)
    with rows(x, size):
        line = pyro.sample("line", dist.Normal(mean, spread).to_event(1))
        return pyro.sample("x", dist.Normal(line[..., :1] + line[..., 1:] * days, noise).to_event(1), obs=x)


# ----------------------------------------------------------------------------------------------------------------- data


def _schools() -> np.ndarray:
    return np.array([*SCHOOLS, range(8)], dtype=float).T


def _groups() -> np.ndarray:
    rng = np.random.default_rng(0)
    chance = 1 / (1 + np.exp(-rng.normal(0.5, 1.0, (60, 1))))
    return (rng.random((60, 5)) < chance).astype(float)


def _mixture() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(-1.0, 1.0, 40), rng.normal(2.0, 0.7, 60)])[:, None]


def _series() -> np.ndarray:
    rng = np.random.default_rng(0)
    z = [rng.random(8) < 0.5]
    for _ in range(STEPS - 1):
        z.append(np.where(rng.random(8) < 0.85, z[-1], ~z[-1]))
    return rng.normal(np.where(np.stack(z, 1), 1.0, -1.0), 1.0)


def _answers(slope: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(1)
    ability, difficulty = rng.normal(0.0, 1.0, (100, 1)), np.linspace(-2.0, 2.0, 20)
    return (rng.random((100, 20)) < 1 / (1 + np.exp(-slope * (ability - difficulty)))).astype(float)


DATA: dict[str, Callable[[], np.ndarray]] = {
    "eight_schools": lambda: _schools()[:, :2],
    "eight_schools_centred": lambda: _schools()[:, :2],
    "eight_schools_outside": _schools,
    "normal_mixture": _mixture,
    "hmm": _series,
    "logistic_intercepts": _groups,
    "logistic_intercepts_wide": _groups,
    "rasch": lambda: _answers(np.array(1.2)),
    "two_pl": lambda: _answers(np.exp(np.random.default_rng(2).normal(0.0, 0.4, 20))),
    "poisson_gp": lambda: np.array([COUNTS, range(11)], dtype=float).T,
    "beta_binomial": lambda: np.array([3.0, 5.0, 2.0, 9.0])[:, None],
    "normal_normal": lambda: np.random.default_rng(0).normal(3.0, 2.0, (12, 1)),
    "rats": lambda: np.array(RATS.split(), dtype=float).reshape(30, 5),
}
MODELS: dict[str, Callable[..., object]] = {name: globals()[name] for name in DATA}
