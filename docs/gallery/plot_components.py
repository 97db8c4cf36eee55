"""
How many components?
====================

More components always fit better, so the log-likelihood alone chooses too many. BIC takes off half a log n for each
parameter, and is an approximation of the evidence of the model; ICL also takes off the entropy of the labels, and so
asks for components that are apart; AIC takes off one nat a parameter, and is often generous. Rows that were left out
of the fit ask directly: what is log p of data that the model has not seen? On Old Faithful BIC and ICL choose two,
AIC asks for more and more, and rows left out hardly tell two from three.
"""

import os

import matplotlib.pyplot as plt

from latent_zoo import select

SMALL = "ZOO_GALLERY_SMALL" in os.environ  # fewer components, for the tests
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True})

K = range(1, 3 if SMALL else 6)
found = select(
    "gmm", "faithful", {"components": K}, by="bic", folds=2 if SMALL else 3, restarts=1 if SMALL else 2, jobs=1
)
print(found)
table = found.table.set_index("components")
print(table.round(1).to_string())

# %%
# Left: what each criterion says of K, less its value for the K that it chooses. Right: log p of rows left out.

figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 4))
for by, color, marker in (("bic", "#0072B2", "o"), ("icl", "#D55E00", "s"), ("aic", "#009E73", "^")):
    left.plot(table.index, table[by] - table[by].min(), color=color, marker=marker, label=by.upper())
    left.plot(table[by].idxmin(), 0, marker="o", ms=13, mfc="none", mec="k", ls="none")
left.set(xlabel="components", ylabel="criterion less its smallest value", xticks=table.index, ylim=(-3, None))
left.set_yscale("symlog", linthresh=10)
left.set_title("circles: the choice of each", loc="left", fontsize=10)
left.legend(frameon=False, loc="lower left")
right.errorbar(
    table.index, -table["heldout_behind"], yerr=table["heldout_behind_se"], fmt="o-", color="#0072B2", capsize=3
)
right.set(xlabel="components", ylabel="log p of rows left out, less the best; nats", xticks=table.index)
right.set_title("± 1 standard error of the difference", loc="left", fontsize=10)
figure.suptitle("BIC and ICL choose two components; rows left out hardly ask for more", x=0.01, ha="left")
assert SMALL or table["bic"].idxmin() == table["icl"].idxmin() == 2

# %%
# The project's own picture. The command: ``zoo select gmm --data faithful --set components=1:5 --folds 3``.

found.plot("bic")
