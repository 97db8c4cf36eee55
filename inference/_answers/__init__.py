"""What a fitted program says of rows and parameters, as tables: it knows tasks and fits, and no run."""
