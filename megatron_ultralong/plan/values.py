"""A plan as plain values for a file, and its memory as a picture."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from megatron_ultralong.plan.estimate import Estimate, layout_text
from megatron_ultralong.plan.given import time_rows
from megatron_ultralong.plan.job import GIB
from megatron_ultralong.plan.ledger import Part
from megatron_ultralong.plan.report import Plan, layout_flags
from megatron_ultralong.program.aside import whole
from megatron_ultralong.program.picture import new_figure


def as_values(plan: Plan) -> dict[str, Any]:
    """Everything that is known of a plan."""
    run = plan.run
    values: dict[str, Any] = {
        "recipe": plan.recipe,
        "model": plan.model,
        "documents": plan.area_text,
        "train_tokens": plan.train_tokens,
        "paper": plan.paper and dict(zip(("num_gpus", "hours"), plan.paper, strict=True)),
        "hardware": dataclasses.asdict(plan.chosen.hardware),
        "num_nodes": plan.chosen.num_nodes,
        "flags": layout_flags(plan.chosen.job),
        "refusal": plan.refusal,
        "chosen": estimate_values(plan.chosen, plan.train_tokens, details=True),
        "run": {
            **dataclasses.asdict(run),
            "hours": run.hours,
            "first_iteration_seconds": run.step_seconds + run.pin_seconds,
            "checkpoint_bytes": run.checkpoint.on_disk,
            "disk_bytes": run.disk_bytes,
        },
    }
    if plan.found is not None:
        values["feasible"] = [
            estimate_values(each, plan.train_tokens) for each in plan.found.feasible
        ]
        values["refused"] = [
            {"layout": layout_text(each.job), "step_seconds": each.time.total, "why": each.refusal}
            for each in plan.found.refused
        ]
        values["rules"] = plan.found.rules
    return values


def estimate_values(
    estimate: Estimate, train_tokens: float, *, details: bool = False
) -> dict[str, Any]:
    """One layout's figures."""
    job, time = estimate.job, estimate.time
    values: dict[str, Any] = {
        "layout": layout_text(job),
        "num_gpus": job.num_gpus,
        "parallel": dataclasses.asdict(job.parallel),
        "memory": dataclasses.asdict(job.memory),
        "data_parallel_size": job.data_parallel_size,
        "num_microbatches": job.num_microbatches,
        "peak_bytes": estimate.worst.peak.total,
        "needed_bytes": estimate.needed,
        "host_bytes_per_node": estimate.host.offloaded,
        "step_seconds": time.total,
        "mfu": estimate.mfu,
        "tokens_per_second_per_gpu": estimate.tokens_per_second_per_gpu,
        "hours": estimate.hours(train_tokens),
    }
    if details:
        values["host_bytes"] = dataclasses.asdict(estimate.host)
        values["seconds"] = dict(time_rows(time))
        values["model_tflop_per_gpu"] = time.model_tflop
        values["traffic"] = [dataclasses.asdict(each) for each in time.traffic]
        values["allowance_bytes"] = estimate.allowance
        values["stages"] = [
            {
                "stage": stage.stage,
                "host_bytes": stage.host,
                "optimizer_host_bytes": stage.optimizer.host,
                "peak_moment": stage.peak.moment,
                "moments": {name: peak.parts for name, peak in stage.peaks.items()},
            }
            for stage in estimate.stages
        ]
    return values


def save_memory_picture(path: Path, estimates: Sequence[Estimate]) -> None:
    """Write a PNG: a GPU's memory at the peak of every layout, and what the GPU has."""
    from matplotlib import colormaps

    figure = new_figure(10, max(3.4, 1.2 + 0.5 * len(estimates)))
    axes = figure.subplots()
    labels = [layout_text(each.job) for each in estimates]
    left = [0.0] * len(estimates)
    colours = colormaps["tab20"]
    for number, part in enumerate(get_args(Part)):
        widths = [each.worst.peak.parts.get(part, 0) / GIB for each in estimates]
        if any(widths):
            axes.barh(labels, widths, left=left, label=part, color=colours(number))
            left = [a + b for a, b in zip(left, widths, strict=True)]
    allowances = [sum(each.allowance.values()) / GIB for each in estimates]
    axes.barh(labels, allowances, left=left, label="allowance", color="lightgrey")
    hardware = estimates[0].hardware
    axes.axvline(hardware.memory_gib, color="black", linestyle="--", linewidth=1)
    axes.set_xlabel(f"GiB of a GPU at the peak of a step; dashed: {hardware.name}")
    axes.invert_yaxis()
    figure.legend(loc="outside right center", fontsize="small")
    with whole(path) as aside:
        figure.savefig(aside, format="png", dpi=120)
