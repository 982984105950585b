"""Loss by position of all checkpoints that were measured on the same rows."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_ultralong.evaluation.report.measurement import Measurement
from megatron_ultralong.evaluation.report.section import Section, conditions_table, picture
from megatron_ultralong.evaluation.report.table import NOTHING, Cell, ReportTable, with_best
from megatron_ultralong.evaluation.results.pictures import loss_picture
from megatron_ultralong.evaluation.results.result import Result, ScoreCell, perplexity


def loss_section(measurements: Sequence[Measurement], name: str) -> Section:
    """The section of measurements on the same rows; ``name`` is that of its picture."""
    results = [one.labelled for one in measurements]
    labels = ", ".join(one.label for one in measurements)
    return Section(
        title="Loss by position",
        pictures=(
            picture(
                name, f"Loss by position of {labels}", lambda file: loss_picture(results, file)
            ),
        ),
        tables=(_table(results),),
        conditions=conditions_table(measurements),
    )


def _table(results: Sequence[Result]) -> ReportTable:
    longest = max(results, key=lambda result: result.num_positions)
    rows = []
    for place in sorted({place for result in results for place in result.bins}):
        start, stop = place
        found = [result.loss(place) for result in results]
        cells = [
            _cell(cell, stop > result.max_positions)
            for cell, result in zip(found, results, strict=True)
        ]
        losses = [cell.score if cell else None for cell in found]
        label = Cell(f"{start:,} – {stop:,}")  # noqa: RUF001
        rows.append((label, *with_best(cells, losses, 3, lower_is_better=True)))
    means = [_mean(result.mean_loss()) for result in results]
    what = "held-out" if longest.config["split"] == "valid" else "training"
    return ReportTable(
        header=(
            "positions",
            *(f"{one.checkpoint}, trained for {one.max_positions:,}" for one in results),
        ),
        rows=tuple(rows),
        footer=((Cell("all"), *means), *_reference(results)),
        note=(
            f"Nats per token over {longest.num_packed_rows} {what} rows of "
            f"{longest.num_positions:,} tokens, ± one standard error from the spread between rows; "
            "perplexity in brackets. Red: beyond the trained positions."
        ),
    )


def _cell(cell: ScoreCell | None, is_beyond: bool) -> Cell:
    if cell is None or cell.score is None:
        return NOTHING
    error = "" if cell.error is None else f" ± {cell.error:.3f}"
    return Cell(f"{cell.score:.3f}{error} ({perplexity(cell.score):.1f})", is_beyond=is_beyond)


def _mean(loss: float | None) -> Cell:
    return NOTHING if loss is None else Cell(f"{loss:.3f}")


def _reference(results: Sequence[Result]) -> tuple[tuple[Cell, ...], ...]:
    """The base's own mean inside its context, what the others are to reach beyond it."""
    base, *others = results
    inside = base.mean_loss(0, base.max_positions)
    if inside is None or not others:
        return ()
    name = f"{base.checkpoint}, mean inside its {base.max_positions:,}"
    return ((Cell(name), _mean(inside), *[Cell("")] * len(others)),)
