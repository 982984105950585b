"""One layout's plan: memory, time of a step and of the whole run, and whether it fits."""

import dataclasses
import math
from functools import cached_property

from megatron_ultralong.config.recipes import PRETRAIN_RECIPES
from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.model.shape import model_of_recipe
from megatron_ultralong.plan.hardware import Hardware
from megatron_ultralong.plan.host_memory import (
    CheckpointSize,
    HostMemory,
    checkpoint_size,
    host_memory,
)
from megatron_ultralong.plan.job import GIB, Job
from megatron_ultralong.plan.ledger import Part
from megatron_ultralong.plan.step_memory import StageMemory, step_memory
from megatron_ultralong.plan.step_time import StepTime, step_time
from megatron_ultralong.program.errors import counted

CONTEXT_GIB = 1.0
"""CUDA context, and the libraries' own memory; an allowance."""
NCCL_GIB = 0.4
"""Buffers of one communicator; an allowance."""
FRAGMENTATION = 0.04
"""Of what comes and goes in a step; an allowance with expandable segments."""

MEMORY_ACCURACY = 0.04
"""Of a GPU's memory at the peak, by which measured peaks differed (docs/planning.md, Accuracy)."""


def gpus_of_a_node(num_gpus: int, most: int, tensor_parallel: int) -> int:
    """GPUs to use on every node: as many as make equal shares, tensor parallel groups whole.

    torchrun starts as many ranks on every node: of nodes of 8, ``12, 8, 2 -> 6`` and
    ``12, 8, 4 -> 4``.
    """
    if num_gpus <= most:
        return num_gpus
    shares = [size for size in range(most, 0, -1) if num_gpus % size == 0]
    return next((size for size in shares if size % tensor_parallel == 0), shares[0])


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a job takes on some hardware."""

    job: Job
    machine: Hardware
    """The hardware with whole nodes."""

    @cached_property
    def hardware(self) -> Hardware:
        """The hardware with the GPUs that the job uses of each node: as many of every one."""
        its, job = self.machine, self.job
        node = gpus_of_a_node(
            job.num_gpus, its.gpus_per_node, job.parallel.tensor_model_parallel_size
        )
        if node in (its.gpus_per_node, job.num_gpus):
            return its
        return dataclasses.replace(its, gpus_per_node=node)

    @cached_property
    def stages(self) -> list[StageMemory]:
        """Memory of every pipeline stage."""
        its = self.hardware
        return step_memory(self.job, its.attention_kernel, its.multiprocessors)

    @cached_property
    def worst(self) -> StageMemory:
        """The stage with the largest peak."""
        return max(self.stages, key=lambda stage: stage.peak.total)

    @cached_property
    def allowance(self) -> dict[str, int]:
        """Bytes that no tensor of this project has."""
        peak = self.worst.peak
        parallel = self.job.parallel
        static: tuple[Part, ...] = ("weights", "gradients", "optimizer")
        moving = peak.total - sum(peak.parts.get(part, 0) for part in static)
        groups = sum(
            size > 1
            for size in (
                parallel.tensor_model_parallel_size,
                parallel.context_parallel_size,
                parallel.pipeline_model_parallel_size,
                self.job.data_parallel_size * parallel.context_parallel_size,
            )
        )
        return {
            "CUDA context and libraries": int(CONTEXT_GIB * GIB),
            "NCCL": int(groups * NCCL_GIB * GIB),
            "allocator": int(FRAGMENTATION * moving),
        }

    @property
    def needed(self) -> int:
        """Bytes of a GPU, allowance included."""
        return self.worst.peak.total + sum(self.allowance.values())

    @property
    def available(self) -> int:
        """Bytes that it has."""
        return int(self.hardware.memory_gib * GIB)

    @property
    def is_tight(self) -> bool:
        """Whether the memory left of a GPU is less than what the estimate may be off."""
        return (1 + MEMORY_ACCURACY) * self.needed > self.available

    @cached_property
    def host(self) -> HostMemory:
        """Memory of the node that needs the most."""
        return host_memory(self.job, self.stages, self.hardware)

    @property
    def num_nodes(self) -> int:
        """Machines of the job."""
        return -(-self.job.num_gpus // self.hardware.gpus_per_node)

    @cached_property
    def time(self) -> StepTime:
        """Of a step."""
        return step_time(self.job, self.hardware)

    @property
    def tokens_per_second_per_gpu(self) -> float:
        """Of the whole job's tokens."""
        return self.job.tokens_per_iteration / self.time.total / self.job.num_gpus

    @property
    def peak_tflops(self) -> float:
        """Over which MFU is counted: ``--peak-tflops``, or the GPU's."""
        return self.job.config.log.peak_tflops or self.hardware.peak_tflops

    @property
    def mfu(self) -> float:
        """Share of the peak, no recomputation counted."""
        return self.time.model_tflop / self.time.total / self.peak_tflops

    def hours(self, num_tokens: float) -> float:
        """To train on so many tokens, without pauses."""
        return num_tokens / self.job.tokens_per_iteration * self.time.total / 3600.0

    @property
    def excess(self) -> float:
        """Largest share of what is needed over what there is; above 1 it does not fit."""
        return max(self.needed / self.available, self.host.excess)

    @property
    def refusal(self) -> str | None:
        """Why it cannot run, in a few words; None where it can."""
        if self.needed > self.available:
            part, size = self.largest
            return (
                f"{self.needed / GIB:.1f} of {self.hardware.memory_gib:g} GiB on a GPU; largest: "
                f"{part}, {size / GIB:.1f}"
            )
        return self.host.refusal

    @property
    def largest(self) -> tuple[Part, int]:
        """The part of a GPU's memory that takes the most at the peak, and its bytes."""
        return max(self.worst.peak.parts.items(), key=lambda item: item[1])

    @property
    def lack(self) -> str:
        """What a layout that does not fit lacks: by how much, and which part is the largest."""
        if self.needed > self.available:
            part, size = self.largest
            allowance = sum(self.allowance.values())
            return (
                f"needs {self.needed / GIB:.1f} GiB on each GPU of stage {self.worst.stage} "
                f"({allowance / GIB:.1f} of it allowance), "
                f"{(self.needed - self.available) / GIB:.1f} more than the "
                f"{self.hardware.memory_gib:g} GiB of {self.hardware.name}; the largest part at "
                f"the peak ({self.worst.peak.moment}) is {part}, {size / GIB:.1f} GiB"
            )
        return self.host.lack or "lacks nothing"


