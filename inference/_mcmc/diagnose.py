"""Whether chains agree, how much their draws are worth, and what went wrong on the way.

References: Vehtari et al. 2021, "Rank-normalization, folding, and localization: an improved R-hat", Bayesian Analysis 16(2);
Betancourt 2016, "Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte Carlo", arXiv:1604.00695.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from inference._mcmc.chains import Drawn
from inference._numerics.psis import agreement, mean_ess

AGREE = 1.01  # the largest R-hat
LEAST_DRAWS = 400  # effective, of each number
MOST_DIVERGING = 0.01  # of all draws
LEAST_BFMI = 0.3
TOGETHER = 0.5, 6.0  # a correlation of two chains, draw by draw: at least so much, and so many of its standard errors


@dataclass(frozen=True)
class Diagnosis:
    """Of each latent the worst of its numbers, and of each chain."""

    rhat: dict[str, float]
    ess_bulk: dict[str, float]
    ess_tail: dict[str, float]
    ebfmi: list[float]  # of each chain
    diverging: int
    draws: int
    deepest: int  # trajectories as long as allowed
    together: float = 0.0  # the largest correlation of two chains that cannot be chance

    @property
    def converged(self) -> bool:
        """Whether nothing speaks against the draws."""
        ess = (*self.ess_bulk.values(), *self.ess_tail.values())
        return (
            all(r < AGREE for r in self.rhat.values())
            and all(e > LEAST_DRAWS for e in ess)
            and self.diverging <= MOST_DIVERGING * self.draws
            and min(self.ebfmi) >= LEAST_BFMI
            and not self.together
        )

    def notes(self) -> dict[str, object]:
        """For the fit's notes."""
        return {
            "rhat": self.rhat,
            "ess_bulk": self.ess_bulk,
            "ess_tail": self.ess_tail,
            "e_bfmi": self.ebfmi,
            "divergences": self.diverging,
            "deepest_trees": self.deepest,
        }

    def warnings(self, marginalised: bool) -> list[str]:
        """What speaks against the draws, and what to do."""
        out = []
        apart = sorted((n for n, r in self.rhat.items() if not r < AGREE), key=lambda n: -self.rhat[n])
        if self.together:
            out.append(
                f"two chains move together: their draws have a correlation of {self.together:.2f}, draw by draw, so that the "
                "effective draws and R-hat mean nothing. The chains share their random numbers; give them seeds of their own."
            )
        if apart:
            out.append(
                f"R-hat is {self.rhat[apart[0]]:.4g} for {_named(apart)}, and should be below {AGREE}: the chains do not "
                "agree. Raise warmup and samples; if it stays, the posterior has several modes, or is improper."
            )
        ess = {n: min(self.ess_bulk[n], self.ess_tail[n]) for n in self.ess_bulk}
        few = sorted((n for n, e in ess.items() if not e > LEAST_DRAWS), key=lambda n: ess[n])
        if few:
            out.append(
                f"{_named(few)} {'has' if len(few) == 1 else 'have'} {ess[few[0]]:.0f} effective draws or more of "
                f"{self.draws:,}, and {LEAST_DRAWS} are wanted: raise samples."
            )
        if self.diverging:
            out.append(
                f"{self.diverging:,} of {self.draws:,} trajectories diverged: a part of the posterior is too steep for the "
                "step, and may be missing from the draws. Raise target_accept (0.95, 0.99), or write the latent as loc + scale "
                "· standard normal" + ("." if marginalised else ", or take marginalise=true where it is exact.")
            )
        if min(self.ebfmi) < LEAST_BFMI:
            out.append(
                f"E-BFMI is {min(self.ebfmi):.2f}, and should be above {LEAST_BFMI}: the chains hardly reach the tails of the "
                "posterior. Raise warmup, or write the latents in other coordinates."
            )
        if self.deepest > 0.1 * self.draws:
            out.append(
                f"{self.deepest:,} of {self.draws:,} trajectories were cut at max_depth: the draws are right but slow to move. "
                "Raise max_depth, take mass=dense, or bring the latents to similar scales."
            )
        return out


def _named(names: list[str]) -> str:
    shown = ", ".join(f"'{n}'" for n in names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def diagnose(drawn: Drawn, values: Mapping[str, np.ndarray], max_depth: int) -> Diagnosis:
    """`values`: latent site → its draws [chains, draws, …]."""
    found = {name: _worst(v) for name, v in {**values, "log density": drawn.log_p}.items()}
    return Diagnosis(
        rhat={n: f[0] for n, f in found.items()},
        ess_bulk={n: f[1] for n, f in found.items()},
        ess_tail={n: f[2] for n, f in found.items()},
        ebfmi=[_bfmi(energy) for energy in drawn.energy],
        diverging=int(drawn.diverging.sum()),
        draws=drawn.log_p.size,
        deepest=int((drawn.tree_depth >= max_depth).sum()),
        together=_together(drawn.log_p),
    )


def _together(values: np.ndarray) -> float:
    """The largest correlation of two independent chains' values [C, S], draw by draw; 0 where it may be chance.

    Its standard error is 1/√S for independent draws, and 1/√ESS at most for those of chains that move slowly.
    """
    C, S = values.shape
    if C < 2 or not np.isfinite(values).all() or (np.ptp(values, axis=1) == 0).any():
        return 0.0
    largest, worst = 0.0, mean_ess(np.ascontiguousarray(values)[:, None], float(S))
    table = np.corrcoef(values)
    for a in range(C):
        for b in range(a):
            if table[a, b] > max(TOGETHER[0], TOGETHER[1] / max(1.0, min(worst[a], worst[b])) ** 0.5):
                largest = max(largest, float(table[a, b]))
    return largest


def _bfmi(energy: np.ndarray) -> float:
    """The share of the energy's spread that one draw of the momenta can change."""
    spread = float(np.var(energy))
    return float(np.mean(np.diff(energy) ** 2)) / spread if spread > 0 else 0.0


def _worst(draws: np.ndarray) -> tuple[float, float, float]:
    """The largest R-hat, and the smallest bulk and tail effective sizes, of all numbers in draws [C, S, …]."""
    C, S = draws.shape[:2]
    values = np.ascontiguousarray(np.moveaxis(draws.reshape(C, S, -1), -1, 0), dtype=np.float64)
    if not np.isfinite(values).all():
        return np.inf, 0.0, 0.0
    moving = values[(np.ptp(values, axis=(1, 2)) > 0)]  # a number that the support fixes says nothing
    if not len(moving):
        return 1.0, float(C * S), float(C * S)
    if (np.ptp(moving, axis=2) == 0).any():  # a chain that stands still
        return np.inf, 0.0, 0.0
    rhat, bulk, tail = agreement(moving)
    return float(rhat.max()), float(bulk.min()), float(tail.min())
