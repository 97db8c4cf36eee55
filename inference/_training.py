"""The one training loop: mini-batches, Adam, a learning rate that falls when progress stops, and a guard against NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoo._errors import UsageError
from zoo._options import positive


@dataclass
class History:
    """Objective per datum at each epoch (nats), the learning rate used, and whether progress had stopped."""

    objective: np.ndarray  # [epochs]
    lr: np.ndarray  # [epochs]
    converged: bool


def train(
    parameters: Iterable[Tensor],
    objective: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    epochs: int,
    batch: int,
    lr: float,
    tol: float,
    seed: int,
    step: Callable[..., None],
    patience: int = 10,
) -> History:
    """Maximise `objective(rows)`, the mean per datum over a batch, by Adam (Kingma & Ba 2015).

    The objective is smoothed over epochs; when it has not risen by `tol` (nats per datum) in `patience` epochs the rate
    is halved, and at 1/64 of the first rate training has converged.

    Raises `ArithmeticError` with the epoch when the objective is not a number, `UsageError` for impossible settings.
    """
    for name, value in {"epochs": epochs, "batch": batch, "lr": lr, "tol": tol}.items():
        positive(name, value)
    if batch > len(x):
        raise UsageError(f"batch={batch} is more than the {len(x)} rows of the data.")
    parameters = [p for p in parameters if p.requires_grad]
    if not parameters:
        return History(np.zeros(0), np.zeros(0), True)
    optimiser = torch.optim.Adam(parameters, lr=lr)
    generator = torch.Generator().manual_seed(seed)
    smoothed, best, since, rate = -np.inf, -np.inf, 0, lr
    seen, rates = [], []
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            optimiser.zero_grad()
            gain = objective(x[rows])
            (-gain).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 100.0 * len(parameters) ** 0.5)
            optimiser.step()
            total += float(gain.detach()) * len(rows)
        mean = total / len(x)
        if not np.isfinite(mean):
            raise ArithmeticError(
                f"training stopped at epoch {epoch + 1}: the objective became {mean}; try a smaller lr."
            )
        seen.append(mean)
        rates.append(rate)
        step(note=f"{mean:.4f} nats a datum")
        smoothed = 0.8 * smoothed + 0.2 * mean if epoch else mean
        if smoothed > best + tol:
            best, since = smoothed, 0
        else:
            since += 1
        if since >= patience:
            since, rate = 0, rate / 2
            if rate < lr / 64:
                return History(np.asarray(seen), np.asarray(rates), True)
            for group in optimiser.param_groups:
                group["lr"] = rate
    return History(np.asarray(seen), np.asarray(rates), False)
