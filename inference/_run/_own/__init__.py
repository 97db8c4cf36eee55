"""What a fit says of each row besides log p(x), held against the program run by itself."""
