"""Laplace's approximation, over local and over global latents."""
