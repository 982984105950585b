"""Options of ``plan``, apart from what plans: ``--help`` needs nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.plan.hardware import Hardware, hardware_by_name, hardware_from
from megatron_ultralong.program.fields import Range, check_ranges
from megatron_ultralong.program.required import NothingRequired, Required
from megatron_ultralong.program.yaml_file import read_yaml

MOST_GPUS = 16_384


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

    run: Annotated[TrainingConfig, NothingRequired()]
    """As `pretrain` or `sft` takes it."""
    gpus: Annotated[
        int, Range(1, MOST_GPUS), Required("the size of the job, such as --gpus 256")
    ] = 0
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
