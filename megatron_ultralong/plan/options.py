"""Options of ``plan``, apart from what plans: ``--help`` needs nothing else."""

import dataclasses
from pathlib import Path
from typing import Annotated

from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.plan.hardware import Hardware, hardware_by_name, hardware_from
from megatron_ultralong.program.fields import NothingRequired, Range, Required, check_ranges
from megatron_ultralong.program.quantity import LENGTH
from megatron_ultralong.program.yaml_file import read_yaml

MOST_GPUS = 16_384


@dataclasses.dataclass(frozen=True)
class GpuFlags:
    """Figures of the GPU that replace those of the table; 0: no change."""

    gpu_memory_gib: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Memory of a GPU, in GiB."""
    gpu_peak_tflops: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Dense bf16 peak, for MFU."""
    attention_forward_tflops: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Measured rate of attention's forward kernel."""
    attention_backward_tflops: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Measured rate of attention's backward kernel, with five products where forward has two."""
    matmul_tflops: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Measured rate of the other matrix products."""
    nvlink_gb_per_second: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Rate of a collective inside a node, per rank."""
    network_gb_per_second: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Rate between nodes, per GPU."""
    host_gb_per_second: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Rate between a GPU and pinned host memory."""
    gpus_per_node: Annotated[int, Range(0)] = 0
    """GPUs of a node."""
    host_memory_gib: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Host memory of a node."""
    host_pin_gib_per_second: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Rate at which a node pins host memory, before the first step."""
    host_adam_billion_per_second: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Weights of an offloaded optimizer that a rank's CPU thread updates per second, in 10^9."""
    storage_gb_per_second: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Rate at which a node writes checkpoints."""

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
    """Plan memory, time and layout of a run.

    Flags of layout and memory that you give are kept; the others are chosen.
    """

    run: Annotated[TrainingConfig, NothingRequired()]
    """The run, with the options of `pretrain` or `sft`."""
    gpus: Annotated[
        int, Range(1, MOST_GPUS), Required("the size of the job, such as --gpus 256")
    ] = 0
    """GPUs of the whole job."""
    gpu: str = "h100-80gb"
    """h100-80gb, h200-141gb (attention by cuDNN), h100-80gb-fa4, h200-141gb-fa4 (by flash-attn-4),
    h100-94gb-nvl, h200-141gb-nvl, a100-80gb, b200-180gb, gb200-186gb."""
    hardware: str = ""
    """YAML file that describes another GPU, see docs/planning.md."""
    model: str = ""
    """llama3.1-8b, llama3.1-70b, ..., or a Hugging Face folder or checkpoint; default: the model of
    --load, otherwise the recipe's."""
    search: bool = True
    """Choose the layout. --no-search plans exactly the recipe and the given flags."""
    mean_document_length: Annotated[float, Range(1, or_zero=True), LENGTH] = 0.0
    """Mean tokens per document, for document_mask block; 0: the boundaries in --data-path."""
    num_alternatives: Annotated[int, Range(0)] = 8
    """Layouts to show in each table."""
    json: Path | None = None
    """Also write the plan to this file."""
    png: Path | None = None
    """Draw memory by part for the best layouts to this file."""
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
