"""A benchmark of tasks: scores by task and column, checkpoints side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from megatron_ultralong.evaluation.report.measurement import Measurement, counts
from megatron_ultralong.evaluation.report.section import (
    Picture,
    Section,
    conditions_table,
    picture,
)
from megatron_ultralong.evaluation.report.table import NOTHING, Cell, ReportTable, with_best
from megatron_ultralong.evaluation.report.task_pictures import (
    Bars,
    Line,
    bars_picture,
    lines_picture,
)
from megatron_ultralong.evaluation.task_result import LOWER_IS_BETTER, TASK_KINDS, TaskResult
from megatron_ultralong.evaluation.task_tables import column_title, is_beyond

_LIMIT = "all"
"""The column of a benchmark whose results have one each, at the limit of each."""


def task_section(measurements: Sequence[Measurement], name: str) -> Section:
    """The section of measurements with the same questions; ``name`` begins its pictures' names."""
    columns = _Columns(measurements)
    has_means = len(columns.names) > 1 and any(len(r.tasks) > 1 for r in task_results(measurements))
    by_length = [_means(measurements, columns)] if has_means else []
    return Section(
        title=TASK_KINDS[measurements[0].kind].title,
        pictures=_pictures(measurements, columns, name),
        tables=(*by_length, _by_task(measurements, columns)),
        conditions=conditions_table(measurements),
    )


def task_results(measurements: Sequence[Measurement]) -> list[TaskResult]:
    """Their results."""
    results = [one.result for one in measurements]
    assert all(isinstance(result, TaskResult) for result in results)
    return results  # type: ignore[return-value]


class _Columns:
    """Columns of the tables: those of all results, or one for the limit that each has."""

    def __init__(self, measurements: Sequence[Measurement]) -> None:
        results = task_results(measurements)
        self.kind = TASK_KINDS[results[0].kind]
        is_limit = self.kind.columns == "limit" and all(len(r.columns) == 1 for r in results)
        found = dict.fromkeys(column for result in results for column in result.columns)
        self.names = [_LIMIT] if is_limit else sorted(found, key=_order(list(found)))

    def of(self, result: TaskResult, name: str) -> str:
        """The column of ``result`` that stands under ``name``."""
        return result.columns[0] if name == _LIMIT else name


def _order(found: list[str]) -> Callable[[str], tuple[float, int]]:
    """Lengths in their order, other columns in the order they were found."""

    def key(column: str) -> tuple[float, int]:
        digits = column.removesuffix("k")
        return (float(digits) if digits.isdecimal() else 0.0, found.index(column))

    return key


def _means(measurements: Sequence[Measurement], columns: _Columns) -> ReportTable:
    what = "length" if columns.kind.columns == "lengths" else "score"
    return ReportTable(
        header=(what, *(one.label for one in measurements)),
        rows=tuple(
            (Cell(column_title(name)), *_mean_cells(measurements, columns, name))
            for name in columns.names
        ),
        title="Mean of the tasks",
        note=_tasks_note(task_results(measurements)),
    )


def _mean_cells(
    measurements: Sequence[Measurement], columns: _Columns, name: str
) -> tuple[Cell, ...]:
    """Means of a column; marked only where they are of the same tasks."""
    results = task_results(measurements)
    means = [result.mean(columns.of(result, name)) for result in results]
    cells = [
        NOTHING
        if mean is None
        else Cell(f"{mean:.1f}", is_beyond=is_beyond(result, columns.of(result, name)))
        for mean, result in zip(means, results, strict=True)
    ]
    asked = {
        frozenset(cell.task for cell in result.cells if cell.column == columns.of(result, name))
        for result, mean in zip(results, means, strict=True)
        if mean is not None
    }
    if len(asked) > 1:
        return tuple(cells)
    return with_best(cells, means, 1, lower_is_better=name in LOWER_IS_BETTER)


def _tasks_note(results: Sequence[TaskResult]) -> str:
    numbers = [len(result.tasks) for result in results]
    if len({frozenset(result.tasks) for result in results}) == 1:
        return f"Of {numbers[0]} tasks."
    return (
        f"Of different tasks, {', '.join(map(str, numbers))} of them: such means are not marked, "
        "for they cannot be compared."
    )


