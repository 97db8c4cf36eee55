"""New rows at the θ of a run: their posteriors and log p(x), what is missing in them, and rows from the program."""
