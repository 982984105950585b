"""Work of one rank, and bytes that leave it in one step.

``tools/benchmark_rank.py`` counts the same while one rank runs.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

from megatron_ultralong.model.shape import layer_matrices, layer_parameters
from megatron_ultralong.plan.hardware import Hardware
from megatron_ultralong.plan.job import Job, stage_parameters
from megatron_ultralong.plan.optimizer_memory import optimizer_bytes


@dataclasses.dataclass(frozen=True)
class LayerWork:
    """One layer and one micro-batch on one rank, in FLOPs and bytes of device memory."""

    attention_forward: float
    """Of one pass; backward has :data:`ATTENTION_BACKWARD` times it."""
    num_attention_forwards: int
    """2 where backward computes attention again."""
    products: float
    """Of projections and MLP, all passes."""
    moved: float
    """By the operations between them, all passes."""


ATTENTION_BACKWARD = 2.5
"""Backward's five products (scores again, and four gradients) over forward's two."""


def layer_work(job: Job) -> LayerWork:
    """What a layer of ``job`` has a rank do; its busiest context-parallel rank."""
    its, model, parallel = job.sizes, job.model, job.parallel
    tp, cp = parallel.tensor_model_parallel_size, parallel.context_parallel_size
    kind = job.memory.recompute_granularity
    width = model.num_attention_heads // tp * model.kv_channels
    area = job.mean_area * job.config.micro_batch_size / cp * job.slowest_over_mean
    qkv = model.hidden_size * (its.queries_keys_values // its.tokens // its.element)
    others = sum(layer_matrices(model, tp)) - qkv
    # Forward 1, backward 2; again 2 for queries, keys and values (before attention's backward and
    # behind it), 1 for the rest; less what nobody reads.
    again = 0 if kind == "none" else 1
    products = 2.0 * its.tokens * ((3 + 2 * again) * qkv + (3 + again) * others)
    return LayerWork(
        attention_forward=4.0 * width * area,
        num_attention_forwards=2 if kind == "full" else 1,
        products=products - unread_products(job),
        moved=_moved_by_layer(job, 3 + again),
    )


def unread_products(job: Job) -> float:
    """FLOPs of a layer's recomputation that are left out (``mcore/projection.py``)."""
    its, model = job.sizes, job.model
    layers, kind = job.config.layers, job.memory.recompute_granularity
    if kind == "none" or layers.needs_transformer_engine:
        return 0.0
    unread = its.ffn * its.hidden_size
    if not model.family.qk_layernorm:
        unread += its.hidden_size * (its.queries_keys_values // its.tokens // its.element)
    return 2.0 * its.tokens * unread


SWIGLU, FUSED_SWIGLU = 5.75, 2.75
"""Tensors of the MLP's width that a pass moves, of four: five a forward pass by single operations,
13 backward, with the joining of halves; compiled three and five."""
ROTARY, FUSED_ROTARY = 24, 2
"""Of queries and keys: halves that are cut, turned, multiplied, added and joined, 12; they are read
across heads, and took as long as twice that. Fused, read and written once."""


def _moved_by_layer(job: Job, num_passes: int) -> float:
    """Bytes read and written by norms, residuals, rotary embedding, SwiGLU, tiles and sums.

    Counted tensor by tensor, for operations one by one and for kernels that are compiled.
    """
    its = job.sizes
    local = its.hidden / its.tokens
    queries, keys = its.queries / its.tokens, its.keys / its.tokens
    wide = its.ffn * its.element
    rotary = FUSED_ROTARY if job.config.layers.apply_rope_fusion else ROTARY
    swiglu, copies = SWIGLU, 4.0
    if job.config.layers.elementwise_kernel != "torch":
        swiglu = FUSED_SWIGLU
        if job.memory.recompute_granularity != "none" and rotary == ROTARY:
            rotary, copies = FUSED_ROTARY, 2.0
    a_pass = 12 * local + swiglu * wide + rotary * (queries + keys) + copies * queries
    if job.model.family.qk_layernorm:
        a_pass += 2 * (queries + keys)
    hops = job.parallel.ring_ranks - 1
    # Merging a hop's result: the float32 sum is read and written, the part read.
    merges = 2 * hops * queries * (8 / its.element + 1)
    # Queries, keys, values and outputs are cut by rank, received and put in order, both ways.
    exchanged = 6 * 2 * (2 * queries + 2 * keys) if job.parallel.head_ranks > 1 else 0
    tiles = -(-its.tokens // its.tile)
    # Every tile's weight gradient is written, read and added to float32.
    gradients = tiles * layer_parameters(job.model, job.parallel.tensor_model_parallel_size)
    gradient_bytes = gradients * (2 * its.element + 8)
    return its.tokens * (num_passes * a_pass + merges + exchanged) + gradient_bytes


def loss_work(job: Job) -> tuple[float, float]:
    """FLOPs and bytes of the output layer and the loss; in tiles its logits are made twice."""
    its = job.sizes
    passes = 4 if job.memory.loss_tile_size else 3
    words = its.tokens * its.vocab
    tiles = -(-its.tokens // its.loss_tile)
    weight = its.vocab * its.hidden_size
    # Float32 logits: about eight times read and as often written, in both passes.
    moved = float(words * 66 + tiles * weight * 12)
    return 2.0 * passes * words * its.hidden_size, moved


Link = Literal["NVLink", "network"]


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one kind of communication sends from a rank in a step."""

    name: str
    num_bytes: float
    """All micro-batches and layers."""
    link: Link
    seconds: float
    """On that link, alone."""
    hidden_seconds: float = 0.0
    """Of them, beside kernels."""

    @property
    def exposed_seconds(self) -> float:
        """What the step gets longer by."""
        return self.seconds - self.hidden_seconds

    def times(self, number: int) -> Traffic:
        """That of so many layers or micro-batches."""
        sizes = (number * size for size in (self.num_bytes, self.seconds, self.hidden_seconds))
        num_bytes, seconds, hidden = sizes
        return Traffic(self.name, num_bytes, self.link, seconds, hidden)


class TensorParallelBytes(NamedTuple):
    """Bytes that leave a rank in its tensor-parallel group, one micro-batch."""

    gathered: float
    scattered: float
    reduced: float


def tensor_parallel_bytes(job: Job, stage: int = 0) -> TensorParallelBytes:
    """All-gathers, reduce-scatters and all-reduces of a stage, one micro-batch.

    With sequence parallelism and recomputation a layer gathers 9 times (2 forward; 2 again for
    queries, keys and values; 1 again and 4 in backward for the rest) and scatters 6 times; without
    recomputation 6 and 4 times.
    """
    its, parallel = job.sizes, job.parallel
    tp = parallel.tensor_model_parallel_size
    if tp == 1:
        return TensorParallelBytes(0.0, 0.0, 0.0)
    layers = parallel.stage_layers(job.model.num_layers)[stage]
    again = job.memory.recompute_granularity != "none"
    is_first, is_last = stage == 0, stage == parallel.pipeline_model_parallel_size - 1
    whole = its.tokens * its.hidden_size * its.element
    part = whole * (tp - 1) / tp
    tiled = job.memory.loss_tile_size > 0
    # Three float32 numbers a token forward, summed over the vocabulary's parts.
    sums = is_last * 3 * its.tokens * 4 * 2 * (tp - 1) / tp
    if its.runs > 1:
        tiled_embedding = again and job.memory.sequence_tile_size > 0
        gathers = layers * (9 if again else 6) + is_last * (2 if tiled else 3) + is_first
        scatters = layers * (6 if again else 4) + is_last + is_first * (1 + tiled_embedding)
        return TensorParallelBytes(gathers * part, scatters * part, sums)
    reduces = layers * (6 if again else 4) + is_first + is_last
    return TensorParallelBytes(0.0, 0.0, reduces * 2 * part + sums)


def ring_bytes(job: Job, rank: int | None = None) -> tuple[float, float]:
    """Bytes that one rank passes on in the rings of one layer and micro-batch: forward, backward.

    Keys and values go round forward and backward, float32 sums of their gradients backward.
    Without documents nobody needs rank 0's late keys, so half of its keys travel. Rank ``r`` passes
    on the keys of all ranks but ``r + 1``, and the sums of all but ``r``: rank 0 sends none of its
    own half sums, the last rank none of rank 0's half keys. ``rank`` None: the busiest, which are
    these two, with as many bytes each.
    """
    cp = job.parallel.ring_ranks
    if cp == 1:
        return 0.0, 0.0
    pair = 2.0 * job.sizes.keys
    sums = pair * 4 / job.sizes.element
    if job.parallel.cp_comm_type == "all_gather":
        return (cp - 1) * pair, (cp - 1) * (pair + sums)
    rank = rank or 0
    key_hops = cp - 1 - 0.5 * (rank != cp - 1)
    sum_hops = cp - 1 - 0.5 * (rank != 0)
    return key_hops * pair, key_hops * pair + sum_hops * sums


def head_bytes(job: Job) -> float:
    """Bytes that one rank gives away in the exchanges of heads of one layer and micro-batch.

    Forward queries, keys, values and outputs, backward their gradients; where backward starts from
    recomputed queries, keys and values, these once more, and the outputs where they are not kept.
    """
    its, size = job.sizes, job.parallel.head_ranks
    kind = job.memory.recompute_granularity
    again = 0 if kind == "none" else its.queries_keys_values + its.queries
    return (2 * (its.queries_keys_values + its.queries) + again) * (size - 1) / size


def links(job: Job, hardware: Hardware) -> dict[str, Link]:
    """The link of every group: ranks are numbered tensor, context, data, pipeline parallel."""
    tp, cp = job.parallel.tensor_model_parallel_size, job.parallel.context_parallel_size
    node = hardware.gpus_per_node

    def inside(size: int) -> Link:
        # Groups that do not divide a node have members on two.
        is_whole = node % size == 0 or job.num_gpus <= node
        return "NVLink" if size <= node and is_whole else "network"

    dp = job.data_parallel_size
    return {
        "tensor": inside(tp),
        "heads": inside(tp * job.parallel.head_ranks),
        "context": inside(tp * cp),
        "data": inside(tp * cp * dp),
        "pipeline": inside(job.num_gpus),
    }


def rate(hardware: Hardware, link: Link) -> float:
    """Bytes a second of a link."""
    gigabytes = (
        hardware.nvlink_gb_per_second if link == "NVLink" else hardware.network_gb_per_second
    )
    return gigabytes * 1e9


def data_parallel_bytes(job: Job, stage: int) -> tuple[float, float]:
    """Gradients scattered, weights gathered, over data x context parallel ranks; a step."""
    parameters = stage_parameters(job.model, job.parallel, stage)
    part = parameters * (job.num_shards - 1) / job.num_shards
    return optimizer_bytes(job).gradient * part, job.sizes.element * part
