"""Adam (Kingma & Ba 2015), all parameters in one fused kernel.

The same numbers as `torch.optim.Adam(fused=True)`, bit for bit. That class imports torch's compiler when it is made, which
takes longer than many a fit; its functional form does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam

State = dict[str, Tensor]  # step, exp_avg, exp_avg_sq


class Adam:
    """`Adam(parameters, lr)`: `step()` moves the parameters against their `grad`, by the rate `lr`, which may be set."""

    def __init__(self, parameters: Sequence[Tensor], lr: float) -> None:
        self.parameters, self.lr = list(parameters), lr
        self.states: dict[int, State] = {}  # of the parameters that have had a gradient, by their place

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters that have a gradient."""
        moved = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        states = [self._state(i) for i in moved]
        if not moved:
            return
        adam(
            [self.parameters[i] for i in moved],
            [g for i in moved if (g := self.parameters[i].grad) is not None],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.lr,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    def _state(self, i: int) -> State:
        if i not in self.states:
            p = self.parameters[i]
            self.states[i] = {
                "step": torch.zeros((), dtype=torch.float32, device=p.device),
                "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
            }
        return self.states[i]

    def state_dict(self) -> dict[str, object]:
        """What training resumes from, as `torch.optim.Adam` names it."""
        return {"state": self.states, "param_groups": [{"lr": self.lr, "params": list(range(len(self.parameters)))}]}

    def load_state_dict(self, found: Mapping[str, Mapping[int, State]]) -> None:
        """Go on from a `state_dict`."""
        self.states = {
            i: {name: v.to(self.parameters[i].device) for name, v in state.items()}
            for i, state in found["state"].items()
        }
