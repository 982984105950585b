"""Scores of the ends of rows; keys and values of what neighbours have in common are kept."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from megatron_ultralong.generation.continuation import make_batches
from megatron_ultralong.mcore.decoding import Decoder

Ids = npt.NDArray[np.integer[Any]]
_GRAIN = 1024
"""Tokens in which the cache grows: rows come in any order of length."""


def num_common(first: Ids, second: Ids) -> int:
    """Tokens at the start of both: ``[5, 6, 7], [5, 6, 9, 9] -> 2``."""
    size = min(first.size, second.size)
    differs = np.flatnonzero(first[:size] != second[:size])
    return int(differs[0]) if differs.size else size


class EndScorer:
    """Asks a decoder, whose first row holds what was read last.

    Every rank calls it with the same rows. Where the decoder was used for something else
    meanwhile, it reads rows from their beginning again.
    """

    def __init__(self, decoder: Decoder, chunk_size: int, context_parallel_size: int) -> None:
        """``chunk_size``: tokens of one forward pass over all context-parallel ranks."""
        self._decoder, self._chunk_size, self._cp_size = decoder, chunk_size, context_parallel_size
        self._held: Ids = np.zeros(0, np.int64)
        self._room = self._start = 0

    def score(self, rows: Sequence[tuple[Ids, int]]) -> list[tuple[Tensor, Tensor]]:
        """Losses in nats of the last ``n`` tokens of every row ``(tokens [T], n)``, and whether
        each is the likeliest, float32 [n].

        Neighbours that differ in their last token alone are one forward pass.

        Raises:
            InputError: keys and values of a row do not fit into the device's memory.
        """
        found: list[tuple[Tensor, Tensor]] = []
        for (_, last), group in itertools.groupby(
            rows, lambda row: (np.asarray(row[0][:-1], np.int64).tobytes(), row[1])
        ):
            tokens = [np.asarray(row, np.int64) for row, _ in group]
            inputs = tokens[0][:-1]
            self._make_room(inputs.size)
            # The hidden states behind the last tokens are not kept: these are read again.
            common = min(num_common(self._held, inputs), inputs.size - last)
            kept = self._decoder.rewind(0, common, inputs.size - common)
            labels = np.stack([row[-last:] for row in tokens])
            loss, correct = self._decoder.score(0, inputs[kept:], labels, self._chunk_size)
            self._held = inputs
            found += zip(loss, correct, strict=True)
        return found

    def _make_room(self, size: int) -> None:
        if size <= self._room and self._start == self._decoder.num_starts:
            return
        room = -(-size // _GRAIN) * _GRAIN
        # A rank has at most one part of a chunk's zigzag more than its share of what is kept.
        one_part = min(room, self._chunk_size) // (2 * self._cp_size)
        spare = 0 if self._cp_size == 1 else one_part
        make_batches([size], 1, self._decoder.most_cached_tokens())  # refuses what does not fit
        self._decoder.start([(room, 0)], spare)
        self._room, self._start, self._held = room, self._decoder.num_starts, self._held[:0]