def _by_task(measurements: Sequence[Measurement], columns: _Columns) -> ReportTable:
    results = task_results(measurements)
    is_one = columns.names == [_LIMIT]
    rows: list[tuple[Cell, ...]] = []
    for task in dict.fromkeys(task for result in results for task in result.tasks):
        metric = next(r.metrics[task] for r in results if task in r.metrics)
        for name in columns.names:
            found = [result.cell(task, columns.of(result, name)) for result in results]
            if not any(found):
                continue
            cells = [
                Cell(f"{cell.score:.1f}", is_beyond=is_beyond(result, columns.of(result, name)))
                if cell
                else NOTHING
                for cell, result in zip(found, results, strict=True)
            ]
            scores = [cell.score if cell else None for cell in found]
            left = (Cell(task), Cell(metric))
            if not is_one:
                left = (*left, Cell(column_title(name)))  # type: ignore[assignment]
            rows.append(
                (*left, *with_best(cells, scores, 1, lower_is_better=name in LOWER_IS_BETTER))
            )
    if is_one and len(rows) > 1:
        means = _mean_cells(measurements, columns, _LIMIT)
        footer: tuple[tuple[Cell, ...], ...] = ((Cell("mean"), Cell(""), *means),)
    else:
        footer = ()
    labels = [
        f"{one.label}, cut at {int(result.columns[0]):,}"
        if is_one and result.columns[0].isdecimal()
        else one.label
        for one, result in zip(measurements, results, strict=True)
    ]
    middle = () if is_one else ("length" if columns.kind.columns == "lengths" else "score",)
    return ReportTable(
        header=("task", "metric", *middle, *labels),
        rows=tuple(rows),
        figures=(2 if is_one else 3, 3 + len(results)),
        footer=footer,
        title="By task",
        note=_note(results, columns),
    )


def _note(results: Sequence[TaskResult], columns: _Columns) -> str:
    samples = " or ".join(dict.fromkeys(map(counts, results)))
    fewest = min(cell.num_samples for result in results for cell in result.cells)
    parts = [
        f"Scores of 100, {samples} questions a cell: one standard error is at most "
        f"{50 / fewest**0.5:.1f} points."
    ]
    if set(columns.names) & LOWER_IS_BETTER:
        parts.append("A loss is in nats per token, and better when lower.")
    if any(
        is_beyond(result, columns.of(result, name)) for result in results for name in columns.names
    ):
        parts.append("Red: beyond the trained positions.")
    return " ".join(parts)


def _pictures(
    measurements: Sequence[Measurement], columns: _Columns, name: str
) -> tuple[Picture, ...]:
    """Means by length where there are several lengths; else bars, one picture for a score."""
    results = task_results(measurements)
    title = TASK_KINDS[results[0].kind].title
    labels = ", ".join(one.label for one in measurements)
    if columns.kind.columns == "lengths" and len(columns.names) > 1:
        lines = [
            Line(
                one.label,
                [result.mean(column) for column in columns.names],
                [is_beyond(result, column) for column in columns.names],
                one.max_positions,
            )
            for one, result in zip(measurements, results, strict=True)
        ]
        ticks = [column_title(column) for column in columns.names]
        draw = partial(lines_picture, title, ticks, lines)
        return (picture(name, f"{title} by length of {labels}", draw),)
    tasks = list(dict.fromkeys(task for result in results for task in result.tasks))
    pictures = []
    for column in columns.names:
        bars = [
            Bars(
                one.label,
                [
                    cell.score if (cell := result.cell(task, columns.of(result, column))) else None
                    for task in tasks
                ],
            )
            for one, result in zip(measurements, results, strict=True)
        ]
        of_column = "" if len(columns.names) == 1 else f", {column_title(column)}"
        is_share = column not in LOWER_IS_BETTER
        draw = partial(bars_picture, f"{title}{of_column}", tasks, bars, is_share)
        suffix = "" if len(columns.names) == 1 else f"-{column.replace(' ', '-')}"
        pictures.append(picture(f"{name}{suffix}", f"{title}{of_column} of {labels}", draw))
    return tuple(pictures)
