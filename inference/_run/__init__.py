"""A run: checked, seeded, timed, verified, saved, and opened again."""
