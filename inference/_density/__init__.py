"""The density of each row with its continuous latents: its modes, and Gaussians at them."""
