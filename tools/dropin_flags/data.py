"""A small indexed data set of Megatron-LM's: many documents in a row, each with its end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

VOCABULARY = 200

"""Words of the ``NullTokenizer`` that reads it."""


def write(folder: Path, end_of_document: int) -> Path:
    """Write the data set; what ``--data-path`` wants.

    Args:
        folder: where.
        end_of_document: id that closes every document.
    """
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    prefix = folder / "documents"
    numbers = np.random.default_rng(11)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
    for _ in range(200):
        length, step = int(numbers.integers(3, 40)), int(numbers.integers(1, 5))
        start = int(numbers.integers(0, 150))
        tokens = (start + step * np.arange(length)) % 180
        document = torch.tensor([*tokens, end_of_document], dtype=torch.int32)
        builder.add_document(document, [len(document)])
    builder.finalize(f"{prefix}.idx")
    return prefix
