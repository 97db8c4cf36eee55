"""
Naive Monte Carlo and importance sampling
=========================================

log p(x) can be estimated as the log of the mean of p(x | z) over draws of z from the prior: naive Monte Carlo. With
ten latents hardly any draw explains a given digit, the mean rests on the luckiest draw, and the log of it lies far
below the truth even with 10,000 draws. Importance sampling draws from a guide q(z | x) that was trained for the task,
and weighs each draw by p(x, z) / q(z | x): a few draws come close. The model here is probabilistic PCA, so the exact
log p(x) is known. Without it there is k-hat, which looks at the weights alone. It doubts naive Monte Carlo for every
image, and this guide, whose tails are a little too light, for some. The tool calls both figures lower bounds.
"""

import os
import tempfile

import matplotlib.pyplot as plt
import numpy as np

from latent_zoo import infer, run

SMALL = "ZOO_GALLERY_SMALL" in os.environ  # few images and draws, for the tests
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True})
DRAWS = (10, 100) if SMALL else (10, 30, 100, 300, 1000, 3000, 10_000)
ROWS, EPOCHS = (20, 3) if SMALL else (50, 400)

# %%
# One fit gives θ, and the others keep it: `infer` takes another method to the θ of a saved run. Ten draws are too few for
# a k-hat, and count as doubted.

with tempfile.TemporaryDirectory() as place:
    exact = run("ppca", "digits", "em", rows=ROWS, latents=10, out=f"{place}/theta")
    guided = infer(f"{place}/theta", "svi", guide_covariance="full", epochs=EPOCHS, out=f"{place}/guide")
    found = {
        "prior": [infer(f"{place}/theta", "importance", proposal="prior", samples=s) for s in DRAWS],
        "guide": [infer(f"{place}/guide", "importance", proposal="guide", samples=s) for s in DRAWS],
    }
for name, runs in found.items():
    print(f"{name}, {DRAWS[-1]} draws an image: {runs[-1].claimed}")
print("exact:", exact.claimed)

# %%

figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4))
looks = {"prior": ("#D55E00", "draws from the prior (naive)"), "guide": ("#0072B2", "draws from a guide q(z | x)")}
for name, runs in found.items():
    color, label = looks[name]
    off = np.array([r.claimed.per_datum - exact.claimed.per_datum for r in runs])  # [draws, images]
    left.fill_between(DRAWS, *np.quantile(off, [0.1, 0.9], axis=1), color=color, alpha=0.2, linewidth=0)
    left.plot(DRAWS, off.mean(1), "o-", color=color, label=label, ms=4)
    share = [(~(r.khat <= 0.7)).mean() for r in runs]
    right.plot(DRAWS, share, "o-", color=color, label=label, ms=4)
left.axhline(0, color="k", lw=1, ls="--")
left.text(DRAWS[0], 1, "exact", va="bottom")
left.set(xscale="log", xlabel="draws an image", ylabel="estimate of log p(x), less the truth; nats", ylim=(None, 9))
left.set_title("mean over images; band: 80% of them", loc="left", fontsize=10)
left.legend(frameon=False, loc="lower right")
right.set(xscale="log", xlabel="draws an image", ylabel="share of images with k-hat above 0.7", ylim=(-0.03, 1.03))
right.set_title("k-hat warns without knowing the truth", loc="left", fontsize=10)
figure.suptitle("10,000 draws from the prior do worse than 10 from a guide", x=0.01, ha="left")
means = {name: [(r.claimed.per_datum - exact.claimed.per_datum).mean() for r in runs] for name, runs in found.items()}
assert SMALL or means["prior"][-1] < means["guide"][0] < 0.5
assert all(runs[-1].claimed.kind == "lower bound" for runs in found.values())

# %%
# The commands: ``zoo run ppca --data digits --set latents=10 --out runs/theta``, then ``zoo infer runs/theta --method
# importance --set proposal=prior --set samples=1000``; or first ``zoo infer runs/theta --method svi --out
# runs/guide`` and the same with ``runs/guide`` and ``proposal=guide``.
