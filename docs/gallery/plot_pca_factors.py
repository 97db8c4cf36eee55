"""
PCA, probabilistic PCA and factor analysis
==========================================

Six thermometers measure one temperature, and the last of them is bad: its noise is ten times that of the others. PCA
looks for the direction of largest variance, and most of the variance is that noise, so it follows the bad
thermometer. Probabilistic PCA has a noise in its model, but the same for every column, and its direction is that of
PCA. Factor analysis learns a noise for each column: it finds that the last column is mostly noise, gives it
hardly any weight in E[z | x], and recovers the temperature. Where the noise is equal in all columns, all three find
the right direction.
"""

import os

import matplotlib.pyplot as plt
import numpy as np

from latent_zoo import run

SMALL = "ZOO_GALLERY_SMALL" in os.environ  # fewer rows, for the tests
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True})

rng = np.random.default_rng(0)
z = rng.normal(size=200 if SMALL else 600)  # the temperature, in standard deviations
noise = np.array([0.4, 0.4, 0.4, 0.4, 0.4, 4.0])
x = z[:, None] + noise * rng.normal(size=(len(z), 6))

fits = {
    "PCA": run("ppca", x, latents=1, noise=0),
    "probabilistic PCA": run("ppca", x, latents=1),
    "factor analysis": run("factor_analysis", x, latents=1),
}

# %%
# PCA and probabilistic PCA have the same direction, the first eigenvector of the covariance matrix.

first = np.linalg.eigh(np.cov(x.T))[1][:, -1]
for name in ("PCA", "probabilistic PCA"):
    W = fits[name].parameters["loadings"][:, 0]
    assert np.isclose(abs(W @ first) / np.linalg.norm(W), 1, atol=1e-4), name

# %%
# Above: the direction that each finds, a unit vector, and the true one, equal in all columns. Below: the posterior
# mean of the latent, scaled to standard deviation 1, against the temperature.

figure, panels = plt.subplots(2, 3, figsize=(9.4, 5.4), sharey="row", height_ratios=(1, 1.25))
found = {}
for (name, fit), (above, below) in zip(fits.items(), panels.T, strict=True):
    W, score = fit.parameters["loadings"][:, 0], fit.transform().to_numpy()[:, 0]
    sign = np.sign(W.sum())  # z and −z are the same model
    found[name] = sign * np.corrcoef(score, z)[0, 1]
    above.bar(np.arange(1, 7), sign * W / np.linalg.norm(W), color=["#0072B2"] * 5 + ["#D55E00"])
    above.hlines(6**-0.5, 0.5, 6.5, color="k", lw=1, ls="--")
    above.set(xlabel="column (6 is the noisy one)", xticks=np.arange(1, 7))
    above.set_title(name, loc="left", fontsize=11)
    below.scatter(z, sign * score / score.std(), s=6, color="#0072B2", alpha=0.6, linewidths=0)
    below.plot([-3, 3], [-3, 3], color="k", lw=1, ls="--")
    below.set(xlabel="temperature (sd)")
    below.set_title(f"correlation {found[name]:.2f}", loc="left", fontsize=10)
panels[0, 0].set_ylabel("direction; dashed: the truth")
panels[1, 0].set_ylabel("E[z | x], sd 1; dashed: equal")
figure.suptitle("With noise of its own in one column, only factor analysis recovers the latent", x=0.01, ha="left")
assert found["factor analysis"] > 0.95 > 0.5 > found["PCA"]

# %%
# The commands, for a table of one's own: ``zoo run ppca --data table.csv --set latents=1`` and ``zoo run
# factor_analysis --data table.csv --set latents=1``.
