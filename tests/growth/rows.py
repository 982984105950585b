"""Rows on disk, and how they are packed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ultralong.data.pack.packing import plan_rows, row_boundaries
from megatron_ultralong.data.pack.sampling import mixed_order
from megatron_ultralong.data.rows.indexed import IndexedWriter
from megatron_ultralong.data.rows.packed import (
    PackedRows,
    boundaries_prefix,
    row_order,
    rows_of_samples,
)
from megatron_ultralong.data.rows.stored import ChatRows, StoredRow, target_mask, targets_prefix
from megatron_ultralong.training.row_source import PackedRowSource
from megatron_ultralong.training.step import check_rows
from tests.growth.table import Work, counted, edges_of


def write_rows(folder: Path, n: int, documents: int, targets: bool = False) -> Path:
    """``n`` rows of ``documents`` documents each."""
    edges = edges_of(documents)
    with (
        IndexedWriter(folder / "train", np.dtype("<i4")) as rows,
        IndexedWriter(boundaries_prefix(folder / "train"), np.dtype("<i4")) as beside,
    ):
        for _ in range(n):
            rows.add(np.zeros(edges[-1], dtype=np.int64))
            beside.add(np.asarray([edges[-1], *edges]))
    if targets:
        pairs = [(a + 1, b) for a, b in itertools.pairwise(edges) if b > a + 1]
        with IndexedWriter(targets_prefix(folder / "train"), np.dtype("<i4")) as writer:
            for _ in range(n):
                writer.add(np.asarray([len(pairs), *np.ravel(pairs)]))
    return folder / "train"


@counted(2000)
def row_of_documents_read(n: int, folder: Path) -> Work:
    rows = PackedRows(write_rows(folder, 1, n), 10)
    row = StoredRow(rows, 0, ())

    def read() -> None:
        rows.check(0)
        row.loss_mask("block")
        row.read_chunks([(0, row.seq_length // 2), (row.seq_length // 2, row.seq_length)])

    return read


@counted(40)
def rows_read(n: int, folder: Path) -> Work:
    prefix = write_rows(folder, n, 4)

    def read() -> None:
        source = PackedRowSource(PackedRows(prefix, 10), 1, ())
        check_rows([(source, range(2 * n))])
        for sample in range(n):
            source.row(sample).loss_mask("none")

    return read


@counted(40)
def rows_written(n: int, folder: Path) -> Work:
    return lambda: write_rows(folder, n, 4)


@counted(100)
def conversations_of_a_row(n: int, folder: Path) -> Work:
    rows = ChatRows(write_rows(folder, 1, n, targets=True))
    return lambda: rows.examples(0)


@counted(2000)
def targets_of_a_row(n: int, folder: Path) -> Work:
    targets = np.stack([np.arange(n) * 4 + 1, np.arange(n) * 4 + 3], axis=1)
    return lambda: target_mask(4 * n, targets)


@counted(2000)
def order_of_rows(n: int, folder: Path) -> Work:
    row_order.cache_clear()
    return lambda: rows_of_samples(range(n // 2, n + n // 4), n, 1)


# Packing


def packing(n: int, mode: Any, seq_length: int) -> Work:
    lengths = np.random.default_rng(0).integers(1, 40, size=n)
    return lambda: plan_rows(np.arange(n), lengths, 0, seq_length, mode)


@counted(200)
def packed_in_a_stream(n: int, folder: Path) -> Work:
    return packing(n, "stream", 128)


@counted(200)
def packed_from_row_starts(n: int, folder: Path) -> Work:
    return packing(n, "row-start", 32)


@counted(200)
def packed_whole_to_many_rows(n: int, folder: Path) -> Work:
    return packing(n, "whole", 128)


@counted(200)
def packed_whole_to_one_row(n: int, folder: Path) -> Work:
    return packing(n, "whole", 64 * n)


@counted(2000)
def boundaries_of_a_planned_row(n: int, folder: Path) -> Work:
    lengths = np.random.default_rng(0).integers(1, 40, size=n)
    [row, *_] = plan_rows(np.arange(n), lengths, 0, int(lengths.sum()), "stream").rows
    return lambda: row_boundaries(row, lengths, 0)


@counted(200)
def order_of_documents(n: int, folder: Path) -> Work:
    copies = np.full(n, 3)
    ids = [str(number) for number in range(n)]
    return lambda: mixed_order(copies, ids, 1)
