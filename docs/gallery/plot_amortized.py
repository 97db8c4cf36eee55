"""
One network for all rows, or a q for each
=========================================

An amortized guide is a network that reads x and gives q(z | x) for any row; a mean-field guide has a q of its own for
each row. The network is cheaper and serves new rows, but what it gives for one row is a compromise with all others.
log p(x) less the ELBO is KL(q‖p(z | x)), and it splits into two parts (Cremer, Li & Duvenaud 2018): what the network
loses to the best q of its family for each row, the amortization gap, and what no q of that family reaches, the family
gap. Which is larger says what to change: a larger network and longer training, or a richer family.
"""

import os
import tempfile

import matplotlib.pyplot as plt
import numpy as np

from inference._gap import gap, picture
from latent_zoo import infer, run

SMALL = "ZOO_GALLERY_SMALL" in os.environ  # few rows and epochs, for the tests
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True})
EPOCHS, APART = (5, 5) if SMALL else (200, 40)

# %%
# One θ, by EM, and four guides that are trained for it. The model is linear and Gaussian, so that log p(x) and the
# parts are exact, for the best q that the search finds.

GUIDES = {
    "network of\n2 units": {"hidden": (2,)},
    "network of\n64 and 64": {"hidden": (64, 64)},
    "a q for\neach row": {"guide": "mean_field", "lr": 0.05},
    "64 and 64, full\ncovariance": {"hidden": (64, 64), "guide_covariance": "full"},
}
with tempfile.TemporaryDirectory() as place:
    exact = run("ppca", "wine", "em", standardize=True, latents=4, out=f"{place}/theta").claimed
    fits = {name: infer(f"{place}/theta", "svi", epochs=EPOCHS, **how) for name, how in GUIDES.items()}
gaps = {name: gap.gap(fit, rows=APART, seed=0) for name, fit in fits.items()}
for found in gaps.values():
    print(found.family_of_q, "-", found.verdict)
    assert np.isclose(found.elbo.value + found.amortization.value + found.family.value, found.log_p.value)
    assert np.isclose(found.log_p.value, exact.per_datum[found.rows].sum())

# %%

figure, axes = plt.subplots(figsize=(7.6, 4.2))
family, lost = (
    np.array([getattr(g, part).value for g in gaps.values()]) / APART for part in ("family", "amortization")
)
at = np.arange(len(gaps))
axes.bar(at, family, color="#D55E00", alpha=0.75, width=0.6, label="family gap: log p(x) − ELBO(q*)")
axes.bar(
    at,
    lost,
    bottom=family,
    color="#0072B2",
    alpha=0.75,
    width=0.6,
    label="amortization gap, or what training left: ELBO(q*) − ELBO(q)",
)
for i, total in enumerate(family + lost):
    axes.text(i, total + 0.02, f"{total:.2f}", ha="center", va="bottom")
axes.set_xticks(at, gaps)
axes.set(ylabel="KL(q‖p(z | x)), nats a row", ylim=(0, 1.1 * (family + lost).max()))
axes.legend(frameon=False)
axes.set_title("A larger network removes one part of the gap, a richer family the other", loc="left", fontsize=11)

# %%
# The project's own picture of the small network's gap, row by row. The command: ``zoo gap RUN --rows 40``.

picture.draw(gaps["network of\n2 units"])
