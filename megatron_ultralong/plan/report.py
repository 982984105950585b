"""A plan as tables for the terminal, and as plain values for a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, get_args

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from megatron_ultralong.plan.estimate import Estimate, layout_text
from megatron_ultralong.plan.job import GIB
from megatron_ultralong.plan.ledger import Part
from megatron_ultralong.plan.search import Found
from megatron_ultralong.plan.step_time import StepTime

PAPER: dict[str, tuple[int, float]] = {
    "llama3.1-8b-1m": (256, 5.0),
    "llama3.1-8b-2m": (256, 6.0),
    "llama3.1-8b-4m": (256, 13.0),
}
"""H100s and about the hours that arXiv 2504.06214 gives for these runs, by recipe."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A layout and what was found beside it."""

    recipe: str
    model: str
    """Its name or folder."""
    area_text: str
    """How documents were counted."""
    train_tokens: float
    chosen: Estimate
    found: Found | None
    """None where the layout was given."""
    given: Estimate | None = None
    """The layout of recipe and flags, whether it fits or not; None where it breaks a rule."""

    def flags(self) -> str:
        """The layout as flags of ``pretrain``."""
        parallel, memory = self.chosen.job.parallel, self.chosen.job.memory
        words = [
            f"--tensor-model-parallel-size {parallel.tensor_model_parallel_size}",
            f"--pipeline-model-parallel-size {parallel.pipeline_model_parallel_size}",
            f"--context-parallel-size {parallel.context_parallel_size}",
            "--sequence-parallel" if parallel.sequence_parallel else "--no-sequence-parallel",
            f"--recompute-granularity {memory.recompute_granularity}",
        ]
        offload = "--offload-activations" if memory.offload_activations else ""
        return " ".join([*words, offload]).strip()


def render(plan: Plan, num_alternatives: int) -> RenderableType:
    """Everything that the command prints."""
    parts: list[RenderableType] = [_summary(plan), memory_table(plan.chosen), time_table(plan)]
    if plan.chosen.time.traffic:
        parts.append(traffic_table(plan.chosen.time))
    if plan.found is not None:
        parts.append(_alternatives(plan, num_alternatives))
        if plan.found.refused or plan.found.rules:
            parts.append(_refused(plan.found, num_alternatives))
    return Group(*parts)


def _summary(plan: Plan) -> Text:
    job, hardware = plan.chosen.job, plan.chosen.hardware
    text = Text()
    text.append(f"{plan.recipe}: {plan.model}, rows of {job.seq_length:,} tokens, ")
    text.append(f"{job.config.global_batch_size} an iteration, {job.config.precision}, ")
    text.append(f"{job.num_gpus} x {hardware.name}\n{layout_text(job)}", style="bold")
    text.append(f"; {job.num_microbatches} micro-batches a step; {plan.area_text}\n")
    text.append(f"  {plan.flags()}\n", style="cyan")
    text.append(f"rates: {hardware.source}\n", style="dim")
    return text


def memory_rows(estimate: Estimate) -> Iterator[tuple[str, int]]:
    """Part and bytes at the peak, in the order of the step; those that are there."""
    parts = estimate.worst.peak.parts
    for part in get_args(Part):
        if parts.get(part):
            yield part, parts[part]


def memory_table(estimate: Estimate) -> Table:
    """Memory of one GPU at the peak of its step, by part."""
    worst, table = estimate.worst, Table(title_justify="left")
    stages = len(estimate.stages)
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
    if estimate.host_per_node:
        table.add_row(
            f"host memory of a node, of {estimate.host_available / GIB:,.0f} GiB it may take",
            f"{estimate.host_per_node / GIB:,.0f}",
        )
    return table


