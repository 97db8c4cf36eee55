"""
Laplace's approximation: where it is off, and why it gets better
================================================================

Laplace's approximation puts a normal at the mode of a density, with the curvature there. Of a skewed posterior it has
the mode right and the mean and tails wrong: above, the logarithm of a rate of which one count was seen. Below is why
it works so often. A posterior of n data looks like exp(−n l(w)), and as n grows all its mass moves to where l is
nearly its parabola: the integral over the approximation tends to 1, with an error of 1/(12 n) for this l. That is
Stirling's formula for n!.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
from scipy.special import gammaln
from scipy.stats import norm

from latent_zoo import run

SMALL = "ZOO_GALLERY_SMALL" in os.environ  # nothing here is large
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True})


def counts(x=None, size=None):
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 2.0))  # the log of the rate
        return pyro.sample("x", dist.Poisson(z.exp().unsqueeze(-1)).to_event(1), obs=x)


seen = np.array([[0.0], [1.0], [20.0]])
fit = run(counts, seen, "laplace")
mean, sd = fit.fit.means["z"], fit.fit.deviations["z"]
print(fit)
print(*fit.warnings)

# %%
# The truth by quadrature. The mean of the Gaussian is nearer to it for a larger count. The warning of the run, by
# k-hat, looks at the tails, and need not go in that order.

z = np.linspace(-12, 8, 20_001)
log_joint = norm(0, 2).logpdf(z) + seen * z - np.exp(z) - gammaln(seen + 1)  # [3, points]
exact = np.log(np.trapezoid(np.exp(log_joint), z, axis=1))
posterior = np.exp(log_joint - exact[:, None])
true_mean = np.trapezoid(posterior * z, z, axis=1)
off = mean - true_mean
assert np.allclose(mean, z[log_joint.argmax(1)], atol=2e-3)  # it stands at the mode
assert (off > 0).all() and (np.diff(off) < 0).all()
print("log p(x): Laplace less the truth,", (fit.claimed.per_datum - exact).round(4), "nats; k-hat", fit.khat.round(2))

# %%
# l(w) = w − 1 − log w has its minimum 0 at w = 1, with curvature 1; the integral of exp(−n l) is n! eⁿ / nⁿ⁺¹.

n = np.array([1, 2, 4, 8, 16, 32, 64, 128])
log_ratio = gammaln(n + 1) + n - (n + 1) * np.log(n) - 0.5 * np.log(2 * np.pi / n)
assert np.allclose(np.expm1(log_ratio), 1 / (12 * n), rtol=0.1)

# %%

figure, panels = plt.subplots(2, 3, figsize=(10, 5.6))
for axes, p, m, s, count, wrong in zip(panels[0], posterior, mean, sd, seen[:, 0], off, strict=True):
    axes.fill_between(z, p, color="0.85", label="posterior")
    axes.plot(z, norm(m, s).pdf(z), color="#D55E00", lw=1.8, label="Laplace")
    axes.set(xlim=(m - 5 * s, m + 4 * s), ylim=(0, None), xlabel="log of the rate")
    axes.set_title(f"count {count:.0f}: mean too high by {wrong:.2f}", loc="left", fontsize=10)
panels[0, 0].set_ylabel("density")
panels[0, 0].legend(frameon=False, loc="upper left")
w = np.linspace(1e-3, 3.5, 800)
for axes, size in zip(panels[1, :2], (2, 32), strict=True):
    axes.fill_between(w, np.exp(-size * (w - 1 - np.log(w))), color="0.85", label="exp(−n l(w))")
    axes.plot(w, np.exp(-size * (w - 1) ** 2 / 2), color="#D55E00", lw=1.8, label="by the parabola of l")
    axes.set(xlabel="w", ylim=(0, 1.25), xlim=(0, 3.5))
    axes.set_title(f"n = {size}", loc="left", fontsize=10)
panels[1, 0].legend(frameon=False, loc="upper right", fontsize=9)
panels[1, 0].set_ylabel("exp(−n l(w))")
panels[1, 2].plot(n, np.expm1(log_ratio), "o-", color="#D55E00", label="integral over Laplace's, less 1")
panels[1, 2].plot(n, 1 / (12 * n), color="k", lw=1, ls="--", label="1/(12 n)")
panels[1, 2].set(xscale="log", yscale="log", ylim=(4e-4, 0.6), xlabel="n")
panels[1, 2].set_title("the error falls as 1/n", loc="left", fontsize=10)
panels[1, 2].legend(frameon=False, fontsize=9, loc="upper right")
figure.suptitle("Laplace has the mode right; skewness makes its error, which more data remove", x=0.01, ha="left")

# %%
# The command, for a program in a file and counts in a table: ``zoo run counts.py:counts --data counts.csv --method
# laplace``.
