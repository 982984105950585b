"""Exact attention over a sequence that ranks share: who computes what, and what travels."""
