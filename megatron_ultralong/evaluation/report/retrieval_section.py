"""Passkeys or needles retrieved by all checkpoints that were asked in the same way."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from megatron_ultralong.evaluation.passkey_result import PasskeyResult
from megatron_ultralong.evaluation.pictures import passkey_picture
from megatron_ultralong.evaluation.report.measurement import Measurement, counts
from megatron_ultralong.evaluation.report.section import Section, conditions_table, picture
from megatron_ultralong.evaluation.report.table import NOTHING, Cell, ReportTable, with_best
from megatron_ultralong.evaluation.tables import percent


def retrieval_section(measurements: Sequence[Measurement], name: str) -> Section:
    """The section of measurements with the same prompts; ``name`` is that of its picture."""
    results = []
    for one in measurements:
        assert isinstance(one.result, PasskeyResult)
        results.append(dataclasses.replace(one.result, checkpoint=one.label))
    title = results[0].title
    labels = ", ".join(one.label for one in measurements)
    return Section(
        title=title,
        pictures=(
            picture(name, f"{title} of {labels}", lambda file: passkey_picture(results, file)),
        ),
        tables=(_table(results),),
        conditions=conditions_table(measurements),
    )


def _table(results: Sequence[PasskeyResult]) -> ReportTable:
    rows = []
    for length in sorted({length for result in results for length in result.lengths}):
        shares = [result.accuracy([length]) for result in results]
        cells = [
            _cell(result, length, share) for result, share in zip(results, shares, strict=True)
        ]
        rows.append((Cell(f"{length:,} tokens"), *with_best(cells, shares, 2)))
    form, by = results[0].form, " or ".join(sorted({result.config.by for result in results}))
    samples = " or ".join(dict.fromkeys(map(counts, results)))
    return ReportTable(
        header=("length", *(result.checkpoint for result in results)),
        rows=tuple(rows),
        note=(
            f"Per cent of prompts whose whole answer is right, by {by}; {samples} prompts at every "
            f"length and depth, {form}. In brackets: the worst depth. Red: beyond the trained "
            "positions."
        ),
    )


def _cell(result: PasskeyResult, length: int, share: float | None) -> Cell:
    if share is None:
        return NOTHING
    depths = [result.accuracy([length], depth) for depth in result.depths]
    worst = min(depth for depth in depths if depth is not None)
    text = f"{percent(share)} % ({percent(worst)} %)"
    return Cell(text, is_beyond=length > result.max_positions)
