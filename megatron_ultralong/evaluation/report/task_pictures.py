"""Pictures of benchmarks with tasks: means by length as lines, scores by task as bars."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from megatron_ultralong.evaluation.results.pictures import DPI, INK, finish_axes, line_style

_MOST_NUMBERED_BARS = 40
"""Pictures with more bars than this carry no numbers above them."""


@dataclasses.dataclass(frozen=True)
class Line:
    """Means of one checkpoint."""

    label: str
    means: Sequence[float | None]
    are_beyond: Sequence[bool]
    max_positions: int


@dataclasses.dataclass(frozen=True)
class Bars:
    """Scores of one checkpoint, one for each task."""

    label: str
    scores: Sequence[float | None]


def lines_picture(title: str, ticks: Sequence[str], lines: Sequence[Line], file: Any) -> None:
    """Mean score by length, a line for each checkpoint; open marks are beyond trained positions."""
    figure = Figure(figsize=(8.0, 4.4), dpi=DPI, layout="constrained")
    axes: Any = figure.subplots()
    finish_axes(axes)
    for k, line in enumerate(lines):
        colour, dashes = line_style(k)
        places = [x for x, mean in enumerate(line.means) if mean is not None]
        axes.plot(
            places,
            [line.means[x] for x in places],
            color=colour,
            linestyle=dashes,
            linewidth=2.0,
            label=f"{line.label} (trained for {line.max_positions:,} positions)",
        )
        for x in places:
            axes.plot(
                x,
                line.means[x],
                marker="o",
                markersize=6,
                color=colour,
                markerfacecolor="white" if line.are_beyond[x] else colour,
                clip_on=False,
                zorder=3,
            )
    axes.set_ylim(0, 104)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlim(-0.4, len(ticks) - 0.6)
    axes.set_ylabel("mean score of 100", fontsize=10, color=INK)
    axes.set_xlabel("length", fontsize=10, color=INK)
    if any(any(line.are_beyond) for line in lines):
        title += "; open marks: beyond the trained positions"
    _finish(figure, axes, title)
    figure.savefig(file, format="png", facecolor="white")


def bars_picture(
    title: str, tasks: Sequence[str], bars: Sequence[Bars], is_share: bool, file: Any
) -> None:
    """Scores by task, a bar for each checkpoint; ``is_share``: of 100."""
    rows = len(tasks) * len(bars)
    figure = Figure(figsize=(8.0, min(0.22 * rows + 0.2 * len(tasks) + 1.5, 16.0)), dpi=DPI,
                    layout="constrained")  # fmt: skip
    axes: Any = figure.subplots()
    finish_axes(axes, grid="x")
    height = 0.8 / len(bars)
    for k, one in enumerate(bars):
        colour, _ = line_style(k)
        places = [y for y, score in enumerate(one.scores) if score is not None]
        drawn = axes.barh(
            [y - 0.4 + (k + 0.5) * height for y in places],
            [one.scores[y] for y in places],
            height=0.9 * height,
            color=colour,
            label=one.label,
        )
        if rows <= _MOST_NUMBERED_BARS:
            axes.bar_label(drawn, fmt="%.1f", padding=3, fontsize=8, color=INK)
    if is_share:
        axes.set_xlim(0, 106)
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.set_xlabel("score of 100" if is_share else "nats per token", fontsize=10, color=INK)
    _finish(figure, axes, title)
    figure.savefig(file, format="png", facecolor="white")


def _finish(figure: Figure, axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=12, fontweight="bold", color=INK, loc="left", pad=10)
    labels = axes.get_legend_handles_labels()[1]
    figure.legend(
        loc="outside lower left",
        fontsize=9,
        frameon=False,
        labelcolor=INK,
        ncols=2 if max(map(len, labels)) < 50 else 1,
    )
