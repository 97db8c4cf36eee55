"""Annealed importance sampling: log p(x) of each row by chains that walk from the prior to the posterior.

Neal 2001. Each chain goes through densities f_β(z) = Σ_a p(a, z) p(x | a, z)^β from β = 0 to 1, the discrete latents a summed
out at each, and its weight is the product of f's ratios along the way: unbiased for p(x), whatever the number of steps. Here
p(a, z) is what the program draws; a scale or mask on the latents anneals with the data. The path and the transitions are those
of Wu, Burda, Salakhutdinov & Grosse 2017: a sigmoid schedule, and Hamiltonian Monte Carlo (Neal 2011) with a step size for
each row that makes the chains accept 65 % of the time. θ stays as it is.

Global latents are annealed jointly with what is not exact given them (`_globals.annealed`). Discrete latents, where there are
no others, move by Gibbs sweeps: bits in any number.

Step sizes that follow the chains they move would bias the weights. They are found beforehand, temperature by temperature, by
chains of a run of their own, so that those which are weighed go by transitions fixed in advance, each leaving its f_β as it is.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from inference._density import local
from inference._density.local import LocalDensity
from inference._globals import annealed as _globals
from inference._mcmc import entries, hamiltonian
from inference._mcmc.annealed import Annealed
from inference._mcmc.hamiltonian import schedule
from inference._method.estimates import LEAST_DRAWS, Estimates
from inference._method.fit import DRAWS_PER_ROW, Fit
from inference._method.summed import completed, summed
from inference._method.task import Task, keeps_theta
from zoo._errors import Refusal
from zoo._options import Count, Limits
from zoo._program.structure import Structure

LEARNS = False  # θ stays as it is
COPIES = 8  # of a row's width that a gradient keeps, roughly
TAIL = 25  # chains below which no Pareto tail can be fitted


def refusal(structure: Structure) -> str | None:
    """Why annealed importance sampling cannot serve the program, or None."""
    if structure.global_latents:
        return _globals.refusal(structure)
    structure = structure.summed
    if structure.outside:
        return f"ais looks at one row at a time, and '{structure.outside[0]}' is observed outside the plate 'data'"
    if not structure.local_latents:
        return "ais anneals latents, and the program has none"
    if not structure.continuous_locals:
        reason = entries.refusal(structure)
        return None if reason is None else f"ais {reason}"
    if (reason := local.refusal(structure)) is not None:
        return f"ais moves each row's own continuous latents, and {reason}"
    return None


def fit(
    task: Task,
    *,
    temperatures: Annotated[int, Limits(least=2)] = 200,
    chains: Annotated[int, Limits(least=2)] = 200,
    leapfrog: Count = 10,
) -> Fit:
    """log p(x_i) from `chains` weighted chains per row over `temperatures` steps of β, each of `leapfrog` leapfrog steps.

    - `temperatures`: how many steps of β lead from the prior to the posterior.
    - `chains`: how many for each row.
    - `leapfrog`: steps of Hamiltonian dynamics in one move.

    The error falls with either number: the bias of the logarithm, downwards, with `temperatures` above all. An estimate needs
    100 effective chains per row; with fewer, what is claimed is a lower bound (`estimates`). Posterior draws are the chains'
    last states, resampled by their weights.

    Raises `Refusal` when asked to learn θ.
    """
    if task.learn and task.structure.learnable:
        raise Refusal(keeps_theta("ais", task.program.name))
    if task.structure.global_latents:
        return _globals.fit(task, temperatures, chains, leapfrog)
    if not task.structure.continuous_locals:
        return _of_discrete(task, temperatures, chains)
    whole, task = task, summed(task)
    density = LocalDensity(task.program, task.structure, task.x)
    parts = list(density.chunks(chains * density.A, COPIES))
    found = []
    with torch.no_grad(), task.progress("ais", len(parts) * (hamiltonian.pilots(temperatures) + temperatures)) as step:
        for rows in parts:
            here = density.rows(rows)
            steps = hamiltonian.pilot(here, chains, temperatures, leapfrog, step)
            walked = hamiltonian.anneal(here, chains, temperatures, leapfrog, steps, step)
            found.append(_Chunk(here, walked, task.draws))
    return completed(whole, task, _result(task, density, found, temperatures, chains))


# ---------------------------------------------------------------------------------------------------------- result


class _Chunk:
    """What some rows' chains tell."""

    def __init__(self, density: LocalDensity, run: hamiltonian.Walked, draws: int) -> None:
        state, self.log_weights, self.acceptance = run.state, run.log_weights, run.acceptance
        weights = run.log_weights.nan_to_num(-torch.inf).softmax(0)
        weights = torch.where(weights.isfinite(), weights, 1.0 / len(weights))  # every chain of a row lost
        given = (state.latent + state.observed).softmax(0)  # [A, C, n]
        self.assignments = torch.einsum("cn,acn->na", weights, given)
        index, every = torch.arange(density.n, device=weights.device), given.movedim(0, -1)  # [C, n, A]
        chain = torch.multinomial(weights.mT, draws, replacement=True).mT  # [draws, n]
        chosen = torch.multinomial(every[chain, index].reshape(-1, density.A), 1).reshape(chain.shape)
        drawn = density.values(state.z[chain, index], chosen)
        self.draws = {k: v.cpu() for k, v in drawn.items()}
        continuous = [s.name for s in density.structure.continuous_locals]
        best = every.argmax(
            -1
        )  # which one does not matter to the continuous sites, but where their support hangs on it
        ends = density.values(state.z, best)
        self.means, self.deviations = {}, {}
        for name in continuous:
            share = weights.reshape(*weights.shape, *(1,) * (ends[name].dim() - 2))
            mean = (share * ends[name]).sum(0)
            self.means[name] = mean.cpu()
            self.deviations[name] = (share * (ends[name] - mean).square()).sum(0).sqrt().cpu()


