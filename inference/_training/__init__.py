"""Learning by gradients: objectives, the training loop, climbs with fixed draws."""
