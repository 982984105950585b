"""What a checkpoint takes: on disk, and of host memory while it is written."""

from __future__ import annotations

import dataclasses
import math

from megatron_ultralong.plan.activations import pinned_bytes
from megatron_ultralong.plan.job import Job, stage_parameters
from megatron_ultralong.plan.optimizer_memory import offloaded_share, shard_pieces, stage_tensors

STATE_BYTES = 12
"""Of one weight: master weight and both means, which Megatron-Core stores in float32 whatever dtype
they have in a run (``get_unscaled_state``)."""


@dataclasses.dataclass(frozen=True)
class CheckpointSize:
    """Bytes of one checkpoint."""

    on_disk: int
    """Weights and optimizer of the whole model: 63.6 GB for the 4.54B weights of 16 layers of Llama
    3.1 8B, where 63 GB were measured (benchmarks/training.md)."""
    copied: int
    """By the rank that has the most to copy to the host before training goes on."""
    host_per_node: int
    """Pinned copies on a node until they are written."""


def checkpoint_size(job: Job, gpus_per_node: int) -> CheckpointSize:
    """Of a run that saves; every rank copies its shard, one replica the weights too."""
    last = job.parallel.pipeline_model_parallel_size - 1
    ends = sorted({0, min(1, last), last})
    element, ranks = job.sizes.element, min(gpus_per_node, job.num_gpus)
    parameters = max(stage_parameters(job.model, job.parallel, stage) for stage in ends)
    states = max(_states(job, stage) for stage in ends)
    weights = max(
        sum(pinned_bytes(element * size) for size in stage_tensors(job, stage)) for stage in ends
    )
    writers = min(ranks, job.parallel.tensor_model_parallel_size)
    return CheckpointSize(
        on_disk=job.model_parameters * (STATE_BYTES + element),
        copied=parameters * element + math.ceil(parameters / job.num_shards) * STATE_BYTES,
        host_per_node=ranks * states + writers * weights,
    )


def _states(job: Job, stage: int) -> int:
    """Bytes of a rank's copies of states: pinned of those on the GPU, plain of the others."""
    pieces = shard_pieces(job, stage)
    here = 1 - offloaded_share(job.config.optimizer)
    pinned = sum(3 * pinned_bytes(4 * piece) for piece in pieces)
    return math.ceil(here * pinned + (1 - here) * STATE_BYTES * sum(pieces))
