"""One rank of a big job on one device, for ``tools/benchmark_rank.py``."""
