"""Mixture of experts: K regressions, and covariates that say which of them a row is likely to follow.

Generative story (Jacobs et al. 1991; Bandeen-Roche et al. 1997 with `experts="constant"`, latent class regression):

    u_i                                           the last q columns of x: read, not modelled
    z_i | u_i ~ Categorical(softmax(A u_i + a))   which expert: the gate
    y_i | z_i = k, u_i ~ F(B_k u_i + b_k)         the other columns, by a regression of their own in each expert

F is N(·, σ_k²), Bernoulli (by its logit), Poisson (by the logarithm of its rate), or Categorical. `gate="constant"` gives all
rows the same weights; `experts="constant"` leaves B out, so that the covariates say nothing more about y once z is known.
Parameters are in the model's own units: of covariates, and of gaussian y with a regression, less their means and divided by
their standard deviations.

With `priors=True` the parameters are global latents: weights ~ Dirichlet(2, …, 2), category probabilities ~ Dirichlet(1 + 1/C,
…), coefficients ~ N(0, 2.5²) (Gelman et al. 2008), offsets ~ N(m, (2.5 s)²) about that of all rows, and σ_k² ~
InverseGamma(2, s²) by the responses' standard deviations s (1 for bernoulli and poisson).
"""

from __future__ import annotations

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

Part = Literal["covariates", "constant"]
KEPT = 1000  # rows whose covariates are kept, to simulate with
NARROWEST = 1e-3  # of a regression's noise, in standard deviations of the response
MOST_CATEGORIES = 1000
WIDTH = 2.5  # of a prior, in standard deviations


