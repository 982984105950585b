"""Work of one rank: operations that it executes, recomputation included, and bytes it moves."""

from __future__ import annotations

import dataclasses

from megatron_ultralong.plan.job import Job, layer_parameters

ATTENTION_BACKWARD = 2.5
"""Backward's five products (scores again, and four gradients) over forward's two."""


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


def layer_work(job: Job) -> LayerWork:
    """What a layer of ``job`` has a rank do; its busiest context-parallel rank."""
    its, model, parallel = job.sizes, job.model, job.parallel
    tp, cp = parallel.tensor_model_parallel_size, parallel.context_parallel_size
    kind = job.memory.recompute_granularity
    width = model.num_attention_heads // tp * model.kv_channels
    area = job.mean_area * job.config.micro_batch_size / cp * job.busiest_over_mean
    qkv = model.hidden_size * (its.queries_keys_values // its.tokens // its.element)
    others = layer_parameters(model, tp) - 2 * model.hidden_size - qkv
    # Forward 1, backward 2; again 2 for queries, keys and values (before attention's backward and
    # behind it), 1 for the rest.
    again = 0 if kind == "none" else 1
    products = 2.0 * its.tokens * ((3 + 2 * again) * qkv + (3 + again) * others)
    return LayerWork(
        attention_forward=4.0 * width * area,
        num_attention_forwards=2 if kind == "full" else 1,
        products=products,
        moved=_moved_by_layer(job, 3 + again),
    )


def _moved_by_layer(job: Job, num_passes: int) -> float:
    """Bytes read and written by norms, residuals, rotary embedding, SwiGLU, tiles and sums.

    Counted tensor by tensor for operations that are not fused, as Megatron's local layers run them.
    """
    its = job.sizes
    local = its.hidden / its.tokens
    queries, keys = its.queries / its.tokens, its.keys / its.tokens
    wide = its.ffn * its.element
    # Cosines and sines times halves that are cut, turned and joined; fused, read and written once.
    rotary = 2 if job.config.layers.apply_rope_fusion else 12
    a_pass = 12 * local + 5 * wide + rotary * (queries + keys) + 4 * queries
    hops = job.parallel.context_parallel_size - 1
    # Merging a hop's result: the float32 sum is read and written, the part read.
    merges = 2 * hops * queries * (8 / its.element + 1)
    tiles = -(-its.tokens // its.tile)
    # Every tile's weight gradient is written, read and added to float32.
    gradients = tiles * layer_parameters(job.model, job.parallel.tensor_model_parallel_size)
    gradient_bytes = gradients * (2 * its.element + 8)
    return its.tokens * (num_passes * a_pass + merges) + gradient_bytes


@dataclasses.dataclass(frozen=True)
class EndWork:
    """Output layer and loss of one micro-batch on one rank."""

    products: float
    moved: float


def loss_work(job: Job) -> EndWork:
    """The output layer and the loss; in tiles its logits are made twice."""
    its = job.sizes
    passes = 4 if job.memory.loss_tile_size else 3
    words = its.tokens * its.vocab
    tiles = -(-its.tokens // its.loss_tile)
    weight = its.vocab * its.hidden_size
    return EndWork(
        products=2.0 * passes * words * its.hidden_size,
        # Float32 logits: about eight times read and as often written, in both passes.
        moved=float(words * 66 + tiles * weight * 12),
    )
