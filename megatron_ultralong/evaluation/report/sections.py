"""Sections of a report: measurements by benchmark and by conditions that can be compared."""

import dataclasses
import itertools
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from megatron_ultralong.evaluation.options import RULER_THRESHOLD
from megatron_ultralong.evaluation.report import table
from megatron_ultralong.evaluation.report.measurement import Measurement, conflicts
from megatron_ultralong.evaluation.report.paper import paper_table
from megatron_ultralong.evaluation.results import interval, style
from megatron_ultralong.evaluation.results.pictures import loss_picture, retrieval_picture
from megatron_ultralong.evaluation.results.result import (
    LOSS,
    LOWER_DIGITS,
    LOWER_IS_BETTER,
    Result,
    ScoreCell,
    length_of,
    perplexity,
)
from megatron_ultralong.evaluation.results.tables import column_title, counts, figure
from megatron_ultralong.program.errors import counted


def _loss_table(results: Sequence[Result]) -> table.ReportTable:
    longest = max(results, key=lambda result: result.num_positions)
    rows = []
    for start, stop in sorted({place for result in results for place in result.bins}):
        found = [result.loss((start, stop)) for result in results]
        losses = [interval.cell_estimate(cell) if cell else None for cell in found]
        beyond = [stop > result.max_positions for result in results]
        first = [f"{start:,} – {stop:,}"]  # noqa: RUF001
        rows.append(table.line(first, [*map(_loss, found)], beyond, losses, lower_is_better=True))
    means = [_mean(result.mean_loss()) for result in results]
    trained = (f"{one.checkpoint}, trained for {one.max_positions:,}" for one in results)
    return table.ReportTable(
        header=("positions", *trained),
        rows=tuple(rows),
        footer=(table.words("all", *means), *_reference(results)),
        note=(
            f"Nats per token over {counted(longest.num_packed_rows, 'row')} of "
            f"{longest.num_positions:,} "
            f"tokens (split '{longest.config['split']}'), ± one standard error from the spread "
            "between rows; perplexity in brackets. Red: beyond the trained positions."
        ),
    )


def _loss(cell: ScoreCell | None) -> str:
    if cell is None or cell.score is None:
        return ""
    error = "" if cell.error is None else f" ± {cell.error:.3f}"
    return f"{cell.score:.3f}{error} ({perplexity(cell.score):.1f})"


def _mean(loss: float | None) -> str:
    return table.NOTHING.text if loss is None else f"{loss:.3f}"


def _reference(results: Sequence[Result]) -> tuple[tuple[table.Cell, ...], ...]:
    """The base's own mean inside its context, what the others are to reach beyond it."""
    base, *others = results
    inside = base.mean_loss(0, base.max_positions)
    if inside is None or not others:
        return ()
    name = f"{base.checkpoint}, mean inside its {base.max_positions:,}"
    return (table.words(name, _mean(inside), *[""] * len(others)),)


def _retrieval_table(results: Sequence[Result]) -> table.ReportTable:
    rows = []
    for length in sorted({length for result in results for length in result.lengths}):
        shares = [interval.column_estimate(result, str(length)) for result in results]
        texts = [_share(*pair, length) for pair in zip(results, shares, strict=True)]
        beyond = [length > result.max_positions for result in results]
        rows.append(table.line([f"{length:,} tokens"], texts, beyond, shares))
    form, by = results[0].kind.form, " or ".join(sorted({one.config["by"] for one in results}))
    samples = " or ".join(dict.fromkeys(map(counts, results)))
    return table.ReportTable(
        header=("length", *(result.checkpoint for result in results)),
        rows=tuple(rows),
        note=(
            f"Per cent of prompts whose whole answer is right, by {by}; "
            f"{counted(samples, 'prompt')} at every "
            f"length and depth, {form}. In brackets: the 95 % interval (Wilson), and the worst "
            "depth. Red: beyond the trained positions."
        ),
    )


def _share(result: Result, share: interval.Estimate | None, length: int) -> str:
    if share is None:
        return ""
    depths = [result.score(depth, str(length)) for depth in result.depths]
    worst = min(depth for depth in depths if depth is not None)
    interval = f"[{figure(share.low)}, {figure(share.high)}]"
    return f"{figure(share.value)} % {interval} ({figure(worst)} %)"


