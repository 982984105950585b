"""Results as tables for the terminal."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from megatron_ultralong.evaluation.results.result import (
    LOWER_DIGITS,
    LOWER_IS_BETTER,
    Result,
    perplexity,
)
from megatron_ultralong.program.errors import counted

_WIDTH = 60
"""Of the title at least: a narrow table would break it."""


def loss_table(results: Sequence[Result]) -> Table:
    """Loss and perplexity by position, a column for every checkpoint."""
    first = results[0]
    table = Table(
        title=f"Loss by position: {counted(first.num_packed_rows, 'row')} of "
        f"{first.num_positions:,} tokens "
        f"({first.config['split']})",
        caption="nats per token ± standard error over rows; perplexity",
        min_width=_WIDTH,
    )
    table.add_column("positions", justify="right")
    for result in results:
        table.add_column(
            f"{result.checkpoint}\n(trained: {result.max_positions:,})", justify="right"
        )
    for start, stop in first.bins:
        table.add_row(f"{start:,} - {stop:,}", *(_loss(one, (start, stop)) for one in results))
    means = [result.mean_loss() for result in results]
    table.add_section()
    table.add_row("all", *("-" if mean is None else f"{mean:.4f}" for mean in means))
    return table


def _loss(result: Result, place: tuple[int, int]) -> Text:
    cell = result.loss(place)
    if cell is None or cell.score is None:
        return Text("-", style="dim")
    error = "" if cell.error is None else f" ± {cell.error:.3f}"
    style = "red" if place[1] > result.max_positions else ""
    return Text(f"{cell.score:.4f}{error}  {perplexity(cell.score):8.2f}", style=style)


def score_table(result: Result) -> Table:
    """Scores by row and column; lengths beyond the trained positions in red."""
    is_grid = result.kind.rows == "depths"
    title = f"{result.kind.title} of {result.checkpoint}, trained for {result.max_positions:,}"
    table = Table(title=f"{title} positions", min_width=_WIDTH)
    columns: Sequence[str] = result.columns
    if is_grid:
        by = f"{result.kind.form}, by {result.config['by']}"
        table.caption = f"per cent of {counted(counts(result), 'prompt')} a cell, {by}"
        table.add_column("depth", justify="right")
        columns = list(map(str, result.lengths))
    else:
        table.caption = f"{_unit(result)}, {counted(counts(result), 'question')} a cell"
        table.add_column("task")
        table.add_column("metric", style="dim")
    for column in columns:
        title = f"{int(column):,}" if is_grid else column_title(column)
        style = "red" if result.is_beyond(column) else ""
        table.add_column(title, justify="right", style=style)
    digits = [0 if is_grid else LOWER_DIGITS if c in LOWER_IS_BETTER else 1 for c in columns]
    for row in result.depths if is_grid else result.rows:
        label = [f"{float(row):g} %"] if is_grid else [row, result.metrics[row]]
        scores = [result.score(row, column) for column in columns]
        table.add_row(*label, *map(figure, scores, digits))
    table.add_section()
    label = ["all"] if is_grid else ["mean", ""]
    means = [result.pooled(None, [c]) if is_grid else result.mean(c) for c in columns]
    table.add_row(*label, *map(figure, means, digits))
    return table


def _unit(result: Result) -> str:
    """What scores of tasks are: of 100, and better when higher, unless their column says more."""
    lower = [column for column in result.columns if column in LOWER_IS_BETTER]
    if not lower:
        return "score of 100"
    which = f"{', '.join(lower)} (not of 100) better when lower"
    return which if len(lower) == len(result.columns) else f"score of 100; {which}"


def figure(score: float | None, digits: int = 0) -> str:
    """``95.4 -> 95``; a dash where there is nothing."""
    return "-" if score is None else f"{score:.{digits}f}"


def counts(result: Result) -> str:
    """Samples of a cell: ``100``, or ``90 to 100``."""
    found = sorted({cell.num_samples for cell in result.cells})
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"


def column_title(column: str) -> str:
    """``131072 -> 128K``; other columns as they are."""
    return token_count(int(column)) if column.isdecimal() else column


def token_count(tokens: int) -> str:
    """``128``, ``4K`` for 4,096 and ``1M`` for 1,048,576; other numbers in full."""
    for unit, name in ((2**20, "M"), (2**10, "K")):
        if tokens >= unit and tokens % unit == 0:
            return f"{tokens // unit}{name}"
    return f"{tokens:,}"
