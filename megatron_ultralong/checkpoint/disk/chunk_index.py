"""The chunks of one tensor in a checkpoint, found by place."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata


class ChunkIndex:
    """Chunks by where they begin: what a region needs is found without a look at the others.

    A stack of a model's layers has a chunk for each of them at least; to look at all for each
    would take steps by the square of the layers.
    """

    def __init__(self, chunks: Sequence[ChunkStorageMetadata]) -> None:
        self._sizes = {chunk.offsets: chunk.sizes for chunk in chunks}
        self._chunks = sorted(chunks, key=lambda chunk: tuple(chunk.offsets))
        self._begins = [_first(chunk.offsets) for chunk in self._chunks]
        self._longest = max((_first(chunk.sizes) for chunk in chunks), default=0)

    def sizes(self, offsets: torch.Size) -> torch.Size:
        """Shape of the chunk that begins at ``offsets``."""
        return self._sizes[offsets]

    def near(self, start: Sequence[int], shape: Sequence[int]) -> Sequence[ChunkStorageMetadata]:
        """Chunks that may reach into the region, in their order; others do not."""
        if not len(start):
            return self._chunks
        low = bisect.bisect_right(self._begins, start[0] - self._longest)
        return self._chunks[low : bisect.bisect_left(self._begins, start[0] + shape[0])]


def _first(sizes: torch.Size) -> int:
    return sizes[0] if len(sizes) else 0
