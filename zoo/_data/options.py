"""The names of the options that prepare data. Imports nothing."""

from __future__ import annotations

COLUMNS = ("columns", "drop", "covariates", "categories")  # name some columns
COLUMN = ("labels", "rows_by", "weights")  # name one
ROLES = (*COLUMNS, *COLUMN, "na")  # what is to become of columns and cells
ENTRIES = ("rows", "standardize", "binarize", "missing")  # what is to become of rows and entries
PREPARATIONS = (*ROLES, *ENTRIES)
