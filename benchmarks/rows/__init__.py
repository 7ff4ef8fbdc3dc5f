"""The rows of the benchmark, by name."""
