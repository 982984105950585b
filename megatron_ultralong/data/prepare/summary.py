"""The table that ``prepare`` prints at its end: documents and tokens by source and length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich import box
from rich.table import Table

from megatron_ultralong.data.pack.sampling import LengthSampling
from megatron_ultralong.data.rows.chat_manifest import ChatSource
from megatron_ultralong.data.rows.manifest import BinSummary, InputSummary, LengthCount, Manifest
from megatron_ultralong.data.store.documents import DocumentStore
from megatron_ultralong.program.terminal import Console


def print_summary(manifest: Manifest, output: Path) -> None:
    """Print documents and tokens by source, and rows by split, to standard output."""
    console = Console()
    console.print(source_table(manifest))
    for name, split in manifest.splits.items():
        console.print(
            f"{name}: {split.num_rows:,} rows x {manifest.seq_length:,} = {split.num_tokens:,} "
            f"tokens of {split.num_documents:,} documents; {split.num_dropped_tokens:,} tokens in "
            f"the incomplete last row and {split.num_repeats_dropped:,} repeats dropped",
            highlight=False,
        )
        if split.num_padding_tokens:
            share = split.num_padding_tokens / max(split.num_tokens, 1)
            console.print(
                f"{name}: {split.num_padding_tokens:,} tokens ({share:.2%}) are padding: "
                "predictions there must not count in the loss",
                highlight=False,
            )
    notes = {
        "equal to an earlier one": sum(i.num_duplicates for i in manifest.inputs),
        "empty": sum(i.num_empty for i in manifest.inputs),
        "unreadable": sum(i.num_bad for i in manifest.inputs),
    }
    dropped = ", ".join(f"{count:,} {what}" for what, count in notes.items() if count)
    if dropped:
        console.print(f"documents dropped while reading: {dropped}", highlight=False)
    for found in manifest.inputs:
        print_files(console, found)
    if manifest.num_documents_with_separator:
        console.print(
            f"{manifest.num_documents_with_separator:,} documents hold the separator "
            f"{manifest.separator_ids} themselves: {_SEPARATOR[manifest.separator_in_text]}",
            highlight=False,
        )
    console.print(f"written: {output}", highlight=False, soft_wrap=True)


_SEPARATOR: dict[str, str] = {
    "keep": "a boundary will be seen there (--separator-in-text drop or split)",
    "drop": "they were left out",
    "split": "these characters were encoded one by one",
}


def print_files(console: Console, found: InputSummary | ChatSource) -> None:
    """Print what became of the files of a source: ``web: 2 .json.gz read: as jsonl``."""
    lines = []
    for line in found.counts:
        how = f"left out: {line.reason}" if line.reason else f"read: as {line.read_as}"
        lines.append(f"{line.num_files:,} {line.suffix or 'without a suffix'} {how}")
    if found.num_cut_files:
        lines.append(f"of {found.num_cut_files:,} files the rest could not be read")
    for text in (*lines, *(f"unreadable: {place}" for place in found.bad)):
        console.print(f"{found.name}: {text}", highlight=False, soft_wrap=True, markup=False)


def source_table(manifest: Manifest) -> Table:
    """One line for each source and length bin, before and after sampling."""
    title = f"documents by length (sampling: {manifest.length_sampling['name']})"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))  # 80 columns
    table.add_column("source")
    for column in ("length", "found", "tokens", "share", "weight", "sampled", "tokens", "share"):
        table.add_column(column, justify="right")
    before = sum(line.num_tokens for line in manifest.bins)
    after = sum(line.num_tokens_sampled for line in manifest.bins)
    for source in dict.fromkeys(line.source for line in manifest.bins):
        lines = [line for line in manifest.bins if line.source == source and line.num_documents]
        for line in lines:
            weight = f"{line.weight:.3g}"
            table.add_row("", *_cells(line.length_bin, weight, [line], before, after))
        table.add_row(source, *_cells("all", "", lines, before, after), end_section=True)
    return table


def _cells(
    length_bin: str, weight: str, lines: Sequence[BinSummary], before: int, after: int
) -> list[str]:
    tokens = sum(line.num_tokens for line in lines)
    sampled = sum(line.num_tokens_sampled for line in lines)
    return [
        length_bin,
        f"{sum(line.num_documents for line in lines):,}",
        f"{tokens / 1e6:,.2f}M",
        f"{tokens / max(before, 1):.1%}",
        weight,
        f"{sum(line.num_documents_sampled for line in lines):,}",
        f"{sampled / 1e6:,.2f}M",
        f"{sampled / max(after, 1):.1%}",
    ]


Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


def _count_cells(
    store: DocumentStore, bins: Int64Array, num_bins: int, packed: Int64Array
) -> Iterator[tuple[str, int, dict[str, int]]]:
    """Source, bin and counts of each cell, in this order.

    Args:
        store: the documents.
        bins: of every document, shape [num_documents].
        num_bins: how many there are.
        packed: documents, each once a copy.
    """
    cells = store.sources * num_bins + bins
    size = len(store.source_names) * num_bins
    columns = {
        "num_documents": np.bincount(cells, minlength=size),
        "num_tokens": np.bincount(cells, store.lengths, size),
        "num_documents_sampled": np.bincount(cells[packed], minlength=size),
        "num_tokens_sampled": np.bincount(cells[packed], store.lengths[packed], size),
    }
    for cell in range(size):
        counts = {name: int(column[cell]) for name, column in columns.items()}
        yield store.source_names[cell // num_bins], cell % num_bins, counts


def bin_summaries(
    store: DocumentStore, sampling: LengthSampling, weights: Float64Array, packed: Int64Array
) -> list[BinSummary]:
    """Counts by the bins of the sampling, with their weights."""
    names = sampling.bin_names()
    bins = sampling.bins(store.lengths)
    weight = np.zeros((len(store.source_names), len(names)))
    weight[store.sources, bins] = weights  # one value in each cell
    cells = _count_cells(store, bins, len(names), packed)
    return [
        BinSummary(source, names[number], float(each), **counts)
        for (source, number, counts), each in zip(cells, weight.flat, strict=True)
    ]


def length_counts(store: DocumentStore, packed: Int64Array) -> list[LengthCount]:
    """Counts by powers of two: a document of 1,000 tokens counts at 512."""
    powers = np.frexp(store.lengths.astype(np.float64))[1].astype(np.int64) - 1
    cells = _count_cells(store, powers, int(powers.max(initial=0)) + 1, packed)
    return [
        LengthCount(source, 1 << power, **counts)
        for source, power, counts in cells
        if counts["num_documents"]
    ]
