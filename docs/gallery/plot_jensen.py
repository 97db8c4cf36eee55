"""
Jensen's gap: the log of a mean, the mean of a log
==================================================

p(x) is the mean of the weights w = p(x, z) / q(z) over draws z from q. The logarithm is concave, so the log of that
mean is larger than the mean of the logs, which is the ELBO: the chord of a concave curve lies below it. What is lost
is KL(q‖p(z | x)), and it is 0 when all weights are equal. The log of the mean of K weights is a bound too, and its
gap falls as K grows (Burda, Grosse & Salakhutdinov 2016). With enough draws the bound becomes importance sampling's
estimate of log p(x).
"""

import os

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
from scipy.stats import norm

from latent_zoo import run

SMALL = "ZOO_GALLERY_SMALL" in os.environ  # few draws, for the tests
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True})


def program(x=None, size=None):
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)


X = 1.0
exact = run(program, np.array([[X]]), "em").claimed
assert exact.kind == "exact" and np.isclose(exact.value, norm(0, 2**0.5).logpdf(X))

# %%
# q is N(0, 1), and the posterior N(½, ½). ELBO and KL have closed forms, and log p(x) is their sum.

elbo = norm.logpdf(X) - 0.5  # E_q[log p(x | z)], with KL(q‖prior) = 0
kl = np.log(0.5**0.5) + (1 + 0.25) / (2 * 0.5) - 0.5  # between the two normals
assert np.isclose(elbo + kl, exact.value)

# %%
# Left: the curve, two weights, and the two averages. Right: the bound of K draws, by many repetitions.

rng = np.random.default_rng(0)
K = np.array([1, 2, 4, 8, 16, 32, 64, 128])
z = rng.normal(size=(1_000 if SMALL else 20_000, K[-1]))
log_w = norm(z, 1).logpdf(X)  # the prior and q cancel
bounds = np.array([np.logaddexp.reduce(log_w[:, :k], 1) - np.log(k) for k in K])  # [K, repetitions]
mean, se = bounds.mean(1), bounds.std(1) / len(z) ** 0.5
assert abs(mean[0] - elbo) < 4 * se[0] and (np.diff(mean) > 0).all() and mean[-1] < exact.value + 4 * se[-1]

figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 4))
curve, ends = np.linspace(0.015, 0.43, 300), np.array([0.04, 0.38])
left.plot(curve, np.log(curve), color="k", lw=1.8)
left.plot(ends, np.log(ends), "o-", color="#0072B2", lw=1.2)
middle, low, high = ends.mean(), np.log(ends).mean(), np.log(ends.mean())
left.annotate("", (middle, high), (middle, low), arrowprops={"arrowstyle": "<->", "color": "#D55E00", "lw": 1.8})
left.plot([middle] * 2, [low, high], "o", color="#D55E00")
left.text(middle - 0.01, high + 0.06, "log of the mean", ha="right", va="bottom", color="#D55E00")
left.text(middle + 0.012, low - 0.08, "mean of the logs;\nbetween them the gap", va="top", color="#D55E00")
left.text(ends[0] + 0.015, np.log(ends[0]) - 0.1, "one weight", color="#0072B2", va="top")
left.text(ends[1], np.log(ends[1]) + 0.08, "another", color="#0072B2", va="bottom", ha="center")
left.set(xlabel="w", ylabel="log w")
left.set_title("the chord lies below the curve", loc="left", fontsize=10)

right.axhline(exact.value, color="k", ls="--", lw=1.2)
right.text(K[-1], exact.value + 0.01, "log p(x), exact", va="bottom", ha="right")
right.fill_between(K, mean, exact.value, color="#D55E00", alpha=0.2, linewidth=0)
right.plot(K, mean, "o-", color="#0072B2")
right.text(
    1.25, mean[0], f"K = 1 is the ELBO: its gap is KL(q‖p) = {kl:.2f} nats", va="center", color="#D55E00", fontsize=9
)
right.set(
    xlabel="K, weights in the mean", ylabel="mean of the log of the mean, nats", xscale="log", ylim=(-1.97, -1.46)
)
right.set_xticks(K, [str(k) for k in K])
right.minorticks_off()
right.set_title("more weights in the mean, a smaller gap", loc="left", fontsize=10)
figure.suptitle(
    "The mean of a log lies below the log of a mean: by KL(q‖p) for one draw, by less for K", x=0.01, ha="left"
)

# %%
# The option that climbs the bound of K draws: ``zoo run deep_latent_gaussian --data digits --method svi --set
# particles=8``.
