"""Lengths of documents as the recipe samples them."""

from __future__ import annotations

import numpy as np


def recipe_lengths(seq_length: int, seed: int) -> list[int]:
    """Document boundaries of one row after the recipe's sampling by length.

    Web pages (median 700 tokens) and one book or repository in twelve (median 60,000), log-normal;
    documents under 4,096 tokens are kept with probability 0.1 (arXiv 2402.10171).
    """
    generator = np.random.default_rng(seed)
    edges = [0]
    while edges[-1] < seq_length:
        median_length, spread = (60_000, 1.0) if generator.random() < 1 / 12 else (700, 1.3)
        length = int(median_length * np.exp(spread * generator.normal()))
        if length >= 4096 or (length > 0 and generator.random() < 0.1):
            edges.append(min(seq_length, edges[-1] + length))
    return edges
