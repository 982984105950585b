"""Packed rows as training and evaluation read them, and the order in which a run takes them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.indexed import IndexedReader
from megatron_ultralong.documents import Row, document_boundaries
from megatron_ultralong.errors import InputError

Int64Array = npt.NDArray[np.int64]


def boundaries_prefix(path_prefix: str | Path) -> Path:
    """Where the boundaries of the documents stand: ``out/train -> out/train.boundaries``."""
    return Path(f"{path_prefix}.boundaries")


class PackedRows:
    """Rows of equal length: ``PackedRows("out/train")[i] -> tokens``, int64, shape [S].

    Raises:
        InputError: where a file is missing, cut short, empty or not of rows of one length.
    """

    def __init__(self, path_prefix: str | Path) -> None:
        self._sequences = IndexedReader(path_prefix)
        lengths = self._sequences.lengths
        if lengths.size == 0 or lengths.min() != lengths.max():
            found = f"{lengths.min()} to {lengths.max()} tokens" if lengths.size else "no rows"
            raise InputError(
                f"{path_prefix}.idx holds {found}, where packed rows all have one length: "
                "this is no output of `prepare`; prepare the documents first"
            )
        self.seq_length = int(lengths[0])
        self.path_prefix = path_prefix
        self._boundaries: IndexedReader | None = None
        beside = boundaries_prefix(path_prefix)
        if Path(f"{beside}.idx").exists():
            self._boundaries = IndexedReader(beside)
            if len(self._boundaries) != len(self):
                raise InputError(
                    f"{beside}.idx is of {len(self._boundaries)} rows, where {path_prefix}.idx has "
                    f"{len(self)}: files of two runs; copy all of one again or prepare anew"
                )

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, row: int) -> Int64Array:
        """Tokens of a row, shape [S]."""
        return self.read(row, 0, self.seq_length)

    def read(self, row: int, start: int, stop: int) -> Int64Array:
        """Tokens ``[start, stop)`` of a row: the rest of the row is not read from disk."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self._sequences.read(row, start, stop).astype(np.int64)

    def row(self, row: int, separator_ids: Sequence[int], length: int = 0) -> Row:
        """A row with its documents: those kept beside it, else those its separators tell.

        Args:
            row: number of the row.
            separator_ids: ids between documents, for rows that came without boundaries.
            length: tokens from the start of the row to take; 0 for all.
        """
        length = length or self.seq_length
        tokens = self.read(row, 0, length)
        if not self.has_boundaries:
            return Row(tokens, document_boundaries(tokens, separator_ids), length)
        edges = self.boundaries(row)
        cut = np.append(edges[edges < length], np.int32(length)).astype(np.int32)
        return Row(tokens, cut, min(self.num_real_tokens(row), length))

    @property
    def has_boundaries(self) -> bool:
        """Whether the boundaries of the documents stand beside the rows."""
        return self._boundaries is not None

    def boundaries(self, row: int) -> npt.NDArray[np.int32]:
        """``cu_seqlens`` of the documents of a row, int32 [num_documents + 1], without a search.

        See :func:`~megatron_ultralong.data.packing.row_boundaries`. Padding is the last document.

        Raises:
            InputError: where they were not kept.
        """
        return self._boundary_record(row)[1:]

    def num_real_tokens(self, row: int) -> int:
        """Tokens of a row before its padding: ``seq_length`` but for ``--packing whole``.

        Raises:
            InputError: where it was not kept.
        """
        return int(self._boundary_record(row)[0])

    def _boundary_record(self, row: int) -> npt.NDArray[np.int32]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        if self._boundaries is None:
            raise InputError(
                f"{boundaries_prefix(self.path_prefix)}.idx is not there: these rows came without "
                "the boundaries of their documents; copy that file and its .bin too, or find them "
                "by the separator (documents.document_boundaries)"
            )
        return self._boundaries[row].astype(np.int32)


@functools.lru_cache(maxsize=4)
def row_order(num_rows: int, epoch: int, seed: int) -> Int64Array:
    """Order of the rows in one epoch, a permutation of ``range(num_rows)``, read-only.

    A function of its arguments alone. The raw output of Philox is sorted, because numpy keeps that
    output the same in all its versions, and does not promise it of ``Generator.permutation``.
    """
    generator = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    order = np.argsort(generator.random_raw(num_rows), kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


def global_row_index(sample: int, num_rows: int, seed: int) -> int:
    """Row of sample number ``sample`` of a run (the samples consumed before it).

    A run resumes by its count of consumed samples alone; samples ``[e n, (e + 1) n)`` are a
    permutation of the ``n`` rows, another one in each epoch ``e``.
    """
    assert num_rows > 0, num_rows
    assert sample >= 0, sample
    epoch, place = divmod(sample, num_rows)
    return int(row_order(num_rows, epoch, seed)[place])
