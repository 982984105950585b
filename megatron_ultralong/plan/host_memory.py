"""What a run takes beside its GPUs: memory of a node, and its checkpoints on disk."""

import dataclasses
import math
from collections.abc import Sequence

from megatron_ultralong.plan.hardware import Hardware
from megatron_ultralong.plan.job import GIB, Job, stage_parameters
from megatron_ultralong.plan.optimizer_memory import shard_pieces, stage_tensors
from megatron_ultralong.plan.step_memory import StageMemory


@dataclasses.dataclass(frozen=True)
class CheckpointSize:
    """Bytes of one checkpoint."""

    on_disk: int
    """Weights and optimizer of the whole model: 63.6 GB for the 4.54B weights of 16 layers of Llama
    3.1 8B, where 63 GB were measured (benchmarks/training.md)."""
    copied: int
    """By the rank that has the most to copy to the host before training continues."""
    host_per_node: int
    """Copies on a node, in memory that is kept from the first save on."""


STATE_BYTES = 12
"""Of one weight: master weight and both means, which Megatron-Core stores in float32 whatever dtype
they have in a run (``get_unscaled_state``)."""
TORCH_PINS = 2.75
"""GiB a second that a node pins by torch, buffer by buffer: 258 GiB made the first iteration 94 s
longer than the plan's step on four H100; one process does 2.1 to 2.5 (benchmarks/training.md)."""
HOST_SHARE = 0.8
"""Of a node's memory that offloaded activations and states may take, as a run takes it."""
NODE_SHARE = 0.97
"""Of a node's memory that they may take together with what is being saved; the system has the rest.
"""


def checkpoint_size(job: Job, gpus_per_node: int) -> CheckpointSize:
    """Of a run that saves; every rank copies its shard, one replica the weights too."""
    element, ranks = job.sizes.element, min(gpus_per_node, job.num_gpus)
    parameters = max(stage_parameters(job.model, job.parallel, stage) for stage in job.stages)
    states = STATE_BYTES * max(sum(shard_pieces(job, stage)) for stage in job.stages)
    weights = max(element * sum(stage_tensors(job, stage)) for stage in job.stages)
    writers = min(ranks, job.parallel.tensor_model_parallel_size)
    return CheckpointSize(
        on_disk=job.model_parameters * (STATE_BYTES + element),
        copied=parameters * element + math.ceil(parameters / job.num_shards) * STATE_BYTES,
        host_per_node=ranks * states + writers * weights,
    )


@dataclasses.dataclass(frozen=True)
class HostMemory:
    """Bytes of the node that needs the most."""

    activations: int
    """Pinned, for what layers keep."""
    optimizer: int
    """Adam's states and gradients for them."""
    pinned: int
    """Of both, before the first step."""
    checkpoint: int
    """Copies of what is being saved."""
    may_take: int
    """By activations and optimizer."""
    activations_may_take: int
    """By activations: what ``max_host_memory_gib`` gives them, or all of that."""
    of_node: int
    """All that programs may take together, copies for a checkpoint included."""
    must_save: bool
    """Whether a checkpoint's copy has to fit, too."""

    def pin_seconds(self, gib_per_second: float) -> float:
        """To pin the activations at this rate, and Megatron-Core's gradients as torch pins."""
        others = (self.pinned - self.activations) / min(gib_per_second, TORCH_PINS)
        return (self.activations / gib_per_second + others) / GIB

    @property
    def can_save(self) -> bool:
        """Whether it does."""
        return self.offloaded + self.checkpoint <= self.of_node

    @property
    def offloaded(self) -> int:
        """All but the copies."""
        return self.activations + self.optimizer

    @property
    def _bounds(self) -> list[tuple[int, int, str]]:
        """Bytes needed, bytes there and what bounds them, of everything that has to fit."""
        share = f"{HOST_SHARE:.0%} of the node's"
        given = "max_host_memory_gib of every rank"
        bounds = [
            (
                self.activations,
                self.activations_may_take,
                share if self.activations_may_take == self.may_take else given,
            ),
            (self.offloaded, self.may_take, share),
        ]
        if self.must_save:
            bounds.append((self.offloaded + self.checkpoint, self.of_node, ""))
        return bounds

    @property
    def excess(self) -> float:
        """Largest share of what is needed over what there is; above 1 it does not fit."""
        return max(needed / there for needed, there, _ in self._bounds)

    @property
    def refusal(self) -> str | None:
        """Why it does not fit, in a few words; None where it does."""
        for needed, there, _ in self._bounds:
            if needed > there:
                return f"{needed / GIB:,.0f} of {there / GIB:,.0f} GiB of host memory on a node"
        return None

    @property
    def lack(self) -> str | None:
        """The same with what takes it."""
        parts = [
            f"{size / GIB:,.0f} {name}"
            for name, size in (("activations", self.activations), ("optimizer", self.optimizer))
            if size
        ]
        for needed, there, bound in self._bounds:
            more = f"{(needed - there) / GIB:,.0f} more than the {there / GIB:,.0f}"
            if needed > there and bound:
                return (
                    f"offloads {needed / GIB:,.0f} GiB to the host memory of a node "
                    f"({', '.join(parts)}), {more} GiB it may take ({bound})"
                )
            if needed > there:
                parts.append(f"{self.checkpoint / GIB:,.0f} the copy of a checkpoint being written")
                return (
                    f"takes {needed / GIB:,.0f} GiB of a node's memory ({', '.join(parts)}), "
                    f"{more} that programs may take ({NODE_SHARE:.0%} of it)"
                )
        return None


def host_memory(job: Job, stages: Sequence[StageMemory], hardware: Hardware) -> HostMemory:
    """Of ``job``, whose stages need what ``stages`` say."""
    ranks = min(hardware.gpus_per_node, job.num_gpus)
    may_take = int(HOST_SHARE * hardware.host_memory_gib * GIB)
    bound = int(ranks * job.memory.max_host_memory_gib * GIB)
    return HostMemory(
        activations=ranks * max(stage.host for stage in stages),
        optimizer=ranks * max(stage.optimizer.host for stage in stages),
        pinned=ranks * max(stage.pinned for stage in stages),
        checkpoint=checkpoint_size(job, hardware.gpus_per_node).host_per_node,
        may_take=may_take,
        activations_may_take=bound or may_take,
        of_node=int(NODE_SHARE * hardware.host_memory_gib * GIB),
        must_save=bool(job.config.save),
    )
