"""q of the global latents as a triangular flow: standard normal numbers w ↦ v of skewed, heavy-tailed or bent distributions.

Each layer maps w_i to m_i(w_<i) + exp(s_i(w_<i)) · sinh(δ_i asinh(w_i) + ε_i): an inverse autoregressive flow (Kingma et al.
2016) by a masked network (Germain et al. 2015), after a change of skewness and tails (Jones & Pewsey 2009). v_i depends on
w_1 … w_i alone, so that a part of v has a density of its own given the part before it. A new flow is the identity.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

LAYERS, HIDDEN = 2, 16
STEEPEST = 5.0  # of a coordinate's log scale
Parameters = Mapping[str, Tensor]


def parameters(d: int) -> dict[str, nn.Parameter]:
    """Of a flow over d numbers that changes nothing yet."""
    out, hidden = {}, HIDDEN + d
    for k in range(LAYERS):
        out[f"flow{k}_into"] = torch.randn(hidden, d) / max(1, d - 1) ** 0.5
        out[f"flow{k}_bias"] = torch.zeros(hidden)
        out[f"flow{k}_from"] = torch.zeros(2 * d, hidden)
        for shape in ("shift", "log_scale", "skew", "log_tail"):
            out[f"flow{k}_{shape}"] = torch.zeros(d)
    return {name: nn.Parameter(value) for name, value in out.items()}


def push(flow: Parameters, w: Tensor) -> tuple[Tensor, Tensor]:
    """v [..., d] of w [..., d], and log ∂v_i / ∂w_i [..., d]."""
    total = torch.zeros_like(w)
    for k in range(LAYERS):
        shift, log_scale = _given(flow, k, w)
        bent = flow[f"flow{k}_log_tail"].exp() * w.asinh() + flow[f"flow{k}_skew"]
        slope = bent.cosh().log() + flow[f"flow{k}_log_tail"] - 0.5 * (1 + w.square()).log()
        total = total + log_scale + slope
        w = shift + log_scale.exp() * bent.sinh()
    return w, total


def pull(flow: Parameters, v: Tensor) -> Tensor:
    """w [..., d] of v [..., d], one coordinate after the other."""
    for k in reversed(range(LAYERS)):
        w = torch.zeros_like(v)
        for i in range(v.shape[-1]):
            shift, log_scale = _given(flow, k, w)
            bent = ((v - shift) / log_scale.exp()).asinh() - flow[f"flow{k}_skew"]
            found = (bent / flow[f"flow{k}_log_tail"].exp()).sinh()
            w = torch.cat([w[..., :i], found[..., i : i + 1], w[..., i + 1 :]], -1)
        v = w
    return v


def _given(flow: Parameters, k: int, w: Tensor) -> tuple[Tensor, Tensor]:
    """Shift and log scale of each coordinate, from those before it."""
    into, out = flow[f"flow{k}_into"], flow[f"flow{k}_from"]
    d = w.shape[-1]
    place = torch.arange(d, device=w.device)
    last = torch.arange(len(into), device=w.device) % max(1, d - 1)  # that a hidden unit sees
    hidden = torch.tanh(w @ (into * (place <= last.unsqueeze(1))).mT + flow[f"flow{k}_bias"])
    shift, log_scale = (hidden @ (out * (last < place.repeat(2).unsqueeze(1))).mT).chunk(2, -1)
    steep = STEEPEST * torch.tanh(log_scale / STEEPEST)
    return shift + flow[f"flow{k}_shift"], steep + flow[f"flow{k}_log_scale"]


class Part(Transform):
    """Of one site: its standard normal numbers w_k ↦ the site's value, given the numbers `before` [..., start] it.

    v is the flow's (w itself where that is None), u = `loc` + `tril` v the free coordinates, of which the site has those from
    `start` on; `onto` maps them, in their `shape`, onto its support.
    """

    bijective = True
    domain = constraints.real_vector

    def __init__(
        self, flow: Parameters | None, loc: Tensor, tril: Tensor, before: Tensor, shape: torch.Size, onto: Transform
    ) -> None:
        super().__init__(cache_size=1)
        self.flow, self.loc, self.tril, self.before, self.shape, self.onto = flow, loc, tril, before, shape, onto
        self.start, self.stop = before.shape[-1], before.shape[-1] + shape.numel()
        within = len(onto.forward_shape(shape)) - onto.codomain.event_dim
        self.codomain = constraints.independent(onto.codomain, within)  # all dimensions of a value are in the event

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Of the value."""
        return shape[:-1] + self.onto.forward_shape(self.shape)

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Of the numbers."""
        return shape[: len(shape) - self.codomain.event_dim] + torch.Size([self.stop - self.start])

    def _all(self, part: Tensor, before: Tensor) -> Tensor:
        lead = part.shape[:-1]
        after = part.new_zeros(*lead, len(self.loc) - self.stop)
        return torch.cat([before.expand(*lead, self.start), part, after], -1)

    def _free(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """u [..., shape] and the log-determinant of the map to it [...]."""
        v, slope = self._push(self._all(w, self.before))
        rows = self.tril[self.start : self.stop, : self.stop]
        u = self.loc[self.start : self.stop] + v[..., : self.stop] @ rows.mT
        log_det = slope[..., self.start : self.stop].sum(-1) + rows[:, self.start :].diagonal().log().sum()
        return u.reshape((*w.shape[:-1], *self.shape)), log_det

    def _call(self, x: Tensor) -> Tensor:
        return self.onto(self._free(x)[0])

    def _inverse(self, y: Tensor) -> Tensor:
        lead = y.shape[: y.dim() - self.codomain.event_dim]
        u = self.onto.inv(y).reshape((*lead, -1))
        before = self._push(self._all(torch.zeros_like(u), self.before))[0][..., : self.start]
        rows = self.tril[self.start : self.stop]
        away = u - self.loc[self.start : self.stop] - before @ rows[:, : self.start].mT
        own = rows[:, self.start : self.stop].expand(*lead, -1, -1)
        v = torch.linalg.solve_triangular(own, away.unsqueeze(-1), upper=False).squeeze(-1)
        return v if self.flow is None else pull(self.flow, self._all(v, before))[..., self.start : self.stop]

    def _push(self, w: Tensor) -> tuple[Tensor, Tensor]:
        return (w, torch.zeros_like(w)) if self.flow is None else push(self.flow, w)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """[...]."""
        u, log_det = self._free(x)
        each = self.onto.log_abs_det_jacobian(u, y)
        return log_det + each.reshape((*x.shape[:-1], -1)).sum(-1)
