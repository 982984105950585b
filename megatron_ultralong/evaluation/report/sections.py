"""Sections of a report: measurements by benchmark and by conditions that can be compared."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from functools import partial

from megatron_ultralong.evaluation.options import RULER_THRESHOLD
from megatron_ultralong.evaluation.report import table
from megatron_ultralong.evaluation.report.measurement import Measurement, conflicts
from megatron_ultralong.evaluation.report.paper import paper_table
from megatron_ultralong.evaluation.report.task_section import TaskSection
from megatron_ultralong.evaluation.results import interval
from megatron_ultralong.evaluation.results.pictures import loss_picture, retrieval_picture
from megatron_ultralong.evaluation.results.result import Result, ScoreCell, perplexity
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
    columns = sorted(result.columns, key=lambda column: int(column.removesuffix("k")))
    found = [
        (column_title(c), one) for c in columns if (one := interval.column_estimate(result, c))
    ]
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
