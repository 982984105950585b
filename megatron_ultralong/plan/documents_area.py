"""Attention area of rows whose documents are known by their mean length alone."""

from __future__ import annotations

import math


def expected_area(seq_length: int, mean_document_length: float) -> float:
    """Pairs (query, key) inside documents that end after every token with chance 1 / mean.

    Position ``i`` sees ``1 + q + q^2 + ... + q^i`` keys, with ``q = 1 - 1 / mean``; documents reach
    over the ends of rows, as ``prepare`` cuts them. ``(4, 1) -> 4``; a mean beyond all measure is
    one document: ``S (S + 1) / 2``.
    """
    if mean_document_length <= 1:
        return float(seq_length)
    mean = float(mean_document_length)
    log_q = math.log1p(-1.0 / mean)
    if -log_q * seq_length < 1e-6:
        return seq_length * (seq_length + 1) / 2
    # sum over i of mean (1 - q^(i+1))
    tail = -math.expm1(seq_length * log_q) * math.exp(log_q) * mean
    return mean * (seq_length - tail)
