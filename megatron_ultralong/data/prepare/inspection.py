"""What rows are made of, for the eye: a table, a histogram of lengths, a row as text."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from rich import box
from rich.table import Table
from rich.text import Text

from megatron_ultralong.data.rows.chat_manifest import ChatLengths
from megatron_ultralong.data.rows.manifest import LengthCount, Manifest
from megatron_ultralong.data.rows.packed import PackedRows
from megatron_ultralong.data.tokenize.tokenising import DocumentTokenizer
from megatron_ultralong.program.terminal import Console

PICTURE = "lengths.png"
Counts = TypeVar("Counts", LengthCount, ChatLengths)

EXCERPT_TOKENS = 24
"""Tokens shown at each end of a document; two documents a row's end and beginning."""

MAX_DOCUMENTS = 12
"""Documents of a row that are shown."""


def inspect_rows(folder: Path, manifest: Manifest, tokenizer: DocumentTokenizer) -> None:
    """Print the lengths and one row of an output folder, and draw ``lengths.png`` in it."""
    console = Console()
    columns = ("tokens a document", "found", "tokens", "sampled", "tokens")
    console.print(length_table("lengths before and after sampling", columns, manifest.lengths))
    draw_lengths(folder / PICTURE, manifest)
    console.print(f"written: {folder / PICTURE}", highlight=False, soft_wrap=True)
    split = next(iter(manifest.splits))
    rows = PackedRows(folder / split)
    title = f"{split}, row 0 of {len(rows):,}: {rows.boundaries(0).size - 1:,} documents"
    console.print(title, highlight=False)
    for line in decoded_row(rows, 0, manifest, tokenizer):
        console.print(line, highlight=False)


def length_table(title: str, columns: Sequence[str], counts: Sequence[Counts]) -> Table:
    """A line for each source and doubling of the length, with its counts under ``columns``."""
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("source")
    for column in columns:
        table.add_column(column, justify="right")
    shown = ""
    for count in counts:
        source, length, *numbers = dataclasses.astuple(count)
        cells = [f"{length:,}-{2 * length - 1:,}", *(f"{number:,}" for number in numbers)]
        table.add_row(source if source != shown else "", *cells)
        shown = source
    return table


@contextlib.contextmanager
def length_panels(file: Path, counts: Sequence[Counts]) -> Iterator[list[tuple[Any, list[Counts]]]]:
    """A panel for each source and its counts, to draw on; ``file`` is written behind the block."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sources = list(dict.fromkeys(count.source for count in counts))
    figure = Figure(figsize=(8, 0.6 + 2.2 * len(sources)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(sources), sharex=True, squeeze=False)[:, 0]
    for panel, source in zip(panels, sources, strict=True):
        panel.set_title(source, loc="left", fontsize=10)
    yield [(p, [c for c in counts if c.source == s]) for p, s in zip(panels, sources, strict=True)]
    panels[0].legend(frameon=False)
    aside = file.with_suffix(".partial")
    figure.savefig(aside, format="png", dpi=120)
    os.replace(aside, file)


def powers(counts: Sequence[Counts]) -> npt.NDArray[np.int64]:
    """The powers of two of the lengths: places on the horizontal axis."""
    return np.array([count.min_length.bit_length() - 1 for count in counts])


def draw_lengths(file: Path, manifest: Manifest) -> None:
    """A panel for each source: tokens by length of their document, before and after."""
    with length_panels(file, manifest.lengths) as panels:
        for panel, counts in panels:
            for shift, label, tokens in (
                (-0.2, "found", [count.num_tokens for count in counts]),
                (0.2, "sampled", [count.num_tokens_sampled for count in counts]),
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
    return [*lines, Text(f"... and {hidden:,} documents")] if hidden > 0 else lines


def _excerpt(
    rows: PackedRows, row: int, start: int, stop: int, tokenizer: DocumentTokenizer
) -> str:
    def text(first: int, last: int) -> str:
        return repr(tokenizer.decode(rows.read(row, first, last).tolist()))

    if stop - start <= 2 * EXCERPT_TOKENS:
        return text(start, stop)
    return f"{text(start, start + EXCERPT_TOKENS)} ... {text(stop - EXCERPT_TOKENS, stop)}"
