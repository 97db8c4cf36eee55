"""Loadings of linear-Gaussian programs: read off the program, rotated, as tables; scores of rows."""
