"""The plan of a run whose layout is given, as text: what ``pretrain --dry-run`` prints."""

from __future__ import annotations

import io

from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.plan.estimate import Estimate, layout_text
from megatron_ultralong.plan.estimate_tables import memory_table, time_rows
from megatron_ultralong.plan.hardware import hardware_of_device
from megatron_ultralong.plan.job import GIB, Job
from megatron_ultralong.plan.run_time import run_time
from megatron_ultralong.plan.score_matrices import fp32_notes
from megatron_ultralong.program.terminal import Console


def plan_text(
    config: TrainingConfig,
    model: ModelConfig,
    num_gpus: int,
    device_name: str | None,
    width: int = 96,
) -> str:
    """Memory and time of the run as it is configured; says so where it would not fit.

    Args:
        config: checked, with its row length.
        model: shape of the model.
        num_gpus: ranks of the job.
        device_name: as CUDA names it; None plans for an H100.
        width: columns.
    """
    length = config.data.seq_length
    job = Job(model, config, num_gpus, length * (length + 1) / 2)
    estimate = Estimate(job, hardware_of_device(device_name))
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None)
    where = estimate.hardware.name if device_name else f"{estimate.hardware.name} (no GPU here)"
    console.print(f"plan for {num_gpus} x {where}: {layout_text(job)}")
    refusal = estimate.refusal
    console.print("it does not fit: " + refusal if refusal else "it fits")
    for note in [] if device_name else fp32_notes(config, model):  # a device is asked itself
        console.print(note)
    console.print(memory_table(estimate))
    time = estimate.time
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in time_rows(time))
    mask = "" if config.data.document_mask == "none" else ", as if no document were masked"
    console.print(
        f"a step takes about {time.total:.1f} s{mask} ({parts}); {estimate.mfu:.1%} MFU, "
        f"{estimate.tokens_per_second_per_gpu:,.0f} tokens/s/GPU, "
        f"{config.train_iters * time.total / 3600:,.1f} hours for {config.train_iters} iterations"
    )
    run = run_time(estimate, float(config.train_iters * job.tokens_per_iteration))
    host = estimate.host
    if host.offloaded:
        console.print(
            f"host memory of a node: {host.activations / GIB:,.0f} GiB of activations, "
            f"{host.optimizer / GIB:,.0f} of the optimizer; the first iteration is longer by about "
            f"{run.pin_seconds:,.0f} s, in which {host.pinned / GIB:,.0f} GiB are pinned"
        )
    if config.save:
        rate = estimate.hardware.storage_gb_per_second
        console.print(
            f"a checkpoint: {run.checkpoint.on_disk / 1e9:,.1f} GB on disk, about "
            f"{run.write_seconds:,.0f} s to write at {rate:g} GB/s a node; up to {run.num_kept} at "
            f"a time, {run.disk_bytes / 1e9:,.1f} GB"
        )
    return stream.getvalue()
