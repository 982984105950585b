"""The table that `prepare` prints at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from megatron_ultralong.data.read.sources import FileCount
from megatron_ultralong.data.rows.manifest import BinSummary, Manifest
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
    _print_inputs(console, manifest)
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


def _print_inputs(console: Console, manifest: Manifest) -> None:
    """Print which files of each source were read and which not, and the first bad documents."""
    for found in manifest.inputs:
        for line in file_lines(found.name, found.counts, found.num_cut_files, found.bad):
            console.print(line, highlight=False, soft_wrap=True, markup=False)


def file_lines(
    name: str, counts: Sequence[FileCount], num_cut_files: int, bad: Sequence[str]
) -> Iterator[str]:
    """What became of the files of a source: ``web: 2 .json.gz read: as jsonl``.

    Args:
        name: of the source.
        counts: all its files.
        num_cut_files: those of which the rest could not be read.
        bad: the first bad records.
    """
    for line in counts:
        how = f"left out: {line.reason}" if line.reason else f"read: as {line.read_as}"
        yield f"{name}: {line.num_files:,} {line.suffix or 'without a suffix'} {how}"
    if num_cut_files:
        yield f"{name}: of {num_cut_files:,} files the rest could not be read"
    yield from (f"{name}: unreadable: {place}" for place in bad)


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
