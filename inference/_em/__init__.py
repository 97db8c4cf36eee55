"""EM: its climb, and E-steps that complete the data, by draws or by the most probable latents."""