def layout_text(job: Job) -> str:
    """A layout in a few words: ``TP 8, CP 4, DP 8, keep_attention``."""
    parallel, memory = job.parallel, job.memory
    words = [f"TP {parallel.tensor_model_parallel_size}"]
    if parallel.pipeline_model_parallel_size > 1:
        words.append(f"PP {parallel.pipeline_model_parallel_size}")
        layers = parallel.stage_layers(job.model.num_layers)
        if len(set(layers)) > 1:
            words[-1] += f" ({counted(_stages_text(layers), 'layer')})"
    words += [
        f"CP {parallel.context_parallel_size}",
        f"DP {job.data_parallel_size}",
        str(memory.recompute_granularity),
    ]
    if memory.offload_activations:
        words.append("offloading")
    if job.config.optimizer.optimizer_cpu_offload:
        words.append("optimizer on the host")
    return ", ".join(words)


def _stages_text(layers: list[int]) -> str:
    """``[15, 16, 16, 16, 15] -> 15 + 3 x 16 + 15``."""
    between = len(layers) - 2
    middle = [f"{between} x {layers[1]}" if between > 1 else f"{layers[1]}"] if between else []
    return " + ".join([f"{layers[0]}", *middle, f"{layers[-1]}"])


@dataclasses.dataclass(frozen=True)
class RunTime:
    """Of so many iterations."""

    num_iterations: int
    step_seconds: float
    pin_seconds: float
    """Before the first step: host memory is pinned."""
    num_checkpoints: int
    checkpoint: CheckpointSize
    write_seconds: float
    """To write one, by all nodes at once."""
    wait_seconds: float
    """For which training waits at each: until tensors are copied, or written too."""
    num_kept: int
    """Checkpoints on disk at the most, the one that is being written included."""
    num_validations: int
    validation_seconds: float
    """Of one."""

    @property
    def hours(self) -> float:
        """Steps and all pauses."""
        pauses = self.num_checkpoints * self.wait_seconds
        pauses += self.num_validations * self.validation_seconds + self.pin_seconds
        return (self.num_iterations * self.step_seconds + pauses) / 3600.0

    @property
    def disk_bytes(self) -> int:
        """Of all checkpoints that are kept."""
        return self.num_kept * self.checkpoint.on_disk


def run_time(estimate: Estimate, num_tokens: float) -> RunTime:
    """Of a run over ``num_tokens`` in the estimate's layout."""
    job, hardware, time = estimate.job, estimate.hardware, estimate.time
    config = job.config
    iterations = max(1, math.ceil(num_tokens / job.tokens_per_iteration))
    size = checkpoint_size(job, hardware.gpus_per_node)
    writing = size.on_disk / estimate.num_nodes / hardware.storage_gb_per_second / 1e9
    copying = size.copied / hardware.host_gb_per_second / 1e9
    # The last iteration has a checkpoint, too; nothing trains beside its writing.
    interval = config.save_interval or iterations
    checkpoints = math.ceil(iterations / interval)
    keep = config.checkpoint
    kept = keep.save_retain_last or checkpoints
    if keep.save_retain_interval:
        kept += iterations // keep.save_retain_interval
    is_async = keep.async_save
    validations = iterations // config.eval_interval if config.eval_interval else 0
    return RunTime(
        num_iterations=iterations,
        step_seconds=time.total,
        pin_seconds=estimate.host.pin_seconds(hardware.host_pin_gib_per_second),
        num_checkpoints=checkpoints,
        checkpoint=size,
        write_seconds=writing,
        wait_seconds=copying if is_async else copying + writing,
        num_kept=min(kept + 1, checkpoints),
        num_validations=validations,
        validation_seconds=config.eval_iters * time.forward,
    )


PAPER: dict[str, tuple[int, float]] = {
    "llama3.1-8b-1m": (256, 5.0),
    "llama3.1-8b-2m": (256, 6.0),
    "llama3.1-8b-4m": (256, 13.0),
}
"""H100s and about the hours that arXiv 2504.06214 gives for these runs, by recipe."""


def paper_hours(
    recipe: str, model: str, config: TrainingConfig, train_tokens: float
) -> tuple[int, float] | None:
    """GPUs and hours of the paper's run, where ``config`` is it: its model, rows and tokens.

    How it is spread over GPUs may differ, and what is kept in memory.
    """
    if recipe not in PAPER or model != model_of_recipe(recipe):
        return None
    published = PRETRAIN_RECIPES[recipe]()
    tokens = published.train_iters * published.global_batch_size * published.data.seq_length
    is_same = (
        train_tokens == tokens
        and all(
            getattr(config, name) == getattr(published, name)
            for name in ("global_batch_size", "precision", "rope", "optimizer", "layers")
        )
        and config.data.seq_length == published.data.seq_length
        and config.data.document_mask == published.data.document_mask
        and not config.deterministic_mode
    )
    return PAPER[recipe] if is_same else None
