"""``ultralong plan``: what a run takes, and the layout to give it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

from megatron_ultralong.config.training import SftConfig, TrainingConfig
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.plan import advice
from megatron_ultralong.plan.area import Rows, area_of
from megatron_ultralong.plan.estimate import Estimate
from megatron_ultralong.plan.hardware import Hardware, hardware_by_name, hardware_from
from megatron_ultralong.plan.job import Job
from megatron_ultralong.plan.report import Plan, show
from megatron_ultralong.plan.search import Found, broken_rule
from megatron_ultralong.plan.values import as_values, save_memory_picture
from megatron_ultralong.program.aside import write_aside
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import Range, check_ranges
from megatron_ultralong.program.terminal import Console
from megatron_ultralong.program.yaml_file import read_yaml

WIDTH = 112
"""Columns of what is not printed to a terminal."""


@dataclasses.dataclass(frozen=True)
class GpuFlags:
    """Figures of the GPU that replace those of the table; 0 leaves them."""

    gpu_memory_gib: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Memory of a GPU."""
    gpu_peak_tflops: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Dense bf16 peak, for MFU."""
    attention_forward_tflops: Annotated[float, Range(0, 1_000_000)] = 0.0
    """What attention's kernel reaches forward."""
    attention_backward_tflops: Annotated[float, Range(0, 1_000_000)] = 0.0
    """What it reaches backward, five products counted where forward has two."""
    matmul_tflops: Annotated[float, Range(0, 1_000_000)] = 0.0
    """What the other products reach."""
    nvlink_gb_per_second: Annotated[float, Range(0, 1_000_000)] = 0.0
    """A collective inside a node, each rank."""
    network_gb_per_second: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Between nodes, each GPU."""
    host_gb_per_second: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Between a GPU and pinned host memory."""
    gpus_per_node: Annotated[int, Range(0)] = 0
    """GPUs of a node."""
    host_memory_gib: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Memory of a node."""
    host_pin_gib_per_second: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Host memory that a node pins, in the first iteration."""
    host_adam_billion_per_second: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Weights of an offloaded optimizer that a rank's CPU thread updates."""
    storage_gb_per_second: Annotated[float, Range(0, 1_000_000)] = 0.0
    """What a node writes to where checkpoints go."""

    def apply(self, hardware: Hardware) -> Hardware:
        """The hardware with these figures; a rate of attention forward counts for all of it."""
        names = {"gpu_memory_gib": "memory_gib", "gpu_peak_tflops": "peak_tflops"}
        given = {
            names.get(field.name, field.name): getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name)
        }
        if "attention_forward_tflops" in given:
            given["diagonal_forward_tflops"] = given["attention_forward_tflops"]
        return dataclasses.replace(hardware, **given)


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """What is planned.

    Flags of the layout and of memory that are given are kept, all others of that kind are chosen.
    """

    run: TrainingConfig
    """As `pretrain` or `sft` takes it."""
    gpus: Annotated[int, Range(1, advice.MOST_GPUS)] = 0
    """GPUs of the whole job."""
    gpu: str = "h100-80gb"
    """h100-80gb, h200-141gb (attention by cuDNN), h100-80gb-fa4, h200-141gb-fa4 (by flash-attn-4),
    h100-94gb-nvl, h200-141gb-nvl, a100-80gb, b200-180gb, gb200-186gb."""
    hardware: str = ""
    """YAML file that describes another GPU; see docs/planning.md."""
    model: str = ""
    """llama3.1-8b, llama3.1-70b, ..., or a Hugging Face folder or checkpoint whose shape to take;
    empty: the one of --load, or the recipe's."""
    search: bool = True
    """Choose the layout; --no-search plans the recipe's, with the flags given."""
    mean_document_length: Annotated[float, Range(1, or_zero=True)] = 0.0
    """Mean tokens of a document, for document_mask block; 0: --data-path's own boundaries."""
    train_tokens: Annotated[float, Range(0, 1e18)] = 0.0
    """Tokens of the run; 0: train_iters x global_batch_size x seq_length."""
    num_alternatives: Annotated[int, Range(0)] = 8
    """Layouts in each of the tables."""
    json: Path | None = None
    """Write the plan to this file too."""
    png: Path | None = None
    """Draw memory by part of the best layouts."""
    figures: GpuFlags = dataclasses.field(default_factory=GpuFlags)

    def find_hardware(self) -> Hardware:
        """The hardware by name or file, with the figures given.

        Raises:
            InputError: it is not known, or a figure is out of range.
        """
        found = hardware_by_name(self.gpu)
        if self.hardware:
            values = read_yaml(Path(self.hardware), "description of hardware")
            found = hardware_from(values, self.hardware)
        found = self.figures.apply(found)
        check_ranges(found, where=self.hardware or f"--gpu {self.gpu}")
        return found


