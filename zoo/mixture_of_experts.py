"""Mixture of experts: K regressions, and covariates that say which of them a row is likely to follow.

Generative story (Jacobs et al. 1991; Bandeen-Roche et al. 1997 with `experts="constant"`, latent class regression):

    u_i                                           the last q columns of x: read, not modelled
    z_i | u_i ~ Categorical(softmax(A u_i + a))   which expert: the gate
    y_i | z_i = k, u_i ~ F(B_k u_i + b_k)         the other columns, by a regression of their own in each expert

F is N(·, σ_k²), Bernoulli (by its logit), Poisson (by the logarithm of its rate), or Categorical. `gate="constant"` gives all
rows the same weights; `experts="constant"` leaves B out, so that the covariates say nothing more about y once z is known.
With `hidden`, gate and experts are linear in the last layer of a network of u, and with `noise="covariates"` log σ_k is too:
a mixture density network (Bishop 1994).
Parameters are in the model's own units: of covariates, and of gaussian y with a regression, less their means and divided by
their standard deviations.

With `priors=True` the parameters are global latents: weights ~ Dirichlet(2, …, 2), category probabilities ~ Dirichlet(1 + 1/C,
…), coefficients ~ N(0, 2.5²) (Gelman et al. 2008), offsets ~ N(m, (2.5 s)²) about that of all rows, and σ_k² ~
InverseGamma(2, s²) by the responses' standard deviations s (1 for bernoulli and poisson). A network's weights ~ N(0, 1 /
inputs) and biases ~ N(0, 1) (Neal 1996); what is linear in its last layer, of q units, ~ N(0, 2.5² / q).
"""

from __future__ import annotations

from typing import Annotated, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from zoo._data import blockwise
from zoo._errors import UsageError
from zoo._nets.drawn import Drawn, drawn
from zoo._nets.layers import perceptron
from zoo._options import Count, Used
from zoo._program.parameters import WithPriors

Part = Literal["covariates", "constant"]
KEPT = 1000  # rows whose covariates are kept, to simulate with
NARROWEST = 1e-3  # of a regression's noise, in standard deviations of the response
MOST_CATEGORIES = 1000
WIDTH = 2.5  # of a prior, in standard deviations


