"""
EM without noise is alternating least squares
=============================================

Probabilistic PCA has a latent plane and noise around it. As the noise goes to 0, EM's two steps become two regressions
(Roweis 1998). The E-step finds each row's coordinates on the plane that W spans, (WᵀW)⁻¹ Wᵀ x: a regression of the row on W.
The M-step finds the plane through those coordinates, X Zᵀ (Z Zᵀ)⁻¹: a regression of the columns on the coordinates. Taken
in turn, they end at the plane of PCA. The angle that is left shrinks by λ₃ / λ₂ a step, the ratio of the first eigenvalue
that is left out to the last that is kept.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.linalg import subspace_angles

from latent_zoo import run

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True})

rng = np.random.default_rng(0)
x = rng.normal(size=(100, 5)) * [3.0, 2.0, 1.0, 0.7, 0.5]
x -= x.mean(0)


def em(steps):
    """W after so many steps of EM, always from the same start; `noise=0` keeps σ at a millionth of the data's own."""
    fit = run("ppca", x, latents=2, noise=0, max_iter=steps, accelerate=False, start="program")
    return fit.parameters["loadings"]


def als(W):
    """Coordinates on the plane of W, then the plane through them."""
    z = np.linalg.solve(W.T @ W, W.T @ x.T)
    return np.linalg.solve(z @ z.T, z @ x).T


# %%
# Both begin at the first step of EM, and their loadings are equal at every step, to rounding.

by_em = [em(k) for k in range(1, 9)]
by_als = [by_em[0]]
for _ in by_em[1:]:
    by_als.append(als(by_als[-1]))
print("largest difference:", f"{max(abs(a - b).max() for a, b in zip(by_em, by_als, strict=True)):.1e}")

# %%
# The largest angle between their plane and PCA's, and the straight line that the eigenvalues promise.

_, singular, axes = np.linalg.svd(x)
angles = {name: [subspace_angles(W, axes[:2].T)[0] for W in each] for name, each in (("EM", by_em), ("ALS", by_als))}
steps = np.arange(1, len(by_em) + 1)

figure, panel = plt.subplots(figsize=(6.4, 3.6))
panel.semilogy(steps, angles["EM"], "o", markersize=9, markerfacecolor="none", label="EM, σ → 0")
panel.semilogy(steps, angles["ALS"], ".", label="alternating least squares")
rate = (singular[2] / singular[1]) ** 2
panel.semilogy(steps, angles["EM"][-1] * rate ** (steps - steps[-1]), color="0.7", zorder=0, label="λ₃ / λ₂ a step")
panel.set(xlabel="step", ylabel="angle to PCA's plane")
panel.legend(frameon=False)
plt.show()

# %%
# The same model on a table: ``zoo run ppca --data wine --standardize --set noise=0``.
