"""All-gather back-end: every rank sees all keys of a layer at once.

One gather of keys and values, a dense rectangle and the causal diagonal for every query chunk, and
a reduce-scatter of their gradients. It holds the keys of the whole sequence (2 GiB for 4M tokens
with one key head of 128) and their gradients in float32, overlaps nothing, and has no hops, so
that ranks need not be equally busy at every one of them.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch

from megatron_ultralong.attention.kernels.base import Gradients, Result, Saved, accumulation_dtype
from megatron_ultralong.attention.ring.block import Block
from megatron_ultralong.attention.ring.plan import Plan, Rectangle, rectangles
from megatron_ultralong.sequence.documents import Boundaries
from megatron_ultralong.sequence.transport import Transport


@lru_cache(maxsize=64)
def _mask(plan: Plan, rank: int) -> tuple[Boundaries, tuple[Rectangle, ...]]:
    """Local document boundaries cut at the chunks, and rectangles with keys in global order."""
    chunks = plan.assignment.chunks[rank]
    length = plan.assignment.chunk_length(plan.seq_length)
    cuts = range(0, len(chunks) * length, length)
    everywhere = rectangles(chunks, range(plan.assignment.num_chunks), length, plan.cu_seqlens)
    return Boundaries(sorted({*plan.local_cu_seqlens[rank], *cuts})), everywhere


def _keys(blocks: Sequence[Block], transport: Transport) -> list[list[torch.Tensor]]:
    """For every rank here, the shards of all ranks, each [2 (k, v), s_local, b, kv_heads, d]."""
    return transport.all_gather([torch.stack([block.k, block.v]) for block in blocks])


def forward(blocks: Sequence[Block], transport: Transport) -> list[Result]:
    """Output [s, b, heads, d] and log-sum-exp [b, heads, s] of every rank here."""
    results = []
    for block, shards in zip(blocks, _keys(blocks, transport), strict=True):
        k, v = block.plan.assignment.unshard(shards, dim=1)
        edges, dense = _mask(block.plan, block.rank)
        out, lse = block.forward_own(edges)
        for rectangle in dense:
            keys = slice(rectangle.key_start, rectangle.key_stop)
            block.add_rectangle_(rectangle, k[keys], v[keys], out, lse)
        results.append((out, lse))
    return results


def backward(
    blocks: Sequence[Block], transport: Transport, saved: Sequence[Saved]
) -> list[Gradients]:
    """Gradients of q, k and v of every rank here."""
    wide = accumulation_dtype(blocks[0].q.dtype)
    dqs, contributions = [], []
    for block, its, shards in zip(blocks, saved, _keys(blocks, transport), strict=True):
        k, v = block.plan.assignment.unshard(shards, dim=1)
        edges, dense = _mask(block.plan, block.rank)
        dq, dk, dv = block.backward_own(its, edges)
        dq_sum = dq.to(wide, copy=True)
        own = torch.stack([dk, dv]).to(wide)
        total = k.new_zeros((2, *k.shape), dtype=wide)
        for rectangle in dense:
            rows = slice(rectangle.query_start, rectangle.query_stop)
            keys = slice(rectangle.key_start, rectangle.key_stop)
            dq, dk, dv = block.backward_rectangle(its, rectangle, k[keys], v[keys])
            dq_sum[rows] += dq
            total[0, keys] += dk
            total[1, keys] += dv
        parts = [block.plan.assignment.shard(total, rank, dim=1) for rank in range(transport.size)]
        parts[block.rank] = parts[block.rank] + own
        dqs.append(dq_sum)
        contributions.append([part.contiguous() for part in parts])
    sums = transport.reduce_scatter(contributions)
    return [(dq, total[0], total[1]) for dq, total in zip(dqs, sums, strict=True)]
