"""How far one posterior is from another: means and standard deviations, in the reference's; labels by total variation.

Draws are noisy: the mean of M independent ones is off by sd / √M, and their standard deviation by sd / √2M. What noise alone
would explain is taken off, so that a method is not blamed for how few of its draws were kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inference._compare.moments import Moments, Posterior

FLAT = 1e-9  # a standard deviation below this share of the mean is rounding
ROUNDING = 1e-6
LARGE = 300.0  # of a logarithm: its square is a number still


@dataclass(frozen=True)
class Distance:
    """Of all latent numbers of a posterior, from those of the reference.

    - `mean`: root mean square error of the posterior means, in posterior standard deviations of the reference.
    - `sd`: root mean square of the standard deviations' relative error, log(sd / reference's sd).
    - `worst_mean`, `worst_sd`: the largest of each, noise included; `sd_bias`: the mean of the log ratio: below 0, too narrow.
    - `labels`: mean total variation distance between the posteriors of discrete latents, over rows; no smaller than that, on
      average, where draws are noisy.
    - `kl`: mean KL divergence in nats between the normals with these means and standard deviations, number by number.
    - `noise`: how large an error of the means the draws alone explain; `slack`, `sd_slack`, `labels_slack`: three standard
      deviations of what `mean`, `sd` and `labels` squared are off by for that.

    None where there are no such latents; inf where the reference is known, and the posterior is no number, or a point.
    """

    mean: float | None = None
    sd: float | None = None
    sd_bias: float | None = None
    worst_mean: float | None = None
    worst_sd: float | None = None
    labels: float | None = None
    kl: float | None = None
    noise: float = 0.0
    slack: float = 0.0
    sd_slack: float = 0.0
    labels_slack: float = 0.0

    def to_json(self) -> dict[str, float | None]:
        """As plain JSON types."""
        return {k: None if v is None or not math.isfinite(v) else float(v) for k, v in vars(self).items()}


def distance(found: Posterior, reference: Posterior) -> Distance | None:
    """How far `found` is from `reference`; None where they share no latent."""
    names = shared(found, reference)
    numbers = [(found.numbers[s], reference.numbers[s]) for s in names if s in found.numbers]
    both = [(found.labels[s], reference.labels[s]) for s in names if s in found.labels]
    if not names:
        return None
    return Distance(**_of_numbers(numbers), **_of_labels(both))


def shared(found: Posterior, reference: Posterior) -> set[str]:
    """The latents that can be held against each other: both say the same of as many numbers."""
    numbers, other = found.numbers, reference.numbers
    labels, others = found.labels, reference.labels
    out = {s for s in numbers if s in other and numbers[s].mean.shape == other[s].mean.shape}
    return out | {s for s in labels if s in others and labels[s][0].shape == others[s][0].shape}


Shares = tuple[np.ndarray, float]  # probabilities [n, values], and of how many draws


def _of_labels(pairs: Sequence[tuple[Shares, Shares]]) -> dict[str, float]:
    """The mean total variation, of which noise only adds to ½ Σ |d|, and takes nothing away; or, where it is smaller, the root
    mean square of ½ √(K Σ d²), which is at least as large, and of which noise can be taken off without bias."""
    if not pairs:
        return {}
    far, square, noise = (np.concatenate(v) for v in zip(*(_variation(*pair) for pair in pairs), strict=True))
    labels = min(float(far.mean()), math.sqrt(max(0.0, float((square - noise).mean()))))
    return {"labels": labels, "labels_slack": 3 * math.sqrt(2 * float(np.square(noise).sum())) / len(noise)}


def _variation(a: Shares, b: Shares) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each row [n]: ½ Σ |d|, K / 4 Σ d², and what of the latter noise explains."""
    (p, m), (q, k) = a, b
    middle, size = 0.5 * (p + q), p.shape[-1] / 4
    noise = (middle * (1 - middle)).clip(0).sum(-1) * (1 / m + 1 / k)
    return 0.5 * np.abs(p - q).sum(-1), size * np.square(p - q).sum(-1), size * noise


def _of_numbers(pairs: Sequence[tuple[Moments, Moments]]) -> dict[str, float]:
    if not pairs:
        return {}
    shift, ratio, shift_noise, ratio_noise = ([] for _ in range(4))
    for a, b in pairs:
        known = np.isfinite(b.mean + b.sd)
        least = np.maximum(max(a.least, b.least), FLAT * np.abs(b.mean))
        sd_a, sd_b = (np.maximum(m.sd, least)[known] for m in (a, b))
        certain = (sd_a == sd_b) & np.isclose(a.mean, b.mean, rtol=ROUNDING, atol=0.0)[known]
        with np.errstate(all="ignore"):
            d, r = (a.mean - b.mean)[known] / sd_b, np.log(sd_a / sd_b)
        shift.append(np.where(certain & (sd_b <= least[known]), 0.0, np.where(np.isnan(d), np.inf, d)))
        ratio.append(np.where(sd_a == sd_b, 0.0, np.where(np.isnan(r), np.inf, r)))
        size = np.exp(2 * np.clip(np.where(np.isinf(ratio[-1]), 0.0, ratio[-1]), None, LARGE))
        shift_noise.append(size / a.draws + 1 / b.draws)
        ratio_noise.append(np.full_like(size, 0.5 / a.draws + 0.5 / b.draws))
    d, r, dn, rn = (np.concatenate(v) for v in (shift, ratio, shift_noise, ratio_noise))
    if not len(d):
        return {}
    with np.errstate(all="ignore"):
        kl = np.exp(2 * r) / 2 + np.square(d) / 2 - 0.5 - r
        bias = float(r.mean())
    return {
        "mean": _beyond(d, dn),
        "sd": _beyond(r, rn),
        "sd_bias": bias,
        "worst_mean": float(np.abs(d).max()),
        "worst_sd": float(np.abs(r).max()),
        "kl": max(0.0, float(np.nan_to_num(kl - dn / 2 - rn, nan=np.inf, posinf=np.inf).mean())),
        "noise": float(np.sqrt(dn.mean())),
        "slack": float(dn.mean()) * math.sqrt(18 / len(d)),
        "sd_slack": float(rn.mean()) * math.sqrt(18 / len(d)),
    }


def _beyond(errors: np.ndarray, noise: np.ndarray) -> float:
    """The root mean square of errors, less what noise of these variances explains."""
    return math.sqrt(max(0.0, float(np.square(errors).mean() - noise.mean())))
