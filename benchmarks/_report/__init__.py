"""The page of a suite's results, and its tables."""
