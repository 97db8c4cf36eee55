"""Global latents integrated out by weighted draws: their density, proposals that adapt, bridges, annealing, exchangeable labels."""
