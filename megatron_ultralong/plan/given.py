"""One layout's memory, time and traffic as tables, and the plan of a run whose layout is given."""

import functools
import io
from typing import get_args

from rich.table import Column, Table

from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.plan.estimate import Estimate, layout_text, run_time
from megatron_ultralong.plan.hardware import hardware_here
from megatron_ultralong.plan.job import GIB, Job
from megatron_ultralong.plan.layer_memory import fp32_notes
from megatron_ultralong.plan.ledger import Part
from megatron_ultralong.plan.step_time import StepTime
from megatron_ultralong.program.errors import counted
from megatron_ultralong.program.terminal import Console
from megatron_ultralong.sequence.documents import causal_area

WIDTH = 96
"""Columns of a plan among the lines of a dry run."""
_SMALL = 0.1 * GIB
"""Bytes below which a figure is noise beside a GPU's memory: where all tensors together are fewer,
they are not told part by part."""
figure = functools.partial(Column, justify="right")
"""A column of numbers."""


def short_seconds(seconds: float) -> str:
    """Seconds in a table: ``12.3``, or ``0.0021`` where that would be 0.0."""
    return f"{seconds:.1f}" if seconds >= 0.1 else f"{seconds:.2g}"


def memory_table(estimate: Estimate) -> Table:
    """Memory of one GPU at the peak of its step, by part, and of a node."""
    worst, table = estimate.worst, Table("part", figure("GiB"), title_justify="left")
    stages = estimate.job.parallel.pipeline_model_parallel_size
    where = f" of pipeline stage {worst.stage} of {stages}" if stages > 1 else ""
    table.title = f"Memory of a GPU{where}, at the peak of its step ({worst.peak.moment})"
    parts = worst.peak.parts
    is_small = worst.peak.total < _SMALL
    if not is_small:
        for name in get_args(Part):  # in the order of the step
            if parts.get(name):
                table.add_row(name, f"{parts[name] / GIB:.2f}")
        table.add_section()
    table.add_row("tensors at the peak", f"{worst.peak.total / GIB:.2f}", style="bold")
    for name, size in estimate.allowance.items():
        if size >= _SMALL or not is_small:
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
    table.caption = None if is_small else f"other moments: {moments}"
    host = estimate.host
    table.add_section()
    for name, size in (
        ("activations, pinned", host.activations),
        ("optimizer", host.optimizer),
        ("copy of a checkpoint while it is written", host.checkpoint),
    ):
        if size >= _SMALL:
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
        ("exposed communication", time.communication),
        ("exposed offloading", time.offloading),
        ("pipeline bubble", time.bubble),
    ]
    return [(name, seconds) for name, seconds in rows if seconds]


def traffic_table(time: StepTime) -> Table:
    """What leaves a rank in a step, by link."""
    figures = map(figure, ("GB", "seconds alone", "hidden", "exposed"))
    title = "Communication of a rank in a step"
    table = Table("what", "link", *figures, title=title, title_justify="left")
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


def plan_text(
    config: TrainingConfig,
    model: ModelConfig,
    num_gpus: int,
    device_name: str | None,
    kernel: str = "",
) -> str:
    """Memory and time of the run as it is configured; says so where it would not fit.

    ``config`` is checked, with its row length; ``device_name`` is as CUDA names it, None plans for
    an H100. ``kernel`` computes attention on it.
    """
    job = Job(model, config, num_gpus, causal_area([0, config.data.seq_length]))
    hardware, assumed = hardware_here(device_name, kernel)
    estimate = Estimate(job, hardware)
    stream = io.StringIO()
    console = Console(file=stream, width=WIDTH, color_system=None)
    where = estimate.hardware.name if device_name else f"{estimate.hardware.name} (no GPU here)"
    console.print(f"plan for {num_gpus} x {where}: {layout_text(job)}")
    console.print(assumed)
    refusal = estimate.refusal
    console.print("it does not fit: " + refusal if refusal else "it fits")
    for note in [] if device_name else fp32_notes(config, model):  # a device is asked itself
        console.print(note)
    console.print(memory_table(estimate))
    time = estimate.time
    parts = ", ".join(f"{name} {short_seconds(seconds)}" for name, seconds in time_rows(time))
    mask = "" if config.data.document_mask == "none" else ", as if no document were masked"
    console.print(
        f"a step takes about {short_seconds(time.total)} s{mask} ({parts}); "
        f"{estimate.mfu:.1%} MFU, {estimate.tokens_per_second_per_gpu:,.0f} tokens/s/GPU, "
        f"{config.train_iters * time.total / 3600:,.1f} hours for "
        f"{counted(config.train_iters, 'iteration')}"
    )
    run = run_time(estimate, float(config.train_iters * job.tokens_per_iteration))
    host = estimate.host
    if host.offloaded:
        console.print(
            f"host memory of a node: {host.activations / GIB:,.0f} GiB of activations, "
            f"{host.optimizer / GIB:,.0f} of the optimizer; {host.pinned / GIB:,.0f} GiB are "
            f"pinned before the first step, in about {run.pin_seconds:,.0f} s"
        )
    if config.save:
        rate = estimate.hardware.storage_gb_per_second
        console.print(
            f"a checkpoint: {run.checkpoint.on_disk / 1e9:,.1f} GB on disk, about "
            f"{run.write_seconds:,.0f} s to write at {rate:g} GB/s a node; up to {run.num_kept} at "
            f"a time, {run.disk_bytes / 1e9:,.1f} GB"
        )
    return stream.getvalue()
