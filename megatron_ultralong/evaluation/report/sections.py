"""Sections of a report: measurements by benchmark and by conditions that can be compared."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from functools import partial

from megatron_ultralong.evaluation.options import RULER_THRESHOLD
from megatron_ultralong.evaluation.report import table
from megatron_ultralong.evaluation.report.measurement import Measurement, conflicts
from megatron_ultralong.evaluation.report.paper import paper_table
from megatron_ultralong.evaluation.report.task_section import task_parts
from megatron_ultralong.evaluation.results import interval
from megatron_ultralong.evaluation.results.pictures import loss_picture, retrieval_picture
from megatron_ultralong.evaluation.results.result import Result, ScoreCell, perplexity
from megatron_ultralong.evaluation.results.tables import column_title, counts, figure
from megatron_ultralong.program.quantity import counted

Parts = tuple[Callable[[], tuple[table.Picture, ...]], tuple[table.ReportTable, ...]]
"""What draws the pictures of one benchmark, and its tables; the pictures' names begin with one
given."""


def _loss(results: Sequence[Result], name: str) -> Parts:
    drawing = partial(loss_picture, results)
    return partial(table.picture, name, "Loss by position", results, drawing), (_table(results),)


def _table(results: Sequence[Result]) -> table.ReportTable:
    longest = max(results, key=lambda result: result.num_positions)
    rows = []
    for start, stop in sorted({place for result in results for place in result.bins}):
        found = [result.loss((start, stop)) for result in results]
        beyond = [stop > result.max_positions for result in results]
        losses = [interval.cell_estimate(cell) if cell else None for cell in found]
        label = table.Cell(f"{start:,} – {stop:,}")  # noqa: RUF001
        cells = [*map(_cell, found, beyond)]
        rows.append((label, *table.with_best(cells, losses, lower_is_better=True)))
    means = [_mean(result.mean_loss()) for result in results]
    trained = (f"{one.checkpoint}, trained for {one.max_positions:,}" for one in results)
    return table.ReportTable(
        header=("positions", *trained),
        rows=tuple(rows),
        footer=((table.Cell("all"), *means), *_reference(results)),
        note=(
            f"Nats per token over {counted(longest.num_packed_rows, 'row')} of "
            f"{longest.num_positions:,} "
            f"tokens (split '{longest.config['split']}'), ± one standard error from the spread "
            "between rows; perplexity in brackets. Red: beyond the trained positions."
        ),
    )


def _cell(cell: ScoreCell | None, is_beyond: bool) -> table.Cell:
    if cell is None or cell.score is None:
        return table.NOTHING
    error = "" if cell.error is None else f" ± {cell.error:.3f}"
    text = f"{cell.score:.3f}{error} ({perplexity(cell.score):.1f})"
    return table.Cell(text, is_beyond=is_beyond)


def _mean(loss: float | None) -> table.Cell:
    return table.NOTHING if loss is None else table.Cell(f"{loss:.3f}")


def _reference(results: Sequence[Result]) -> tuple[tuple[table.Cell, ...], ...]:
    """The base's own mean inside its context, what the others are to reach beyond it."""
    base, *others = results
    inside = base.mean_loss(0, base.max_positions)
    if inside is None or not others:
        return ()
    name = f"{base.checkpoint}, mean inside its {base.max_positions:,}"
    return ((table.Cell(name), _mean(inside), *[table.Cell("")] * len(others)),)


def _retrieval(results: Sequence[Result], name: str) -> Parts:
    drawing = partial(retrieval_picture, results)
    draw = partial(table.picture, name, results[0].kind.title, results, drawing)
    return draw, (_retrieval_table(results),)


def _retrieval_table(results: Sequence[Result]) -> table.ReportTable:
    rows = []
    for length in sorted({length for result in results for length in result.lengths}):
        shares = [interval.column_estimate(result, str(length)) for result in results]
        pairs = zip(results, shares, strict=True)
        cells = [_retrieval_cell(result, length, share) for result, share in pairs]
        rows.append((table.Cell(f"{length:,} tokens"), *table.with_best(cells, shares)))
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


def _retrieval_cell(result: Result, length: int, share: interval.Estimate | None) -> table.Cell:
    if share is None:
        return table.NOTHING
    depths = [result.score(depth, str(length)) for depth in result.depths]
    worst = min(depth for depth in depths if depth is not None)
    interval = f"[{figure(share.low)}, {figure(share.high)}]"
    text = f"{figure(share.value)} % {interval} ({figure(worst)} %)"
    return table.Cell(text, is_beyond=length > result.max_positions)


_PARTS: dict[str, Callable[[Sequence[Result], str], Parts]] = {
    "positions": _loss,
    "depths": _retrieval,
    "tasks": task_parts,
}
"""By what the rows of a result are."""


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
            draw, tables = _PARTS[kind.rows](results, name if number == 1 else f"{name}-{number}")
            title, remarks = kind.title, list[str]()
            if len(groups) > 1:
                title += f", conditions {number} of {len(groups)}"
                remarks.append(_other_conditions(groups, number))
            with_lengths = results if kind.columns == "lengths" else []
            effective = {one.checkpoint: _effective(one, threshold) for one in with_lengths}
            conditions, paper = table.conditions_table(group), paper_table(group)
            remarked = tuple(remarks)
            found.append(table.Section(title, draw, tables, conditions, paper, remarked, effective))
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
