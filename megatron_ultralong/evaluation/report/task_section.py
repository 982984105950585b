"""A benchmark of tasks: pictures and tables of scores by task and column, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from megatron_ultralong.evaluation.report.measurement import Measurement
from megatron_ultralong.evaluation.report.table import (
    NOTHING,
    Cell,
    Picture,
    ReportTable,
    Section,
    conditions_table,
    picture,
    with_best,
)
from megatron_ultralong.evaluation.results.pictures import DPI, INK, finish_axes, line_style
from megatron_ultralong.evaluation.results.result import LOWER_IS_BETTER, Result
from megatron_ultralong.evaluation.results.tables import column_title, counts

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


_LIMIT = "all"
"""The column of a benchmark whose results have one each, at the limit of each."""


def task_section(measurements: Sequence[Measurement], name: str) -> Section:
    """The section of measurements with the same questions; ``name`` begins its pictures' names."""
    results = [one.labelled for one in measurements]
    columns = _Columns(results)
    has_means = len(columns.names) > 1 and any(len(result.rows) > 1 for result in results)
    by_length = [_means(results, columns)] if has_means else []
    return Section(
        title=results[0].kind.title,
        pictures=_pictures(results, columns, name),
        tables=(*by_length, _by_task(results, columns)),
        conditions=conditions_table(measurements),
    )


class _Columns:
    """Columns of the tables: those of all results, or one for the limit that each has."""

    def __init__(self, results: Sequence[Result]) -> None:
        kind = results[0].kind
        self.are_lengths = kind.columns == "lengths"
        self.title = "length" if self.are_lengths else "score"
        is_limit = kind.columns == "limit" and all(len(r.columns) == 1 for r in results)
        found = dict.fromkeys(column for result in results for column in result.columns)
        self.names = [_LIMIT] if is_limit else sorted(found, key=_order(list(found)))

    def of(self, result: Result, name: str) -> str:
        """The column of ``result`` that stands under ``name``."""
        return result.columns[0] if name == _LIMIT else name

    def score(self, result: Result, task: str, name: str) -> float | None:
        """Score of a task in the column under ``name``; None where it was not asked."""
        return result.score(task, self.of(result, name))

    def cells(
        self, results: Sequence[Result], name: str, scores: Sequence[float | None]
    ) -> list[Cell]:
        """``scores`` of ``results`` in the column under ``name``, as a line shows them."""
        return [
            NOTHING
            if score is None
            else Cell(f"{score:.1f}", is_beyond=result.is_beyond(self.of(result, name)))
            for score, result in zip(scores, results, strict=True)
        ]


def _order(found: list[str]) -> Callable[[str], tuple[float, int]]:
    """Lengths in their order, other columns in the order they were found."""

    def key(column: str) -> tuple[float, int]:
        digits = column.removesuffix("k")
        return (float(digits) if digits.isdecimal() else 0.0, found.index(column))

    return key


def _means(results: Sequence[Result], columns: _Columns) -> ReportTable:
    return ReportTable(
        header=(columns.title, *(result.checkpoint for result in results)),
        rows=tuple(
            (Cell(column_title(name)), *_mean_cells(results, columns, name))
            for name in columns.names
        ),
        title="Mean of the tasks",
        note=_tasks_note(results),
    )


def _mean_cells(results: Sequence[Result], columns: _Columns, name: str) -> tuple[Cell, ...]:
    """Means of a column; marked only where they are of the same tasks."""
    means = [result.mean(columns.of(result, name)) for result in results]
    cells = columns.cells(results, name, means)
    asked = {
        frozenset(cell.row for cell in result.cells if cell.column == columns.of(result, name))
        for result, mean in zip(results, means, strict=True)
        if mean is not None
    }
    if len(asked) > 1:
        return tuple(cells)
    return with_best(cells, means, 1, lower_is_better=name in LOWER_IS_BETTER)


def _tasks_note(results: Sequence[Result]) -> str:
    numbers = [len(result.rows) for result in results]
    if len({frozenset(result.rows) for result in results}) == 1:
        return f"Of {numbers[0]} tasks."
    return (
        f"Of different tasks, {', '.join(map(str, numbers))} of them: such means are not marked, "
        "for they cannot be compared."
    )


def _by_task(results: Sequence[Result], columns: _Columns) -> ReportTable:
    is_one = columns.names == [_LIMIT]
    rows: list[tuple[Cell, ...]] = []
    for task in dict.fromkeys(task for result in results for task in result.rows):
        metric = next(r.metrics[task] for r in results if task in r.metrics)
        for name in columns.names:
            scores = [columns.score(result, task, name) for result in results]
            if all(score is None for score in scores):
                continue
            cells = columns.cells(results, name, scores)
            middle = () if is_one else (Cell(column_title(name)),)
            best = with_best(cells, scores, 1, lower_is_better=name in LOWER_IS_BETTER)
            rows.append((Cell(task), Cell(metric), *middle, *best))
    means = _mean_cells(results, columns, _LIMIT) if is_one and len(rows) > 1 else None
    labels = [
        f"{result.checkpoint}, cut at {int(result.columns[0]):,}"
        if is_one and result.columns[0].isdecimal()
        else result.checkpoint
        for result in results
    ]
    return ReportTable(
        header=("task", "metric", *(() if is_one else (columns.title,)), *labels),
        rows=tuple(rows),
        figures=(2 if is_one else 3, 3 + len(results)),
        footer=((Cell("mean"), Cell(""), *means),) if means else (),
        title="By task",
        note=_note(results, columns),
    )


def _note(results: Sequence[Result], columns: _Columns) -> str:
    samples = " or ".join(dict.fromkeys(map(counts, results)))
    fewest = min(cell.num_samples for result in results for cell in result.cells)
    parts = [
        f"Scores of 100, {samples} questions a cell: one standard error is at most "
        f"{50 / fewest**0.5:.1f} points."
    ]
    if set(columns.names) & LOWER_IS_BETTER:
        parts.append("A loss is in nats per token, and better when lower.")
    if any(
        result.is_beyond(columns.of(result, name)) for result in results for name in columns.names
    ):
        parts.append("Red: beyond the trained positions.")
    return " ".join(parts)


def _pictures(results: Sequence[Result], columns: _Columns, name: str) -> tuple[Picture, ...]:
    """Means by length where there are several lengths; else bars, one picture for a score."""
    title = results[0].kind.title
    labels = ", ".join(result.checkpoint for result in results)
    is_single = len(columns.names) == 1
    if columns.are_lengths and not is_single:
        lines = [
            Line(
                result.checkpoint,
                [result.mean(column) for column in columns.names],
                [result.is_beyond(column) for column in columns.names],
                result.max_positions,
            )
            for result in results
        ]
        ticks = [column_title(column) for column in columns.names]
        draw = partial(lines_picture, title, ticks, lines)
        return (picture(name, f"{title} by length of {labels}", draw),)
    tasks = list(dict.fromkeys(task for result in results for task in result.rows))
    pictures = []
    for column in columns.names:
        bars = [
            Bars(result.checkpoint, [columns.score(result, task, column) for task in tasks])
            for result in results
        ]
        of_column = "" if is_single else f", {column_title(column)}"
        is_share = column not in LOWER_IS_BETTER
        draw = partial(bars_picture, f"{title}{of_column}", tasks, bars, is_share)
        suffix = "" if is_single else f"-{column.replace(' ', '-')}"
        pictures.append(picture(f"{name}{suffix}", f"{title}{of_column} of {labels}", draw))
    return tuple(pictures)
