"""
The steps of EM
===============

EM begins at a bad guess and alternates two steps. The E-step gives each point to the components in the shares p(z |
x), which are its colours here; the M-step moves each component to the weighted mean and covariance of its points. No
step lowers log p(x), which is why the curve at the end only rises. The program below says where to begin, and nothing
of EM: the method reads from the program that z can be enumerated and that both parameters have a closed-form M-step.
Stopping after k iterations gives the k-th picture.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.animation import FuncAnimation
from scipy.stats import multivariate_normal
from torch.distributions import constraints

from latent_zoo import run

SMALL = "ZOO_GALLERY_SMALL" in os.environ  # few iterations, for the tests
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True})


def mixture(x=None, size=None):
    weights = pyro.param("weights", torch.ones(2) / 2, constraint=constraints.simplex)
    locs = pyro.param("locs", torch.tensor([[-1.5, 1.0], [1.5, -1.0]]))
    tril = pyro.param("tril", torch.eye(2).repeat(2, 1, 1) * 0.7, constraint=constraints.lower_cholesky)
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.MultivariateNormal(locs[z], scale_tril=tril[z]), obs=x)


# %%
# One run for each number of iterations, all from the start values of the program. Its first log p(x) can be checked
# by hand.

STEPS = (1, 2, 3) if SMALL else (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16)
runs = {
    k: run(mixture, "faithful", "em", standardize=True, start="program", accelerate=False, max_iter=k) for k in STEPS
}
x = runs[1].x
start = {
    "weights": np.full(2, 0.5),
    "locs": np.array([[-1.5, 1.0], [1.5, -1.0]]),
    "tril": np.stack([np.eye(2) * 0.7] * 2),
}


def joint(theta):
    """log p(x, z = k) [n, 2]"""
    parts = zip(theta["weights"], theta["locs"], theta["tril"], strict=True)
    return np.stack([np.log(w) + multivariate_normal(m, L @ L.T).logpdf(x) for w, m, L in parts], 1)


thetas = {0: start, **{k: r.parameters for k, r in runs.items()}}
log_p = {k: np.logaddexp.reduce(joint(theta), 1).sum() for k, theta in thetas.items()}
assert all(np.isclose(log_p[k], r.claimed.value) for k, r in runs.items())  # the same by SciPy
assert (np.diff(list(log_p.values())) > 0).all()  # it never falls

# %%
# Six of them as small multiples.

BLUE, RED = np.array([0, 114, 178]) / 255, np.array([213, 94, 0]) / 255
CIRCLE = np.stack([np.cos(a := np.linspace(0, 2 * np.pi, 100)), np.sin(a)])


def draw(axes, k):
    theta = thetas[k]
    share = np.exp(joint(theta)[:, :1] - np.logaddexp.reduce(joint(theta), 1)[:, None])
    axes.scatter(*x.T, s=9, color=share * BLUE + (1 - share) * RED, alpha=0.8, linewidths=0)
    for m, L, color in zip(theta["locs"], theta["tril"], (BLUE, RED), strict=True):
        axes.plot(*(m[:, None] + 2 * L @ CIRCLE), color=color, lw=1.8)
    iterations = "the start" if k == 0 else "1 iteration" if k == 1 else f"{k} iterations"
    axes.set_title(f"{iterations}: log p(x) = {log_p[k]:.1f}".replace("-", "−"), fontsize=10, loc="left")
    axes.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), aspect="equal")


shown = list(thetas)[:4] if SMALL else [0, 1, 3, 5, 8, 12]
figure, panels = plt.subplots(2, len(shown) // 2, figsize=(9, 6.4), sharex=True, sharey=True)
for axes, k in zip(panels.ravel(), shown, strict=True):
    draw(axes, k)
figure.suptitle("EM finds the two clusters from a bad start, and log p(x) rises in every step", x=0.01, ha="left")
figure.supxlabel("length of the eruption (standard deviations from the mean)", fontsize=10)
figure.supylabel("wait for the next one (standard deviations)", fontsize=10)

# %%
# The same as an animation, beside log p(x).

film, (left, right) = plt.subplots(1, 2, figsize=(9, 4.4))


def frame(i):
    k = list(thetas)[i]
    left.clear()
    right.clear()
    draw(left, k)
    left.set(xlabel="length of the eruption (sd)", ylabel="wait for the next one (sd)")
    right.plot(list(log_p), list(log_p.values()), color="0.8", lw=1.5)
    right.plot(list(log_p)[: i + 1], list(log_p.values())[: i + 1], "o-", color="k", ms=4)
    right.set(xlabel="iterations", ylabel="log p(x), nats")


animation = FuncAnimation(film, frame, frames=len(thetas), interval=600)

# %%
# The command that fits Old Faithful without a bad start: ``zoo run gmm --data faithful --standardize --out
# runs/geyser``; then ``zoo plot runs/geyser`` draws the clusters and the trace.
