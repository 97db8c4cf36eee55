"""
Calibration: a method that passes and one that fails
====================================================

Does a posterior that says 80% hold the truth 8 times in 10? On data that the program itself simulates the truth is
known, and its rank among posterior draws is uniform if the posterior is right (Talts et al. 2018). The program here
has a count in each row, whose log-rate is the latent. Importance sampling gives weighted draws of the posterior, and
its ranks stay within the band. Laplace's normal misses the long tail towards low rates: its ranks leave the band, and
the test says what is wrong.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist

from latent_zoo import calibrate

SMALL = "ZOO_GALLERY_SMALL" in os.environ  # few simulations, for the tests
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True})


def counts(x=None, size=None):
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(-1.0, 3.0))  # the log of the rate
        return pyro.sample("x", dist.Poisson(z.exp().unsqueeze(-1)).to_event(1), obs=x)


# %%
# Where a count is large, few draws from the prior come near it: k-hat doubts such rows, and their fits count as not
# converged.

SIMULATIONS = 10 if SMALL else 80
found = {
    "importance": calibrate(
        counts, "importance", proposal="prior", samples=5000, simulations=SIMULATIONS, rows=3, jobs=1
    ),
    "laplace": calibrate(counts, "laplace", simulations=SIMULATIONS, rows=3, jobs=1),
}
for method, outcome in found.items():
    print(method, "-", outcome.verdict)
    print(outcome)
if not SMALL:
    assert found["importance"].verdict == "passes" and found["laplace"].verdict == "fails"

# %%
# The share of ranks up to each value, less what it is for uniform ranks. θ is fixed, so the rows are independent, and
# their ranks stand in one curve. Grey is where the whole curve of uniform ranks stays 95 times in 100
# (Kolmogorov–Smirnov).

figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
z = np.linspace(0, 1, 501)
for axes, (method, outcome) in zip(panels, found.items(), strict=True):
    color = "#0072B2" if method == "importance" else "#D55E00"
    ranks = np.sort(np.concatenate([q.ranks for q in outcome.quantities if q.name.startswith("z")]))
    reach = 1.358 / len(ranks) ** 0.5
    axes.axhspan(-reach, reach, color="0.9", linewidth=0)
    axes.axhline(0, color="0.5", lw=0.8)
    axes.plot(z, np.searchsorted(ranks, z, side="right") / len(ranks) - z, color=color, lw=1.8)
    axes.set(xlabel="rank of the truth among the draws, 0 to 1")
    axes.set_title(f"{method}: {outcome.verdict}", loc="left", fontsize=10, color=color)
panels[0].set_ylabel("share of ranks up to it, less uniform")
figure.suptitle("A right posterior has uniform ranks; Laplace's lies too high", x=0.01, ha="left")

# %%
# The commands, for a program in a file: ``zoo calibrate counts.py:counts --method laplace --rows 3`` and the same
# with ``--method importance --set proposal=prior``. How to read the outcome: :doc:`/calibration`.
