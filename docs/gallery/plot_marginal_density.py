"""
A density as the sum of its components
======================================

A mixture says that each waiting time of Old Faithful comes from one of K bumps, and does not say from which. The
density of a waiting time is then a sum over that unknown: p(x) = Σ π_k N(x; μ_k, σ_k²). Here each term is an area,
stacked on the ones before: the outline of the stack is p(x). The height of one colour over the height of the stack,
at one x, is the posterior p(z = k | x). Each area is the share π_k of the eruptions that come from that component,
and together they have area one.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import norm

from latent_zoo import run

SMALL = "ZOO_GALLERY_SMALL" in os.environ  # fewer points on the axis, for the tests
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True})

fit = run("gmm", data="faithful", columns="waiting", components=2)
print(fit)

# %%
# The terms of the sum by hand, and the program's own p(x) at the same points: they are the same numbers.

order = np.argsort(fit.parameters["locs"][:, 0])
weights = fit.parameters["weights"][order]
means, sds = fit.parameters["locs"][order, 0], fit.parameters["scale_tril"][order, 0, 0]
x = np.linspace(35, 105, 71 if SMALL else 701)
terms = weights[:, None] * norm(means[:, None], sds[:, None]).pdf(x)  # [components, points]
assert np.allclose(terms.sum(0), np.exp(fit.score(x[:, None]).per_datum))
areas = np.trapezoid(terms, x, axis=1)
assert np.allclose(areas, weights, atol=1e-3) and np.isclose(areas.sum(), 1, atol=1e-3)

# %%

figure, axes = plt.subplots(figsize=(7.2, 4.2))
colors = ("#56B4E9", "#E69F00")
axes.stackplot(x, terms, colors=colors, alpha=0.65)
axes.hist(fit.x[:, 0], np.arange(41, 100, 3), density=True, histtype="step", color="0.45", label="272 waiting times")
axes.plot(x, terms.sum(0), color="k", lw=1.8, label="p(x), the sum")
for w, m, s, color in zip(weights, means, sds, ("#0072B2", "#A05A00"), strict=True):
    axes.text(m, 0.4 * w * norm.pdf(0) / s, f"{w:.0%} of\nthe area", ha="center", va="center", color="k", fontsize=10)
    axes.plot(x, w * norm(m, s).pdf(x), color=color, lw=1.2, ls="--")
axes.set(xlabel="wait for the next eruption, minutes", ylabel="density, per minute", ylim=(0, None))
axes.set_title("p(x) is the sum of its components, each with the area of its weight", loc="left", fontsize=11)
axes.legend(frameon=False, loc="upper left")

# %%
# The command that gives the same fit, and the project's own picture of it: ``zoo run gmm --data faithful --columns
# waiting --out runs/waits``, then ``zoo plot runs/waits``.

fit.plot("clusters")