class Model(PyroModule):
    """`Model(x, components=2, covariates=1, gate="covariates", experts="covariates", likelihood="gaussian",
    priors=False)`, x [n, D].

    - `components`: how many experts, K.
    - `covariates`: how many of the last columns of x are covariates, q; `--covariates a,b` puts columns there and counts them.
    - `gate`: `covariates`, an expert's weight depends on them; `constant`, it is the same for all rows.
    - `experts`: `covariates`, each expert is a regression on them; `constant`, it is one distribution for all rows.
    - `likelihood`: of the other columns: gaussian, bernoulli (0 and 1), poisson (counts), categorical (0, 1, …).
    - `priors`: draw the parameters from weak priors, so that they have a posterior and no expert collapses.

    Parameters (constrained shapes; E = D − q responses): `gate` [K−1, q] and `gate_offset` [K−1], the log-odds of experts
    1, 2, … against expert 0, or `weights` [K]; `slopes` [K, E, q], `offsets` [K, E]; `scales` [K, E] (gaussian). With
    likelihood="categorical" (responses 0, 1, …) `probs` [K, E, categories] in place of slopes and offsets.
    With priors there are `variances` in place of scales.

    They hold for covariates less their means (buffer `center` [q]) in units of their standard deviations (`spread`), and
    the experts' gaussian regressions for responses in such units too (`middle` and `unit` [E]): a slope in the data's own
    units is slopes · unit / spread.

    Raises `UsageError` for missing covariates, or options that do not fit the data.
    """

    def __init__(
        self,
        x: Tensor,
        *,
        components: Count = 2,
        covariates: Count = 1,
        gate: Part = "covariates",
        experts: Part = "covariates",
        likelihood: Literal["gaussian", "bernoulli", "poisson", "categorical"] = "gaussian",
        priors: bool = False,
    ) -> None:
        super().__init__()
        self.K, self.q, self.likelihood, self.priors, self.names = (
            components,
            covariates,
            likelihood,
            priors,
            list[str](),
        )
        self.gated, self.regressed = gate == "covariates" and components > 1, experts == "covariates"
        self._check(x)
        self.E = x.shape[1] - covariates
        y, u = x[:, : self.E], x[:, self.E :]
        self.register_buffer("center", blockwise.center(u))  # [q]
        self.register_buffer("spread", blockwise.spread(u, self.center))  # [q]
        self.register_buffer("known", u[torch.linspace(0, len(u) - 1, min(KEPT, len(u))).round().long()].clone())
        if self.gated:
            self._set("gate", torch.zeros(components - 1, covariates), constraints.real)
            self._set("gate_offset", torch.zeros(components - 1), constraints.real)
        else:
            self._set("weights", torch.full((components,), 1.0 / components), constraints.simplex)
        self._experts_from(y)

    def _check(self, x: Tensor) -> None:
        K, q = self.K, self.q
        if x.dim() != 2 or x.shape[1] <= q:
            raise UsageError(
                f"mixture_of_experts expects a 2-D table with at least one column before its {q} covariates (the last "
                f"columns), got shape {tuple(x.shape)}."
            )
        if len(x) < K:
            raise UsageError(
                f"mixture_of_experts expects at most as many components as rows, got {K} for {len(x)} rows."
            )
        if bool((missing := x[:, -q:].isnan().any(1)).any()):
            row = int(missing.nonzero()[0])
            raise UsageError(
                f"mixture_of_experts needs every covariate (the last {q} columns), got a missing one in row {row} (counting "
                "from 0): leave such rows out, or fill them in."
            )
        if self.likelihood == "categorical" and self.regressed:
            raise UsageError("likelihood=categorical has no regression in its experts; add experts=constant.")

    def _experts_from(self, y: Tensor) -> None:
        K, E, mean = self.K, self.E, blockwise.center(y)
        if self.likelihood == "categorical":
            start = torch.softmax(0.1 * torch.randn(K, E, self._categories(y)), -1)
            self._set("probs", start, constraints.simplex)
            return
        at, away = torch.zeros(E), torch.ones(E)
        if self.likelihood == "gaussian":
            spread = blockwise.spread(y, mean)
            self.register_buffer("middle", mean if self.regressed else torch.zeros(E))
            self.register_buffer("unit", spread if self.regressed else torch.ones(E))
            at, away = (mean - self.middle) / self.unit, spread / self.unit
            above = constraints.greater_than(NARROWEST) if self.regressed else constraints.positive
            name, power = ("variances", 2) if self.priors else ("scales", 1)
            self._set(name, away.repeat(K, 1) ** power, above)
        elif self.likelihood == "bernoulli":
            at = torch.logit(mean.clamp(0.01, 0.99))
        else:
            at = mean.clamp(min=0.01).log()
        self.register_buffer("usual", at)  # [E]
        self.register_buffer("away", away)
        self._set("offsets", at + 0.1 * away * torch.randn(K, E), constraints.real)
        if self.regressed:
            self._set("slopes", 0.1 * torch.randn(K, E, self.q), constraints.real)

    def _set(self, name: str, value: Tensor, support: constraints.Constraint) -> None:
        """A parameter, or where its latent starts."""
        self.names.append(name)
        if self.priors:
            self.register_buffer(f"{name}_start", value)
        else:
            setattr(self, name, PyroParam(value, support))

    def _theta(self) -> dict[str, Tensor]:
        """The parameters by name, or draws from their priors."""
        if not self.priors:
            return {name: getattr(self, name) for name in self.names}
        starts = {name: getattr(self, f"{name}_start") for name in self.names}
        return {n: pyro.sample(n, self._prior(n, s), infer={"init": s}) for n, s in starts.items()}

    def _prior(self, name: str, start: Tensor) -> dist.TorchDistribution:
        if name in ("weights", "probs"):
            extra = 1.0 if name == "weights" else 1 / start.shape[-1]
            return dist.Dirichlet(torch.ones_like(start) + extra).to_event(start.dim() - 1)
        if name == "variances":
            return dist.InverseGamma(2.0, start).to_event(2)
        if name == "offsets":
            return dist.Normal(self.usual.expand(start.shape), WIDTH * self.away).to_event(2)
        return dist.Normal(torch.zeros_like(start), WIDTH).to_event(start.dim())

    def _categories(self, y: Tensor) -> int:
        known = y[~y.isnan()]
        if bool(((known != known.round()) | (known < 0) | (known > MOST_CATEGORIES)).any()):
            raise UsageError(
                f"likelihood=categorical expects categories 0, 1, … in the columns before the covariates, got "
                f"{float(known.min()):g} to {float(known.max()):g}: number the categories of each column from 0."
            )
        return int(known.max()) + 1 if len(known) else 1

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """The program: x [n, D] or None to simulate `size` data with covariates of the data. Returns x [n, D]."""
        if x is None:
            covariates, y = self.known[torch.randint(len(self.known), (size,), device=self.known.device)], None
        else:
            covariates, y = x[:, self.E :], x[:, : self.E]
        u, theta = (covariates - self.center) / self.spread, self._theta()  # [n, q]
        with pyro.plate("data", len(u)):
            z = pyro.sample("z", dist.Categorical(**self._weights(u, theta)))  # [n]
            y = pyro.sample("y", self._expert(z, u, theta).to_event(1), obs=y)  # [n, E]
        return torch.cat([y, covariates], -1)

    def _weights(self, u: Tensor, theta: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.gated:
            return {"probs": theta["weights"]}
        against_first = u @ theta["gate"].mT + theta["gate_offset"]  # [n, K-1]
        return {"logits": torch.cat([torch.zeros_like(u[:, :1]), against_first], -1)}

    def _expert(self, z: Tensor, u: Tensor, theta: dict[str, Tensor]) -> dist.TorchDistribution:
        if self.likelihood == "categorical":
            return dist.Categorical(theta["probs"][z])
        eta = theta["offsets"][z]  # [n, E]
        if self.regressed:
            eta = eta + (theta["slopes"][z] @ u.unsqueeze(-1)).squeeze(-1)
        if self.likelihood == "gaussian":
            scale = (theta["variances"].sqrt() if self.priors else theta["scales"])[z]
            return (
                dist.Normal(self.middle + self.unit * eta, self.unit * scale)
                if self.regressed
                else dist.Normal(eta, scale)
            )
        return dist.Bernoulli(logits=eta) if self.likelihood == "bernoulli" else dist.Poisson(eta.exp())
