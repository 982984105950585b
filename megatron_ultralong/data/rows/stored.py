"""The parts of a row that one context-parallel rank reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.rows.packed import PackedRows
from megatron_ultralong.sequence.documents import DocumentMask, loss_mask

Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
Chunk = tuple[int, int]


def read_chunks(
    rows: PackedRows, row: int, chunks: Sequence[Chunk]
) -> tuple[Int64Array, Int64Array]:
    """Tokens and labels of the chunks of a row, each int64 [sum of the chunks' sizes].

    Each chunk is read with the one token after it, its last label; nothing else of the row is
    touched. The last label of a row is 0 and never counts
    (:func:`~megatron_ultralong.sequence.documents.next_token_labels`).
    """
    tokens, labels = [], []
    for start, stop in chunks:
        read = rows.read(row, start, min(stop + 1, rows.seq_length))
        tokens.append(read[: stop - start])
        labels.append(np.append(read[1:], 0) if stop == rows.seq_length else read[1:])
    return np.concatenate(tokens), np.concatenate(labels)


@dataclasses.dataclass(frozen=True)
class StoredRow:
    """One row of :class:`PackedRows`, of which only what is asked for is read from disk.

    Rows that came without boundaries are read whole when their documents are asked for.
    """

    rows: PackedRows
    number: int
    separator_ids: tuple[int, ...]
    """Ids between documents, for rows that came without boundaries."""

    @property
    def seq_length(self) -> int:
        """Tokens of the row."""
        return self.rows.seq_length

    @property
    def num_real_tokens(self) -> int:
        """Tokens before the padding; rows that came without boundaries have none."""
        rows = self.rows
        return rows.num_real_tokens(self.number) if rows.has_boundaries else self.seq_length

    @property
    def cu_seqlens(self) -> Int32Array:
        """Boundaries of the documents, int32 [num_documents + 1]; padding is the last one."""
        if self.rows.has_boundaries:
            return self.rows.boundaries(self.number)
        return self.rows.row(self.number, self.separator_ids).cu_seqlens

    def loss_mask(self, document_mask: DocumentMask) -> npt.NDArray[np.float32]:
        """Weight of every prediction: :func:`~megatron_ultralong.sequence.documents.loss_mask`."""
        length, real = self.seq_length, self.num_real_tokens
        edges = self.cu_seqlens if document_mask == "block" else np.asarray([0, length])
        return loss_mask(length, edges, document_mask, num_real_tokens=real)

    def read_chunks(self, chunks: Sequence[Chunk]) -> tuple[Int64Array, Int64Array]:
        """Tokens and labels of the chunks: :func:`read_chunks`."""
        return read_chunks(self.rows, self.number, chunks)
