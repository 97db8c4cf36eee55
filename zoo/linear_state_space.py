"""Linear-Gaussian state space: hidden levels that move linearly, seen through noise (Kalman 1960).

Generative story (Shumway & Stoffer 1982; Durbin & Koopman 2012) of series i, of D columns:

    z_t | z_{t−1} ~ N(A z_{t−1}, diag(q²))        the hidden state
    x_t | z_t ~ N(C z_t + d + B u_t, diag(r²))    what is seen of it

What A, C and d are, the `dynamics` say:

- `level`: a random walk for each column, A = C = I and d = 0;
- `trend`: a level and a slope for each column, and level_t = level_{t−1} + slope_{t−1} + noise;
- `ar`: an autoregression about the mean d for each column, z_t = a_1 z_{t−1} + … + a_p z_{t−p} + noise;
- `full`: L hidden numbers with any A, C and d, and q = 1, which fixes their units. They may still be rotated.

A column of mean m and standard deviation s has a level that begins at N(m, (10 s)²), or a slope that begins at N(0, s²). The
first p values of `ar` are N(0, s²), and the state of `full` begins at N(μ, I) with a learned μ. A missing entry is NaN, and a
series that is shorter than others ends in NaN. Covariates u_t, if any, are the last columns of a step: read, not modelled.

With `priors=True` the parameters are global latents: r and q are half-normal of twice the values that they begin at (1.4 s; s,
of a slope 0.2 s), a ~ N(0, 1), d ~ N(m, (2 s)²), and B ~ N(0, s²) for covariates in units of their standard deviations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from zoo._data import blockwise
from zoo._errors import UsageError
from zoo._options import Limits, Used
from zoo._program.parameters import WithPriors

WIDE = 10.0  # standard deviations of a column, in which a level begins
KEPT = 1000  # series whose covariates are kept, to simulate with


class Model(WithPriors):
    """`Model(x, dynamics="level", latents=2, order=2, covariates=0, priors=False)` for series x [n, T] or [n, T, D].

    - `dynamics`: how the hidden state moves: level, trend, ar or full.
    - `latents`: how many hidden numbers, L, of dynamics=full.
    - `order`: of the autoregression, p, of dynamics=ar.
    - `covariates`: how many of the last columns of a step are covariates, c; `--covariates a,b` puts columns there.
    - `priors`: draw the parameters from weak priors, so that they have a posterior; not with dynamics=full.

    Parameters (constrained shapes): `noise` r [D]; `moves` q, of levels and then of slopes [D] or [2 D]; with ar
    `coefficients` a [p, D] and `mean` d [D]; with full `transitions` A [L, L], `loadings` C [D, L], `mean` d [D] and `first`
    μ [L]; `slopes` B [D, c], for covariates less their means in units of their standard deviations.

    Raises `UsageError` for data that are no series, shorter ones than the order, or steps whose covariates are missing.
    """

    def __init__(
        self,
        x: Tensor,
        *,
        dynamics: Literal["level", "trend", "ar", "full"] = "level",
        latents: Annotated[int, Limits(above=0), Used(dynamics="full")] = 2,
        order: Annotated[int, Limits(above=0), Used(dynamics="ar")] = 2,
        covariates: Annotated[int, Limits(least=0)] = 0,
        priors: bool = False,
    ) -> None:
        super().__init__()
        if x.dim() not in (2, 3):
            raise UsageError(
                f"linear_state_space expects series, n × T or n × T × D numbers, got shape {tuple(x.shape)}. A table whose "
                "rows are the steps of a series is made one by --series."
            )
        if priors and dynamics == "full":
            raise UsageError(
                "dynamics=full may be rotated, so it has no priors: take level, trend or ar, or leave out priors."
            )
        self.T, self.dynamics, self.priors = x.shape[1], dynamics, priors
        self.order = order if dynamics == "ar" else 1
        if self.order >= self.T:
            raise UsageError(f"dynamics=ar expects more steps than order={order}, got series of {self.T}.")
        self.covariates = covariates
        self._begin(self._modelled(x).reshape(len(x) * self.T, -1), latents)

    def _modelled(self, x: Tensor) -> Tensor:
        """The columns of each step that are no covariates; those begin their slopes."""
        c = self.covariates
        self.shape = x.shape[2:] if not c else (x.shape[-1] - c,)  # of a step
        if not c:
            return x
        if x.dim() < 3 or x.shape[2] <= c:
            raise UsageError(
                f"Expected series of steps with a column before {c} covariates, got shape {tuple(x.shape)}."
            )
        y, u = x[..., :-c], x[..., -c:]
        if bool((lost := u.isnan().any(-1)).any()):
            series, step = lost.nonzero()[0].tolist()
            raise UsageError(
                f"series {series}, step {step} (counting from 0) lacks a covariate: each step of each series needs all of them."
            )
        flat = u.reshape(-1, c)
        self._keep("center", blockwise.center(flat))
        self._keep("spread", blockwise.spread(flat, self.center))
        self._keep("known", u[:KEPT].clone())  # to simulate with
        return y

    def _begin(self, steps: Tensor, latents: int) -> None:
        """Where the parameters begin, from the steps [n T, D] of all series."""
        m = blockwise.center(steps)
        s = blockwise.spread(steps, m)
        if self.priors:
            self._keep("middle", m)
            self._keep("unit", s)
        self._set("noise", 0.7 * s, constraints.positive)
        if self.covariates:
            self._set("slopes", torch.zeros(len(m), self.covariates))
        if self.dynamics in ("level", "trend"):
            self._walks(m, s)
            return
        self._set("mean", m)
        if self.dynamics == "ar":
            self._set("moves", 0.5 * s, constraints.positive)
            self._set("coefficients", 0.5 ** torch.arange(1.0, self.order + 1).unsqueeze(1).repeat(1, len(m)))
            self._keep("begins", torch.zeros_like(m))
            self._keep("begins_within", s)
            self._keep("loadings", torch.eye(len(m)))
            return
        self._set("transitions", 0.8 * torch.eye(latents) + 0.1 * torch.randn(latents, latents))
        self._set("loadings", s.unsqueeze(1) * torch.randn(len(m), latents) / (2 * latents) ** 0.5)
        self._set("first", torch.zeros(latents))
        self._keep("moves", torch.ones(latents))
        self._keep("begins_within", torch.ones(latents))

    def _walks(self, m: Tensor, s: Tensor) -> None:
        """A level for each column, and a slope with dynamics=trend: S hidden numbers."""
        trend, zero = self.dynamics == "trend", torch.zeros_like(m)
        step = torch.ones(2, 2).triu() if trend else torch.ones(1, 1)
        self._set("moves", torch.cat([0.5 * s, 0.1 * s]) if trend else 0.5 * s, constraints.positive)  # [S]
        self._keep("begins", torch.cat([m, zero]) if trend else m)  # [S]
        self._keep("begins_within", torch.cat([WIDE * s, s]) if trend else WIDE * s)  # [S]
        self._keep("transitions", torch.kron(step, torch.eye(len(m))))  # [S, S]
        self._keep("loadings", torch.eye(len(m), len(m) * len(step)))  # [D, S]
        self._keep("mean", zero)

    def _set(self, name: str, value: Tensor, support: constraints.Constraint = constraints.real) -> None:
        self.begin(name, value, support)

    def _keep(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value.clone())  # each its own: of two names of one tensor only the first is listed

    def prior(self, name: str, start: Tensor) -> dist.TorchDistribution:
        if name in ("noise", "moves"):
            return dist.HalfNormal(2 * start).to_event(1)
        if name == "mean":
            return dist.Normal(self.middle, 2 * self.unit).to_event(1)
        within = self.unit.unsqueeze(1) if name == "slopes" else 1.0
        return dist.Normal(torch.zeros_like(start), within).to_event(2)

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """The program: x [n, T] or [n, T, D], or None to simulate `size` series with covariates of the data. Returns x."""
        n, T = (size, self.T) if x is None else x.shape[:2]
        c, theta = self.covariates, {**dict(self.named_buffers()), **self.theta()}
        u = None if not c else self.known[torch.arange(n) % len(self.known)] if x is None else x[..., -c:]  # [n, T, c]
        seen = None if x is None else (x[..., :-c] if c else x).reshape(n, T, -1)  # [n, T, D]
        added = None if u is None else ((u - self.center) / self.spread) @ theta["slopes"].mT  # [n, T, D]
        z, out = list[Tensor](), []
        with pyro.plate("data", n):
            for t in range(T):
                z.append(pyro.sample(f"z{t}", self._next(z, theta)))  # [n, S]
                loc = z[t] @ theta["loadings"].mT + theta["mean"] + (0.0 if added is None else added[..., t, :])
                shown = dist.Normal(loc, theta["noise"]).to_event(1)
                out.append(pyro.sample(f"x{t}", shown, obs=None if seen is None else seen[:, t]))  # [n, D]
        if x is not None:
            return x
        made = torch.stack(out, 1).reshape(n, T, *self.shape)
        return made if u is None else torch.cat([made, u], -1)

    def _next(self, z: list[Tensor], theta: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """The state after those so far, each [n, S]."""
        if len(z) < self.order:
            return dist.Normal(theta["first" if self.dynamics == "full" else "begins"], self.begins_within).to_event(1)
        if self.dynamics != "ar":
            return dist.Normal(z[-1] @ theta["transitions"].mT, theta["moves"]).to_event(1)
        past = zip(theta["coefficients"], reversed(z), strict=False)  # a_1 z_{t−1}, a_2 z_{t−2}, …
        return dist.Normal(sum(a * before for a, before in past), theta["moves"]).to_event(1)
