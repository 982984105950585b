"""Upstream's scorers of long benchmarks, and answers to put to them."""
