"""
PCA is a linear autoencoder
===========================

An autoencoder squeezes each image through a few numbers and restores what it can: x → z = A(x − μ) → Bz + μ. With
linear maps its squared error has one minimum value, and that is the error of PCA with as many components (Baldi &
Hornik 1989). So gradient descent on A and B comes down to the error of PCA and stops there, although it knows of no
eigenvector. It reaches the same plane, not the same axes: A and B are free up to an invertible map of z.
Probabilistic PCA whose noise goes to 0 is the third way to the same plane.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits

from latent_zoo import run

SMALL = "ZOO_GALLERY_SMALL" in os.environ  # few images and steps, for the tests
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True})

L, STEPS = 8, 100 if SMALL else 400
images = load_digits().data[: 200 if SMALL else None] / 16
x = images - images.mean(0)

# %%
# By eigenvectors: nothing linear of rank 8 does better (Eckart & Young 1936).

V = np.linalg.svd(x, full_matrices=False)[2][:L]
least = np.square(x - x @ V.T @ V).sum() / len(x)

# %%
# By gradient descent on the squared error of an encoder A and a decoder B.

torch.manual_seed(0)
data = torch.as_tensor(x)
A, B = (0.1 * torch.randn(*shape, dtype=torch.float64) for shape in ((64, L), (L, 64)))
optimiser, errors = torch.optim.Adam([A.requires_grad_(), B.requires_grad_()], lr=0.02), []
for _ in range(STEPS):
    optimiser.zero_grad()
    error = (data - data @ A @ B).square().sum() / len(data)
    error.backward()
    optimiser.step()
    errors.append(error.item())
assert min(errors) >= least * (1 - 1e-12)  # never below PCA
assert SMALL or errors[-1] < 1.001 * least  # and down to it

# %%
# By EM for probabilistic PCA with noise 0: z = (WᵀW)⁻¹Wᵀ(x − μ) is its encoder, Wz + μ its decoder.

fit = run("ppca", images, latents=L, noise=0)
W = fit.parameters["loadings"]
restored = x @ np.linalg.pinv(W).T @ W.T
assert np.isclose(np.square(x - restored).sum() / len(x), least, rtol=1e-4)

# %%

figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.6), width_ratios=(1, 1.5))
left.plot(np.arange(1, STEPS + 1), errors, color="#0072B2", lw=2, label="autoencoder")
left.axhline(least, color="#D55E00", ls="--", label=f"PCA, {L} components")
left.set(xlabel="gradient steps", ylabel="squared error an image", xscale="log", ylim=(0, None))
left.legend(frameon=False)
few = np.arange(8)
rows = {
    "image": images[few],
    "autoencoder": (data @ A @ B).detach().numpy()[few] + images.mean(0),
    "PCA": (x @ V.T @ V)[few] + images.mean(0),
    "PPCA, noise 0": restored[few] + images.mean(0),
}
sheet = np.vstack([np.hstack([np.pad(i.reshape(8, 8), 1) for i in row]) for row in rows.values()])
right.imshow(sheet, cmap="gray_r", vmin=0, vmax=1)
right.set_xticks([])
right.set_yticks(4.5 + 10 * np.arange(4), rows)
right.spines[:].set_visible(False)
right.tick_params(length=0)
figure.suptitle("A linear autoencoder comes down to the error of PCA, and restores the same images", x=0.01, ha="left")
