"""Exact posteriors and evidence: by listing discrete latents, by Gaussian algebra, and their M-steps."""
