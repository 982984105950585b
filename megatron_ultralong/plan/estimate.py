"""One layout's plan: memory, time, and whether it fits."""

from __future__ import annotations

import dataclasses
from functools import cached_property

from megatron_ultralong.plan.hardware import Hardware
from megatron_ultralong.plan.host_memory import HostMemory, host_memory
from megatron_ultralong.plan.job import GIB, Job
from megatron_ultralong.plan.ledger import Part
from megatron_ultralong.plan.step_memory import StageMemory, step_memory
from megatron_ultralong.plan.step_time import StepTime, step_time

CONTEXT_GIB = 1.0
"""CUDA context, and the libraries' own memory; an allowance."""
NCCL_GIB = 0.4
"""Buffers of one communicator; an allowance."""
FRAGMENTATION = 0.04
"""Of what comes and goes in a step; an allowance with expandable segments."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a job takes on some hardware."""

    job: Job
    hardware: Hardware

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
        """Bytes that no tensor of ours has."""
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

    @cached_property
    def host(self) -> HostMemory:
        """Memory of the node that needs the most."""
        return host_memory(self.job, self.stages, self.hardware)

    @property
    def host_per_node(self) -> int:
        """Bytes of a node's memory for what is offloaded."""
        return self.host.offloaded

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
        return self.time.mfu(self.peak_tflops)

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
            words[-1] += f" ({_stages_text(layers)} layers)"
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
