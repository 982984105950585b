"""Attention calls on a whole sequence, to compare: the ring's shards are made and joined here."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from megatron_ultralong.attention import reference, ring_attention
from megatron_ultralong.attention.heads import head_attention
from megatron_ultralong.sequence.assignment import Assignment, zigzag
from megatron_ultralong.sequence.transport import LocalRing

Results = tuple[Tensor, Tensor, Tensor, Tensor]  # out, dq, dk, dv


def inputs(
    seq_length: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    batch: int = 1,
) -> list[Tensor]:
    """q, k, v and dout of a whole sequence, [s, b, heads, d]."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(seq_length, batch, n, head_dim, generator=generator, dtype=torch.float64).to(
            dtype
        )
        for n in (heads, kv_heads, kv_heads, heads)
    ]


def dense(tensors: list[Tensor], cu_seqlens: Tensor | None, **options: Any) -> Results:
    """The float64 reference."""
    q, k, v, dout = (x.double().requires_grad_() for x in tensors)
    out = reference.attention(q, k, v, cu_seqlens=cu_seqlens, **options)
    return out.detach(), *torch.autograd.grad(out, (q, k, v), dout)


def ring(
    tensors: list[Tensor],
    cp_size: int,
    cu_seqlens: Tensor | None,
    assignment: Assignment | None = None,
    **options: Any,
) -> Results:
    """All ranks in this process."""
    how = assignment or zigzag(cp_size)
    shards = [torch.cat([how.shard(x, rank, 0) for rank in range(cp_size)]) for x in tensors]
    q, k, v, dout = (x.requires_grad_() for x in shards)
    group = options.pop("group", LocalRing(cp_size))
    out = ring_attention(
        q, k, v, group=group, cu_seqlens=cu_seqlens, assignment=assignment, **options
    )
    results = (out.detach(), *torch.autograd.grad(out, (q, k, v), dout))
    return tuple(how.unshard(x.chunk(cp_size), 0) for x in results)


def by_heads(
    tensors: list[Tensor],
    sizes: tuple[int, int],
    cu_seqlens: Tensor | None,
    assignment: Assignment | None = None,
    **options: Any,
) -> Results:
    """All ranks in this process, in groups that exchange heads, with a ring between them."""
    cp_size = sizes[0] * sizes[1]
    how = assignment or zigzag(cp_size)
    shards = [torch.cat([how.shard(x, rank, 0) for rank in range(cp_size)]) for x in tensors]
    q, k, v, dout = (x.requires_grad_() for x in shards)
    heads, between = LocalRing(sizes[0]), LocalRing(sizes[1])
    out = head_attention(
        *(q, k, v),
        heads=heads, ring=between, cu_seqlens=cu_seqlens, assignment=assignment, **options,
    )  # fmt: skip
    results = (out.detach(), *torch.autograd.grad(out, (q, k, v), dout))
    return tuple(how.unshard(x.chunk(cp_size), 0) for x in results)


def largest_difference(found: Results, expected: Results) -> float:
    """Over the output and all gradients."""
    return max((a.double() - b).abs().max().item() for a, b in zip(found, expected, strict=True))


@st.composite
def boundaries(draw: st.DrawFn, seq_length: int, chunk_length: int) -> list[int]:
    """Document boundaries that love trouble: lengths of 1, 2, chunk - 1, chunk, chunk + 1."""
    lengths = [1, 2, chunk_length - 1, chunk_length, chunk_length + 1]
    length = st.one_of(st.sampled_from(lengths), st.integers(1, seq_length))
    edges = [0]
    while edges[-1] < seq_length:
        edges.append(min(seq_length, edges[-1] + max(1, draw(length))))
    return edges


@st.composite
def assignments(draw: st.DrawFn, cp_size: int, chunks_per_rank: int) -> Assignment:
    """Any assignment of equal shares."""
    order = draw(st.permutations(range(cp_size * chunks_per_rank)))
    return Assignment(tuple(tuple(sorted(order[rank::cp_size])) for rank in range(cp_size)))
