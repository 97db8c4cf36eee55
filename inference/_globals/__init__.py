"""Global latents integrated out by draws: their density, proposals that adapt, bridges, annealing, exchangeable labels."""
