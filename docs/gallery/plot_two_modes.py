"""
One bump for a posterior with two
=================================

x is z² and some noise, so that from x = 2.5 we know the size of z but not its sign: the posterior has a bump on
either side, the right one larger, for the prior leans there. A normal q that is fitted by the ELBO minimises KL(q‖p),
which is infinite where q is and p is not: it takes one bump and leaves the other. The price of a bump is about −log
of its share of the posterior, so the larger bump is cheaper; but a climb goes downhill from where it begins, and ends
in the bump whose basin that is. Its draws never see the other bump: k-hat, which looks at the draws, can be low for a
q that misses a third of the posterior.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
from scipy.optimize import minimize
from scipy.stats import norm

from latent_zoo import run

SMALL = "ZOO_GALLERY_SMALL" in os.environ  # few steps, for the tests
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True})
X, LEAN, NOISE = 2.5, 0.25, 0.5


def program(x=None, size=None):
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(LEAN, 1.0))
        return pyro.sample("x", dist.Normal(z.square().unsqueeze(-1), NOISE).to_event(1), obs=x)


# %%
# The posterior by quadrature, and KL(q‖p) for q = N(m, s²) at any m and s: an expectation by Gauss–Hermite points.

grid = np.linspace(-6, 6, 6001)
nodes, node_weights = np.polynomial.hermite_e.hermegauss(60)
node_weights = node_weights / node_weights.sum()


def log_joint(z):
    return -0.5 * ((z - LEAN) ** 2 + ((X - z**2) / NOISE) ** 2) - np.log(2 * np.pi * NOISE)


log_p = np.log(np.trapezoid(np.exp(log_joint(grid)), grid))
right_share = np.trapezoid(np.exp(log_joint(grid[grid >= 0])), grid[grid >= 0]) / np.exp(log_p)


def kl(v):
    m, log_s = v
    entropy = 0.5 * np.log(2 * np.pi * np.e) + log_s
    return log_p - node_weights @ log_joint(m + np.exp(log_s) * nodes) - entropy


climbs = []
for start in ((-2.4, -0.3), (-0.9, 0.4), (0.1, 0.4), (0.8, -1.6), (2.4, 0.2), (-0.5, -1.4)):
    path = [np.array(start)]
    minimize(kl, path[0], method="BFGS", callback=lambda v, path=path: path.append(v.copy()))
    climbs.append(np.array(path))
ends = np.array([c[-1] for c in climbs])
nats = np.array([kl(v) for v in ends])
price = np.where(ends[:, 0] > 0, -np.log(right_share), -np.log(1 - right_share))
assert (np.abs(nats - price) < 0.06).all() and set(np.sign(ends[:, 0])) == {-1.0, 1.0}

# %%
# The same by the tool: svi with a normal of its own for each of 60 rows, all of them x = 2.5. Chance decides which
# bump each takes.

fit = run(
    program,
    np.full((60, 1), X),
    "svi",
    guide="mean_field",
    lr=0.1,
    batch=60,
    epochs=20 if SMALL else 1500,
    schedule="cosine",
)
centres = fit.fit.draws["z"].mean(0)
print(f"{(centres > 0).mean():.0%} of the rows took the right bump")
print(f"claimed: {fit.claimed}; log p(x) is {60 * log_p:.3f}; the median k-hat is {np.median(fit.khat):.2f}")
assert fit.claimed.kind == "lower bound" and fit.claimed.value < 60 * log_p

# %%

figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2))
left.fill_between(grid, np.exp(log_joint(grid) - log_p), color="0.85", label="posterior p(z | x)")
for sign, color in ((1, "#0072B2"), (-1, "#D55E00")):
    m, s = ends[np.sign(ends[:, 0]) == sign][0]
    name = f"q, KL = {kl((m, s)):.2f} nats"
    left.plot(grid, norm(m, np.exp(s)).pdf(grid), color=color, lw=1.8, label=name)
left.set(xlim=(-3, 3), ylim=(0, 3.3), xlabel="z", ylabel="density")
left.legend(frameon=False, loc="upper left")
left.set_title(
    f"either bump is a best q near by: shares {1 - right_share:.0%} and {right_share:.0%}", loc="left", fontsize=10
)

ms, ss = np.linspace(-3, 3, 121), np.linspace(-2.6, 0.9, 91)
surface = np.array([[kl((m, s)) for m in ms] for s in ss])
levels = np.array([0.35, 0.5, 1, 1.5, 2, 3, 5, 10, 20, 50, 100, 1000])
shown = right.contourf(ms, np.exp(ss), np.log(surface), np.log(levels), cmap="Greys_r", extend="both")
for path in climbs:
    color = "#0072B2" if path[-1, 0] > 0 else "#D55E00"
    right.plot(path[:, 0], np.exp(path[:, 1]), ".-", color=color, lw=1.2, ms=4)
    right.plot(*(path[0] * [1, 0] + [0, np.exp(path[0, 1])]), "o", color=color, mec="w", ms=7)
bar = figure.colorbar(shown, ax=right, ticks=np.log([0.5, 1, 2, 5, 20, 100]), label="KL(q‖p), nats")
bar.ax.set_yticklabels(["0.5", "1", "2", "5", "20", "100"])
right.set(xlabel="m, the mean of q", ylabel="s, its standard deviation", yscale="log", ylim=(np.exp(-2.6), np.exp(0.9)))
right.set_yticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
right.set_title("which one a climb takes depends on its start (○)", loc="left", fontsize=10)
figure.suptitle("A normal q takes one bump of two, the one in whose basin it begins", x=0.01, ha="left")
