"""One layout's plan: memory, time, and whether it fits."""

from __future__ import annotations

import dataclasses
from functools import cached_property

from megatron_ultralong.errors import InputError
from megatron_ultralong.plan.hardware import Hardware
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
HOST_SHARE = 0.8
"""Of a node's memory that off-loaded activations may take, as a run takes it."""

_WAYS: dict[Part, str] = {
    "weights": "raise tensor_model_parallel_size or pipeline_model_parallel_size",
    "gradients": "raise tensor_model_parallel_size or pipeline_model_parallel_size",
    "optimizer": "use more GPUs (the states are spread over data x context parallel ranks)",
    "saved activations": "raise context_parallel_size, use --offload-activations, or "
    "recompute_granularity full",
    "hidden states": "raise context_parallel_size",
    "queries, keys, values": "raise context_parallel_size",
    "attention": "raise context_parallel_size",
    "ring and gather buffers": "use cp_comm_type p2p, or raise tensor_model_parallel_size",
    "projection and MLP tile": "lower sequence_tile_size",
    "loss": "set loss_tile_size to 2048",
    "embedding": "set sequence_tile_size to 16384",
    "tokens and angles": "raise context_parallel_size",
}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a job takes on some hardware."""

    job: Job
    hardware: Hardware

    @cached_property
    def stages(self) -> list[StageMemory]:
        """Memory of every pipeline stage."""
        return step_memory(self.job, self.hardware.attention_kernel)

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

    @property
    def host_per_node(self) -> int:
        """Bytes of pinned host memory on the node that needs the most."""
        ranks = min(self.hardware.gpus_per_node, self.job.num_gpus)
        return ranks * max(stage.host for stage in self.stages)

    @property
    def host_available(self) -> int:
        """Bytes that a node may give: of its memory, or as the configuration bounds a rank."""
        ranks = min(self.hardware.gpus_per_node, self.job.num_gpus)
        bound = self.job.memory.max_host_memory_gib
        return int((ranks * bound or HOST_SHARE * self.hardware.host_memory_gib) * GIB)

    @cached_property
    def time(self) -> StepTime:
        """Of a step."""
        return step_time(self.job, self.hardware)

    @property
    def tokens_per_second_per_gpu(self) -> float:
        """Of the whole job's tokens."""
        return self.job.tokens_per_iteration / self.time.total / self.job.num_gpus

    @property
    def mfu(self) -> float:
        """Share of the peak, no recomputation counted."""
        return self.time.mfu(self.hardware)

    def hours(self, num_tokens: float) -> float:
        """To train on so many tokens, without pauses."""
        return num_tokens / self.job.tokens_per_iteration * self.time.total / 3600.0

    @property
    def refusal(self) -> str | None:
        """Why it cannot run, in a few words; None where it can."""
        if self.needed > self.available:
            part, size = self._largest
            return (
                f"{self.needed / GIB:.1f} of {self.hardware.memory_gib:g} GiB on a GPU; largest: "
                f"{part}, {size / GIB:.1f}"
            )
        if self.host_per_node > self.host_available:
            return (
                f"{self.host_per_node / GIB:,.0f} of {self.host_available / GIB:,.0f} GiB of host "
                "memory on a node"
            )
        return None

    @property
    def _largest(self) -> tuple[Part, int]:
        return max(self.worst.peak.parts.items(), key=lambda item: item[1])

    def check(self) -> None:
        """Raise InputError where it does not fit: by how much, what is largest, what to change."""
        if self.needed > self.available:
            part, size = self._largest
            allowance = sum(self.allowance.values())
            raise InputError(
                f"{layout_text(self.job)} needs {self.needed / GIB:.1f} GiB on each GPU of stage "
                f"{self.worst.stage} ({allowance / GIB:.1f} of it allowance), "
                f"{(self.needed - self.available) / GIB:.1f} more than the "
                f"{self.hardware.memory_gib:g} GiB of {self.hardware.name}; the largest part at "
                f"the peak ({self.worst.peak.moment}) is {part}, {size / GIB:.1f} GiB: "
                f"{_WAYS[part]}"
            )
        if self.host_per_node > self.host_available:
            ways = "raise context_parallel_size or pipeline_model_parallel_size (more GPUs)"
            if self.job.memory.recompute_granularity == "keep_attention":
                ways += ", or use recompute_granularity full, which keeps layer inputs alone"
            raise InputError(
                f"{layout_text(self.job)} off-loads {self.host_per_node / GIB:,.0f} GiB to the "
                "host memory of a node, "
                f"{(self.host_per_node - self.host_available) / GIB:,.0f} more than the "
                f"{self.host_available / GIB:,.0f} GiB it may take ({HOST_SHARE:.0%} of "
                f"{self.hardware.host_memory_gib:g}, or max_host_memory_gib of every rank): {ways}"
            )


def layout_text(job: Job) -> str:
    """A layout in a few words: ``TP 8, CP 4, DP 8, keep_attention``."""
    parallel, memory = job.parallel, job.memory
    words = [f"TP {parallel.tensor_model_parallel_size}"]
    if parallel.pipeline_model_parallel_size > 1:
        words.append(f"PP {parallel.pipeline_model_parallel_size}")
    words += [
        f"CP {parallel.context_parallel_size}",
        f"DP {job.data_parallel_size}",
        str(memory.recompute_granularity),
    ]
    if memory.offload_activations:
        words.append("off-loading")
    return ", ".join(words)
