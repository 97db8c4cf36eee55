"""A user's Pyro program: loaded, its parameters owned, traced, checked, with missing entries as latents."""
