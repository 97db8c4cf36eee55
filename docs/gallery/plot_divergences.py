"""
KL(q‖p) and KL(p‖q)
===================

p is a strongly correlated normal, and q a normal with one variance for both directions, so q cannot be p. KL(q‖p) is
large where q puts probability and p has none: the q that is best by it stays within the narrow direction of p, and
its variance is the harmonic mean of p's along its axes. KL(p‖q) is large where p has probability and q has none: the
best q by it covers all of p, and its variance is the arithmetic mean. Variational inference minimises the first,
which is why its posteriors are often too narrow. Where the wake phase of wake–sleep, or maximum likelihood, fits a
distribution to draws of p, it minimises the second.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import minimize_scalar

SMALL = "ZOO_GALLERY_SMALL" in os.environ  # nothing here is large
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True})

CORRELATION = 0.9
covariance = np.array([[1, CORRELATION], [CORRELATION, 1]])
precision = np.linalg.inv(covariance)


def gaussian_kl(a, b):
    """KL(N(0, a)‖N(0, b)) for covariance matrices a and b; nats."""
    return 0.5 * (np.trace(np.linalg.solve(b, a)) - len(a) + np.linalg.slogdet(b)[1] - np.linalg.slogdet(a)[1])


kinds = {
    "KL(q‖p)": lambda v: gaussian_kl(v * np.eye(2), covariance),
    "KL(p‖q)": lambda v: gaussian_kl(covariance, v * np.eye(2)),
}
closed = {"KL(q‖p)": 2 / np.trace(precision), "KL(p‖q)": np.trace(covariance) / 2}
found = {
    name: minimize_scalar(kl, bounds=(0.01, 5), method="bounded", options={"xatol": 1e-9}).x
    for name, kl in kinds.items()
}
assert all(np.isclose(found[name], closed[name], rtol=1e-5) for name in kinds)

# %%

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.7), width_ratios=(1, 1, 1.2))
angle = np.linspace(0, 2 * np.pi, 200)
circle, root = np.stack([np.cos(angle), np.sin(angle)]), np.linalg.cholesky(covariance)
colors = {"KL(q‖p)": "#0072B2", "KL(p‖q)": "#D55E00"}
for axes, name in ((left, "KL(q‖p)"), (middle, "KL(p‖q)")):
    for sds, shade in ((2, "0.9"), (1, "0.75")):
        axes.fill(*(sds * root @ circle), color=shade)
        axes.plot(*(sds * found[name] ** 0.5 * circle), color=colors[name], lw=1.8)
    axes.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), aspect="equal", xlabel="z₁", ylabel="z₂")
    axes.set_title(f"{name}: variance {found[name]:.2f}", loc="left", fontsize=10, color=colors[name])
left.text(-2.4, 2.1, "grey: p, 1 and 2 sd\ncircles: q, the same", fontsize=9, va="center")
v = np.geomspace(0.03, 5, 200)
for name, kl in kinds.items():
    right.plot(v, [kl(u) for u in v], color=colors[name], lw=1.8, label=name)
    right.plot(found[name], kl(found[name]), "o", color=colors[name])
right.set(xscale="log", ylim=(0, 4), xlabel="variance of q", ylabel="nats")
right.legend(frameon=False)
right.set_title("each has its own minimum", loc="left", fontsize=10)
figure.suptitle("The best isotropic q is narrow under KL(q‖p) and wide under KL(p‖q)", x=0.01, ha="left")

# %%
# The command that draws both, for this p and for one with two bumps: ``zoo bench divergences``; for the posterior of
# one row of a program: ``zoo bench divergences file.py:program --set data=table.csv --set row=0``.