_MOST_NUMBERED_BARS = 40
"""Pictures with more bars than this carry no numbers above them."""
_LIMIT = "all"
"""The column of a benchmark whose results have one each, at the limit of each."""


class TaskSection:
    """Results on the same questions, and the columns of their tables: those of all results, or one
    for the limit that each has.
    """

    def __init__(self, results: Sequence[Result]) -> None:
        kind = results[0].kind
        self.results = results
        self.are_lengths = kind.columns == "lengths"
        self._title = "length" if self.are_lengths else "score"
        is_limit = kind.columns == "limit" and all(len(r.columns) == 1 for r in results)
        found = dict.fromkeys(column for result in results for column in result.columns)
        self.names = [*found] if kind.columns == "scores" else sorted(found, key=length_of)
        if is_limit:
            self.names = [_LIMIT]
        self.tasks = list(dict.fromkeys(task for result in results for task in result.rows))

    def column(self, result: Result, name: str) -> str:
        """The column of ``result`` that stands under ``name``."""
        return result.columns[0] if name == _LIMIT else name

    def score(self, result: Result, task: str, name: str) -> interval.Estimate | None:
        """Score of a task in the column under ``name``; None where it was not asked."""
        cell = result.cell(task, self.column(result, name))
        return (
            interval.cell_estimate(cell, are_shares=interval.has_shares(result)) if cell else None
        )

    def tables(self) -> tuple[table.ReportTable, ...]:
        """Means by column where there are several tasks and columns, and scores by task."""
        has_means = len(self.names) > 1 and any(len(result.rows) > 1 for result in self.results)
        return (*([self._means()] if has_means else []), self._by_task())

    def _line(
        self,
        first: Sequence[str],
        name: str,
        estimates: Sequence[interval.Estimate | None],
        texts: Sequence[str],
        *,
        are_comparable: bool = True,
    ) -> tuple[table.Cell, ...]:
        beyond = [result.is_beyond(self.column(result, name)) for result in self.results]
        known = estimates if are_comparable else ()
        return table.line(first, texts, beyond, known, lower_is_better=name in LOWER_IS_BETTER)

    def _mean_line(self, first: Sequence[str], name: str) -> tuple[table.Cell, ...]:
        """Means of a column; marked only where they are of the same tasks."""
        columns = [self.column(result, name) for result in self.results]
        means = list(map(interval.column_estimate, self.results, columns))
        asked = [r.by_column.get(c, []) for r, c in zip(self.results, columns, strict=True)]
        tasks = {frozenset(cell.row for cell in its) for its in asked if its}
        texts = [f"{mean:{_form(name)}}" if mean else "" for mean in means]
        return self._line(first, name, means, texts, are_comparable=len(tasks) < 2)

    def _means(self) -> table.ReportTable:
        numbers = [len(result.rows) for result in self.results]
        note = f"Of {self._tasks_of_means()}; in brackets the 95 % interval."
        if len({frozenset(result.rows) for result in self.results}) > 1:
            note = (
                f"Of different tasks, {', '.join(map(str, numbers))} of them: these means cannot "
                "be compared, so none is highlighted. In brackets: the 95 % interval."
            )
        return table.ReportTable(
            header=(self._title, *(result.checkpoint for result in self.results)),
            rows=tuple(self._mean_line([column_title(name)], name) for name in self.names),
            title="Mean of the tasks",
            note=note,
        )

    def _tasks_of_means(self) -> str:
        """How many tasks each mean is of: ``2 tasks``, or ``2 tasks (acc), 1 task (acc_norm)``."""
        found: dict[int, list[str]] = {}
        for name in self.names:
            cells = (result.by_column.get(self.column(result, name)) for result in self.results)
            number = max(len(of_column or ()) for of_column in cells)
            found.setdefault(number, []).append(column_title(name))
        if len(found) == 1:
            return counted(next(iter(found)), "task")
        return ", ".join(f"{counted(k, 'task')} ({', '.join(its)})" for k, its in found.items())

    def _by_task(self) -> table.ReportTable:
        is_one = self.names == [_LIMIT]
        rows: list[tuple[table.Cell, ...]] = []
        for task, name in itertools.product(self.tasks, self.names):
            scores = [self.score(result, task, name) for result in self.results]
            if any(scores):
                metric = next(r.metrics[task] for r in self.results if task in r.metrics)
                first = [task, metric, *([] if is_one else [column_title(name)])]
                texts = [f"{score.value:{_form(name)}}" if score else "" for score in scores]
                rows.append(self._line(first, name, scores, texts))
        has_mean = is_one and len(rows) > 1
        labels = [result.checkpoint for result in self.results]
        if is_one:
            limits = [result.columns[0] for result in self.results]
            cut = [f", cut at {int(limit):,}" if limit.isdecimal() else "" for limit in limits]
            labels = list(map(operator.add, labels, cut))
        return table.ReportTable(
            header=("task", "metric", *(() if is_one else (self._title,)), *labels),
            rows=tuple(rows),
            figures=(2 if is_one else 3, 3 + len(self.results)),
            footer=(self._mean_line(["mean", ""], _LIMIT),) if has_mean else (),
            title="By task",
            note=self._note(),
        )

    def _note(self) -> str:
        results = self.results
        samples = " or ".join(dict.fromkeys(map(counts, results)))
        fewest = min(cell.num_samples for result in results for cell in result.cells)
        error = f"one standard error is at most {50 / fewest**0.5:.1f} points"
        if not all(map(interval.has_shares, results)):
            error = "standard errors are those of the harness, and what has none is not set apart"
        parts = [f"Scores of 100, {counted(samples, 'question')} a cell: {error}."]
        if LOSS in self.names:
            parts.append("A loss is in nats per token, and better when lower.")
        if lower := [name for name in self.names if name in LOWER_IS_BETTER - {LOSS}]:
            parts.append(f"Not of 100, and better when lower: {', '.join(lower)}.")
        pairs = itertools.product(results, self.names)
        if any(result.is_beyond(self.column(result, name)) for result, name in pairs):
            parts.append("Red: beyond the trained positions.")
        return " ".join(parts)

    def pictures(self, name: str) -> tuple[table.Picture, ...]:
        """Means by length where there are several lengths; else bars, one picture for a score.

        Their names begin with ``name``.
        """
        title = style.short(self.results[0].kind.title)
        is_single = len(self.names) == 1
        if self.are_lengths and not is_single:
            draw = partial(_draw_lines, title, self.results, self.names)
            return table.picture(name, f"{title} by length", self.results, draw)
        drawn: list[table.Picture] = []
        for column in self.names:
            of_column = "" if is_single else f", {column_title(column)}"
            suffix = "" if is_single else f"-{column}"
            draw = partial(_draw_bars, f"{title}{of_column}", self, column)
            drawn += table.picture(f"{name}{suffix}", f"{title}{of_column}", self.results, draw)
        return tuple(drawn)


