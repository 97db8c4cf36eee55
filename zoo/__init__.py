"""Models, one a file, and what is read off them: structure, parameters, data."""

__distribution__ = "latent-zoo"
