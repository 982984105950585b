"""The plan of a run whose layout is given, as text: what ``pretrain --dry-run`` prints."""

from __future__ import annotations

import io

from megatron_ultralong.config import ModelConfig, TrainingConfig
from megatron_ultralong.plan.estimate import Estimate, layout_text
from megatron_ultralong.plan.hardware import hardware_of_device
from megatron_ultralong.plan.job import GIB, Job
from megatron_ultralong.plan.report import memory_table, time_rows
from megatron_ultralong.plan.score_matrices import fp32_notes
from megatron_ultralong.terminal import Console


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
    if estimate.host_per_node:
        console.print(f"host memory of a node: {estimate.host_per_node / GIB:,.0f} GiB, pinned")
    return stream.getvalue()
