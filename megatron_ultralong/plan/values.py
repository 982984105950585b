"""A plan as plain values for a file: bytes, seconds and ratios, unrounded."""

from __future__ import annotations

import dataclasses
from typing import Any

from megatron_ultralong.plan.estimate import Estimate, layout_text
from megatron_ultralong.plan.estimate_tables import time_rows
from megatron_ultralong.plan.report import Plan
from megatron_ultralong.plan.run_time import RunTime


def as_values(plan: Plan) -> dict[str, Any]:
    """Everything that is known of a plan."""
    values: dict[str, Any] = {
        "recipe": plan.recipe,
        "model": plan.model,
        "documents": plan.area_text,
        "train_tokens": plan.train_tokens,
        "paper": None,
        "hardware": dataclasses.asdict(plan.chosen.hardware),
        "num_nodes": plan.chosen.num_nodes,
        "flags": plan.flags(),
        "chosen": estimate_values(plan.chosen, plan.train_tokens, details=True),
        "run": run_values(plan.run),
    }
    if plan.paper is not None:
        gpus, hours = plan.paper
        values["paper"] = {"num_gpus": gpus, "hours": hours}
    if plan.found is not None:
        feasible = [estimate_values(each, plan.train_tokens) for each in plan.found.feasible]
        values["feasible"] = feasible
        values["refused"] = [
            {"layout": layout_text(each.job), "step_seconds": each.time.total, "why": why}
            for each, why in plan.found.refused
        ]
        values["rules"] = plan.found.rules
    return values


def run_values(run: RunTime) -> dict[str, Any]:
    """The whole run."""
    return {
        **dataclasses.asdict(run),
        "hours": run.hours,
        "first_iteration_seconds": run.step_seconds + run.pin_seconds,
        "checkpoint_bytes": run.checkpoint.on_disk,
        "disk_bytes": run.disk_bytes,
    }


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
        "host_bytes_per_node": estimate.host_per_node,
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
