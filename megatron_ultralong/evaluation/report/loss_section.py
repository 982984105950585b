"""Loss by position of all checkpoints that were measured on the same rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from megatron_ultralong.evaluation.loss_result import CheckpointLoss, LossResult, PositionBin
from megatron_ultralong.evaluation.pictures import loss_picture
from megatron_ultralong.evaluation.report.measurement import Measurement
from megatron_ultralong.evaluation.report.section import Section, conditions_table, picture
from megatron_ultralong.evaluation.report.table import NOTHING, Cell, ReportTable, with_best


def loss_section(measurements: Sequence[Measurement], name: str) -> Section:
    """The section of measurements on the same rows; ``name`` is that of its picture."""
    result = joined(measurements)
    labels = ", ".join(one.label for one in measurements)
    return Section(
        title="Loss by position",
        pictures=(
            picture(name, f"Loss by position of {labels}", lambda file: loss_picture(result, file)),
        ),
        tables=(_table(result),),
        conditions=conditions_table(measurements),
    )


def joined(measurements: Sequence[Measurement]) -> LossResult:
    """One result of all checkpoints, by their labels."""
    checkpoints = []
    results = []
    for one in measurements:
        assert isinstance(one.result, LossResult)
        results.append(one.result)
        checkpoints.append(dataclasses.replace(one.result.checkpoints[0], name=one.label))
    longest = max(results, key=lambda result: result.seq_length)
    return dataclasses.replace(longest, checkpoints=tuple(checkpoints))


def _table(result: LossResult) -> ReportTable:
    base = result.checkpoints[0]
    by_place = [
        {(part.start, part.stop): part for part in one.bins if part.loss is not None}
        for one in result.checkpoints
    ]
    places = sorted({(part.start, part.stop) for one in result.checkpoints for part in one.bins})
    rows = []
    for place in places:
        parts = [found.get(place) for found in by_place]
        cells = [
            _cell(part, place[1] > one.max_positions)
            for part, one in zip(parts, result.checkpoints, strict=True)
        ]
        losses = [part.loss if part else None for part in parts]
        start, stop = place
        label = Cell(f"{start:,} – {stop:,}")  # noqa: RUF001
        rows.append((label, *with_best(cells, losses, 3, lower_is_better=True)))
    means = [one.mean_loss() for one in result.checkpoints]
    return ReportTable(
        header=(
            "positions",
            *(f"{one.name}, trained for {one.max_positions:,}" for one in result.checkpoints),
        ),
        rows=tuple(rows),
        footer=((Cell("all"), *map(_mean, means)), *_reference(base, len(result.checkpoints))),
        note=(
            f"Nats per token over {result.num_rows} {_rows_of(result)} rows of "
            f"{result.seq_length:,} tokens, ± one standard error from the spread between rows; "
            "perplexity in brackets. Red: beyond the trained positions."
        ),
    )


def _rows_of(result: LossResult) -> str:
    return "held-out" if result.config.split == "valid" else "training"


def _cell(part: PositionBin | None, is_beyond: bool) -> Cell:
    if part is None or part.loss is None:
        return NOTHING
    error = "" if part.standard_error is None else f" ± {part.standard_error:.3f}"
    return Cell(f"{part.loss:.3f}{error} ({math.exp(part.loss):.1f})", is_beyond=is_beyond)


def _mean(loss: float | None) -> Cell:
    return NOTHING if loss is None else Cell(f"{loss:.3f}")


def _reference(base: CheckpointLoss, num_checkpoints: int) -> tuple[tuple[Cell, ...], ...]:
    """The base's own mean inside its context, what the others are to reach beyond it."""
    inside = base.mean_loss(0, base.max_positions)
    if inside is None or num_checkpoints < 2:
        return ()
    name = f"{base.name}, mean inside its {base.max_positions:,}"
    return ((Cell(name), _mean(inside), *[Cell("")] * (num_checkpoints - 1)),)
