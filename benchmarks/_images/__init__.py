"""What the benchmarks on images share."""
