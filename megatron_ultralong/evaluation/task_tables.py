"""Scores by task and length as a table for the terminal and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from rich.table import Table

from megatron_ultralong.evaluation.pictures import INK, token_count
from megatron_ultralong.evaluation.task_result import TASK_KINDS, TaskResult

_DPI = 160


def column_title(column: str) -> str:
    """``131072 -> 128K``; other columns as they are."""
    return token_count(int(column)) if column.isdecimal() else column


def is_beyond(result: TaskResult, column: str) -> bool:
    """Whether a column's length is beyond the positions that the checkpoint was trained for."""
    return column.isdecimal() and int(column) > result.max_positions


def task_table(result: TaskResult) -> Table:
    """Scores by task and column; lengths beyond the trained positions in red."""
    counts = sorted({cell.num_samples for cell in result.cells})
    samples = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    table = Table(
        title=f"{TASK_KINDS[result.kind].title} of {result.checkpoint}, "
        f"trained for {result.max_positions:,} positions",
        caption=f"score of 100, {samples} questions a cell",
        min_width=60,  # of the title: a narrow table would break it
    )
    table.add_column("task")
    table.add_column("metric", style="dim")
    for column in result.columns:
        style = "red" if is_beyond(result, column) else ""
        table.add_column(column_title(column), justify="right", style=style)
    for task in result.tasks:
        cells = [result.cell(task, column) for column in result.columns]
        table.add_row(task, result.metrics[task], *map(_score, cells))
    table.add_section()
    means = [result.mean(column) for column in result.columns]
    table.add_row("mean", "", *("-" if mean is None else f"{mean:.1f}" for mean in means))
    return table


def _score(cell: Any) -> str:
    return "-" if cell is None else f"{cell.score:.1f}"


def task_picture(result: TaskResult, path: Path) -> None:
    """Scores as a map, PNG: x length, y task and the mean below, red 0 to green 100."""
    columns, tasks = result.columns, result.tasks
    scores = [
        [cell.score if (cell := result.cell(task, column)) else None for column in columns]
        for task in tasks
    ]
    scores.append([result.mean(column) for column in columns])
    size = (min(max(0.75 * len(columns) + 2.6, 5.0), 14.0), 0.36 * len(scores) + 1.3)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("#e5e7eb")  # where there is no score
    values = [[float("nan") if score is None else score for score in line] for line in scores]
    image = axes.pcolormesh(
        values,
        cmap=matplotlib.colormaps["RdYlGn"],
        vmin=0,
        vmax=100,
        edgecolors="white",
        linewidth=1.0,
    )
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.tick_params(labelsize=9, length=0, labelcolor=INK)
    axes.set_xticks([k + 0.5 for k in range(len(columns))], [*map(column_title, columns)])
    axes.set_yticks([k + 0.5 for k in range(len(scores))], [*tasks, "mean"])
    axes.axhline(len(tasks), color=INK, linewidth=1.5)
    for y, line in enumerate(scores):
        for x, score in enumerate(line):
            if score is not None:
                dark = score < 12 or score > 92  # the ends of the colour map need white ink
                axes.text(
                    x + 0.5,
                    y + 0.5,
                    f"{score:.1f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else INK,
                )
    inside = sum(not is_beyond(result, column) for column in columns)
    if 0 < inside < len(columns):
        axes.axvline(inside, color="black", linewidth=2.5)
    title = f"{TASK_KINDS[result.kind].title} of {result.checkpoint}"
    if 0 < inside < len(columns):
        title += f"; line: trained for {result.max_positions:,} positions"
    axes.set_title(title, fontsize=11, fontweight="bold", color=INK, loc="left", pad=12)
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02, aspect=30)
    bar.ax.tick_params(labelsize=8, length=0, labelcolor=INK)
    bar.outline.set_visible(False)
    figure.savefig(path, format="png", facecolor="white")
