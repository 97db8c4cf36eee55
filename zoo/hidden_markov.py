"""Hidden Markov model: a chain of hidden states, one of K at each step, and what each state emits.

Generative story (Baum et al. 1970; Rabiner 1989) of series i:

    z_1 ~ Categorical(π)                          the first state
    z_t | z_{t−1} = j ~ Categorical(A_j)          moves of the chain
    x_t | z_t = k ~ F_k                           what is seen of it

F_k has independent entries: N(μ_k, σ_k²), Poisson(λ_k), Bernoulli(p_k), Exponential(rate_k), or Categorical(p_k) over 0, 1, …;
or it is `full`, N(μ_k, Σ_k). All series share π, A and F; `initial=stationary` has π = πA, so that the chain is the same at
all steps (Zucchini & MacDonald 2009). A missing entry is NaN, and a series that is shorter than others ends in NaN.

With `priors=True` the parameters are global latents, with the data's mean m and standard deviation s of each column:

    π ~ Dirichlet(1, …, 1),  A_j ~ Dirichlet(1 + 4 [k = j]),  p_k ~ Beta(2, 2) or Dirichlet(2, …, 2)
    μ_k ~ N(m, (2 s)²),  σ_k² ~ InverseGamma(2, s²),  λ_k ~ Gamma(2, 2 / m),  rate_k ~ Gamma(2, 2 m)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

from zoo._data import blockwise
from zoo._errors import UsageError
from zoo._options import Count

Emission = Literal["normal", "full", "poisson", "bernoulli", "exponential", "categorical"]
STAYS = 0.8  # the probability that a state stays, to begin with
MOST_CATEGORIES = 1000
NEEDS = {  # what an emission asks of each number of the data
    "poisson": ("counts, whole numbers from 0 on", lambda x: (x >= 0) & (x == x.round())),
    "categorical": (
        f"categories, whole numbers from 0 to {MOST_CATEGORIES - 1}",
        lambda x: (x >= 0) & (x == x.round()) & (x < MOST_CATEGORIES),
    ),
    "bernoulli": ("0 and 1", lambda x: (x == 0) | (x == 1)),
    "exponential": ("numbers above 0", lambda x: x > 0),
}


class Model(PyroModule):
    """`Model(x, states=2, emission="normal", initial="free", priors=False)` for series x [n, T] or [n, T, D].

    - `states`: how many, K.
    - `emission`: what a state emits, the entries of a step independent: normal, poisson, bernoulli, exponential, categorical
      (0, 1, …); or `full`, a normal distribution with a covariance matrix.
    - `initial`: the first state is `free`, with probabilities of its own, or from the chain's `stationary` distribution.
    - `priors`: draw the parameters from weak priors, so that they have a posterior.

    Parameters (constrained shapes): `start` π [K], unless stationary; `transitions` A [K, K], of a move from row to column;
    `locs` [K, D] and `scales` [K, D] or `scale_tril` [K, D, D]; `rates` [K, D]; `probs` [K, D], of categories [K, D, C]. With
    priors they are sites, and `variances` [K, D] take the place of scales.

    Raises `UsageError` for data that are no series, or that an emission cannot have made.
    """

    def __init__(
        self,
        x: Tensor,
        *,
        states: Count = 2,
        emission: Emission = "normal",
        initial: Literal["free", "stationary"] = "free",
        priors: bool = False,
    ) -> None:
        super().__init__()
        if x.dim() not in (2, 3):
            raise UsageError(
                f"hidden_markov expects series, n × T or n × T × D numbers, got shape {tuple(x.shape)}. A table whose rows "
                "are the steps of a series is made one by --series."
            )
        self.K, self.T, self.shape, self.emission = states, x.shape[1], x.shape[2:], emission
        self.stationary, self.priors = initial == "stationary", priors
        steps = x.reshape(len(x) * self.T, -1)  # [n T, D]
        if priors and emission == "full":
            raise UsageError(
                "hidden_markov has no priors for emission=full. Take emission=normal, or leave out priors."
            )
        self._check(steps)
        self._parameters_from(steps)

    def _check(self, steps: Tensor) -> None:
        if self.emission not in NEEDS:
            return
        what, fits = NEEDS[self.emission]
        if bool((wrong := ~(fits(steps) | steps.isnan())).any()):
            raise UsageError(
                f"emission={self.emission} expects {what}, got {float(steps[wrong][0]):g}. Take another emission."
            )

    def _parameters_from(self, steps: Tensor) -> None:
        """A state's emissions start at the mean of a K-th of the steps, in order along the direction of most variance."""
        K, D = self.K, steps.shape[1]
        if self.emission == "categorical":  # shares of categories are means
            C = int(steps.nan_to_num(0.0).max()) + 1
            each = 1.0 * (steps.unsqueeze(-1) == torch.arange(C))
            steps = torch.where(steps.isnan().unsqueeze(-1), torch.nan, each).flatten(1)  # [n T, D C]
        center = blockwise.center(steps)
        spread = blockwise.spread(steps, center)
        standard = ((steps - center) / spread)[steps.isfinite().any(1)].nan_to_num(0.0)
        _, along = torch.linalg.eigh(standard.mT @ standard)
        parts = standard[(standard @ along[:, -1]).argsort()].tensor_split(K)
        means = center + spread * torch.stack([part.sum(0) / max(1, len(part)) for part in parts]) / 2  # [K, D]
        self.register_buffer("center", center)
        self.register_buffer("spread", spread)
        self._begin("start", torch.full((K,), 1.0 / K), constraints.simplex)
        self._begin("transitions", STAYS * torch.eye(K) + (1 - STAYS) / K, constraints.simplex)
        if self.emission in ("normal", "full"):
            self._begin("locs", means, constraints.real)
        if self.emission == "normal":
            self._begin("variances" if self.priors else "scales", spread.repeat(K, 1), constraints.positive)
        elif self.emission == "full":
            self._begin("scale_tril", spread.diag().repeat(K, 1, 1), constraints.lower_cholesky)
        elif self.emission == "poisson":
            self._begin("rates", means.clamp(min=0.01), constraints.positive)
        elif self.emission == "exponential":
            self._begin("rates", 1 / means.clamp(min=0.01 * center), constraints.positive)
        elif self.emission == "bernoulli":
            self._begin("probs", means.clamp(0.01, 0.99), constraints.unit_interval)
        else:
            shares = means.reshape(K, D, -1).clamp(min=0.01)
            self._begin("probs", shares / shares.sum(-1, keepdim=True), constraints.simplex)

    def _begin(self, name: str, value: Tensor, support: constraints.Constraint) -> None:
        if name == "start" and self.stationary:
            return
        if self.priors:
            self.register_buffer(f"first_{name}", value.square() if name == "variances" else value)
        else:
            setattr(self, name, PyroParam(value, support))

    def _get(self, name: str) -> Tensor:
        """A parameter, or a global latent with its prior."""
        if not self.priors:
            return getattr(self, name)
        first = getattr(self, f"first_{name}")
        return pyro.sample(name, self._prior(name, first), infer={"init": first})

    def _prior(self, name: str, first: Tensor) -> dist.TorchDistribution:
        m, s, one = self.center, self.spread, torch.ones_like(first)
        if name in ("start", "transitions"):
            prior = dist.Dirichlet(one if name == "start" else one + 4 * torch.eye(self.K))
        elif name == "locs":
            prior = dist.Normal(m * one, 2 * s)
        elif name == "variances":
            prior = dist.InverseGamma(2 * one, s.square())
        elif name == "rates":
            prior = dist.Gamma(2 * one, 2 * m if self.emission == "exponential" else 2 / m)
        else:
            prior = dist.Beta(2 * one, 2 * one) if self.emission == "bernoulli" else dist.Dirichlet(2 * one)
        return prior.to_event(len(prior.batch_shape))

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """The program: x [n, T] or [n, T, D], or None to simulate `size` series. Returns x."""
        transitions = self._get("transitions")
        start = _stationary(transitions) if self.stationary else self._get("start")
        emission = self._emission()
        n, T = (size, self.T) if x is None else x.shape[:2]
        seen = None if x is None else x.reshape(n, T, -1)  # [n, T, D]
        probs, out = start, []
        with pyro.plate("data", n):
            for t in range(T):
                z = pyro.sample(f"z{t}", dist.Categorical(probs))  # [n]
                out.append(pyro.sample(f"x{t}", emission(z), obs=None if seen is None else seen[:, t]))  # [n, D]
                probs = transitions[z]
        return torch.stack(out, 1).reshape(n, T, *self.shape).to(self.center.dtype) if x is None else x

    def _emission(self) -> Callable[[Tensor], dist.TorchDistribution]:
        """What the states emit: F_z of each state z [n]."""
        if self.emission == "normal":
            locs, scales = self._get("locs"), self._get("variances").sqrt() if self.priors else self._get("scales")
            return lambda z: dist.Normal(locs[z], scales[z]).to_event(1)
        if self.emission == "full":
            locs, tril = self._get("locs"), self._get("scale_tril")
            return lambda z: dist.MultivariateNormal(locs[z], scale_tril=tril[z])
        family = {"poisson": dist.Poisson, "exponential": dist.Exponential, "bernoulli": dist.Bernoulli}
        of = family.get(self.emission, dist.Categorical)
        values = self._get("rates" if self.emission in ("poisson", "exponential") else "probs")
        return lambda z: of(values[z]).to_event(1)


def _stationary(transitions: Tensor) -> Tensor:
    """π [K] with π = πA: the solution of π (I − A + 1) = 1, where 1 is a matrix, and a vector, of ones."""
    one = torch.ones_like(transitions)
    return torch.linalg.solve((torch.eye(len(one)) - transitions + one).mT, one[0])
