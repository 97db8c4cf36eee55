"""What pictures share: a run as they see it, what its program says of the data, their parts and their style."""
