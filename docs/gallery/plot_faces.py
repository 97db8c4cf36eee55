"""
Between two faces
=================

Brendan Frey's face in 1,965 frames of a video: 560 grey pixels, but hardly more than a few ways to move. A decoder
from two latents learns them, and the line between the latents of two frames is a short film that nobody recorded. The
same line between the pixels themselves is a double exposure. The frames are not in the package: where a folder with
them is named by ``ZOO_DATA_DIR``, the pictures are drawn, and elsewhere this page says so in words.
"""

import os

from latent_zoo import run
from zoo._errors import UsageError

SMALL = "ZOO_GALLERY_SMALL" in os.environ  # few frames and epochs, for the tests
try:
    fit = run(
        "deep_latent_gaussian",
        "frey_face",
        "svi",
        rows=50 if SMALL else None,
        latents=2,
        activation="silu",
        epochs=2 if SMALL else 60,
        batch=100,
    )
except UsageError as absent:
    fit = None
    print("No pictures here:", absent)

# %%
# What the decoder makes of a grid over the plane of the two latents.

if fit is not None:
    print(fit)
fit and fit.plot("decoder_grid")

# %%
# From one frame to another.

fit and fit.plot("interpolation")

# %%
# The commands: ``zoo run deep_latent_gaussian --data frey_face --method svi --set latents=2 --out runs/faces``, then
# ``zoo plot runs/faces``.