def time_table(plan: Plan) -> Table:
    """Time of a step by what takes it, and what follows from it."""
    estimate, time = plan.chosen, plan.chosen.time
    table = Table(title="Time of a step", title_justify="left")
    table.add_column("part")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for name, seconds in time_rows(time):
        table.add_row(name, f"{seconds:.2f}", f"{seconds / time.total:.1%}")
    table.add_section()
    table.add_row("step", f"{time.total:.2f}", "", style="bold")
    table.add_section()
    flops = time.model_tflop
    table.add_row("model TFLOP of a GPU, recomputation not counted", f"{flops:,.0f}", "")
    peak = estimate.hardware.peak_tflops
    table.add_row("MFU", f"{estimate.mfu:.1%}", f"of {peak:g} TFLOP/s", style="bold")
    table.add_row("tokens/s/GPU", f"{estimate.tokens_per_second_per_gpu:,.0f}", "")
    hours = estimate.hours(plan.train_tokens)
    budget = f"hours for {plan.train_tokens / 1e9:.2f}B tokens"
    table.add_row(budget, f"{hours:,.1f}", "", style="bold")
    if plan.recipe in PAPER:
        gpus, theirs = PAPER[plan.recipe]
        table.add_row(f"the paper, on {gpus} H100", f"about {theirs:g}", "")
    return table


def time_rows(time: StepTime) -> list[tuple[str, float]]:
    """What a step's time goes to, in seconds."""
    rows = [
        ("attention", time.attention),
        ("projections, MLP, output layer", time.products),
        ("elementwise", time.elementwise),
        ("optimizer", time.optimizer),
        ("communication that is not hidden", time.communication),
        ("off-loading that is not hidden", time.offloading),
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


def _alternatives(plan: Plan, count: int) -> Table:
    assert plan.found is not None
    feasible = plan.found.feasible
    table = Table(
        title=f"The best of {len(feasible)} layouts that fit", title_justify="left", highlight=True
    )
    table.add_column("layout")
    for name in ("step, s", "MFU", "hours", "GiB", "host GiB a node"):
        table.add_column(name, justify="right")
    for each in feasible[:count]:
        table.add_row(*_cells(plan, each))
    if plan.given is not None:
        name, *figures = _cells(plan, plan.given)
        refusal = plan.given.refusal
        verdict = f"; does not fit: {refusal}" if refusal else ""
        table.add_section()
        table.add_row(f"the recipe's: {name}{verdict}", *figures)
    return table


def _cells(plan: Plan, each: Estimate) -> tuple[str, ...]:
    return (
        layout_text(each.job),
        f"{each.time.total:.1f}",
        f"{each.mfu:.1%}",
        f"{each.hours(plan.train_tokens):.1f}",
        f"{each.needed / GIB:.1f}",
        f"{each.host_per_node / GIB:,.0f}" if each.host_per_node else "-",
    )


def _refused(found: Found, count: int) -> Table:
    table = Table(
        title=f"{len(found.refused)} layouts do not fit; the nearest", title_justify="left"
    )
    table.add_column("layout")
    table.add_column("step, s", justify="right")
    table.add_column("why")
    for each, why in found.refused[:count]:
        table.add_row(layout_text(each.job), f"{each.time.total:.1f}", why)
    for rule, number in found.rules.items():
        table.add_row(f"{number} layouts", "-", f"such as: {rule}")
    return table


def as_values(plan: Plan) -> dict[str, Any]:
    """The plan for a file: bytes, seconds and ratios, unrounded."""
    values: dict[str, Any] = {
        "recipe": plan.recipe,
        "model": plan.model,
        "documents": plan.area_text,
        "train_tokens": plan.train_tokens,
        "paper": None,
        "hardware": dataclasses.asdict(plan.chosen.hardware),
        "chosen": estimate_values(plan.chosen, plan.train_tokens, details=True),
    }
    if plan.recipe in PAPER:
        gpus, hours = PAPER[plan.recipe]
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
        values["seconds"] = dict(time_rows(time))
        values["model_tflop_per_gpu"] = time.model_tflop
        values["traffic"] = [dataclasses.asdict(each) for each in time.traffic]
        values["allowance_bytes"] = estimate.allowance
        values["stages"] = [
            {
                "stage": stage.stage,
                "host_bytes": stage.host,
                "peak_moment": stage.peak.moment,
                "moments": {name: peak.parts for name, peak in stage.peaks.items()},
            }
            for stage in estimate.stages
        ]
    return values
