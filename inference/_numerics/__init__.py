"""Mathematics that knows no program: coordinates, optimisers, the statistics of weights."""