def _result(task: Task, density: LocalDensity, found: list[_Chunk], temperatures: int, chains: int) -> Fit:
    told = Estimates.of(torch.cat([c.log_weights for c in found], 1).cpu())
    acceptance = torch.cat([c.acceptance for c in found])
    return Fit(
        parameters={n: v.detach().cpu().numpy() for n, v in task.program.values().items()},
        claimed=told.evidence(),
        draws=_joined([c.draws for c in found], 1),
        means=_joined([c.means for c in found], 0),
        deviations=_joined([c.deviations for c in found], 0),
        probabilities=density.marginals(torch.cat([c.assignments for c in found])),
        khat=told.khat.numpy() if chains >= TAIL else None,
        ess=told.ess.numpy(),
        warnings=_warnings(told, acceptance, chains),
        notes={
            "temperatures": temperatures,
            "chains": chains,
            DRAWS_PER_ROW: chains,
            "acceptance": {"mean": float(acceptance.mean()), "min": float(acceptance.min())},
        },
    )


def _of_discrete(task: Task, temperatures: int, chains: int) -> Fit:
    """Chains that move by Gibbs sweeps."""
    run = Annealed(task, schedule(temperatures).tolist(), chains)
    told, (draws, probabilities) = run.told, run.arrays()
    means = {s.name: probabilities[s.name][..., 1] for s in task.structure.local_latents if s.family == "Bernoulli"}
    return Fit(
        parameters={n: v.detach().cpu().numpy() for n, v in task.program.values().items()},
        claimed=told.evidence(),
        draws=draws,
        means=means,
        deviations={name: np.sqrt((mean * (1 - mean)).clip(min=0)) for name, mean in means.items()},
        probabilities=probabilities,
        khat=told.khat.numpy() if chains >= TAIL else None,
        ess=told.ess.numpy(),
        warnings=_warnings(told, torch.ones(told.n), chains),
        notes={"temperatures": temperatures, "chains": chains, DRAWS_PER_ROW: chains, "moves": "gibbs"},
    )


def _joined(pieces: list[dict[str, Tensor]], dim: int) -> dict[str, np.ndarray]:
    return {k: torch.cat([p[k] for p in pieces], dim).numpy() for k in pieces[0]}


def _warnings(told: Estimates, acceptance: Tensor, chains: int) -> list[str]:
    n, out = told.n, []
    if few := int((told.ess < max(1.5, 0.2 * chains)).sum()):
        out.append(
            f"the evidence of {few} of {n} rows rests on fewer than a fifth of their {chains} chains, and is too low more "
            "often than its standard error says; raise temperatures."
        )
    remedy = "Raise temperatures" + ("." if chains > LEAST_DRAWS else f", and chains above {LEAST_DRAWS}.")
    if (claim := told.warning("the evidence claimed", remedy)) is not None:
        out.append(claim)
    if stuck := int((acceptance < 0.2).sum()):
        out.append(f"the chains of {stuck} of {n} rows accepted fewer than 20 % of their steps; raise temperatures.")
    return out
