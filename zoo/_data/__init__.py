"""Data sets by name, tables from files, and their columns."""
