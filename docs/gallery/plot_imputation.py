"""
Imputation with honest intervals
================================

A quarter of the measurements of 150 irises are hidden, at random. A mixture of Gaussians is fitted to what is left:
EM sums over the missing entries as over any latent, and no row is thrown away. Given a row's observed entries, the
model has a distribution for its missing ones, and an interval from its draws says how sure it is. Since the truth is
known here, the intervals can be checked: of those that claim 80%, about 80% hold the truth. A column's own quantiles
hold it as often, but are much wider, for they do not look at the row.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_iris

from latent_zoo import run

SMALL = "ZOO_GALLERY_SMALL" in os.environ  # few draws, for the tests
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True})

truth = load_iris().data
hidden = np.random.default_rng(1).random(truth.shape) < 0.25
x = np.where(hidden, np.nan, truth)
fit = run("gmm", x, "em", components=3, covariance="tied")
imputed = fit.impute(draws=50 if SMALL else 1000)
print(fit)

# %%
# Central intervals of each hidden entry, from its draws and from what was seen of its column.

levels = np.array([0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
ends = np.stack([0.5 - levels / 2, 0.5 + levels / 2])  # [2, levels]
own = np.quantile(imputed.draws[:, hidden], ends, axis=0)  # [2, levels, hidden]
column = np.nanquantile(x, ends, axis=0)[..., np.nonzero(hidden)[1]]
value = truth[hidden]
covered = {
    name: ((interval[0] <= value) & (value <= interval[1])).mean(1)
    for name, interval in (("the row's own draws", own), ("the column's quantiles", column))
}
width = [np.mean(interval[1, 5] - interval[0, 5]) for interval in (own, column)]
error = np.sqrt(levels * (1 - levels) / hidden.sum())
print("covered", {k: v.round(2) for k, v in covered.items()}, "mean width at 80%", np.round(width, 2))

# %%

figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), width_ratios=(1.4, 1))
center, (low, high) = imputed.mean[hidden], own[:, 5]
order = np.argsort(value)
at = np.arange(len(value))
inside = ((low <= value) & (value <= high))[order]
for part, color, name in ((inside, "#0072B2", "holds the truth"), (~inside, "#D55E00", "does not")):
    left.vlines(
        at[part], low[order][part], high[order][part], color=color, alpha=0.6, lw=1.6, label=f"80% interval, {name}"
    )
left.plot(at, value[order], ".", color="k", ms=4, label="the truth")
left.set(xlabel=f"{len(value)} hidden measurements, sorted", ylabel="cm")
left.legend(frameon=False, fontsize=9)
left.set_title(f"of the 80% intervals {inside.mean():.0%} hold the truth", loc="left", fontsize=10)
right.fill_between(
    levels, levels - 2 * error, levels + 2 * error, color="0.9", linewidth=0, label="± 2 standard errors"
)
right.plot([0.15, 1], [0.15, 1], color="0.5", lw=0.8)
for (name, share), color, w in zip(covered.items(), ("#0072B2", "#E69F00"), width, strict=True):
    right.plot(levels, share, "o-", color=color, ms=4, label=f"{name}: {w:.1f} cm wide")
right.set(xlabel="what an interval claims", ylabel="share that hold the truth", ylim=(0.1, 1.3))
right.legend(frameon=False, fontsize=9, loc="upper left")
right.set_title("claimed and true coverage agree", loc="left", fontsize=10)
figure.suptitle("Imputed intervals hold the truth as often as they say, and are narrow", x=0.01, ha="left")
assert SMALL or (np.abs(covered["the row's own draws"] - levels) < 3 * error).all()

# %%
# The commands, for a table with holes: ``zoo run gmm --data table.csv --set components=3 --out runs/table``, then
# ``zoo impute runs/table``, which writes means, standard deviations and joint draws.
