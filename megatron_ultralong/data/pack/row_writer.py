"""Planned rows written: tokens, and the boundaries of their documents beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.pack import packing
from megatron_ultralong.data.rows.indexed import IndexedWriter, token_dtype
from megatron_ultralong.data.rows.manifest import SplitSummary
from megatron_ultralong.data.rows.packed import boundaries_prefix
from megatron_ultralong.data.store.documents import DocumentStore
from megatron_ultralong.program.progress import ProgressBar, progress


class RowWriter:
    """Writes the rows of one split after the other."""

    def __init__(
        self, store: DocumentStore, separator_ids: Sequence[int], seq_length: int, vocab_size: int
    ) -> None:
        self.store = store
        self.separator = np.asarray(separator_ids, dtype=np.int32)
        self.seq_length = seq_length
        self.dtype = token_dtype(vocab_size)
        self._lengths = store.lengths + self.separator.size

    def write(self, folder: Path, plans: Mapping[str, packing.RowPlan]) -> dict[str, SplitSummary]:
        """``SPLIT.bin/.idx`` of the rows and ``SPLIT.boundaries.bin/.idx`` beside them.

        A sequence of the latter is the number of tokens before the padding and ``cu_seqlens``.
        """
        num_rows = sum(len(plan.rows) for plan in plans.values())
        with progress("Packing", num_rows * self.seq_length / 1e6, "Mtokens") as bar:
            return {split: self._write(folder / split, plan, bar) for split, plan in plans.items()}

    def _write(self, prefix: Path, plan: packing.RowPlan, bar: ProgressBar) -> SplitSummary:
        int32 = np.dtype("<i4")
        with (
            IndexedWriter(boundaries_prefix(prefix), int32) as boundaries,
            IndexedWriter(prefix, self.dtype) as rows,
        ):
            for row in plan.rows:
                rows.add(self._tokens(row))
                cu_seqlens = packing.row_boundaries(row, self._lengths, self.separator.size)
                boundaries.add(np.append(np.int32(packing.num_real_tokens(row)), cu_seqlens))
                bar.advance(self.seq_length / 1e6)
        return SplitSummary(
            num_documents=len(plan.kept),
            num_repeats_dropped=plan.num_repeats_dropped,
            num_rows=len(plan.rows),
            num_tokens=len(plan.rows) * self.seq_length,
            num_dropped_tokens=plan.num_dropped_tokens,
            num_documents_cut=plan.num_documents_cut,
            num_padding_tokens=plan.num_padding_tokens,
        )

    def _tokens(self, row: packing.Int64Array) -> npt.NDArray[np.int32]:
        """Tokens of a planned row, shape [seq_length]."""
        tokens = np.empty(self.seq_length, dtype=np.int32)
        filled = 0
        for document, start, stop in row.tolist():
            tokens[filled : filled + stop - start] = self._segment(document, start, stop)
            filled += stop - start
        assert filled == self.seq_length, (filled, self.seq_length)
        return tokens

    def _segment(self, document: int, start: int, stop: int) -> npt.NDArray[np.integer]:
        if document == packing.PADDING:
            return np.resize(self.separator, stop) if self.separator.size else np.zeros(stop, "i4")
        length = int(self.store.lengths[document])
        inside = self.store.read(document, start, min(stop, length)) if start < length else ()
        if stop <= length:
            return np.asarray(inside)
        after = self.separator[max(start - length, 0) : stop - length]
        return np.concatenate([np.asarray(inside, dtype=np.int32), after])
