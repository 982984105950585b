"""What Adam and its gradients take: on the GPU, on the host, and to work with."""

import dataclasses
from collections.abc import Iterator

from megatron_ultralong.model.shape import layer_matrices, layer_vectors
from megatron_ultralong.plan.job import Job, pinned_bytes, stage_parameters

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}


@dataclasses.dataclass(frozen=True)
class OptimizerBytes:
    """Bytes for one weight; its gradient for every weight of a rank, the others for its shard's."""

    gradient: int
    """Of the buffer in which they are summed."""
    states: int
    """Master weight and both means, wherever they are."""
    temporary: int
    """What an optimizer step takes and gives back on the GPU."""


def optimizer_bytes(job: Job) -> OptimizerBytes:
    """By the run's precision and the kind of Adam.

    * fp32: no master weights; bf16: master weights in float32. Torch's Adam makes two float32
      tensors as large as its shard; Transformer Engine's, which Megatron-Core takes where it is
      installed, and the fused one that is taken with offloading make none.
    * ``use_precision_aware_optimizer``: the dtypes of the flags. Transformer Engine's FusedAdam
      works on float32 copies of all states that are smaller, except for two means that are both
      bf16 (``fused_adam.py``: ``unscaled_lists``, ``fuse_unscale``).
    """
    optimizer = job.config.optimizer
    gradient = DTYPE_BYTES[optimizer.main_grads_dtype]
    if optimizer.use_precision_aware_optimizer:
        means = (optimizer.exp_avg_dtype, optimizer.exp_avg_sq_dtype)
        kept = (optimizer.main_params_dtype, *means)
        copied = kept[:1] if means == ("bf16", "bf16") else kept
        return OptimizerBytes(
            gradient,
            sum(DTYPE_BYTES[dtype] for dtype in kept),
            sum(4 for dtype in copied if dtype != "fp32"),
        )
    is_fused = job.config.layers.needs_transformer_engine or optimizer.optimizer_cpu_offload
    states = 8 if job.config.precision == "fp32" else 12
    return OptimizerBytes(gradient, states, 0 if is_fused else 8)


def least_memory(job: Job) -> float:
    """Bytes below which no layout comes on any GPU: weights, gradients, states, over all GPUs."""
    each, here = optimizer_bytes(job), 1 - job.config.optimizer.offloaded_share
    states = here * each.states
    return job.model_parameters * (job.sizes.element + each.gradient + states) / job.num_gpus


@dataclasses.dataclass(frozen=True)
class OptimizerMemory:
    """Bytes of one rank of a pipeline stage."""

    gradients: int
    states: int
    """On the GPU."""
    temporary: int
    """On the GPU, for the time of an optimizer step."""
    host: int
    """States in host memory, and pinned gradients for them."""
    num_offloaded: int
    """Weights that the CPU updates."""

    @property
    def pinned(self) -> int:
        """Of the host's bytes, those that have to be pinned: a gradient for each weight."""
        return self.host - 12 * self.num_offloaded


def optimizer_memory(job: Job, stage: int) -> OptimizerMemory:
    """Of a rank of pipeline stage ``stage``."""
    each = optimizer_bytes(job)
    parameters = stage_parameters(job.model, job.parallel, stage)
    shard = parameters // job.num_shards
    share = job.config.optimizer.offloaded_share
    offloaded = int(shard * share)
    pieces = shard_pieces(job, stage, offloaded) if offloaded else []
    pinned = sum(pinned_bytes(4 * size) for size in pieces)
    return OptimizerMemory(
        gradients=parameters * each.gradient,
        states=(shard - offloaded) * each.states,
        temporary=(shard - offloaded) * each.temporary,
        # HybridDeviceOptimizer: float32 weights and means, and a pinned float32 gradient for each.
        host=offloaded * 12 + pinned,
        num_offloaded=offloaded,
    )


def shard_pieces(job: Job, stage: int, count: int | None = None) -> list[int]:
    """Weights of a rank's shard by tensor: the buffer of gradients is cut into runs of one length.

    Of the rank in the middle; its first ``count`` weights, or all.
    """
    shard = stage_parameters(job.model, job.parallel, stage) // job.num_shards
    start = shard * (job.num_shards // 2)
    end, place = start + (shard if count is None else count), 0
    pieces = []
    for size in stage_tensors(job, stage):
        part = min(end, place + size) - max(start, place)
        if part > 0:
            pieces.append(part)
        place += size
    return pieces


def stage_tensors(job: Job, stage: int) -> Iterator[int]:
    """Weights of every tensor of a rank of pipeline stage ``stage``."""
    model, parallel = job.model, job.parallel
    words = model.vocab_size // parallel.tensor_model_parallel_size * model.hidden_size
    is_first, is_last = stage == 0, stage == parallel.pipeline_model_parallel_size - 1
    if is_first:
        yield words
    for _ in range(parallel.stage_layers(model.num_layers)[stage]):
        yield from layer_matrices(model, parallel.tensor_model_parallel_size)
        yield from layer_vectors(model, parallel.tensor_model_parallel_size)
    if is_last:
        yield model.hidden_size
        if model.untie_embeddings_and_output_weights or not is_first:
            yield words
