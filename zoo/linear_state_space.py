"""Linear-Gaussian state space: hidden levels that move linearly, seen through noise (Kalman 1960).

Generative story (Shumway & Stoffer 1982; Durbin & Koopman 2012) of series i, of D columns:

    z_t | z_{t−1} ~ N(A z_{t−1}, diag(q²))        the hidden state
    x_t | z_t ~ N(C z_t + d, diag(r²))            what is seen of it

What A, C and d are, the `dynamics` say:

- `level`: a random walk for each column, A = C = I and d = 0;
- `trend`: a level and a slope for each column, and level_t = level_{t−1} + slope_{t−1} + noise;
- `ar`: an autoregression about the mean d for each column, z_t = a_1 z_{t−1} + … + a_p z_{t−p} + noise;
- `full`: L hidden numbers with any A, C and d, and q = 1, which fixes their units. They may still be rotated.

A column of mean m and standard deviation s has a level that begins at N(m, (10 s)²), or a slope that begins at N(0, s²). The
first p values of `ar` are N(0, s²), and the state of `full` begins at N(μ, I) with a learned μ. A missing entry is NaN, and a
series that is shorter than others ends in NaN.
"""

from __future__ import annotations

from typing import Annotated, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

from zoo._data import blockwise
from zoo._errors import UsageError
from zoo._options import Limits, Used

WIDE = 10.0  # standard deviations of a column, in which a level begins


class Model(PyroModule):
    """`Model(x, dynamics="level", latents=2, order=2)` for series x [n, T] or [n, T, D].

    - `dynamics`: how the hidden state moves: level, trend, ar or full.
    - `latents`: how many hidden numbers, L, of dynamics=full.
    - `order`: of the autoregression, p, of dynamics=ar.

    Parameters (constrained shapes): `noise` r [D]; `moves` q, of levels and then of slopes [D] or [2 D]; with ar
    `coefficients` a [p, D] and `mean` d [D]; with full `transitions` A [L, L], `loadings` C [D, L], `mean` d [D] and `first`
    μ [L].

    Raises `UsageError` for data that are no series, or shorter ones than the order.
    """

    def __init__(
        self,
        x: Tensor,
        *,
        dynamics: Literal["level", "trend", "ar", "full"] = "level",
        latents: Annotated[int, Limits(above=0), Used(dynamics="full")] = 2,
        order: Annotated[int, Limits(above=0), Used(dynamics="ar")] = 2,
    ) -> None:
        super().__init__()
        if x.dim() not in (2, 3):
            raise UsageError(
                f"linear_state_space expects series, n × T or n × T × D numbers, got shape {tuple(x.shape)}. A table whose "
                "rows are the steps of a series is made one by --series."
            )
        self.T, self.shape, self.dynamics = x.shape[1], x.shape[2:], dynamics
        self.order = order if dynamics == "ar" else 1
        if self.order >= self.T:
            raise UsageError(f"dynamics=ar expects more steps than order={order}, got series of {self.T}.")
        steps = x.reshape(len(x) * self.T, -1)  # [n T, D]
        m = blockwise.center(steps)
        s = blockwise.spread(steps, m)
        self._set("noise", 0.7 * s, constraints.positive)
        if dynamics in ("level", "trend"):
            self._walks(m, s)
            return
        self._set("mean", m)
        if dynamics == "ar":
            self._set("moves", 0.5 * s, constraints.positive)
            self._set("coefficients", 0.5 ** torch.arange(1.0, order + 1).unsqueeze(1).repeat(1, len(m)))
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
        setattr(self, name, PyroParam(value, support))

    def _keep(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value)

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """The program: x [n, T] or [n, T, D], or None to simulate `size` series. Returns x."""
        n, T = (size, self.T) if x is None else x.shape[:2]
        seen = None if x is None else x.reshape(n, T, -1)  # [n, T, D]
        z, out = list[Tensor](), []
        with pyro.plate("data", n):
            for t in range(T):
                z.append(pyro.sample(f"z{t}", self._next(z)))  # [n, S]
                shown = dist.Normal(z[t] @ self.loadings.mT + self.mean, self.noise).to_event(1)
                out.append(pyro.sample(f"x{t}", shown, obs=None if seen is None else seen[:, t]))  # [n, D]
        return torch.stack(out, 1).reshape(n, T, *self.shape) if x is None else x

    def _next(self, z: list[Tensor]) -> dist.TorchDistribution:
        """The state after those so far, each [n, S]."""
        if len(z) < self.order:
            return dist.Normal(self.first if self.dynamics == "full" else self.begins, self.begins_within).to_event(1)
        if self.dynamics != "ar":
            return dist.Normal(z[-1] @ self.transitions.mT, self.moves).to_event(1)
        past = zip(self.coefficients, reversed(z), strict=False)  # a_1 z_{t−1}, a_2 z_{t−2}, …
        return dist.Normal(sum(a * before for a, before in past), self.moves).to_event(1)
