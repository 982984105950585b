"""Held-out rows of a validation: each counts once, however many are asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from megatron_ultralong.mcore.batch import DocumentRow
from megatron_ultralong.sequence.documents import DocumentMask
from megatron_ultralong.training.inputs import RunInputs
from megatron_ultralong.training.rows import RowSource


def num_validation_rows(inputs: RunInputs) -> int:
    """Rows that a validation counts: ``eval_iters`` global batches, or all that there are."""
    config = inputs.config
    assert inputs.valid_rows is not None
    return min(config.eval_iters * config.global_batch_size, len(inputs.valid_rows))


def validation_notes(inputs: RunInputs) -> list[str]:
    """One line: which rows are validated on; none where there is no validation."""
    if inputs.valid_rows is None:
        return []
    config, there = inputs.config, len(inputs.valid_rows)
    asked = config.eval_iters * config.global_batch_size
    rows = f"the same {asked:,} of {there:,} held-out rows"
    if asked >= there:
        rows = f"all {there:,} held-out rows"
    more = ""
    if asked > there:
        more = (
            f" (eval_iters {config.eval_iters} x global_batch_size {config.global_batch_size} asks "
            f"for {asked:,})"
        )
    return [f"validation: {rows}, each counted once{more}"]


@dataclasses.dataclass(frozen=True)
class CountedRows:
    """The first rows of a source, as many as asked; what fills the last batch counts nothing."""

    source: RowSource
    num_counted: int

    def __len__(self) -> int:
        return self.num_counted

    def row(self, sample: int) -> DocumentRow:
        """See :class:`RowSource`."""
        if sample < self.num_counted:
            return self.source.row(sample)
        return _FillingRow(self.source.row(0))

    def name(self, sample: int) -> str:
        """See :class:`RowSource`."""
        return self.source.name(sample if sample < self.num_counted else 0)

    def check(self, samples: range, part: int = 0, parts: int = 1) -> None:
        """See :class:`RowSource`."""
        self.source.check(range(samples.start, min(samples.stop, self.num_counted)), part, parts)


@dataclasses.dataclass(frozen=True)
class _FillingRow:
    """A row none of whose predictions counts."""

    inner: DocumentRow

    @property
    def seq_length(self) -> int:
        """See :class:`DocumentRow`."""
        return self.inner.seq_length

    @property
    def num_real_tokens(self) -> int:
        """See :class:`DocumentRow`."""
        return self.inner.num_real_tokens

    @property
    def cu_seqlens(self) -> npt.NDArray[np.int32]:
        """See :class:`DocumentRow`."""
        return self.inner.cu_seqlens

    def loss_mask(self, document_mask: DocumentMask) -> npt.NDArray[np.float32]:
        """Zeros, shape [S]."""
        return np.zeros_like(self.inner.loss_mask(document_mask))

    def read_chunks(
        self, chunks: Sequence[tuple[int, int]]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """See :class:`DocumentRow`."""
        return self.inner.read_chunks(chunks)
