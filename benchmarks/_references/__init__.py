"""Reference posteriors: programs with global latents, long runs of them, other people's references, and checks against both."""