def _form(column: str) -> str:
    """How scores of a column are written."""
    return f".{LOWER_DIGITS if column in LOWER_IS_BETTER else 1}f"


def _draw_lines(title: str, results: Sequence[Result], columns: Sequence[str], file: Any) -> None:
    """Mean score by length, a line for each checkpoint; open marks are beyond trained positions."""
    figure, axes = style.new_picture(4.4)
    for k, result in enumerate(results):
        colour, dashes = style.line_style(k)
        means = {x: m for x, c in enumerate(columns) if (m := interval.column_estimate(result, c))}
        style.draw_line(axes, result, [*means], [*means.values()], colour, dashes)
        for x, mean in means.items():
            inside = "white" if result.is_beyond(columns[x]) else colour
            mark = {"color": colour, "markersize": 6, "markerfacecolor": inside}
            axes.plot(x, mean.value, "o", clip_on=False, zorder=3, **mark)
    style.name_band(axes, "95 % interval of the mean")
    axes.set_ylim(0, 104)
    axes.set_xticks(range(len(columns)), [column_title(column) for column in columns])
    axes.set_xlim(-0.4, len(columns) - 0.6)
    style.name_axes(axes, style.length_unit(columns), "mean score (of 100)")
    if any(result.is_beyond(column) for result in results for column in columns):
        title += "; open marks: beyond the trained positions"
    style.finish(figure, axes, title, file)


