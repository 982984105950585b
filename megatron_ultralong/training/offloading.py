"""Host memory for offloaded activations: what a run needs of it, and what a rank may take."""

from __future__ import annotations

import os

import psutil
import torch

from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.plan.activations import kept_tensors
from megatron_ultralong.program.errors import InputError

AVAILABLE_SHARE = 0.8
"""Of the host memory that is available at the start; checkpoints are staged in the rest."""


def host_bytes(config: TrainingConfig, model: ModelConfig, num_ranks: int) -> int:
    """Host memory that the ranks of the pipeline stage fill which keeps the most."""
    kept = kept_tensors(
        model,
        config.parallel,
        seq_length=config.data.seq_length,
        micro_batch_size=config.micro_batch_size,
        bytes_per_element=4 if config.precision == "fp32" else 2,
        keep_attention=config.memory.recompute_granularity == "keep_attention",
    )
    size = kept.on_host if torch.cuda.is_available() else kept.on_device
    parallel, microbatches = config.parallel, config.num_microbatches(num_ranks)
    chunks = parallel.num_virtual_stages_per_pipeline_rank
    return max(
        layers // chunks * parallel.passes_under_way(stage, microbatches) * size
        for stage, layers in enumerate(parallel.stage_layers(model.num_layers))
    )


def check_offloading(config: TrainingConfig, model: ModelConfig, num_ranks: int) -> int:
    """Bytes of host memory that this rank may take for offloaded activations; 0: it needs none.

    Raises:
        InputError: they do not fit.
    """
    if not config.memory.offload_activations:
        return 0
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    limit = int(config.memory.max_host_memory_gib * 2**30)
    rule = f"max_host_memory_gib is {config.memory.max_host_memory_gib:g}"
    if not limit:
        available = psutil.virtual_memory().available
        limit = int(AVAILABLE_SHARE * available / local_ranks)
        rule = (
            f"{AVAILABLE_SHARE:.0%} of the {available / 2**30:.1f} GiB available here, shared by "
            f"{local_ranks} ranks, is {limit / 2**30:.1f} GiB"
        )
    needed = host_bytes(config, model, num_ranks)
    if needed > limit:
        ways = ["raise context_parallel_size (more ranks)"]
        if config.memory.recompute_granularity == "keep_attention":
            ways.append("use recompute_granularity 'full', which keeps layer inputs alone")
        raise InputError(
            f"offload_activations needs {needed / 2**30:.1f} GiB of host memory on each rank, and "
            f"{rule}: {', or '.join(ways)}"
        )
    return limit
