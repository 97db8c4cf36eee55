"""No-U-Turn sampling of all continuous latents, global and local: the reference for a posterior; evidence by a bridge.

Hoffman & Gelman 2014, with states chosen in proportion to their density (Betancourt 2017) and Stan's warm-up. Chains walk in
unconstrained coordinates, side by side, on one recorded gradient. Discrete local latents are summed out, and normal ones that
are exact given the globals are integrated out, and drawn afterwards given each draw of the others. R-hat, effective draws,
divergences and E-BFMI say whether the draws can be trusted; where labels can be exchanged, of the draws in one labelling. Where
they can, log p(x) with the global latents integrated out comes from bridge sampling (`_globals.bridge`). θ stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from inference._density.local import onto
from inference._globals import modes
from inference._globals.bridge import Bridge, bridge
from inference._globals.labels import Labels
from inference._globals.result import arrays, gaussian_of, points_of
from inference._globals.target import Target
from inference._globals.target import refusal as refusal_of_density
from inference._mcmc.chains import Chains, Drawn, Mass
from inference._mcmc.conditional import Conditional, conditional
from inference._mcmc.diagnose import diagnose
from inference._mcmc.posterior import Posterior
from inference._mcmc.recorded import Gradient
from inference._method.fit import Fit
from inference._method.summed import completed, summed
from inference._method.task import Task, keeps_theta
from inference._sampling import weights
from zoo._errors import Refusal
from zoo._options import Limits
from zoo._program.structure import Structure

LEARNS = False  # θ stays as it is
IMPROPER = True  # a latent may have an improper prior
KEPT = 1000  # draws of all chains that the fit holds, at most
CANDIDATES = 5  # draws from the prior, and as many from around zero, of which a chain begins at the best
AROUND = 2.0  # zero, in unconstrained coordinates
NUMBERS = 2**27  # in all draws
SAMPLES, MOST_SAMPLES = 1000, 4000  # of each chain, where the caller does not say
NEAR = 1.1  # R-hat from which more draws of the same chains would not help


def refusal(structure: Structure) -> str | None:
    """Why NUTS cannot serve the program, or None."""
    structure = structure.summed
    for site in structure.global_latents:
        if site.discrete:
            return f"nuts moves along gradients, and the global latent '{site.name}' is discrete"
    continuous = [*structure.global_latents, *structure.continuous_locals]
    if not continuous:
        what = "all latents are discrete" if structure.local_latents else "the program has none"
        return f"nuts needs a continuous latent to move, and {what}"
    if structure.discrete_locals and not structure.by_row:
        return f"nuts sums over the discrete latents, and {structure.reason}"
    for site in continuous:
        if site.family == "Delta":
            return f"'{site.name}' is a Delta, which has no density: use its value itself, or pyro.deterministic"
        if site.completes and not structure.is_exact:
            return f"nuts does not draw missing entries, and '{site.name}' stands for those of '{site.completes}'"
        try:
            onto(site.constraint)
        except NotImplementedError:
            return f"the support of '{site.name}' ({site.support}) has no unconstrained coordinates"
    return None


def fit(
    task: Task,
    *,
    chains: Annotated[int, Limits(least=2, most=1000)] = 4,
    warmup: Annotated[int, Limits(least=20)] = 1000,
    samples: Annotated[int | None, Limits(least=4)] = None,
    target_accept: Annotated[float, Limits(above=0, below=1)] = 0.8,
    mass: Mass = "auto",
    max_depth: Annotated[int, Limits(least=1, most=20)] = 10,
    marginalise: bool = True,
) -> Fit:
    """Several chains side by side, each warmed up by itself.

    Each chain begins at the best of a few draws from the prior and from around zero; every second chain at their mirror images.

    - `chains`: how many of them.
    - `samples`: draws that each chain keeps. When None 1000, and up to 4000 while they nearly agree and are too few to tell.
    - `warmup`: transitions of each chain that find step and metric, and are not kept.
    - `target_accept`: the acceptance rate that the step is tuned to: nearer 1, shorter steps and fewer divergences. Where
      trajectories diverge late in the warm-up it is raised (the notes say to what).
    - `mass`: `diagonal` learns the scale of each latent, `dense` their covariances too; `auto` learns them where latents are
      so strongly correlated that it pays, and there are draws enough to tell.
    - `max_depth`: a trajectory has at most 2^max_depth steps.
    - `marginalise`: with global latents, normal local ones that are exact given them are integrated out.

    Raises `Refusal` when asked to learn θ.
    """
    if task.learn and task.structure.learnable:
        raise Refusal(keeps_theta("nuts", task.program.name))
    whole, task = task, summed(task)
    weights.check(task.program, task.structure, task.x)
    own = task.doubled()
    structure = own.structure
    target = Target(own, marginalise and bool(structure.global_latents))
    posterior = target.posterior
    numbers = chains * (samples or SAMPLES) * posterior.d
    if numbers > NUMBERS:
        raise Refusal(f"nuts would hold {numbers:,} numbers of draws: ask for fewer samples")
    starts = _starts(posterior, chains, task.seed)
    gradient = Gradient(posterior.log_density, starts)
    labels = Labels(target, starts)
    with task.progress("nuts", chains * (warmup + (samples or SAMPLES))) as step, np.errstate(all="ignore"):
        walkers = Chains(gradient, starts.numpy(), task.seed, target_accept, max_depth, mass)
        walkers.warm_up(warmup, step)
        drawn = walkers.draw(samples or SAMPLES, step)
        while samples is None and drawn.log_p.shape[1] < MOST_SAMPLES and drawn.flat.size < NUMBERS // 2:
            if not _undecided(_in_one_labelling(target, labels, drawn), max_depth):
                break
            drawn = drawn.followed_by(walkers.draw(SAMPLES, step))
    if gradient.recorded is not None and not gradient.keep_if_right(torch.from_numpy(drawn.flat[:, -1].copy())):
        raise Refusal(
            f"nuts recorded the density of '{task.program.name}', which is another one where the chains ended: the program "
            "changes from run to run, or decides by its latents' values. Write such choices as torch.where."
        )
    drawn = _in_one_labelling(target, labels, drawn)
    found = _Found(whole, target, labels, drawn, max_depth, gradient.recorded is not None)
    notes: dict[str, object] = {"chains": chains, "warmup": warmup, "samples": drawn.log_p.shape[1]}
    notes |= {"mass": walkers.used, "target_accept": walkers.target}
    return completed(whole, task, found.fit(notes | {"evaluations": gradient.evaluations}))


def _in_one_labelling(target: Target, labels: Labels, drawn: Drawn) -> Drawn:
    """The draws, relabelled where labels can be exchanged."""
    if labels.count <= 1:
        return drawn
    flat = labels.alike(torch.from_numpy(drawn.flat.reshape(-1, target.posterior.d)))
    log_p = target.log_density(flat).numpy().reshape(drawn.log_p.shape)
    return replace(drawn, flat=flat.numpy().reshape(drawn.flat.shape), log_p=log_p)


def _undecided(drawn: Drawn, max_depth: int) -> bool:
    """Whether chains nearly agree, and more draws of each may tell that they do."""
    told = diagnose(drawn, {"u": drawn.flat}, max_depth)
    enough = replace(told, rhat={}, ess_bulk={}, ess_tail={})
    return not told.converged and enough.converged and max(told.rhat.values()) < NEAR


def _starts(posterior: Posterior, chains: int, seed: int) -> Tensor:
    """Where each chain begins [C, d]; every second one's candidates are mirror images of those of the chain before it.

    Of a posterior with a mode on either side of its prior both sides have chains.
    """
    generator = torch.Generator().manual_seed(seed)
    d = posterior.d
    try:
        prior = posterior.prior(CANDIDATES * chains, generator)
    except (NotImplementedError, RuntimeError, ValueError):
        prior = torch.zeros(0, d, dtype=torch.float64)
    center = prior.mean(0) if len(prior) else torch.zeros(d, dtype=torch.float64)
    found = []
    posterior.check(torch.rand(2, d, generator=generator, dtype=torch.float64) - 0.5)
    for c in range(chains):
        if c % 2 == 0:
            near = AROUND * (2 * torch.rand(CANDIDATES, d, generator=generator, dtype=torch.float64) - 1)
            mine = torch.cat([prior[c::chains], near])
        else:
            mine = torch.cat([2 * center - mine[: len(mine) - CANDIDATES], -mine[len(mine) - CANDIDATES :]])
        found.append(_best(posterior, mine))
        for _ in range(20):
            if found[-1] is not None:
                break
            wider = AROUND * (2 * torch.rand(CANDIDATES, d, generator=generator, dtype=torch.float64) - 1)
            found[-1] = _best(posterior, wider)
    known = [start for start in found if start is not None]
    if len(known) < chains:
        raise Refusal(
            f"nuts found nowhere to begin: the density of '{posterior.task.program.name}' is zero or not finite at all of "
            "110 random places. Check its priors against the data, or the data for entries that it cannot have made"
        )
    return torch.stack(known)


def _best(posterior: Posterior, flat: Tensor) -> Tensor | None:
    """Of some points the one of the highest density with a gradient; None where there is none."""
    flat = flat.detach().requires_grad_()
    value = posterior.log_density(flat)
    (slope,) = torch.autograd.grad(value.sum(), flat)
    good = value.isfinite() & slope.isfinite().all(1)
    if not bool(good.any()):
        return None
    return flat.detach()[value.detach().masked_fill(~good, -torch.inf).argmax()]


# ---------------------------------------------------------------------------------------------------------- result


@dataclass
class _Found:
    """Chains that have been walked, and what a fit says of them."""

    task: Task
    target: Target
    labels: Labels
    drawn: Drawn  # in one labelling
    max_depth: int
    recorded: bool

    @property
    def posterior(self) -> Posterior:
        """The density that was walked on."""
        return self.target.posterior

    def fit(self, notes: dict[str, object]) -> Fit:
        """The result."""
        C, S = self.drawn.log_p.shape
        flat = torch.from_numpy(self.drawn.flat.reshape(C * S, -1))
        values = {n: v.numpy() for n, v in self.posterior.values(flat).items()}
        told = diagnose(self.drawn, {n: v.reshape(C, S, *v.shape[1:]) for n, v in values.items()}, self.max_depth)
        most = max(KEPT, self.task.draws) if self.task.draws >= 200 else self.task.draws  # fewer of large data
        kept = self.drawn.kept(most)
        places = (np.arange(C)[:, None] * S + kept).reshape(-1)
        given = conditional(self.posterior, flat[places], torch.Generator().manual_seed(self.task.seed))
        globals = {s.name for s in self.task.structure.global_latents}
        local = {n: v for n, v in values.items() if n not in globals}
        theta = {n: v.detach().cpu().numpy() for n, v in self.task.program.values().items()}
        deviations = {n: values[n].std(0, ddof=1) for n in values if n in globals}
        points = points_of(self.posterior, values, {n: v.mean(0) for n, v in values.items()})
        against = self._against(flat, told.converged)
        converged = told.converged and not against
        bridged = self._bridge(converged)
        return Fit(
            parameters={**theta, **{n: v for n, v in points.items() if n in globals}},
            claimed=bridged.evidence,
            draws={n: v[places] for n, v in values.items()} | arrays(given.draws),
            means={n: v.mean(0) for n, v in local.items()} | arrays(given.means),
            deviations={n: v.std(0, ddof=1) for n, v in local.items()} | arrays(given.deviations),
            probabilities=arrays(given.probabilities),
            standard_errors=deviations,
            chains=self.drawn.told(kept),
            converged=converged,
            warnings=told.warnings(bool(self.posterior.L)) + against,
            notes=notes | told.notes() | self._notes(given) | bridged.notes() | self.labels.notes(),
            global_gaussian=gaussian_of(self.task, self.posterior, flat, globals),
        )

    def _against(self, flat: Tensor, agree: bool) -> list[str]:
        """What speaks against draws flat [S, d] of chains, whether or not these agree with each other."""
        structure = self.task.structure
        if not structure.global_latents:
            return []
        if (edge := self.target.at_an_edge(flat, torch.full((len(flat),), 1 / len(flat)))) is not None:
            return [edge + "."]
        if structure.improper or not agree:
            return []
        share = modes.missed(self.target, self.labels, flat, torch.from_numpy(self.drawn.log_p.reshape(-1)))
        if share < modes.SHARE:
            return []
        return [
            f"the chains agree, and have missed a mode: climbs from far apart end where about {share:.0%} of the posterior is, "
            "by Laplace's approximation, and no chain has been there. Take importance, which weighs all modes, or more chains."
        ]

    def _bridge(self, converged: bool) -> Bridge:
        """log p(x) with the global latents integrated out, where the draws can be trusted and there are any."""
        flat = torch.from_numpy(self.drawn.flat)
        if not self.task.structure.global_latents:
            return Bridge(None, "none: there is no global latent to integrate out")
        if (reason := refusal_of_density(self.task.structure)) is not None:
            return Bridge(None, f"none: {reason}")
        if not converged:
            return Bridge(None, "none: the chains did not converge")
        if not self.labels.hold(flat[:, -1]):
            return Bridge(None, "none: the labels can be exchanged at some points and not at others")
        return bridge(self.target, flat, torch.from_numpy(self.drawn.log_p), self.labels)

    def _notes(self, given: Conditional) -> dict[str, object]:
        structure = self.task.structure
        out: dict[str, object] = {"point": "posterior means"} if structure.global_latents else {}
        if self.posterior.L:
            out["integrated_out"] = [s.name for s in structure.continuous_locals]
        if structure.discrete_locals:
            out["summed_out"] = [s.name for s in structure.discrete_locals]
        if not self.recorded:
            out["recorded"] = "no: the program was run at every step"
        return out
