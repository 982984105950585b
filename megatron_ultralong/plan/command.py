"""``ultralong plan``: what a run takes, and the layout to give it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path

import yaml
from rich.console import Console

from megatron_ultralong.config import ModelConfig, PretrainConfig
from megatron_ultralong.errors import InputError
from megatron_ultralong.plan.documents_area import expected_area
from megatron_ultralong.plan.estimate import Estimate
from megatron_ultralong.plan.hardware import (
    Hardware,
    check,
    hardware_by_name,
    hardware_from,
)
from megatron_ultralong.plan.job import Job
from megatron_ultralong.plan.picture import save_memory_picture
from megatron_ultralong.plan.report import Plan, as_values, render
from megatron_ultralong.plan.search import best


@dataclasses.dataclass(frozen=True)
class GpuFlags:
    """Figures of the GPU that replace those of the table; 0 leaves them."""

    gpu_memory_gib: float = 0.0
    """Memory of a GPU."""
    gpu_peak_tflops: float = 0.0
    """Dense bf16 peak, for MFU."""
    attention_forward_tflops: float = 0.0
    """What attention's kernel reaches forward."""
    attention_backward_tflops: float = 0.0
    """What it reaches backward, five products counted where forward has two."""
    matmul_tflops: float = 0.0
    """What the other products reach."""
    nvlink_gb_per_second: float = 0.0
    """A collective inside a node, each rank."""
    network_gb_per_second: float = 0.0
    """Between nodes, each GPU."""
    host_gb_per_second: float = 0.0
    """Between a GPU and pinned host memory."""
    gpus_per_node: int = 0
    """GPUs of a node."""
    host_memory_gib: float = 0.0
    """Memory of a node."""

    def apply(self, hardware: Hardware) -> Hardware:
        """The hardware with these figures."""
        names = {"gpu_memory_gib": "memory_gib", "gpu_peak_tflops": "peak_tflops"}
        given = {
            names.get(field.name, field.name): getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name)
        }
        return dataclasses.replace(hardware, **given)


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """What is planned.

    Flags of the layout and of memory that are given are kept, all others of that kind are chosen.
    """

    run: PretrainConfig
    """As `pretrain` takes it."""
    gpus: int = 0
    """GPUs of the whole job."""
    gpu: str = "h100-80gb"
    """h100-80gb (attention by cuDNN), h100-80gb-fa4 (by flash-attn-4), h200-141gb, a100-80gb,
    b200-180gb."""
    hardware: str = ""
    """YAML file that describes another GPU; see docs/planning.md."""
    model: str = ""
    """llama3.1-8b, llama3.1-70b, ..., or a Hugging Face folder or checkpoint whose shape to take;
    empty: the one of --load, or the recipe's."""
    search: bool = True
    """Choose the layout; --no-search plans the recipe's, with the flags given."""
    mean_document_length: float = 0.0
    """Mean tokens of a document, for document_mask block; 0: --data-path's own boundaries."""
    train_tokens: float = 0.0
    """Tokens of the run; 0: train_iters x global_batch_size x seq_length."""
    num_alternatives: int = 8
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
        if not self.hardware:
            found = hardware_by_name(self.gpu)
        else:
            found = _hardware_file(Path(self.hardware))
        found = self.figures.apply(found)
        check(found, self.hardware or f"--gpu {self.gpu}")
        return found


def _hardware_file(path: Path) -> Hardware:
    if not path.is_file():
        raise InputError(f"--hardware {path} does not exist: see docs/planning.md for its form")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"--hardware {path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"--hardware {path} must hold a mapping, see docs/planning.md")
    return hardware_from(values, str(path))


@dataclasses.dataclass(frozen=True)
class Area:
    """Attention area of a mean row, and how it was found."""

    pairs: float
    text: str


def area_of(
    config: PretrainConfig, mean_document_length: float, own_area: float | None = None
) -> Area:
    """Area of a mean row.

    Args:
        config: its document mask and row length count.
        mean_document_length: in tokens, or 0.
        own_area: of the rows of a data folder, if there is one.

    Raises:
        InputError: documents are masked, and nothing tells their lengths.
    """
    length = config.data.seq_length
    whole = length * (length + 1) / 2
    if config.data.document_mask == "none":
        if mean_document_length:
            raise InputError(
                f"--mean-document-length ({mean_document_length:g}) counts under document_mask "
                "block alone: without the mask every row is one area; use --document-mask block"
            )
        return Area(whole, "no document mask")
    if mean_document_length:
        area = expected_area(length, mean_document_length)
        text = f"documents of {mean_document_length:,.0f} tokens in the mean"
    elif own_area is not None:
        area, text = own_area, f"documents of {config.data.data_path}"
    else:
        raise InputError(
            "document_mask block needs the documents: name a prepared folder by --data-path, or "
            "their mean length by --mean-document-length"
        )
    share = f"{area / whole:.1%} of the causal area"
    return Area(area, f"{text}, {share}, as if ranks shared it evenly")


def plan_run(
    command: PlanConfig,
    recipe: str,
    model: ModelConfig,
    model_name: str,
    *,
    typed: Collection[str] = (),
    own_area: float | None = None,
) -> Plan:
    """Plan, print and write.

    Args:
        command: what was asked.
        recipe: its name.
        model: shape of the model.
        model_name: for people.
        typed: fields of the configuration that were given as flags.
        own_area: mean attention area of the rows of a data folder.

    Raises:
        InputError: nothing fits, or the input is bad.
    """
    hardware, config = command.find_hardware(), command.run
    if command.gpus < 1:
        raise InputError(f"--gpus must be at least 1, not {command.gpus}: GPUs of the whole job")
    if config.data.seq_length < 1:
        raise InputError("--seq-length is needed: tokens of a row, or a --data-path that has them")
    area = area_of(config, command.mean_document_length, own_area)
    job = Job(model, config, command.gpus, area.pairs)
    found = None
    if command.search:
        found = best(job, hardware, typed)
        chosen = found.feasible[0]
    else:
        job.check()
        chosen = Estimate(job, hardware)
        chosen.check()
    iterations = config.train_iters * job.tokens_per_iteration
    plan = Plan(
        recipe,
        model_name,
        area.text,
        command.train_tokens or float(iterations or job.tokens_per_iteration),
        chosen,
        found,
        _as_given(job, hardware) if found else None,
    )
    Console().print(render(plan, command.num_alternatives))
    _write(command, plan)
    return plan


def _as_given(job: Job, hardware: Hardware) -> Estimate | None:
    try:
        job.check()
    except InputError:
        return None
    return Estimate(job, hardware)


def _write(command: PlanConfig, plan: Plan) -> None:
    if command.json is not None:
        partial = command.json.with_name(command.json.name + ".partial")
        partial.write_text(json.dumps(as_values(plan), indent=2) + "\n", encoding="utf-8")
        partial.replace(command.json)
    if command.png is not None:
        shown = plan.found.feasible[: command.num_alternatives] if plan.found else [plan.chosen]
        save_memory_picture(command.png, shown)
