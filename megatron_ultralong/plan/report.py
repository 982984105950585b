"""A plan as tables for the terminal, as plain values for a file, and its memory as a picture."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from rich.table import Table
from rich.text import Text

from megatron_ultralong.plan import advice, given, layer_memory, ledger, search, without_effect
from megatron_ultralong.plan.estimate import (
    MEMORY_ACCURACY,
    Estimate,
    RunTime,
    layout_text,
    paper_hours,
    run_time,
)
from megatron_ultralong.plan.job import GIB, Job
from megatron_ultralong.program import aside, picture, quantity, terminal
from megatron_ultralong.program.ending import PROGRAM
from megatron_ultralong.program.errors import counted


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
    found: search.Found | None
    """None where the layout was given."""
    given: Estimate | None = None
    """The layout of recipe and flags, whether it fits or not; None where it breaks a rule."""
    hints: Sequence[str] = ()
    """Small changes to what was asked for that are better, as sentences."""
    tokens_text: str = ""
    """What the run's tokens are counted by, where it is not its iterations."""
    first: str = ""
    """What is to be run before it: an import."""
    command: str = ""
    """What starts the run."""
    refusal: str = ""
    """Why `pretrain` or `sft` refuse that with this checkpoint; empty: it starts."""

    @cached_property
    def run(self) -> RunTime:
        """The whole run."""
        return run_time(self.chosen, self.train_tokens)

    @property
    def paper(self) -> tuple[int, float] | None:
        """H100s and about the hours of the paper, for its own runs alone."""
        return paper_hours(self.recipe, self.model, self.chosen.job.config, self.train_tokens)


def layout_flags(job: Job) -> str:
    """A layout as flags of ``pretrain``, on one line."""
    parallel, memory = job.parallel, job.memory
    words = [
        f"--tensor-model-parallel-size {parallel.tensor_model_parallel_size}",
        f"--pipeline-model-parallel-size {parallel.pipeline_model_parallel_size}",
        f"--context-parallel-size {parallel.context_parallel_size}",
        "--sequence-parallel" if parallel.sequence_parallel else "--no-sequence-parallel",
        f"--recompute-granularity {memory.recompute_granularity}",
    ]
    for name in ("first", "last"):
        layers = getattr(parallel, f"num_layers_in_{name}_pipeline_stage")
        if layers:
            words.append(f"--num-layers-in-{name}-pipeline-stage {layers}")
    if parallel.cp_comm_type != "p2p":
        words.append(f"--cp-comm-type {parallel.cp_comm_type}")
    if sizes := parallel.hierarchical_context_parallel_sizes:
        words.append(f"--hierarchical-context-parallel-sizes {' '.join(map(str, sizes))}")
    if memory.offload_activations:
        words.append("--offload-activations")
    if job.config.optimizer.optimizer_cpu_offload:
        words.append("--optimizer-cpu-offload")
    return " ".join(words)


def show(console: terminal.Console, plan: Plan, num_alternatives: int) -> None:
    """Print everything that the command prints; flags stay on one line, to be copied."""
    console.print(_summary(plan), soft_wrap=True, highlight=False)
    notes = layer_memory.fp32_notes(plan.chosen.job.config, plan.chosen.job.model)
    for line in (*notes, *plan.hints):  # before the tables, with the layout that they change
        console.print(line, soft_wrap=True, highlight=False)
    console.print(given.memory_table(plan.chosen))
    console.print(time_table(plan))
    time = plan.chosen.time
    if any(each.num_bytes >= 5e7 or each.seconds >= 0.005 for each in time.traffic):  # not zeros
        console.print(given.traffic_table(time))
    console.print(run_table(plan))
    if plan.found is not None:
        console.print(_alternatives(plan, num_alternatives))
        if plan.found.refused or plan.found.rules:
            console.print(_refused(plan.found, num_alternatives))


