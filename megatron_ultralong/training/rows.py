"""The rows that this rank trains on: a function of the iteration and the layout alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron_ultralong.data.chunks import StoredRow
from megatron_ultralong.data.rows import PackedRows, global_row_index


def microbatch_rows(
    rows: PackedRows,
    *,
    iteration: int,
    global_batch_size: int,
    micro_batch_size: int,
    dp_rank: int,
    dp_size: int,
    seed: int,
    separator_ids: Sequence[int],
) -> Iterator[list[StoredRow]]:
    """Micro-batches of one replica in one iteration, ``micro_batch_size`` rows each.

    The global batch of an iteration is the same rows whatever the layout; a replica takes its
    rows from every stride of ``micro_batch_size * dp_size``.
    """
    separators = tuple(separator_ids)
    first = iteration * global_batch_size
    stride = micro_batch_size * dp_size
    for start in range(first + dp_rank * micro_batch_size, first + global_batch_size, stride):
        numbers = range(start, start + micro_batch_size)
        yield [StoredRow(rows, global_row_index(n, len(rows), seed), separators) for n in numbers]
