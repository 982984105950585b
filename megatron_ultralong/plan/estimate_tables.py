"""One layout's memory, time and traffic as tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from rich.table import Table

from megatron_ultralong.plan.estimate import Estimate
from megatron_ultralong.plan.job import GIB
from megatron_ultralong.plan.ledger import Part
from megatron_ultralong.plan.step_time import StepTime


def memory_rows(estimate: Estimate) -> Iterator[tuple[str, int]]:
    """Part and bytes at the peak, in the order of the step; those that are there."""
    parts = estimate.worst.peak.parts
    for part in get_args(Part):
        if parts.get(part):
            yield part, parts[part]


def memory_table(estimate: Estimate) -> Table:
    """Memory of one GPU at the peak of its step, by part, and of a node."""
    worst, table = estimate.worst, Table(title_justify="left")
    stages = estimate.job.parallel.pipeline_model_parallel_size
    where = f" of pipeline stage {worst.stage} of {stages}" if stages > 1 else ""
    table.title = f"Memory of a GPU{where}, at the peak of its step ({worst.peak.moment})"
    table.add_column("part")
    table.add_column("GiB", justify="right")
    for name, size in memory_rows(estimate):
        table.add_row(name, f"{size / GIB:.2f}")
    table.add_section()
    table.add_row("tensors at the peak", f"{worst.peak.total / GIB:.2f}", style="bold")
    for name, size in estimate.allowance.items():
        table.add_row(f"allowance: {name}", f"{size / GIB:.2f}", style="dim")
    table.add_section()
    free = (estimate.available - estimate.needed) / GIB
    table.add_row(
        f"needed, of {estimate.hardware.memory_gib:g} GiB ({free:.1f} free)",
        f"{estimate.needed / GIB:.2f}",
        style="bold",
    )
    others = sorted(worst.peaks.values(), key=lambda peak: -peak.total)
    moments = ", ".join(f"{peak.moment} {peak.total / GIB:.1f}" for peak in others[1:6])
    table.caption = f"other moments: {moments}"
    host = estimate.host
    table.add_section()
    for name, size in (
        ("activations, pinned", host.activations),
        ("optimizer", host.optimizer),
        ("copy of a checkpoint while it is written", host.checkpoint),
    ):
        if size:
            table.add_row(f"host memory of a node: {name}", f"{size / GIB:,.0f}")
    if host.offloaded:
        table.add_row(
            f"host memory of a node, of {host.may_take / GIB:,.0f} GiB it may take",
            f"{host.offloaded / GIB:,.0f}",
        )
    if not host.can_save:
        total = f"{(host.offloaded + host.checkpoint) / GIB:,.0f}"
        table.add_row(
            f"NO CHECKPOINT FITS: all of it together, of {host.of_node / GIB:,.0f} GiB",
            total,
            style="bold red",
        )
    return table


def time_rows(time: StepTime) -> list[tuple[str, float]]:
    """What a step's time goes to, in seconds."""
    rows = [
        ("attention", time.attention),
        ("projections, MLP, output layer", time.products),
        ("elementwise", time.elementwise),
        ("optimizer", time.optimizer),
        ("optimizer on the host", time.host_optimizer),
        ("communication that is not hidden", time.communication),
        ("offloading that is not hidden", time.offloading),
        ("pipeline bubble", time.bubble),
    ]
    return [(name, seconds) for name, seconds in rows if seconds]


def traffic_table(time: StepTime) -> Table:
    """What leaves a rank in a step, by link."""
    table = Table(title="Communication of a rank in a step", title_justify="left")
    table.add_column("what")
    table.add_column("link")
    for name in ("GB", "seconds alone", "hidden", "not hidden"):
        table.add_column(name, justify="right")
    for each in time.traffic:
        table.add_row(
            each.name,
            each.link,
            f"{each.num_bytes / 1e9:,.1f}",
            f"{each.seconds:.2f}",
            f"{each.hidden_seconds:.2f}",
            f"{each.exposed_seconds:.2f}",
        )
    return table