def _summary(plan: Plan) -> Text:
    estimate, job = plan.chosen, plan.chosen.job
    used, whole = estimate.hardware.gpus_per_node, estimate.machine.gpus_per_node
    nodes = f"{counted(estimate.num_nodes, 'node')}" if estimate.num_nodes > 1 else "one node"
    if used < whole:
        nodes += f", {used} of the {counted(whole, 'GPU')} of each"
    text = Text()
    text.append(f"{plan.recipe}: {plan.model}, rows of {job.seq_length:,} tokens, ")
    text.append(f"{job.config.global_batch_size} an iteration, {job.config.precision}, ")
    text.append(f"{job.num_gpus} x {estimate.hardware.name} ({nodes})\n")
    text.append(layout_text(job), style="bold")
    count = job.num_microbatches
    text.append(f"; {counted(count, 'micro-batch')} a step; {plan.area_text}\n")
    for line in filter(None, (plan.first, plan.command)):
        text.append(f"  {line}\n", style="cyan")
    if plan.refusal:
        verb = job.config.verb
        text.append(f"warning: `{PROGRAM} {verb}` refuses that as it stands: {plan.refusal}\n")
    few = quantity.few_tokens(job.seq_length, job.model.max_position_embeddings)
    doubts = (*job.config.rope.beyond_paper, job.config.optimizer.high_lr, few)
    for line in filter(None, doubts):
        text.append(f"{line}\n")
    text.append(f"rates: {estimate.hardware.source}", style="dim")
    if "one iteration" in plan.tokens_text:
        text.append(
            "\nits length is not known: --train-iters, --train-tokens or --data-path say it"
        )
    if estimate.is_tight:
        left = (estimate.available - estimate.needed) / GIB
        text.append(
            f"\nwarning: leaves {left:.1f} GiB of a GPU, and memory is planned within "
            f"{MEMORY_ACCURACY:.0%} of its {estimate.needed / GIB:.1f}: it may not fit"
        )
    for name, why in without_effect.idle_flags(job):
        text.append(f"\n{advice.flag_of(name)} changes nothing here: {why}", style="dim")
    return text


def time_table(plan: Plan) -> Table:
    """Time of a step by what takes it, and what follows from it."""
    estimate, time = plan.chosen, plan.chosen.time
    unit, scale = ("seconds", 1.0) if time.total >= 0.1 else ("milliseconds", 1e3)
    columns = ("part", given.figure(unit), given.figure("share"))
    table = Table(*columns, title="Time of a step", title_justify="left")
    for name, seconds in given.time_rows(time):
        table.add_row(name, f"{seconds * scale:.2f}", f"{seconds / time.total:.1%}")
    table.add_section()
    table.add_row("step", f"{time.total * scale:.2f}", "", style="bold")
    table.add_section()
    flops = f"{time.model_tflop:,.0f}" if time.model_tflop >= 1 else f"{time.model_tflop:.2g}"
    table.add_row("model TFLOP of a GPU, recomputation not counted", flops, "")
    peak = estimate.peak_tflops
    table.add_row("MFU", f"{estimate.mfu:.1%}", f"of {peak:g} TFLOP/s", style="bold")
    table.add_row("tokens/s/GPU", f"{estimate.tokens_per_second_per_gpu:,.0f}", "")
    hours = estimate.hours(plan.train_tokens)
    tokens = plan.train_tokens
    count = f"{tokens / 1e9:.2f}B" if tokens >= 1e8 else f"{tokens / 1e6:.2f}M"
    budget = f"hours for {count} tokens{plan.tokens_text}"
    table.add_row(budget, f"{hours:,.1f}" if hours >= 1 else f"{hours:.3f}", "", style="bold")
    if plan.paper is not None:
        gpus, published_hours = plan.paper
        table.add_row(f"the paper, on {gpus} H100", f"about {published_hours:g}", "")
    return table


