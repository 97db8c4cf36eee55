"""Chains on the way from one density to another by Hamiltonian Monte Carlo, forwards and backwards, all rows side by side.

At β the chains move on f_β(z) = Σ_a p(a, z) p(x | a, z)^β. Forwards they begin at what the program draws, at β = 0, and end at
the posterior (Neal 2001); the mean weight is unbiased for p(x). Backwards they begin at an exact draw of the posterior, make
the same transitions in the opposite order, and the mean weight is unbiased for 1 / p(x) (Grosse, Ghahramani & Adams 2015). Both
need transitions that do not look at the chains that they move: step sizes come from a pilot run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from inference._method.progress import Step

STEEPNESS = 4.0  # of the sigmoid schedule
ACCEPTANCE = 0.65
GAIN = 0.3  # of log step sizes, in what acceptance is off by
WARMUP = 40  # transitions at the prior before the pilot run
PILOT_CHAINS, PILOT_SHARE, PILOT_LEAST = 4, 0.2, 60
JITTER = 0.2  # of each trajectory's step size, so that no orbit closes


class Tempered(Protocol):
    """What chains walk on: log p(a, z) and log p(x | a, z) of n rows, or another density to begin at and what is left."""

    A: int  # joint values of the discrete latents

    @property
    def n(self) -> int:
        """Number of rows."""

    def terms(self, z: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor]:
        """The two [A, C, n], at z [A, C, n, L]."""

    def prior(self, draws: int) -> Tensor:
        """Draws from the first, as z [draws, n, L]."""


def schedule(temperatures: int) -> Tensor:
    """β_0 = 0, …, β_T = 1 [T + 1]: a sigmoid, slow at both ends."""
    curve = torch.sigmoid(STEEPNESS * torch.linspace(-1, 1, temperatures + 1, dtype=torch.float64))
    return (curve - curve[0]) / (curve[-1] - curve[0])


@dataclass
class State:
    """Where C chains for each of n data are, and what the density is there."""

    z: Tensor  # [C, n, L]
    latent: Tensor  # [A, C, n] log p(a, z)
    observed: Tensor  # [A, C, n] log p(x | a, z)
    latent_slope: Tensor  # [A, C, n, L] their gradients in z
    observed_slope: Tensor

    def log_f(self, beta: float) -> Tensor:
        """log f_β [C, n], −∞ where that is no number."""
        joint = self.latent + beta * self.observed if beta > 0 else self.latent
        return joint.logsumexp(0).nan_to_num(-torch.inf, -torch.inf, -torch.inf)

    def slope(self, beta: float) -> Tensor:
        """∂ log f_β / ∂z [C, n, L]."""
        each = self.latent_slope + beta * self.observed_slope
        if len(each) == 1:
            return each[0].nan_to_num(0.0, 0.0, 0.0)
        weights = (self.latent + beta * self.observed).nan_to_num(-torch.inf, -torch.inf).softmax(0)
        return (weights.unsqueeze(-1) * each).sum(0).nan_to_num(0.0, 0.0, 0.0)

    def where(self, better: Tensor, other: State) -> State:
        """`other` where `better` [C, n] is true."""
        at = better.unsqueeze(-1)
        return State(
            torch.where(at, other.z, self.z),
            torch.where(better, other.latent, self.latent),
            torch.where(better, other.observed, self.observed),
            torch.where(at, other.latent_slope, self.latent_slope),
            torch.where(at, other.observed_slope, self.observed_slope),
        )


def look(density: Tempered, z: Tensor) -> State:
    """Densities and gradients at z [C, n, L], under every assignment."""
    A = density.A
    assignment = torch.arange(A, device=z.device)[:, None, None].expand(A, *z.shape[:2])
    with torch.enable_grad():
        free = z.detach().expand(A, *z.shape).clone().requires_grad_()
        latent, observed = density.terms(free, assignment)
        slopes: list[Tensor] = []
        for term in (latent, observed):
            if term.requires_grad:
                slopes += torch.autograd.grad(term.sum(), free, retain_graph=True, materialize_grads=True)
            else:
                slopes.append(torch.zeros_like(free))
    return State(z, latent.detach(), observed.detach(), *slopes)


def transition(
    density: Tempered, state: State, beta: float, size: Tensor, scale: Tensor, leapfrog: int
) -> tuple[State, Tensor]:
    """One Hamiltonian trajectory at β with step sizes `size` [n], in units of `scale` [L]; the acceptance probabilities."""
    jitter = 1 + JITTER * (2 * torch.rand_like(state.z[..., :1]) - 1)
    step = size[:, None] * jitter * scale  # [C, n, L]
    momentum = torch.randn_like(state.z)
    before = state.log_f(beta) - 0.5 * momentum.square().sum(-1)
    new = state
    momentum = momentum + 0.5 * step * new.slope(beta)
    for k in range(leapfrog):
        new = look(density, new.z + step * momentum)
        momentum = momentum + (0.5 if k == leapfrog - 1 else 1.0) * step * new.slope(beta)
    after = new.log_f(beta) - 0.5 * momentum.square().sum(-1)
    accept = (after - before).nan_to_num(-torch.inf, torch.inf, -torch.inf).clamp(max=0).exp()
    return state.where(torch.rand_like(accept) < accept, new), accept


@dataclass
class Steps:
    """Step sizes [stages, n] along the path, in units of `scale` [L]."""

    size: Tensor
    scale: Tensor

    def at(self, share: float) -> Tensor:
        """Those at that share of the path [n], between the stages by straight lines in the logarithm."""
        place = share * (len(self.size) - 1)
        low = min(int(place), len(self.size) - 2)
        return torch.lerp(self.size[low].log(), self.size[low + 1].log(), place - low).exp()


def pilots(temperatures: int) -> int:
    """How many transitions a pilot run makes for a path of so many temperatures."""
    return WARMUP + _stages(temperatures)


def _stages(temperatures: int) -> int:
    return max(PILOT_LEAST, round(PILOT_SHARE * temperatures))


def pilot(density: Tempered, chains: int, temperatures: int, leapfrog: int, step: Step) -> Steps:
    """Walk the path once with few chains and fewer stages, adapting the step sizes to an acceptance of 65 %."""
    chains, stages = min(PILOT_CHAINS, chains), _stages(temperatures)
    scale = density.prior(max(1, 64 // density.n)).flatten(0, 1)
    scale = (scale - scale.mean(0)).square().mean(0).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    log_size = torch.full((density.n,), -0.7, dtype=scale.dtype, device=scale.device)
    state, kept = look(density, density.prior(chains)), []
    betas = schedule(stages).tolist()
    for beta in [0.0] * WARMUP + betas[1:]:
        state, accept = transition(density, state, beta, log_size.exp(), scale, leapfrog)
        log_size = (log_size + GAIN * (accept.mean(0) - ACCEPTANCE)).clamp(-20, 3)
        kept.append(log_size)
        step()
    sizes = torch.stack(kept[WARMUP - 1 :])  # [stages + 1, n]
    smooth = torch.nn.functional.avg_pool1d(sizes.mT, 9, 1, 4, count_include_pad=False)
    return Steps(smooth.mT.exp(), scale)


@dataclass
class Walked:
    log_weights: Tensor  # [C, n]
    state: State  # at the end
    acceptance: Tensor  # [n], mean over the path


def anneal(density: Tempered, chains: int, temperatures: int, leapfrog: int, steps: Steps, step: Step) -> Walked:
    state = look(density, density.prior(chains))
    log_weights, acceptance = torch.zeros_like(state.z[..., 0]), torch.zeros_like(state.z[0, :, 0])
    betas = schedule(temperatures).tolist()
    for t in range(1, temperatures + 1):
        rise = state.log_f(betas[t]) - state.log_f(betas[t - 1])
        log_weights = log_weights + rise.nan_to_num(-torch.inf, torch.inf, -torch.inf)  # a chain of no density is lost
        state, accept = transition(density, state, betas[t], steps.at(t / temperatures), steps.scale, leapfrog)
        acceptance += accept.mean(0) / temperatures
        step()
    return Walked(log_weights, state, acceptance)


def back(density: Tempered, z: Tensor, temperatures: int, leapfrog: int, steps: Steps, step: Step) -> Tensor:
    """Log-weights [C, n] of chains that walk the path of `anneal` from its end: exp of them is unbiased for 1 / p(x_i).

    `z` [C, n, L]: exact draws of the posterior, which may be the same for all chains. The transitions are those of `anneal`
    from the last to the first; each leaves its f_β as it is and is reversible.
    """
    state = look(density, z)
    log_weights = torch.zeros_like(z[..., 0])
    betas = schedule(temperatures).tolist()
    for t in range(temperatures, 0, -1):
        state, _ = transition(density, state, betas[t], steps.at(t / temperatures), steps.scale, leapfrog)
        log_weights = log_weights + state.log_f(betas[t - 1]) - state.log_f(betas[t])
        step()
    return log_weights
