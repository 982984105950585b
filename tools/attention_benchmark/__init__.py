"""Parts of tools/benchmark_attention.py."""