def run_table(plan: Plan) -> Table:
    """The whole run: its iterations, what makes it longer, and what it leaves on disk."""
    run, estimate = plan.run, plan.chosen
    rate = estimate.hardware.storage_gb_per_second
    title = f"The run: {counted(run.num_iterations, 'iteration')}"
    table = Table("what", given.figure("figure"), title=title, title_justify="left")
    if run.pin_seconds >= 1:
        pinned = f"{estimate.host.pinned / GIB:,.0f} GiB of a node"
        table.add_row(f"pinning {pinned}, before the first step", f"{run.pin_seconds:,.0f} s")
    hours = f"{run.hours:,.1f}" if run.hours >= 1 else f"{run.hours:.3f}"
    if run.checkpoint.on_disk < 1e8:
        table.add_row("a checkpoint on disk", f"{run.checkpoint.on_disk / 1e6:,.0f} MB")
        table.add_row("hours with all of this", hours, style="bold")
        return table
    table.add_row("a checkpoint on disk", f"{run.checkpoint.on_disk / 1e9:,.1f} GB")
    table.add_row(
        f"time to save one ({estimate.num_nodes} x {rate:g} GB/s: --storage-gb-per-second)",
        f"{run.write_seconds:,.0f} s",
    )
    waits = "copy to the host" if plan.chosen.job.config.checkpoint.async_save else "all of it"
    table.add_row(f"of that, training waits ({waits})", f"{run.wait_seconds:,.1f} s")
    table.add_row(
        f"on disk at the most ({run.num_kept} of {counted(run.num_checkpoints, 'checkpoint')})",
        f"{run.disk_bytes / 1e9:,.0f} GB",
    )
    if run.num_validations:
        table.add_row(
            f"{run.num_validations} validations, each", f"{run.validation_seconds:,.1f} s"
        )
    table.add_row("hours with all of this", hours, style="bold")
    return table


def _alternatives(plan: Plan, count: int) -> Table:
    assert plan.found is not None
    feasible, chosen = plan.found.feasible, plan.chosen
    shown = feasible[:count]
    if chosen not in shown:
        shown = [*shown[: max(count - 1, 0)], chosen]
    number = f"{counted(len(feasible), 'layout')} fit"
    if len(shown) < len(feasible):
        number += f", {len(shown):,} are shown (--num-alternatives)"
    title = (
        f"{number}, fastest first. -> is the one to take: within {search.MARGIN_TIME:.0%} of the "
        "fastest that can save checkpoints, one without host memory that leaves "
        f"{MEMORY_ACCURACY:.0%} of what it needs of a GPU; else one that does the second; else any."
        f" Of layouts within {search.SAME_TIME:.0%} of such a one, the least GiB"
    )
    if len(feasible) == 1:
        title = "The one layout that fits"
    columns = map(given.figure, ("step, s", "MFU", "hours", "GiB", "host GiB a node"))
    table = Table("layout", *columns, title=title, title_justify="left", highlight=True)
    for each in shown:
        name, *figures = _cells(plan, each)
        mark, style = ("-> ", "bold") if each is chosen else ("   ", "")
        table.add_row(mark + name, *figures, style=style)
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
        given.short_seconds(each.time.total),
        f"{each.mfu:.1%}",
        f"{each.hours(plan.train_tokens):.1f}",
        f"{each.needed / GIB:.1f}",
        f"{each.host.offloaded / GIB:,.0f}" if each.host.offloaded else "-",
    )


def _refused(found: search.Found, count: int) -> Table:
    number = len(found.refused)
    title = "1 layout does not fit" if number == 1 else f"{counted(number, 'layout')} do not fit"
    title += f"; the {count:,} nearest" if number > count else ""
    if not found.refused:
        title = "Layouts that break a rule"
    table = Table("layout", given.figure("step, s"), "why", title=title, title_justify="left")
    for each in found.refused[:count]:
        table.add_row(layout_text(each.job), given.short_seconds(each.time.total), each.refusal)
    for rule, number in found.rules.items():
        table.add_row(counted(number, "layout"), "-", f"such as: {rule}")
    return table


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
        values["seconds"] = dict(given.time_rows(time))
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

    figure = picture.new_figure(10, max(3.4, 1.2 + 0.5 * len(estimates)))
    axes = figure.subplots()
    labels = [layout_text(each.job) for each in estimates]
    left = [0.0] * len(estimates)
    colours = colormaps["tab20"]
    for number, part in enumerate(get_args(ledger.Part)):
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
    with aside.whole(path) as file:
        figure.savefig(file, format="png", dpi=120)
