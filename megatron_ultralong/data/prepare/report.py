"""What ``prepare`` shows of its rows: tables, a picture of their lengths, and one row as text."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from megatron_ultralong.data.pack.packing import Int64Array
from megatron_ultralong.data.pack.sampling import Float64Array, LengthSampling
from megatron_ultralong.data.read.reading import MAX_BAD_SHOWN
from megatron_ultralong.data.read.sources import FileCount
from megatron_ultralong.data.rows.manifest import (
    BinSummary,
    ChatLengths,
    ChatSource,
    InputSummary,
    LengthCount,
    Manifest,
)
from megatron_ultralong.data.rows.packed import PackedRows
from megatron_ultralong.data.store.documents import DocumentStore
from megatron_ultralong.data.tokenize.tokenising import DocumentTokenizer
from megatron_ultralong.program.aside import whole
from megatron_ultralong.program.errors import counted
from megatron_ultralong.program.picture import new_figure
from megatron_ultralong.program.terminal import Console

PICTURE = "lengths.png"
Counts = TypeVar("Counts", LengthCount, ChatLengths)

EXCERPT_TOKENS = 24
"""Tokens shown at each end of a document; two documents a row's end and beginning."""

MAX_SUFFIXES = 3
"""Suffixes of files that are named of those that were treated alike."""

MAX_DOCUMENTS = 12
"""Documents of a row that are shown."""


def inspect_rows(folder: Path, manifest: Manifest, tokenizer: DocumentTokenizer) -> None:
    """Print the lengths and one row of an output folder, and draw ``lengths.png`` in it."""
    console = Console()
    columns = ("tokens a document", "found", "tokens", "sampled", "tokens")
    console.print(length_table("lengths before and after sampling", columns, manifest.lengths))
    draw_lengths(folder, manifest)
    console.print(f"written: {folder / PICTURE}", highlight=False, soft_wrap=True)
    split = next(iter(manifest.splits))
    rows = PackedRows(folder / split)
    number = rows.boundaries(0).size - 1
    title = f"{split}, row 0 of {len(rows):,}: {counted(number, 'document')}"
    console.print(title, highlight=False)
    for line in decoded_row(rows, 0, manifest, tokenizer):
        console.print(line, highlight=False)


def new_table(title: str, columns: Sequence[str], padding: Any = (0, 1)) -> Table:
    """A table of sources, with numbers in the other ``columns``."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=padding)
    table.add_column("source")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def length_table(title: str, columns: Sequence[str], counts: Sequence[Counts]) -> Table:
    """A line for each source and doubling of the length, with its counts under ``columns``."""
    table = new_table(title, columns)
    shown = ""
    for count in counts:
        source, length, *numbers = dataclasses.astuple(count)
        cells = [f"{length:,}-{2 * length - 1:,}", *(f"{number:,}" for number in numbers)]
        table.add_row(source if source != shown else "", *cells)
        shown = source
    return table


@contextlib.contextmanager
def length_panels(
    folder: Path, counts: Sequence[Counts]
) -> Iterator[list[tuple[Any, list[Counts]]]]:
    """A panel for each source and its counts, to draw on; the picture is written at the end."""
    sources = list(dict.fromkeys(count.source for count in counts))
    figure = new_figure(8, 0.6 + 2.2 * len(sources))
    panels = figure.subplots(len(sources), sharex=True, squeeze=False)[:, 0]
    for panel, source in zip(panels, sources, strict=True):
        panel.set_title(source, loc="left", fontsize=10)
    yield [(p, [c for c in counts if c.source == s]) for p, s in zip(panels, sources, strict=True)]
    panels[0].legend(frameon=False)
    with whole(folder / PICTURE) as aside:
        figure.savefig(aside, format="png", dpi=120)


def powers(counts: Sequence[Counts]) -> Int64Array:
    """The powers of two of the lengths: places on the horizontal axis."""
    return np.array([count.min_length.bit_length() - 1 for count in counts])


def draw_lengths(folder: Path, manifest: Manifest) -> None:
    """A panel for each source: tokens by length of their document, before and after."""
    with length_panels(folder, manifest.lengths) as panels:
        for panel, counts in panels:
            for shift, label, tokens in (
                (-0.2, "found", [count.num_tokens for count in counts]),
                (0.2, "in train", [count.num_tokens_sampled for count in counts]),
            ):
                panel.bar(powers(counts) + shift, np.array(tokens) / 1e6, width=0.4, label=label)
            panel.set_ylabel("million tokens")
        places = powers(manifest.lengths)
        ticks = np.arange(places.min(), places.max() + 1)
        ticks = ticks[:: 1 + ticks.size // 14]  # room for their labels
        panels[-1][0].set_xticks(ticks, [_short(1 << int(tick)) for tick in ticks])
        panels[-1][0].set_xlabel("tokens of a document, from")


def _short(count: int) -> str:
    """``2048 -> "2K"``."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if count >= unit:
            return f"{count // unit}{name}"
    return str(count)


def decoded_row(
    rows: PackedRows, row: int, manifest: Manifest, tokenizer: DocumentTokenizer
) -> list[Text]:
    """A line for each document of a row: its place, its beginning, its end and its separator."""
    cu_seqlens = rows.boundaries(row).tolist()
    separator = manifest.separator_ids
    lines = []
    for start, stop in list(itertools.pairwise(cu_seqlens))[:MAX_DOCUMENTS]:
        line = Text(f"[{start:,}, {stop:,}) ")
        if start >= rows.num_real_tokens(row):
            lines.append(line.append("padding", style="dim"))
            continue
        closing = rows.read(row, max(start, stop - len(separator)), stop).tolist()
        closes = bool(separator) and closing == separator
        end = stop - len(separator) if closes else stop
        line.append(_excerpt(rows, row, start, end, tokenizer))
        if closes:
            line.append(f" {tokenizer.decode(separator)} {separator}", style="bold")
        else:
            line.append(" (no separator: cut, or the end of the row)", style="dim")
        lines.append(line)
    hidden = len(cu_seqlens) - 1 - len(lines)
    return [*lines, Text(f"... and {counted(hidden, 'document')}")] if hidden > 0 else lines


