"""Passkeys or needles retrieved by all checkpoints that were asked in the same way."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_ultralong.evaluation.report.measurement import Measurement
from megatron_ultralong.evaluation.report.section import Section, conditions_table, picture
from megatron_ultralong.evaluation.report.table import NOTHING, Cell, ReportTable, with_best
from megatron_ultralong.evaluation.results.pictures import retrieval_picture
from megatron_ultralong.evaluation.results.result import Result
from megatron_ultralong.evaluation.results.tables import counts, figure


def retrieval_section(measurements: Sequence[Measurement], name: str) -> Section:
    """The section of measurements with the same prompts; ``name`` is that of its picture."""
    results = [one.labelled for one in measurements]
    title = results[0].kind.title
    labels = ", ".join(one.label for one in measurements)
    return Section(
        title=title,
        pictures=(
            picture(name, f"{title} of {labels}", lambda file: retrieval_picture(results, file)),
        ),
        tables=(_table(results),),
        conditions=conditions_table(measurements),
    )


def _table(results: Sequence[Result]) -> ReportTable:
    rows = []
    for length in sorted({length for result in results for length in result.lengths}):
        shares = [result.retrieved([length]) for result in results]
        cells = [
            _cell(result, length, share) for result, share in zip(results, shares, strict=True)
        ]
        rows.append((Cell(f"{length:,} tokens"), *with_best(cells, shares, 0)))
    form, by = (
        results[0].kind.form,
        " or ".join(sorted({result.config["by"] for result in results})),
    )
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


def _cell(result: Result, length: int, share: float | None) -> Cell:
    if share is None:
        return NOTHING
    depths = [result.score(depth, str(length)) for depth in result.depths]
    worst = min(depth for depth in depths if depth is not None)
    text = f"{figure(share)} % ({figure(worst)} %)"
    return Cell(text, is_beyond=length > result.max_positions)
