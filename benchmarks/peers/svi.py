"""A step of SVI on the 784-200-200-50 Bernoulli model, against a PyTorch loop written by hand, and NumPyro's jitted update.

All take batches of the same binary images, in float32 on one core, alternating in one process. Ours is what `svi` does
on the program `zoo/deep_latent_gaussian.py` with the guide derived from its structure: the training loop's own step, with
its guard against NaN and its gradient clipping. The loop by hand has the same arithmetic: the same networks, the divergence
in closed form (with several particles the importance-weighted bound of Burda et al. 2016), one fused Adam. NumPyro's is
`SVI.update` under `jit` with `TraceMeanField_ELBO` (`RenyiELBO(alpha=0)`), where it is installed.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import pyro
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

import guides
from benchmarks._suite.documents import Document
from benchmarks.peers._turns import OURS, one_core, timed, turns
from inference._method.task import Task
from inference._run.cost import versions
from inference._training import elbo
from inference._training.loop import Plan, _Loop
from zoo._data import datasets
from zoo._options import Count
from zoo._program.describe import describe
from zoo._program.load import load

if TYPE_CHECKING:
    import jax

HIDDEN, LATENTS, LR = 200, 50, 1e-3
STEPS, STEPS_QUICK = 100, 5
TARGETS = {"by hand": 1.10, "numpyro": 1.0}


def measure(*, rounds: Count = 7, batch: Count = 128, particles: Count = 1, quick: bool = False) -> Document:
    """The document: seconds of a step, their ratios, and who is not installed."""
    x = torch.as_tensor(datasets.load("mnist5k", binarize=0.5).x, dtype=torch.float32)
    steps = STEPS_QUICK if quick else max(STEPS_QUICK, STEPS * 128 // (batch * particles))
    with one_core():
        loops = {OURS: _ours(x, batch, particles), "by hand": _by_hand(x, batch, particles)}
        if (numpyro := _numpyro(x, batch, particles)) is not None:
            loops["numpyro"] = numpyro
        sides = {name: functools.partial(_step, loop, steps) for name, loop in loops.items()}
        out = turns(sides, rounds, warm_up=[functools.partial(loop, max(3, steps // 10)) for loop in loops.values()])
    return {
        "benchmark": "peers/svi",
        "what": f"a step of SVI, 784-{HIDDEN}-{HIDDEN}-{LATENTS} Bernoulli, float32: batch={batch}"
        + (f", particles={particles}" if particles > 1 else ""),
        "milliseconds": {name: 1e3 * spent for name, spent in out["seconds"].items()},
        "targets": TARGETS,
        **out,
        "skipped": [] if "numpyro" in loops else ["numpyro is not installed"],
        "batch": batch,
        "particles": particles,
        "threads": 1,
        "versions": versions(),
    }


def _step(loop: Callable[[int], None], steps: int) -> tuple[float, None]:
    """Seconds of one of many steps."""
    return timed(lambda: loop(steps)) / steps, None


def _ours(x: Tensor, batch: int, particles: int) -> Callable[[int], None]:
    program = load("deep_latent_gaussian", x, {"likelihood": "bernoulli", "latents": LATENTS, "activation": "tanh"})
    task = Task(program, describe(program, x), x, quiet=True)
    guide = guides.make("amortized", task.structure, x, hidden=(HIDDEN, HIDDEN))
    objective = elbo.objective(task, guide, particles)
    loop = _Loop(
        task, {"program": program, "guide": guide}, objective, Plan(1, batch, LR, 1e-4), objective, lambda r, x: ""
    )
    batches = torch.randperm(len(x)).split(batch)[:-1]
    with pyro.validation_enabled(False):
        loop.record(batches[:1], x)

    def run(steps: int) -> None:
        with pyro.validation_enabled(False):
            for i in range(steps):
                rows = batches[i % len(batches)]
                loop._step(rows, x[rows], len(batches))

    return run


def _by_hand(x: Tensor, batch: int, particles: int) -> Callable[[int], None]:
    def network(*widths: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for i in range(len(widths) - 1):
            layers += [nn.Linear(widths[i], widths[i + 1]), nn.Tanh()]
        return nn.Sequential(*layers[:-1])

    encoder = network(784, HIDDEN, HIDDEN, 2 * LATENTS)
    decoder = network(LATENTS, HIDDEN, HIDDEN, 784)
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=LR, fused=True)
    center = x.mean(0)
    batches = torch.randperm(len(x)).split(batch)[:-1]

    def run(steps: int) -> None:
        for i in range(steps):
            rows = x[batches[i % len(batches)]]
            optimiser.zero_grad()
            loc, free = encoder(rows - center).chunk(2, 1)
            scale = softplus(free) + 1e-6
            noise = torch.randn(particles, *loc.shape)
            z = loc + scale * noise
            pixels = rows.expand(particles, *rows.shape)
            fit = -binary_cross_entropy_with_logits(decoder(z), pixels, reduction="none").sum(-1)
            if particles == 1:
                divergence = 0.5 * (loc.square() + scale.square() - 1 - 2 * scale.log()).sum(1)
                gain = (fit[0] - divergence).mean()
            else:
                log_weights = fit + (0.5 * (noise.square() - z.square()) + scale.log()).sum(-1)
                gain = (log_weights.logsumexp(0) - math.log(particles)).mean()
            (-gain).backward()
            optimiser.step()
            float(gain.detach())

    return run


def _numpyro(x: Tensor, batch: int, particles: int) -> Callable[[int], None] | None:
    """NumPyro's side, or None where it is not installed."""
    try:
        import jax
        import numpyro
        import numpyro.distributions as dist
        from jax import numpy as jnp
        from numpyro.infer import SVI, RenyiELBO, TraceMeanField_ELBO
    except ImportError:
        return None

    def network(name: str, h: jax.Array, widths: list[int]) -> jax.Array:
        for i, (wide, next_) in enumerate(itertools.pairwise(widths)):
            w = numpyro.param(f"{name}.w{i}", lambda key, s=(wide, next_): jax.random.normal(key, s) / s[0] ** 0.5)
            h = h @ w + numpyro.param(f"{name}.b{i}", jnp.zeros(next_))
            h = jnp.tanh(h) if i < len(widths) - 2 else h
        return h

    def model(rows: jax.Array) -> None:
        with numpyro.plate("data", len(rows)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(LATENTS), 1.0).to_event(1))
            logits = network("decoder", z, [LATENTS, HIDDEN, HIDDEN, 784])
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=rows)

    def guide(rows: jax.Array) -> None:
        out = network("encoder", rows - center, [784, HIDDEN, HIDDEN, 2 * LATENTS])
        loc, scale = out[:, :LATENTS], jax.nn.softplus(out[:, LATENTS:]) + 1e-6
        with numpyro.plate("data", len(rows)):
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    data = jnp.asarray(x.numpy())
    center = data.mean(0)
    bound = TraceMeanField_ELBO() if particles == 1 else RenyiELBO(alpha=0, num_particles=particles)
    svi = SVI(model, guide, numpyro.optim.Adam(LR), bound)
    batches = [jnp.asarray(b.numpy()) for b in torch.randperm(len(x)).split(batch)[:-1]]
    state = svi.init(jax.random.PRNGKey(0), data[batches[0]])
    update = jax.jit(svi.update)

    def run(steps: int) -> None:
        nonlocal state
        for i in range(steps):
            state, loss = update(state, data[batches[i % len(batches)]])
            float(loss)

    return run
