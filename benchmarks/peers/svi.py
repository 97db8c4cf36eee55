"""A step of SVI on the 784-200-200-50 Bernoulli model, against a PyTorch loop written by hand, and NumPyro's jitted update.

All take batches of 128 of the same binary images, in float32 on one thread, in turn in one process. Ours is what `svi` does
on the program `zoo/deep_latent_gaussian.py` with the guide derived from its structure: the training loop's own step, with
its guard against NaN and its gradient clipping. The loop by hand has the same arithmetic: the same networks, the divergence
in closed form, one fused Adam. NumPyro's is `SVI.update` under `jit` with `TraceMeanField_ELBO`, where it is installed.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from json import dumps
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

import guides
from inference._method.task import Task
from inference._numerics.threads import one_thread
from inference._run.cost import versions
from inference._training import elbo
from inference._training.loop import Plan, _Loop
from zoo._data import datasets
from zoo._program import program as _program
from zoo._program.structure import describe

BATCH, HIDDEN, LATENTS, LR = 128, 200, 50, 1e-3
STEPS, STEPS_QUICK = 100, 5
TARGETS = {"by hand": 1.10, "numpyro": 1.0}


def main(json: bool = False, rounds: int = 7, quick: bool = False) -> dict[str, Any]:
    """Time the sides in turn, `rounds` times; print a table, or with `json` the document that is returned."""
    x = torch.as_tensor(datasets.load("mnist5k", binarize=0.5).x, dtype=torch.float32)
    steps = STEPS_QUICK if quick else STEPS
    with one_thread():
        sides = {"zoo": _ours(x), "by hand": _by_hand(x)}
        if (numpyro := _numpyro(x)) is not None:
            sides["numpyro"] = numpyro
        times: dict[str, list[float]] = {name: [] for name in sides}
        for run in sides.values():
            run(max(3, steps // 10))  # what only the first calls pay for is nobody's time
        for _ in range(rounds):
            for name, run in sides.items():
                began = time.perf_counter()
                run(steps)
                times[name].append((time.perf_counter() - began) / steps)
    out = _document(times, rounds)
    print(dumps(out, indent=2) if json else _table(out))
    return out


def _ours(x: Tensor) -> Callable[[int], None]:
    program = _program.load("deep_latent_gaussian", x, {"likelihood": "bernoulli", "latents": LATENTS})
    task = Task(program, describe(program, x), x, quiet=True)
    guide = guides.make("amortized", task.structure, x, hidden=(HIDDEN, HIDDEN))
    objective = elbo.objective(task, guide, 1)
    loop = _Loop(
        task, {"program": program, "guide": guide}, objective, Plan(1, BATCH, LR, 1e-4), objective, lambda r, x: ""
    )
    batches = torch.randperm(len(x)).split(BATCH)[:-1]
    with pyro.validation_enabled(False):
        loop.record(batches[0], x[batches[0]])

    def run(steps: int) -> None:
        with pyro.validation_enabled(False):
            for i in range(steps):
                rows = batches[i % len(batches)]
                loop._step(rows, x[rows], len(batches))

    return run


def _by_hand(x: Tensor) -> Callable[[int], None]:
    def network(*widths: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for i in range(len(widths) - 1):
            layers += [nn.Linear(widths[i], widths[i + 1]), nn.Tanh()]
        return nn.Sequential(*layers[:-1])

    encoder = network(784, HIDDEN, HIDDEN, 2 * LATENTS)
    decoder = network(LATENTS, HIDDEN, HIDDEN, 784)
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=LR, fused=True)
    center = x.mean(0)
    batches = torch.randperm(len(x)).split(BATCH)[:-1]

    def run(steps: int) -> None:
        for i in range(steps):
            rows = x[batches[i % len(batches)]]
            optimiser.zero_grad()
            loc, free = encoder(rows - center).chunk(2, 1)
            scale = softplus(free) + 1e-6
            z = loc + scale * torch.randn_like(loc)
            fit = -binary_cross_entropy_with_logits(decoder(z), rows, reduction="none").sum(1)
            divergence = 0.5 * (loc.square() + scale.square() - 1 - 2 * scale.log()).sum(1)
            gain = (fit - divergence).mean()
            (-gain).backward()
            optimiser.step()
            float(gain.detach())

    return run


def _numpyro(x: Tensor) -> Callable[[int], None] | None:
    """NumPyro's side, or None where it is not installed."""
    try:
        import os

        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
        import jax
        import numpyro
        import numpyro.distributions as dist
        from jax import numpy as jnp
        from numpyro.infer import SVI, TraceMeanField_ELBO
    except ImportError:
        return None

    def network(name: str, h: Any, widths: list[int]) -> Any:
        for i, (wide, next_) in enumerate(itertools.pairwise(widths)):
            w = numpyro.param(f"{name}.w{i}", lambda key, s=(wide, next_): jax.random.normal(key, s) / s[0] ** 0.5)
            h = h @ w + numpyro.param(f"{name}.b{i}", jnp.zeros(next_))
            h = jnp.tanh(h) if i < len(widths) - 2 else h
        return h

    def model(rows: Any) -> None:
        with numpyro.plate("data", len(rows)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(LATENTS), 1.0).to_event(1))
            logits = network("decoder", z, [LATENTS, HIDDEN, HIDDEN, 784])
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=rows)

    def guide(rows: Any) -> None:
        out = network("encoder", rows - center, [784, HIDDEN, HIDDEN, 2 * LATENTS])
        loc, scale = out[:, :LATENTS], jax.nn.softplus(out[:, LATENTS:]) + 1e-6
        with numpyro.plate("data", len(rows)):
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    data = jnp.asarray(x.numpy())
    center = data.mean(0)
    svi = SVI(model, guide, numpyro.optim.Adam(LR), TraceMeanField_ELBO())
    batches = [jnp.asarray(b.numpy()) for b in torch.randperm(len(x)).split(BATCH)[:-1]]
    state = svi.init(jax.random.PRNGKey(0), data[batches[0]])
    update = jax.jit(svi.update)

    def run(steps: int) -> None:
        nonlocal state
        for i in range(steps):
            state, loss = update(state, data[batches[i % len(batches)]])
            float(loss)

    return run


def _document(times: dict[str, list[float]], rounds: int) -> dict[str, Any]:
    ratios = {}
    for name, seconds in times.items():
        if name != "zoo":
            pairs = [ours / theirs for ours, theirs in zip(times["zoo"], seconds, strict=True)]
            ratios[name] = {"median": statistics.median(pairs), "min": min(pairs), "max": max(pairs)}
    return {
        "benchmark": "peers/svi",
        "what": f"a step of SVI, 784-{HIDDEN}-{HIDDEN}-{LATENTS} Bernoulli, float32: batch={BATCH}",
        "milliseconds": {name: 1e3 * statistics.median(seconds) for name, seconds in times.items()},
        "ratios": ratios,
        "targets": TARGETS,
        "skipped": [] if "numpyro" in times else ["numpyro is not installed"],
        "batch": BATCH,
        "rounds": rounds,
        "threads": 1,
        "versions": versions(),
    }


def _table(out: dict[str, Any]) -> str:
    lines = [f"one step of SVI, 784-{HIDDEN}-{HIDDEN}-{LATENTS} Bernoulli, batch {BATCH}, float32, one thread", ""]
    for name, ms in out["milliseconds"].items():
        ratio = out["ratios"].get(name)
        shown = (
            "" if ratio is None else f"   zoo / {name} {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})"
        )
        lines.append(f"{name:10}{ms:>8.2f} ms{shown}")
    return "\n".join(lines + [f"skipped: {why}" for why in out["skipped"]])