def _excerpt(
    rows: PackedRows, row: int, start: int, stop: int, tokenizer: DocumentTokenizer
) -> str:
    def text(first: int, last: int) -> str:
        return repr(tokenizer.decode(rows.read(row, first, last).tolist()))

    if stop - start <= 2 * EXCERPT_TOKENS:
        return text(start, stop)
    return f"{text(start, start + EXCERPT_TOKENS)} ... {text(stop - EXCERPT_TOKENS, stop)}"


def print_summary(manifest: Manifest, output: Path) -> None:
    """Print documents and tokens by source, and rows by split, to standard output."""
    console = Console()
    say = functools.partial(console.print, highlight=False)
    console.print(source_table(manifest))
    for name, split in manifest.splits.items():
        say(
            f"{name}: {counted(split.num_rows, 'row')} x {manifest.seq_length:,} = "
            f"{split.num_tokens:,} tokens of {counted(split.num_documents, 'document')}; "
            f"{counted(split.num_dropped_tokens, 'token')} in the incomplete last row and "
            f"{counted(split.num_repeats_dropped, 'repeat')} dropped"
        )
        if split.num_padding_tokens:
            share = split.num_padding_tokens / max(split.num_tokens, 1)
            say(
                f"{name}: {split.num_padding_tokens:,} tokens ({share:.2%}) are padding: "
                "predictions there must not count in the loss"
            )
    duplicates = sum(i.num_duplicates for i in manifest.inputs)
    notes = {
        f"{'copy' if duplicates == 1 else 'copies'} of an earlier one": duplicates,
        "empty": sum(i.num_empty for i in manifest.inputs),
        "unreadable": sum(i.num_bad for i in manifest.inputs),
    }
    dropped = ", ".join(f"{count:,} {what}" for what, count in notes.items() if count)
    if dropped:
        say(f"documents left out: {dropped}")
    for found in manifest.inputs:
        print_files(console, found)
    if number := manifest.num_documents_with_separator:
        what = f"{counted(number, 'document')} {'has' if number == 1 else 'have'}"
        say(
            f"{what} the separator {manifest.separator!r} (ids {manifest.separator_ids}) in the "
            f"text itself: {_SEPARATOR[manifest.separator_in_text]}",
            markup=False,
        )
    say(f"written: {output}", soft_wrap=True)


_SEPARATOR: dict[str, str] = {
    "keep": "a model takes it for the document's end; to avoid that, --separator-in-text drop "
    "leaves such documents out, and split keeps the text in other ids",
    "drop": "left out",
    "split": "its characters were encoded one by one",
}


def print_files(console: Console, found: InputSummary | ChatSource) -> None:
    """Print what became of a source's files, a line each way: ``2 files read as jsonl: 2 .json``.

    The manifest names all suffixes.
    """
    ways: dict[str, list[FileCount]] = {}
    for line in found.counts:
        how = f"left out, {line.reason}" if line.reason else f"read as {line.read_as}"
        ways.setdefault(how, []).append(line)
    lines = []
    for how, counts in ways.items():
        number = sum(line.num_files for line in counts)
        suffixes = [f"{c.num_files:,} {c.suffix or 'without a suffix'}" for c in counts]
        if len(suffixes) > MAX_SUFFIXES + 1:
            rest = number - sum(line.num_files for line in counts[:MAX_SUFFIXES])
            suffixes[MAX_SUFFIXES:] = [f"{rest:,} others"]
        lines.append(f"{counted(number, 'file')} {how}: {', '.join(suffixes)}")
    if found.num_cut_files:
        lines.append(f"of {counted(found.num_cut_files, 'file')} the rest could not be read")
    lines += _bad_lines(found)
    for text in lines:
        console.print(f"{found.name}: {text}", highlight=False, soft_wrap=True, markup=False)


def _bad_lines(found: InputSummary | ChatSource) -> list[str]:
    """Files of which nothing was kept, then other bad records: :data:`MAX_BAD_SHOWN` lines."""
    shown = [f"nothing of this file was kept: {place}" for place in found.refused_files.values()]
    if len(shown) > MAX_BAD_SHOWN:
        more = len(shown) - (MAX_BAD_SHOWN - 1)
        rest = f"nothing of {counted(more, 'more file')} was kept, see manifest.json"
        return [*shown[: MAX_BAD_SHOWN - 1], rest]
    return [*shown, *(f"unreadable: {place}" for place in found.bad)][:MAX_BAD_SHOWN]


def source_table(manifest: Manifest) -> Table:
    """One line for each source and length bin: all that was found, and what is in ``train``."""
    title = f"documents by length (sampling: {manifest.length_sampling['name']})"
    columns = ("length", "found", "tokens", "share", "weight", "train", "tokens", "share")
    table = new_table(title, columns, padding=(0, 1, 0, 0))  # 80 columns
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


def _count_cells(
    store: DocumentStore, bins: Int64Array, num_bins: int, packed: Int64Array
) -> Iterator[tuple[str, int, dict[str, int]]]:
    """Source, bin and counts of each cell, in this order.

    ``bins`` has that of every document, shape [num_documents]; ``packed`` a document of the
    training split once a copy.
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