def _draw_bars(title: str, section: TaskSection, column: str, file: Any) -> None:
    """Scores by task, a bar for each checkpoint."""
    tasks, results = section.tasks, section.results
    rows = len(tasks) * len(results)
    figure, axes = style.new_picture(min(0.22 * rows + 0.2 * len(tasks) + 1.5, 16.0), grid="x")
    height = 0.8 / len(results)
    for k, result in enumerate(results):
        found = [(y, section.score(result, task, column)) for y, task in enumerate(tasks)]
        known = {y - 0.4 + (k + 0.5) * height: score.value for y, score in found if score}
        its = {"color": style.line_style(k)[0], "label": style.label(result.checkpoint)}
        drawn = axes.barh([*known], [*known.values()], height=0.9 * height, **its)
        if rows <= _MOST_NUMBERED_BARS:
            axes.bar_label(drawn, fmt=f"%{_form(column)}", padding=3, fontsize=8, color=style.INK)
    if column not in LOWER_IS_BETTER:
        axes.set_xlim(0, 106)
    axes.set_yticks(range(len(tasks)), [*map(style.short, tasks)])
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    unit = "better when lower" if column in LOWER_IS_BETTER else "score (of 100)"
    unit = "loss (nats per token)" if column == LOSS else unit
    style.name_axes(axes, unit)
    style.finish(figure, axes, title, file)


def _parts(
    results: Sequence[Result], name: str
) -> tuple[Callable[[], tuple[table.Picture, ...]], tuple[table.ReportTable, ...]]:
    """What draws the pictures of one benchmark, whose names begin with ``name``, and its tables."""
    kind = results[0].kind
    if kind.rows == "tasks":
        section = TaskSection(results)
        return partial(section.pictures, name), section.tables()
    is_loss = kind.rows == "positions"
    title = "Loss by position" if is_loss else kind.title
    drawing = partial(loss_picture if is_loss else retrieval_picture, results)
    shown = (_loss_table if is_loss else _retrieval_table)(results)
    return partial(table.picture, name, title, results, drawing), (shown,)


def sections(
    measurements: Sequence[Measurement], threshold: float = RULER_THRESHOLD
) -> tuple[table.Section, ...]:
    """A section for every benchmark; several where its questions were not the same."""
    found: list[table.Section] = []
    for kind in dict.fromkeys(one.result.kind for one in measurements):
        groups = _groups([one for one in measurements if one.result.kind == kind])
        name = "loss" if kind.rows == "positions" else kind.name
        for number, group in enumerate(groups, 1):
            results = [dataclasses.replace(one.result, checkpoint=one.label) for one in group]
            draw, tables = _parts(results, name if number == 1 else f"{name}-{number}")
            title = kind.title
            remarks: tuple[str, ...] = ()
            if len(groups) > 1:
                title += f", conditions {number} of {len(groups)}"
                remarks = (_other_conditions(groups, number),)
            with_lengths = results if kind.columns == "lengths" else []
            effective = {one.checkpoint: _effective(one, threshold) for one in with_lengths}
            conditions, paper = table.conditions_table(group), paper_table(group)
            found.append(table.Section(title, draw, tables, conditions, paper, remarks, effective))
    return tuple(found)


def _effective(result: Result, threshold: float) -> str:
    estimates = ((c, interval.column_estimate(result, c)) for c in result.columns)
    found = [(column_title(c), one) for c, one in estimates if one]
    return interval.effective_length(found, threshold)


def _groups(measurements: Sequence[Measurement]) -> list[list[Measurement]]:
    groups: list[list[Measurement]] = []
    for one in measurements:
        fitting = (group for group in groups if not any(conflicts(one, two) for two in group))
        home = next(fitting, None)
        if home is None:
            groups.append(home := [])
        home.append(one)
    return groups


def _other_conditions(groups: Sequence[Sequence[Measurement]], number: int) -> str:
    """Why a group is separate from the first; for the first, from the second."""
    pairs = itertools.product(groups[number - 1], groups[1 if number == 1 else 0])
    left, right = next(pair for pair in pairs if conflicts(*pair))
    differ = "; ".join(f"{name}: {a} and {b}" for name, (a, b) in conflicts(left, right).items())
    return (
        f"{left.label} and {right.label} were not asked the same questions ({differ}): they have "
        "separate tables and are not compared."
    )
