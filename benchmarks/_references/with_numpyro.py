"""The same posteriors by NumPyro's NUTS, in a process without torch: draws in posteriordb's format.

    python benchmarks/_references/with_numpyro.py DATA.npz FOLDER [NAME …]

DATA.npz holds the data of each program by its name. The programs are written again here, so that a mistake in one is seen.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import factor, sample
from numpyro.infer import MCMC, NUTS
from numpyro.infer.reparam import LocScaleReparam

Data = np.ndarray


def schools_theta(x: Data) -> None:
    mu, tau = sample("mu", dist.Normal(0.0, 5.0)), sample("tau", dist.HalfCauchy(5.0))
    with numpyro.handlers.reparam(config={"theta": LocScaleReparam(0)}):
        theta = sample("theta", dist.Normal(mu, tau).expand([8]).to_event(1))
    sample("y", dist.Normal(theta, x[:, 1]).to_event(1), obs=x[:, 0])


def schools_eta(x: Data) -> None:
    mu, tau = sample("mu", dist.Normal(0.0, 5.0)), sample("tau", dist.HalfCauchy(5.0))
    eta = sample("eta", dist.Normal(0.0, 1.0).expand([8]).to_event(1))
    sample("y", dist.Normal(mu + tau * eta, x[:, 1]).to_event(1), obs=x[:, 0])


def normal_mixture(x: Data) -> None:
    w = sample("w", dist.Beta(2.0, 2.0))
    u = sample("u", dist.Normal(jnp.array([-1.0, 1.0]), 1.0).to_event(1))
    mu = numpyro.deterministic("mu", jnp.stack([u[0], u[0] + jnp.exp(u[1])]))
    sd = sample("sd", dist.LogNormal(0.0, 0.5).expand([2]).to_event(1))
    each = jnp.log(jnp.stack([1 - w, w])) + dist.Normal(mu, sd).log_prob(x)
    factor("x", jax.nn.logsumexp(each, 1).sum())


def hmm(x: Data) -> None:
    stay = sample("stay", dist.Beta(4.0, 2.0).expand([2]).to_event(1))
    low, gap = sample("low", dist.Normal(-1.0, 1.0)), sample("gap", dist.LogNormal(0.5, 0.5))
    sd = sample("sd", dist.LogNormal(0.0, 0.5))
    table = jnp.log(jnp.array([[stay[0], 1 - stay[0]], [1 - stay[1], stay[1]]]))
    seen = dist.Normal(jnp.stack([low, low + gap]), sd).log_prob(x[..., None])  # [n, T, 2]

    def step(alpha: jax.Array, at: jax.Array) -> tuple[jax.Array, None]:
        return jax.nn.logsumexp(alpha[:, :, None] + table, 1) + at, None

    alpha, _ = jax.lax.scan(step, jnp.log(0.5) + seen[:, 0], seen[:, 1:].swapaxes(0, 1))
    factor("x", jax.nn.logsumexp(alpha, 1).sum())


def intercepts(location: float, scale: float) -> Callable[[Data], None]:
    def model(x: Data) -> None:
        mu, tau = sample("mu", dist.Normal(0.0, location)), sample("tau", dist.HalfNormal(scale))
        b = sample("b", dist.Normal(0.0, 1.0).expand([len(x)]).to_event(1))
        sample("x", dist.Binomial(5, logits=mu + tau * b).to_event(1), obs=x.sum(1))

    return model


def rasch(x: Data) -> None:
    spread = sample("spread", dist.HalfNormal(2.0))
    difficulty = sample("difficulty", dist.Normal(0.0, 2.0).expand([20]).to_event(1))
    ability = sample("ability", dist.Normal(0.0, 1.0).expand([len(x)]).to_event(1))
    sample("x", dist.Bernoulli(logits=spread * ability[:, None] - difficulty).to_event(2), obs=x)


def two_pl(x: Data) -> None:
    slope = sample("slope", dist.LogNormal(0.0, 0.5).expand([20]).to_event(1))
    difficulty = sample("difficulty", dist.Normal(0.0, 2.0).expand([20]).to_event(1))
    ability = sample("ability", dist.Normal(0.0, 1.0).expand([len(x)]).to_event(1))
    sample("x", dist.Bernoulli(logits=slope * (ability[:, None] - difficulty)).to_event(2), obs=x)


def poisson_gp(x: Data) -> None:
    rho, alpha = sample("rho", dist.Gamma(25.0, 4.0)), sample("alpha", dist.HalfNormal(2.0))
    f_tilde = sample("f_tilde", dist.Normal(0.0, 1.0).expand([11]).to_event(1))
    at = jnp.arange(-10.0, 11.0, 2.0)
    covariance = alpha**2 * jnp.exp(-((at[:, None] - at) ** 2) / (2 * rho**2)) + 1e-6 * jnp.eye(11)
    sample("k", dist.Poisson(jnp.exp(jnp.linalg.cholesky(covariance) @ f_tilde)).to_event(1), obs=x[:, 0])


def rats(x: Data) -> None:
    mean = sample("mean", dist.Normal(jnp.array([250.0, 6.0]), jnp.array([50.0, 3.0])).to_event(1))
    spread = sample("spread", dist.HalfNormal(jnp.array([50.0, 3.0])).to_event(1))
    noise = sample("noise", dist.HalfNormal(20.0))
    line = sample("line", dist.Normal(mean, spread).expand([len(x), 2]).to_event(2))
    expected = line[:, :1] + line[:, 1:] * (jnp.array([8.0, 15.0, 22.0, 29.0, 36.0]) - 22.0)
    sample("x", dist.Normal(expected, noise).to_event(2), obs=x)


MODELS: dict[str, Callable[[Data], None]] = {
    "eight_schools": schools_eta,
    "eight_schools_centred": schools_theta,
    "eight_schools_outside": schools_eta,
    "normal_mixture": normal_mixture,
    "hmm": hmm,
    "logistic_intercepts": intercepts(5.0, 3.0),
    "logistic_intercepts_wide": intercepts(1000.0, 1000.0),
    "rasch": rasch,
    "two_pl": two_pl,
    "poisson_gp": poisson_gp,
    "rats": rats,
}


def main(data: str, folder: str, *names: str) -> None:
    jax.config.update("jax_enable_x64", True)
    known = np.load(data)
    for name in names or MODELS:
        began = time.time()
        kernel = NUTS(MODELS[name], target_accept_prob=0.9, dense_mass=name == "poisson_gp")
        chains = MCMC(
            kernel, num_warmup=700, num_samples=2000, num_chains=4, chain_method="sequential", progress_bar=False
        )
        chains.run(jax.random.PRNGKey(7), known[name])
        draws = {n: np.asarray(v) for n, v in chains.get_samples(group_by_chain=True).items()}
        numbers = {}
        for site, value in draws.items():
            for i in np.ndindex(*value.shape[2:]):
                numbers[site + (f"[{','.join(str(k + 1) for k in i)}]" if i else "")] = value[(..., *i)]
        written = [{n: [float(f"{d:.9g}") for d in v[c]] for n, v in numbers.items()} for c in range(4)]
        (Path(folder) / f"{name}.json").write_text(json.dumps(written))
        print(name, round(time.time() - began, 1), "s", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