def plan_run(
    command: PlanConfig,
    recipe: str,
    model: ModelConfig,
    model_name: str,
    *,
    typed: frozenset[str] = frozenset(),
    rows: Rows | None = None,
) -> Plan:
    """Plan, print and write.

    Args:
        command: what was asked.
        recipe: its name.
        model: shape of the model.
        model_name: for people.
        typed: fields of the configuration that were given as flags.
        rows: of the data folder, if there is one.

    Raises:
        InputError: nothing fits, or the input is bad.
    """
    hardware, config = command.find_hardware(), command.run
    check_ranges(command)
    if config.data.seq_length < 1:
        raise InputError("--seq-length is needed: tokens of a row, or a --data-path that has them")
    _check_fp8(config, hardware)
    area = area_of(config, command.mean_document_length, rows)
    job = Job(model, config, command.gpus, area.pairs, area.documents, typed)
    job.check_flags()
    found: Found | None = None
    hints: list[str] = []
    given: Estimate | None = None
    if command.search:
        found = advice.best(job, hardware)
        chosen = found.chosen
        hints = advice.savable_change(job, hardware, chosen)
        hints += advice.faster_changes(job, hardware, chosen)
        given = None if broken_rule(job.check) else Estimate(job, hardware)
    else:
        chosen = advice.check_given(job, hardware)
    tokens, tokens_text = _train_tokens(command, job, rows)
    plan = Plan(
        *(recipe, model_name, area.text, tokens, chosen),
        *(found, given, hints, tokens_text),
    )
    show(_console(), plan, command.num_alternatives)
    _write(command, plan)
    return plan


def _console() -> Console:
    """The terminal's width; a file or a pipe has none, and tables are read there, too."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def _train_tokens(command: PlanConfig, job: Job, rows: Rows | None) -> tuple[float, str]:
    """Tokens of the run, and what they are counted by."""
    config, an_iteration = command.run, job.tokens_per_iteration
    if command.train_tokens:
        return command.train_tokens, ""
    if isinstance(config, SftConfig) and not config.train_iters and rows is not None:
        iterations = config.with_iterations(rows.num_rows).train_iters
        return float(iterations * an_iteration), f", {config.num_epochs:g} passes over the rows"
    if not config.train_iters:
        return float(an_iteration), ", one iteration"
    return float(config.train_iters * an_iteration), ""


def _check_fp8(config: TrainingConfig, hardware: Hardware) -> None:
    recipe = config.layers.fp8_recipe
    if config.layers.fp8_format == "none" or recipe in hardware.fp8_recipes:
        return
    options = ", ".join(hardware.fp8_recipes) or "none: use --fp8-format none"
    raise InputError(
        f"fp8_recipe {recipe!r} is nothing that {hardware.name} has instructions for; it has: "
        f"{options}"
    )


def _write(command: PlanConfig, plan: Plan) -> None:
    if command.json is not None:
        write_aside(command.json, json.dumps(as_values(plan), indent=2) + "\n")
    if command.png is not None:
        shown = [plan.chosen]
        if plan.found:
            others = [each for each in plan.found.feasible if each is not plan.chosen]
            shown += others[: max(command.num_alternatives - 1, 0)]
        save_memory_picture(command.png, shown)
