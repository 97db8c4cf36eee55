"""The best linear map from normal latents to data, in closed form; and the noise that goes with it, by Newton's steps.

Say x = B z + b + noise of variances v [D], z ~ N(0, I_L), and S is the scatter of the data about b. Given v the likelihood is
largest where B spans the leading eigenvectors u of V^-½ S V^-½, V = diag(v), each as long as √(λ − 1). At that B

    −2/N log p(x) = D log 2π + Σ_d log v_d + tr(V^-½ S V^-½) + Σ_l (log λ_l + 1 − λ_l)

with a term for each of the L largest eigenvalues λ_l that is above 1: a function of v alone, whose gradient and Hessian over
log v follow from the eigenvectors (Jöreskog 1967; Clarke 1970). With one variance for all columns its lowest point is the mean
of the other eigenvalues of S (Tipping & Bishop 1999, appendix A).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from inference._numerics.slices import slices

PAIRS = 2**22  # numbers of a temporary
STEPS = 60  # of Newton at most; a dozen suffice where no variance goes to 0
LONGEST = 2.0  # of a step in log v
STEEP = 0.5  # of a step down in log v, from where a small variance is tried at its lowest
SMALL = 1e-2  # a share of a column's variance: such a noise may be on its way to 0
STARTS = 10  # further ones of two kinds, where a variance is at its lowest: such ends are often several
FLAT = 1e-6  # a share of the largest curvature: of a flatter direction nothing is known
COLLINEAR = 1e-6  # a share of the largest singular value of standardized data
HALVINGS = 20


@dataclass(frozen=True)
class Height:
    """−2/N log p(x) at the best map for a noise, its gradient [G] and Hessian [G, G] over the G free log variances."""

    value: float
    slope: Tensor
    bend: Tensor
    map: Tensor  # B [D, L]


@dataclass(frozen=True)
class BestMap:
    """`root` [m, D], m ≥ D, has rootᵀ root = S. Columns of one `group` [D] share a variance; of group −1 it is `known` [D]."""

    root: Tensor
    group: Tensor
    known: Tensor
    latents: int

    @cached_property
    def spreads(self) -> Tensor:
        """The variance of the data for each group [G], the mean over its columns."""
        return self._mean(self.root.square().sum(0))

    @cached_property
    def _free(self) -> Tensor:
        return self.group >= 0

    def _sum(self, values: Tensor) -> Tensor:
        """[D, …] summed over the columns of each group [G, …]."""
        G = int(self.group.max()) + 1
        return values.new_zeros(G, *values.shape[1:]).index_add(0, self.group[self._free], values[self._free])

    def _mean(self, values: Tensor) -> Tensor:
        return self._sum(values) / self._sum(torch.ones_like(values))

    def pooled(self, variances: Tensor) -> Tensor:
        """log v of each group [G] from variances [D]."""
        return self._mean(variances).log()

    def variances(self, t: Tensor) -> Tensor:
        """v [D] for log variances of the groups [G]."""
        if not len(t):
            return self.known
        return torch.where(self._free, t[self.group.clamp(min=0)].exp(), self.known)

    def at(self, t: Tensor) -> Height:
        """The height at log variances [G]."""
        v, L = self.variances(t), self.latents
        s, rows = torch.linalg.svd(self.root / v.sqrt(), full_matrices=False)[1:]  # to more digits than eigenvalues
        values, u = s.square(), rows.mT  # [D], [D, D]
        k = int((values[:L] > 1).sum())
        top, rest, shown, others = values[:k], values[k:], u[:, :k], u[:, k:]
        value = float(v.log().sum() + rest.sum() + (top.log() + 1).sum())
        slope = self._sum(others.square() @ (1 - rest))  # the leading eigenvectors' terms cancel
        bend = self._sum(self._sum((others * rest @ others.mT) * (others @ others.mT)).mT)
        far = (top[:, None] + rest) * (1 - rest) / (top[:, None] - rest)  # [k, D − k]
        for some in slices(k, max(1, PAIRS // others.numel())):  # how leading eigenvectors turn towards the others
            pairs = self._sum(shown[:, some, None] * others[:, None]).flatten(1)  # [G, …]
            bend = bend + (pairs * far[some].flatten()) @ pairs.mT
        best = torch.cat([v.sqrt()[:, None] * shown * (top - 1).sqrt(), v.new_zeros(len(v), L - k)], 1)
        return Height(value, slope, bend, best)

    # ------------------------------------------------------------------------------------------------- the noise

    def lowest(self, share: float) -> tuple[Tensor, Height] | None:
        """Log variances [G] of the lowest height found, and that; `share` of a column's variance is the least a noise may be.

        None where the data are so nearly collinear that a noise of 0 may explain them.
        """
        size = self.root.square().sum(0).sqrt()
        if not bool((size > 0).all() & size.isfinite().all()):
            return None
        s = torch.linalg.svdvals(self.root / size)
        if float(s[-1]) < COLLINEAR * float(s[0]):
            return None
        if not len(self.spreads):
            return (none := self.spreads.log()), self.at(none)
        low = self.spreads.log() + math.log(share)
        t, height = self._down(self._start(), low)
        if bool((t <= low).any()):
            for start in self._others(low):
                found = self._down(start, low)
                if found[1].value < height.value:
                    t, height = found
        return t, height

    def _start(self) -> Tensor:
        """Log variances [G]: the best of one variance for all, else a share of what the other columns do not explain."""
        D, L = len(self.group), self.latents
        if len(self.spreads) == 1 and bool(self._free.all()):
            return self.root.new_tensor([torch.linalg.svdvals(self.root)[L:].square().mean()]).log()
        alone = (
            torch.linalg.inv(torch.linalg.qr(self.root).R).square().sum(1)
        )  # 1 / the variance of a column given the others
        return self.pooled((1 - 0.5 * L / D) / alone)

    def _others(self, low: Tensor) -> Iterator[Tensor]:
        """Further log variances to begin at [G]: any; and each of the smallest at its lowest."""
        generator = torch.Generator().manual_seed(0)
        for _ in range(STARTS):
            shares = 0.02 + 0.96 * torch.rand(len(low), generator=generator, dtype=torch.float64).to(low)
            yield (shares * self.spreads).log()
        usual = self._start()
        for i in (usual - self.spreads.log()).argsort()[:STARTS]:
            start = usual.clone()
            start[i] = low[i]
            yield start

    def _down(self, t: Tensor, low: Tensor) -> tuple[Tensor, Height]:
        """Newton's steps from log variances [G] to a lowest point, none below `low`."""
        t = torch.maximum(t, low)
        now = self.at(t)
        for _ in range(STEPS):
            free = ~((t <= low) & (now.slope > 0))
            way = _step(now, free)
            if float(-(way @ now.slope)) < 1e-15 * (1 + abs(now.value)):
                break
            found = None
            sinking = free & (way < -STEEP) & (t < self.spreads.log() + math.log(SMALL))
            if bool(sinking.any()):  # where log v only goes down, steps would go on for long
                there = torch.where(sinking, low, t)
                found = there, self.at(there)
            if found is None or not found[1].value < now.value:
                found = self._along(t, way, low, now)
            if found is None:
                break
            t, now = found
        return t, now

    def _along(self, t: Tensor, way: Tensor, low: Tensor, now: Height) -> tuple[Tensor, Height] | None:
        for halving in range(HALVINGS):
            there = torch.maximum(t + 0.5**halving * way, low)
            height = self.at(there)
            if height.value < now.value + 1e-4 * float(now.slope @ (there - t)):
                return there, height
        return None

    def is_lowest(self, t: Tensor, height: Height, share: float, enough: float) -> bool:
        """Whether no height near t is lower by more than `enough`; False where that is not sure.

        A variance under `share` of its column's may go on to 0: it gains no more than its slope in log v.
        """
        gone = (t <= self.spreads.log() + math.log(share)) & (height.slope >= 0)
        slope, bend = height.slope[~gone], height.bend[~gone][:, ~gone]
        if not bool(bend.isfinite().all()) or float(height.slope[gone].sum()) > 0.5 * enough:
            return False
        if not len(slope):
            return True
        values, vectors = torch.linalg.eigh(bend)
        if not float(values[0]) > FLAT * float(values[-1]):
            return False
        return float(((vectors.mT @ slope).square() / values).sum()) < enough


def _step(now: Height, free: Tensor) -> Tensor:
    """Newton's step [G] down, along every direction in which the height bends up or down, no longer than `LONGEST`."""
    way = torch.zeros_like(now.slope)
    if not bool(free.any()):
        return way
    values, vectors = torch.linalg.eigh(now.bend[free][:, free].nan_to_num(0.0, 0.0, 0.0))
    size = values.abs().clamp(min=1e-12 * float(values.abs().amax().clamp(min=1e-300)))
    way[free] = -(vectors @ ((vectors.mT @ now.slope[free]) / size))
    longest = float(way.abs().amax())
    return way * min(1.0, LONGEST / longest) if longest > 0 else way
