"""
log p(x) = ELBO + KL, as areas
==============================

For any q(z), log p(x) is the sum of two terms: the ELBO, E_q[log p(x, z) − log q(z)], and KL(q‖p(z | x)). The second
is never negative, so the first is a lower bound, and a better q only moves area from the second to the first. EM
climbs by the same picture. Its E-step makes q the posterior, so that the KL is 0 and the bound touches log p(x). Its
M-step changes θ to raise the bound; log p(x) rises by more, since q is no longer the posterior, and a new KL opens.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy.stats import norm
from torch.distributions import constraints

from latent_zoo import run

SMALL = "ZOO_GALLERY_SMALL" in os.environ  # fewer iterations, for the tests
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True})
BLUE, ORANGE = "#56B4E9", "#E69F00"

# %%
# First one datum at fixed θ: z ~ N(0, 1) and x | z ~ N(z, 1), with x = 1. The posterior is N(½, ½); q is N(m, ½) for
# many m.


def shifted(x=None, size=None):
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)


exact = run(shifted, np.array([[1.0]]), "em").claimed.value
m, variance = np.linspace(-1.2, 2.2, 201), 0.5
expected = -np.log(2 * np.pi) - 0.5 * (m**2 + variance + (1 - m) ** 2 + variance)  # E_q[log p(x, z)]
bound = expected + norm(0, variance**0.5).entropy()
kl = (m - 0.5) ** 2 / (2 * variance)
assert np.allclose(bound + kl, exact)

# %%
# Then EM on the waiting times of Old Faithful, from a start with both components near the middle.


def mixture(x=None, size=None):
    weights = pyro.param("weights", torch.ones(2) / 2, constraint=constraints.simplex)
    locs = pyro.param("locs", torch.tensor([60.0, 78.0]))
    scales = pyro.param("scales", torch.tensor([12.0, 12.0]), constraint=constraints.positive)
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.Normal(locs[z].unsqueeze(-1), scales[z].unsqueeze(-1)).to_event(1), obs=x)


ITERATIONS = 3 if SMALL else 5
runs = [
    run(mixture, "faithful", "em", columns="waiting", start="program", accelerate=False, max_iter=k)
    for k in range(1, ITERATIONS + 1)
]
x = runs[0].x


def joint(theta):
    """log p(x, z = k) [n, 2]"""
    return np.log(theta["weights"]) + norm(theta["locs"], theta["scales"]).logpdf(x)


def posterior(theta):
    return np.exp(joint(theta) - np.logaddexp.reduce(joint(theta), 1)[:, None])


steps = []  # (what, ELBO, KL) after each step; sums over the data
for k, now in enumerate(runs):
    log_p = np.logaddexp.reduce(joint(now.parameters), 1).sum()
    assert np.isclose(log_p, now.claimed.value)
    if k:
        q, p = posterior(runs[k - 1].parameters), posterior(now.parameters)
        elbo, divergence = (q * (joint(now.parameters) - np.log(q))).sum(), (q * np.log(q / p)).sum()
        assert np.isclose(elbo + divergence, log_p)
        steps.append(("M", elbo, divergence))
    steps.append(("E", log_p, 0.0))
assert (np.diff([elbo for _, elbo, _ in steps]) > -1e-9).all()  # the bound never falls

# %%

figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), width_ratios=(1, 1.25))
floor = bound.min() - 0.6
left.fill_between(m, floor, bound, color=BLUE, linewidth=0)
left.fill_between(m, bound, exact, color=ORANGE, linewidth=0)
left.axhline(exact, color="k", lw=1.5)
left.text(m[0], exact + 0.06, "log p(x), whatever q is", va="bottom")
left.text(0.5, (floor + exact) / 2 - 0.4, "ELBO", ha="center", fontsize=12)
left.text(-0.95, exact - 0.35, "KL(q‖p)", fontsize=12, va="center")
left.set(xlabel="m, the mean of q (the posterior's is ½)", ylabel="nats", xlim=(m[0], m[-1]), ylim=(floor, exact + 0.5))
left.set_title("one datum, θ fixed: q moves the border", loc="left", fontsize=10)

elbo, divergence = (np.array([s[i] for s in steps]) for i in (1, 2))
at, floor = np.arange(len(steps)), elbo[0] - 0.35 * np.ptp(elbo)
right.bar(at, elbo - floor, bottom=floor, color=BLUE, width=0.85, label="ELBO")
right.bar(at, divergence, bottom=elbo, color=ORANGE, width=0.85, label="KL(q‖p)")
right.plot(at, elbo + divergence, "_", color="k", ms=22, mew=1.5, label="log p(x; θ)")
right.set(ylabel="nats, 272 waiting times", ylim=(floor, (elbo + divergence).max() + 2), xlabel="steps of EM")
right.set_xticks(at, [s[0] for s in steps])
right.legend(frameon=False, loc="upper left")
right.set_title("EM: E closes the KL, M raises both", loc="left", fontsize=10)
figure.suptitle("log p(x) = ELBO + KL(q‖p(z | x)): a better q moves area from the KL to the ELBO", x=0.01, ha="left")

# %%
# The command that takes the KL of a fitted guide apart, row by row: ``zoo gap RUN`` (see :doc:`/gap`).
