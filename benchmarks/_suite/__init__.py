"""Suites: their files, cells, and the work on them."""
