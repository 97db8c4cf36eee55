"""The public checks that sabotage is shown to: what each says is wrong, in words; nothing where nothing is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from benchmarks._references import command, programs
from inference._compare.comparison import compare
from inference._run._own.disagreement import Disagreement
from inference._run.runner import run

Check = Callable[[], list[str]]
ADVICE = ("not converged", "k-hat")  # of runs that are short, and of weights
WRONG = ("nats below the verified", "nats above the verified", "is not the posterior", "move together")


def verification(model: object, data: object, method: str, **options: object) -> Check:
    """`zoo run`: the runner's own evaluation of what the method claims."""

    def check() -> list[str]:
        try:
            found = run(model, data, method, **options)
        except Disagreement as error:
            return [str(error)]
        return [w for w in found.warnings if any(part in w for part in WRONG)]

    return check


def reference(name: str, method: str, data: str | None = None, **options: object) -> Check:
    """`zoo check`: the method's posterior and evidence against the bundled reference."""

    def check() -> list[str]:
        try:
            found = command.checked(command.Asked(name, data, method, options))[0]
        except Disagreement as error:
            return [str(error)]
        assert found.verdict != "nothing to compare"
        return [found.sentence()] if found.verdict == "differs" else []

    return check


def comparison(model: object, data: object, method: str, **options: object) -> Check:
    """`zoo compare`: the method's posterior and evidence against the exact ones at its own θ."""

    def check() -> list[str]:
        found = compare(model, data, [method], **options)
        return [fault for fault in found.judgements[method].faults if not fault.startswith(ADVICE)]

    return check


# -------------------------------------------------------------------------------------------------------- programs


def _plate(x: torch.Tensor | None, size: int | None) -> pyro.plate:
    return pyro.plate("data", size if x is None else len(x))


def factors(x=None, size=None):
    """Two normal latents of unequal loadings with noise that is correlated: nothing is symmetric or diagonal."""
    loadings = torch.tensor([[1.0, 0.5, -1.0], [0.7, 1.0, 0.5]], dtype=torch.get_default_dtype())
    root = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.3, -0.4, 0.5]], dtype=torch.get_default_dtype())
    with _plate(x, size):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        return pyro.sample("x", dist.MultivariateNormal(z @ loadings, scale_tril=root), obs=x)


def mixture(x=None, size=None):
    """Three normals."""
    means = torch.tensor([[-1.0, 0.0], [1.0, 1.0], [0.5, -1.5]])
    with _plate(x, size):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])))
        return pyro.sample("x", dist.Normal(means[z], torch.tensor([1.0, 0.7])).to_event(1), obs=x)


def counts(x=None, size=None):
    """A rate for each row, gamma, and three counts."""
    with _plate(x, size):
        rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
        return pyro.sample("x", dist.Poisson(rate.unsqueeze(-1) * torch.ones(3)).to_event(1), obs=x)


def chain(x=None, size=None):
    """Two states over twenty steps: too many joint values to list."""
    with _plate(x, size):
        z = pyro.sample("z0", dist.Bernoulli(0.4))
        for t in range(20):
            if t:
                z = pyro.sample(f"z{t}", dist.Bernoulli(0.2 + 0.6 * z))
            last = pyro.sample(f"x{t}", dist.Normal(2 * z, 1.0), obs=None if x is None else x[:, t])
        return last


def one(x=None, size=None):
    """A normal latent and one column: importance sampling from the prior does well on it."""
    with _plate(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=None if x is None else x[:, 0])


def spread(x=None, size=None):
    """A positive latent, not conjugate: its coordinate is its logarithm."""
    with _plate(x, size):
        s = pyro.sample("s", dist.LogNormal(0.5, 0.3))
        return pyro.sample("x", dist.Normal(s.unsqueeze(-1) * torch.ones(60), 0.7).to_event(1), obs=x)


def ability(x=None, size=None):
    """A normal latent and forty answers: nearly normal given them, and not exactly."""
    with _plate(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Bernoulli(logits=z.unsqueeze(-1) * torch.ones(40)).to_event(1), obs=x)


def table(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.5, 1.3, (rows, columns))


def holes(x: np.ndarray) -> np.ndarray:
    out = x.copy()
    out[np.random.default_rng(1).random(x.shape) < 0.3] = np.nan
    return out


COUNTS = np.random.default_rng(0).poisson(4.0, (30, 3)).astype(float)

CHECKS: Mapping[str, Check] = {
    "run factors by em": verification(factors, table(40, 3), "em"),
    "run mixture by em": verification(mixture, table(40, 2), "em"),
    "run mixture with holes by em": verification(mixture, holes(table(40, 2)), "em"),
    "run ppca with holes by em": verification("ppca", holes(table(60, 4)), "em", latents=2),
    "run gmm by em, 1 iteration": verification("gmm", "faithful", "em", components=2, max_iter=1),
    "run counts by em": verification(counts, COUNTS, "em"),
    "run chain by em": verification(chain, table(20, 20), "em"),
    "run one by importance": verification(one, table(40, 1), "importance", proposal="prior", samples=1000),
    "run normal_normal by nuts": verification(programs.normal_normal, programs.DATA["normal_normal"](), "nuts"),
    "compare one by importance": comparison(one, table(200, 1), "importance", proposal="prior", samples=2000),
    "compare one by svi": comparison(one, table(40, 1), "svi", guide="mean_field", lr=0.05, batch=40, epochs=400),
    "compare spread by laplace": comparison(spread, 2 + 0.5 * table(30, 60), "laplace"),
    "compare ability by laplace": comparison(ability, (table(30, 40) > 0.5).astype(float), "laplace"),
    "check gmm-faithful by em": reference("gmm", "em", "faithful"),
    "check beta_binomial by nuts": reference("beta_binomial", "nuts"),
    "compare beta_binomial by laplace": comparison(programs.beta_binomial, programs.DATA["beta_binomial"](), "laplace"),
    "check beta_binomial by svi": reference("beta_binomial", "svi"),
    "check beta_binomial by importance": reference("beta_binomial", "importance"),
    "check normal_normal by svi": reference("normal_normal", "svi"),
    "check normal_normal by laplace": reference("normal_normal", "laplace"),
}
