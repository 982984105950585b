"""Documents joined by the separator and cut to rows of equal length.

The stream is ``d0 sep d1 sep ... dn sep``; row ``i`` holds its tokens ``[i S, (i + 1) S)``. A long
document goes on in the next row. The incomplete row at the end is dropped and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]


class RowPacker:
    """Rows of exactly ``seq_length`` tokens from documents; iterate once.

    With separator ``[9]`` and ``seq_length=3``: ``[1, 2], [3, 4, 5] -> [1, 2, 9], [3, 4, 5]`` and
    one dropped token (the last separator).
    """

    def __init__(
        self, documents: Iterable[Int32Array], separator_ids: Sequence[int], seq_length: int
    ) -> None:
        assert seq_length > 0, seq_length
        self.documents = documents
        self.separator = np.asarray(separator_ids, dtype=np.int32)
        self.seq_length = seq_length
        self.num_rows = 0
        self.num_dropped_tokens = 0

    def __iter__(self) -> Iterator[Int32Array]:
        row = np.empty(self.seq_length, dtype=np.int32)
        filled = 0
        for document in self.documents:
            for piece in (document, self.separator):
                start = 0
                while start < piece.size:
                    count = min(piece.size - start, self.seq_length - filled)
                    row[filled : filled + count] = piece[start : start + count]
                    start += count
                    filled += count
                    if filled == self.seq_length:
                        self.num_rows += 1
                        yield row
                        row = np.empty_like(row)
                        filled = 0
        self.num_dropped_tokens = filled


def without_repeats_in_a_row(order: Int64Array, lengths: Int64Array, seq_length: int) -> Int64Array:
    """The order without the copies that would share a row with the copy before them.

    ``order=[0, 0, 1, 0], lengths=[3, 4], seq_length=5``: the second 0 would start in the first
    row, where the first one ends; the last 0 starts in the second row: ``-> [0, 1, 0]``.

    Args:
        order: documents by index, shape [num_copies].
        lengths: tokens of every document in the stream, separator included, shape [num_documents].
        seq_length: tokens of a row.
    """
    last_row = np.full(lengths.size, -1, dtype=np.int64)
    kept: list[int] = []
    position = 0
    for document in order.tolist():
        if last_row[document] == position // seq_length:
            continue
        kept.append(document)
        position += int(lengths[document])
        last_row[document] = (position - 1) // seq_length
    return np.asarray(kept, dtype=np.int64)
