"""Results as pictures: loss by position, and the passkey map in the field's colours."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from megatron_ultralong.evaluation.loss_result import CheckpointLoss, LossResult
from megatron_ultralong.evaluation.passkey_result import PasskeyResult

LINE_COLOURS = ("#c2410c", "#1d4ed8", "#15803d", "#7e22ce", "#0e7490", "#a16207")
_DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)))
INK, FAINT, SHADE = "#1f2937", "#9ca3af", "#f3f4f6"
NOT_MEASURED = "#d1d5db"
MOST_LABELLED_CELLS = 150
"""Maps with more cells than this carry no numbers in them."""
_MAPS_IN_A_ROW = 3
DPI = 160


def line_style(number: int) -> tuple[str, Any]:
    """Colour and dashes of line ``number``; they repeat after eighteen."""
    turn, place = divmod(number, len(LINE_COLOURS))
    return LINE_COLOURS[place], _DASHES[turn % len(_DASHES)]


def loss_picture(result: LossResult, path: Path | BinaryIO) -> None:
    """Loss by position as PNG: a line for every checkpoint, the first one being the base."""
    base = result.checkpoints[0]
    figure = Figure(figsize=(8.0, 4.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    finish_axes(axes)
    edges = {0, *(part.stop for one in result.checkpoints for part in one.bins)}
    _position_axis(axes, sorted(edges))
    if base.max_positions < result.seq_length:
        axes.axvspan(base.max_positions, result.seq_length, color=SHADE, zorder=0)
        axes.axvline(base.max_positions, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
        axes.annotate(
            f" trained context of {base.name}: {base.max_positions:,}",
            (base.max_positions, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            fontsize=9,
            color=INK,
        )
    reference = base.mean_loss(0, base.max_positions)
    if reference is not None:
        axes.axhline(
            reference,
            color=FAINT,
            linewidth=1.0,
            label=f"{base.name}, mean inside its context: {reference:.3f}",
        )
    for k, checkpoint in enumerate(result.checkpoints):
        _loss_line(axes, checkpoint, *line_style(k))
        if base.max_positions < checkpoint.max_positions < result.seq_length:
            axes.axvline(
                checkpoint.max_positions,
                color=line_style(k)[0],
                linewidth=1.0,
                linestyle=(0, (1, 2)),
            )
    axes.set_ylabel("loss (nats per token)", fontsize=10, color=INK)
    axes.set_xlabel("position in the row (tokens of context)", fontsize=10, color=INK)
    axes.set_title(
        f"Loss by position, {result.num_rows} rows of {result.seq_length:,} tokens",
        fontsize=12,
        fontweight="bold",
        color=INK,
        loc="left",
        pad=22,
    )
    axes.legend(fontsize=9, frameon=False, labelcolor=INK)
    figure.savefig(path, format="png", facecolor="white")


def _loss_line(axes: Any, checkpoint: CheckpointLoss, colour: str, dashes: Any) -> None:
    """Mean and two standard errors at the geometric centre of every bin."""
    bins = [part for part in checkpoint.bins if part.loss is not None]
    centres = [math.sqrt(max(part.start, part.stop / 2) * part.stop) for part in bins]
    losses = [part.loss or 0.0 for part in bins]
    margins = [2 * (part.standard_error or 0.0) for part in bins]
    low = [loss - margin for loss, margin in zip(losses, margins, strict=True)]
    high = [loss + margin for loss, margin in zip(losses, margins, strict=True)]
    axes.fill_between(centres, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(
        centres,
        losses,
        color=colour,
        linestyle=dashes,
        linewidth=2.0,
        marker="o",
        markersize=5,
        label=f"{checkpoint.name} (trained for {checkpoint.max_positions:,} positions)",
    )


def _position_axis(axes: Any, edges: Sequence[int]) -> None:
    """A log-2 axis whose ticks are the doubling edges."""
    axes.set_xscale("log", base=2)
    axes.set_xlim(edges[1] / 2, edges[-1])
    shown = edges[1:]
    if len(shown) > 12:  # 128 to 4M has sixteen: every second one, from the end
        shown = shown[::-1][::2]
    axes.xaxis.set_major_locator(FixedLocator(list(shown)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(shown), [token_count(edge) for edge in shown])


def passkey_picture(results: Sequence[PasskeyResult], path: Path | BinaryIO) -> None:
    """Passkey maps side by side as PNG: x context length, y depth, red 0 % to green 100 %.

    All maps have the lengths of all, so that columns stand alike; grey is where nothing was asked.
    A thick line stands at the length that a map's checkpoint was trained for, a dashed one at the
    shortest of all, the original context.
    """
    lengths = sorted({length for result in results for length in result.lengths})
    shortest = min(results, key=lambda result: result.max_positions)
    num_columns = min(len(results), _MAPS_IN_A_ROW)
    num_rows = -(-len(results) // num_columns)
    deepest = max(len(result.depths) for result in results)
    width = min(max((0.62 if num_columns == 1 else 0.5) * len(lengths) + 0.9, 4.2), 12.0)
    height = min(max(0.36 * deepest + 1.4, 3.2), 8.0)
    size = (width * num_columns + 0.8, height * num_rows)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    images = [
        _passkey_map(axes, result, lengths, shortest, width)
        for axes, result in zip(grid.flat, results, strict=False)
    ]
    for axes in grid.flat[len(results) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("depth of the key (%)", fontsize=10, color=INK)
    bar = figure.colorbar(images[0], ax=list(grid.flat), fraction=0.03, pad=0.02, aspect=30)
    bar.set_ticks([0, 0.5, 1], labels=["0 %", "50 %", "100 %"])
    bar.ax.tick_params(labelsize=8, length=0, labelcolor=INK)
    bar.outline.set_visible(False)
    figure.savefig(path, format="png", facecolor="white")


def _passkey_map(
    axes: Any,
    result: PasskeyResult,
    lengths: Sequence[int],
    shortest: PasskeyResult,
    width: float,
) -> Any:
    """One map, ``width`` inches wide."""
    depths = result.depths
    shares = [[result.accuracy([length], depth) for length in lengths] for depth in depths]
    values = [[math.nan if share is None else share for share in line] for line in shares]
    axes.set_facecolor(NOT_MEASURED)
    colours = matplotlib.colormaps["RdYlGn"]
    image = axes.pcolormesh(values, cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=1.0)
    axes.invert_yaxis()
    finish_axes(axes)
    axes.spines[:].set_visible(False)
    step = -(-len(lengths) // 16)
    shown = range(0, len(lengths), step)
    axes.set_xticks(
        [k + 0.5 for k in shown],
        [token_count(lengths[k]) for k in shown],
        rotation=45 if len(shown) > 8 else 0,
    )
    axes.set_yticks([k + 0.5 for k in range(len(depths))], [f"{depth:g}" for depth in depths])
    axes.set_xlabel("context length (tokens)", fontsize=10, color=INK)
    axes.set_title(
        textwrap.fill(
            f"{result.checkpoint}: trained for {result.max_positions:,} positions",
            width=max(int(10.5 * width), 30),
        ),
        fontsize=11,
        fontweight="bold",
        color=INK,
        loc="left",
        pad=32 if shortest.max_positions < result.max_positions < lengths[-1] else 20,
    )
    if len(lengths) * len(depths) <= MOST_LABELLED_CELLS:
        for y, line in enumerate(shares):
            for x, share in enumerate(line):
                _cell_label(axes, x + 0.5, y + 0.5, share)
    height = 4
    if shortest.max_positions < result.max_positions:
        text = f"original context: {shortest.max_positions:,}"
        _context_line(axes, lengths, shortest.max_positions, text, height, thin=True)
        height = 16
    text = f"trained for {result.max_positions:,}"
    _context_line(axes, lengths, result.max_positions, text, height)
    return image


def _context_line(
    axes: Any, lengths: Sequence[int], positions: int, text: str, height: int, thin: bool = False
) -> None:
    """A line between the lengths within ``positions`` and those beyond, where there are both.

    Its text stands ``height`` points above the map.
    """
    inside = sum(length <= positions for length in lengths)
    if 0 < inside < len(lengths):
        style = {"linewidth": 1.5, "linestyle": (0, (4, 2))} if thin else {"linewidth": 2.5}
        axes.axvline(inside, color="black", **style)
        axes.annotate(
            text,
            (inside, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, height),
            textcoords="offset points",
            fontsize=8.5,
            color=INK,
            ha="center" if inside > 1 else "left",
        )


def _cell_label(axes: Any, x: float, y: float, share: float | None) -> None:
    if share is not None:
        dark = share < 0.12 or share > 0.92  # the ends of the colour map need white ink
        axes.text(
            x,
            y,
            f"{100 * share:.0f}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else INK,
        )


def finish_axes(axes: Any, grid: str = "y") -> None:
    """The style of all pictures, with lines across ``grid``."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(labelsize=9, length=0, labelcolor=INK)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color="#e5e7eb", linewidth=0.8)


def token_count(tokens: int) -> str:
    """``128``, ``4K`` for 4,096 and ``1M`` for 1,048,576; other numbers in full."""
    for unit, name in ((2**20, "M"), (2**10, "K")):
        if tokens >= unit and tokens % unit == 0:
            return f"{tokens // unit}{name}"
    return f"{tokens:,}"
