"""Results as tables for the terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from megatron_ultralong.evaluation.loss_result import LossResult
from megatron_ultralong.evaluation.passkey_result import PasskeyResult


def loss_table(result: LossResult) -> Table:
    """Loss and perplexity by position, a pair of columns for every checkpoint."""
    table = Table(
        title=f"Loss by position: {result.num_rows} rows of {result.seq_length:,} tokens "
        f"({result.config.split})",
        caption="nats per token ± standard error over rows; perplexity",
        min_width=60,  # of the title: a narrow table would break it
    )
    table.add_column("positions", justify="right")
    for checkpoint in result.checkpoints:
        table.add_column(
            f"{checkpoint.name}\n(trained: {checkpoint.max_positions:,})", justify="right"
        )
    for k, part in enumerate(result.checkpoints[0].bins):
        cells = []
        for checkpoint in result.checkpoints:
            entry = checkpoint.bins[k]
            if entry.loss is None:
                cells.append(Text("-", style="dim"))
                continue
            error = "" if entry.standard_error is None else f" ± {entry.standard_error:.3f}"
            style = "red" if part.stop > checkpoint.max_positions else ""
            cells.append(Text(f"{entry.loss:.4f}{error}  {entry.perplexity:8.2f}", style=style))
        table.add_row(f"{part.start:,} - {part.stop:,}", *cells)
    means = [checkpoint.mean_loss() for checkpoint in result.checkpoints]
    table.add_section()
    table.add_row("all", *("-" if mean is None else f"{mean:.4f}" for mean in means))
    return table


def passkey_table(result: PasskeyResult) -> Table:
    """Accuracy by depth and length; lengths beyond the trained positions in red."""
    table = Table(
        title=f"{result.title} of {result.checkpoint}, "
        f"trained for {result.max_positions:,} positions",
        min_width=60,  # of the title: a narrow table would break it
        caption=f"per cent of {result.config.num_samples} prompts a cell, {result.form}, "
        f"by {result.config.by}",
    )
    table.add_column("depth", justify="right")
    for length in result.lengths:
        beyond = length > result.max_positions
        table.add_column(f"{length:,}", justify="right", style="red" if beyond else "")
    for depth in result.depths:
        row = [result.accuracy([length], depth) for length in result.lengths]
        table.add_row(f"{depth:g} %", *map(percent, row))
    table.add_section()
    table.add_row("all", *(percent(result.accuracy([length])) for length in result.lengths))
    return table


def percent(share: float | None) -> str:
    """``0.954 -> 95``; a dash where there is nothing."""
    return "-" if share is None else f"{100 * share:.0f}"
