"""
The latent plane of digits
==========================

A decoder network turns two normal numbers into an image of a digit, and an encoder network turns an image into a
normal over those two numbers: a variational autoencoder (Kingma & Welling 2014). Both climb the ELBO, and nobody
tells them the classes; yet images of one class come to lie together, for they share what a decoder can reuse. A grid
over the plane shows what the decoder makes of each place. On the line between two digits every point is an image, and
most of them look like some digit.
"""

import os

from latent_zoo import run

SMALL = "ZOO_GALLERY_SMALL" in os.environ  # few images and epochs, for the tests

fit = run(
    "deep_latent_gaussian",
    "mnist5k",
    "svi",
    binarize="fixed",
    rows=100 if SMALL else 2000,
    likelihood="bernoulli",
    latents=2,
    activation="silu",
    epochs=2 if SMALL else 60,
    batch=100,
)
print(fit)
assert fit.claimed.kind == "lower bound"

# %%
# Where the images lie: the means of q(z | x), coloured by class, which the fit did not see.

fit.plot("latent_plane")

# %%
# What the decoder makes of a grid over the plane, spaced by quantiles of the prior.

fit.plot("decoder_grid")

# %%
# From one digit to another, along the line between their latents.

fit.plot("interpolation")

# %%
# The commands: ``zoo run deep_latent_gaussian --data mnist5k --binarize fixed --method svi --set likelihood=bernoulli
# --set latents=2 --out runs/plane``, then ``zoo plot runs/plane``.
