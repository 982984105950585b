"""What rows are made of, for the eye: a table, a histogram of lengths, a row as text."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from megatron_ultralong.data.rows.manifest import LengthCount, Manifest
from megatron_ultralong.data.rows.packed import PackedRows
from megatron_ultralong.data.tokenize.tokenising import DocumentTokenizer
from megatron_ultralong.program.terminal import Console

PICTURE = "lengths.png"

EXCERPT_TOKENS = 24
"""Tokens shown at each end of a document; two documents a row's end and beginning."""

MAX_DOCUMENTS = 12
"""Documents of a row that are shown."""


def inspect_rows(folder: Path, manifest: Manifest, tokenizer: DocumentTokenizer) -> None:
    """Print the lengths and one row of an output folder, and draw ``lengths.png`` in it."""
    console = Console()
    console.print(length_table(manifest))
    draw_lengths(folder / PICTURE, manifest)
    console.print(f"written: {folder / PICTURE}", highlight=False, soft_wrap=True)
    split = next(iter(manifest.splits))
    rows = PackedRows(folder / split)
    title = f"{split}, row 0 of {len(rows):,}: {rows.boundaries(0).size - 1:,} documents"
    console.print(title, highlight=False)
    for line in decoded_row(rows, 0, manifest, tokenizer):
        console.print(line, highlight=False)


def length_table(manifest: Manifest) -> Table:
    """Documents and tokens by source and doubling of the length, before and after sampling."""
    table = Table(title="lengths before and after sampling", box=box.SIMPLE_HEAD)
    table.add_column("source")
    for column in ("tokens a document", "found", "tokens", "sampled", "tokens"):
        table.add_column(column, justify="right")
    name = ""
    for count in manifest.lengths:
        table.add_row(
            count.source if count.source != name else "",
            f"{count.min_length:,}-{2 * count.min_length - 1:,}",
            f"{count.num_documents:,}",
            f"{count.num_tokens:,}",
            f"{count.num_documents_sampled:,}",
            f"{count.num_tokens_sampled:,}",
        )
        name = count.source
    return table


def draw_lengths(file: Path, manifest: Manifest) -> None:
    """A panel for each source: tokens by length of their document, before and after."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sources = list(dict.fromkeys(count.source for count in manifest.lengths))
    powers = [count.min_length.bit_length() - 1 for count in manifest.lengths]
    ticks = np.arange(min(powers), max(powers) + 1)
    figure = Figure(figsize=(8, 0.6 + 2.2 * len(sources)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(sources), sharex=True, squeeze=False)[:, 0]
    for panel, source in zip(panels, sources, strict=True):
        own = [count for count in manifest.lengths if count.source == source]
        _draw_source(panel, source, own)
    panels[0].legend(frameon=False)
    ticks = ticks[:: 1 + ticks.size // 14]  # room for their labels
    panels[-1].set_xticks(ticks, [_short(1 << int(tick)) for tick in ticks])
    panels[-1].set_xlabel("tokens of a document, from")
    aside = file.with_suffix(".partial")
    figure.savefig(aside, format="png", dpi=120)
    os.replace(aside, file)


def _draw_source(panel: Any, source: str, counts: Sequence[LengthCount]) -> None:
    places = np.array([count.min_length.bit_length() - 1 for count in counts])
    for shift, label, tokens in (
        (-0.2, "found", [count.num_tokens for count in counts]),
        (0.2, "sampled", [count.num_tokens_sampled for count in counts]),
    ):
        panel.bar(places + shift, np.array(tokens) / 1e6, width=0.4, label=label)
    panel.set_title(source, loc="left", fontsize=10)
    panel.set_ylabel("million tokens")


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