class Model(WithPriors):
    """`Model(x, components=2, covariates=1, gate="covariates", experts="covariates", likelihood="gaussian",
    priors=False)`, x [n, D].

    - `components`: how many experts, K.
    - `covariates`: how many of the last columns of x are covariates, q; `--covariates a,b` puts columns there and counts them.
    - `gate`: `covariates`, an expert's weight depends on them; `constant`, it is the same for all rows.
    - `experts`: `covariates`, each expert is a regression on them; `constant`, it is one distribution for all rows.
    - `hidden`: widths of a network of the covariates, in whose last layer gate and experts are linear; none: in them.
    - `noise`: of gaussian regressions: `constant` in each expert, or dependent on the `covariates`.
    - `likelihood`: of the other columns: gaussian, bernoulli (0 and 1), poisson (counts), categorical (0, 1, …).
    - `priors`: draw the parameters from weak priors, so that they have a posterior and no expert collapses.

    Parameters (constrained shapes; E = D − q responses): `gate` [K−1, q] and `gate_offset` [K−1], the log-odds of experts
    1, 2, … against expert 0, or `weights` [K]; `slopes` [K, E, q], `offsets` [K, E]; `scales` [K, E] (gaussian). With
    likelihood="categorical" (responses 0, 1, …) `probs` [K, E, categories] in place of slopes and offsets. With `hidden`
    the network is `trunk`, and q its last width; with noise="covariates" scales are times exp(`scale_slopes` [K, E, q] · u).
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
        hidden: tuple[Count, ...] = (),
        noise: Annotated[Part, Used(likelihood="gaussian")] = "constant",
        likelihood: Literal["gaussian", "bernoulli", "poisson", "categorical"] = "gaussian",
        priors: bool = False,
    ) -> None:
        super().__init__()
        self.K, self.q, self.likelihood, self.priors = components, covariates, likelihood, priors
        self.gated, self.regressed = gate == "covariates" and components > 1, experts == "covariates"
        self.noisy = noise == "covariates"
        self._check(x, hidden)
        self.E = x.shape[1] - covariates
        y, u = x[:, : self.E], x[:, self.E :]
        self.register_buffer("center", blockwise.center(u))  # [q]
        self.register_buffer("spread", blockwise.spread(u, self.center))  # [q]
        self.register_buffer("known", u[torch.linspace(0, len(u) - 1, min(KEPT, len(u))).round().long()].clone())
        trunk = perceptron(covariates, tuple(hidden[:-1]), hidden[-1], "tanh") if hidden else None
        self.trunk = Drawn(trunk) if trunk is not None and priors else trunk
        self.inputs = hidden[-1] if hidden else covariates  # of gate and experts
        if self.gated:
            self.begin("gate", torch.zeros(components - 1, self.inputs), constraints.real)
            self.begin("gate_offset", torch.zeros(components - 1), constraints.real)
        else:
            self.begin("weights", torch.full((components,), 1.0 / components), constraints.simplex)
        self._experts_from(y)

    def _check(self, x: Tensor, hidden: tuple[int, ...]) -> None:
        K, q = self.K, self.q
        if x.dim() != 2 or x.shape[1] <= q:
            what = f"a 2-D table with at least one column before its {q} covariates (the last columns)"
            raise UsageError(f"mixture_of_experts expects {what}, got shape {tuple(x.shape)}.")
        if len(x) < K:
            raise UsageError(f"mixture_of_experts expects at most as many components as rows, got {K} for {len(x)}.")
        if bool((missing := x[:, -q:].isnan().any(1)).any()):
            row = int(missing.nonzero()[0])
            what = f"every covariate (the last {q} columns), got a missing one in row {row} (counting from 0)"
            raise UsageError(f"mixture_of_experts needs {what}: leave such rows out, or fill them in.")
        if self.likelihood == "categorical" and self.regressed:
            raise UsageError("likelihood=categorical has no regression in its experts; add experts=constant.")
        if self.noisy and not self.regressed:
            raise UsageError("noise=covariates goes with experts=covariates, got experts=constant.")
        if hidden and not (self.gated or self.regressed):
            raise UsageError("hidden has no effect where neither gate nor experts depend on the covariates.")

    def _experts_from(self, y: Tensor) -> None:
        K, E, mean = self.K, self.E, blockwise.center(y)
        if self.likelihood == "categorical":
            start = torch.softmax(0.1 * torch.randn(K, E, self._categories(y)), -1)
            self.begin("probs", start, constraints.simplex)
            return
        at, away = torch.zeros(E), torch.ones(E)
        if self.likelihood == "gaussian":
            spread = blockwise.spread(y, mean)
            self.register_buffer("middle", mean if self.regressed else torch.zeros(E))
            self.register_buffer("unit", spread if self.regressed else torch.ones(E))
            at, away = (mean - self.middle) / self.unit, spread / self.unit
            above = constraints.greater_than(NARROWEST) if self.regressed else constraints.positive
            name, power = ("variances", 2) if self.priors else ("scales", 1)
            self.begin(name, away.repeat(K, 1) ** power, above)
        else:
            at = torch.logit(mean.clamp(0.01, 0.99)) if self.likelihood == "bernoulli" else mean.clamp(min=0.01).log()
        self.register_buffer("usual", at)  # [E]
        self.register_buffer("away", away)
        self.begin("offsets", at + 0.1 * away * torch.randn(K, E), constraints.real)
        if self.regressed:
            self.begin("slopes", 0.1 * torch.randn(K, E, self.inputs), constraints.real)
        if self.noisy:
            self.begin("scale_slopes", torch.zeros(K, E, self.inputs), constraints.real)

    def prior(self, name: str, start: Tensor) -> dist.TorchDistribution:
        if name in ("weights", "probs"):
            extra = 1.0 if name == "weights" else 1 / start.shape[-1]
            return dist.Dirichlet(torch.ones_like(start) + extra).to_event(start.dim() - 1)
        if name == "variances":
            return dist.InverseGamma(2.0, start).to_event(2)
        if name == "offsets":
            return dist.Normal(self.usual.expand(start.shape), WIDTH * self.away).to_event(2)
        inputs = self.inputs if self.trunk is not None and name != "gate_offset" else 1
        return dist.Normal(torch.zeros_like(start), WIDTH / inputs**0.5).to_event(start.dim())

    def _categories(self, y: Tensor) -> int:
        known = y[~y.isnan()]
        if bool(((known != known.round()) | (known < 0) | (known > MOST_CATEGORIES)).any()):
            got = f"{float(known.min()):g} to {float(known.max()):g} in the columns before the covariates"
            raise UsageError(
                f"likelihood=categorical expects categories 0, 1, …, got {got}: number each column's from 0."
            )
        return int(known.max()) + 1 if len(known) else 1

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """The program: x [n, D] or None to simulate `size` data with covariates of the data. Returns x [n, D]."""
        if x is None:
            covariates, y = self.known[torch.randint(len(self.known), (size,), device=self.known.device)], None
        else:
            covariates, y = x[:, self.E :], x[:, : self.E]
        u, theta = (covariates - self.center) / self.spread, self.theta()  # [n, q]
        if self.trunk is not None:
            u = drawn(self.trunk, "trunk")(u).tanh()
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
            if self.noisy:
                above = scale if self.priors else scale - NARROWEST
                scale = NARROWEST + above * (theta["scale_slopes"][z] @ u.unsqueeze(-1)).squeeze(-1).exp()
            return dist.Normal(self.middle + self.unit * eta, self.unit * scale)  # of no regression, 0 and 1
        return dist.Bernoulli(logits=eta) if self.likelihood == "bernoulli" else dist.Poisson(eta.exp())
