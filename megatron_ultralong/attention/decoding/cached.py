"""Attention of new tokens to tokens read before, whose keys lie on all ranks of a group.

Keys and values stay where they are, however many there are; queries and results travel. Each rank
computes attention over its own keys, and the partial results join by their log-sum-exp
(:mod:`~megatron_ultralong.attention.kernels.online_softmax`).

Two forms: :func:`shared` where every rank has the same few queries (a step of decoding), and
:func:`spread` where each has its zigzag share of a chunk (reading a prompt).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ultralong.attention.decoding.key_value_cache import CachedRows
from megatron_ultralong.attention.kernels import block_attention
from megatron_ultralong.attention.kernels.kernel import Kernel, nothing_attended
from megatron_ultralong.attention.kernels.online_softmax import (
    accumulation_dtype,
    merge_,
    merge_all,
)
from megatron_ultralong.attention.ring.function import KeptOutput, ring_attention

Result = tuple[Tensor, Tensor]


def shared(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cached: CachedRows,
    *,
    group: dist.ProcessGroup | None,
    softmax_scale: float,
    is_written: bool,
    kernel: str | None = None,
) -> Tensor:
    """Output [s, b, heads, d] of queries that every rank has, over cached and new keys.

    Args:
        q: the same on every rank, [s, b, heads, d].
        k: new keys, [s, b, kv_heads, d]; causal among themselves.
        v: new values, as ``k``.
        cached: keys of this rank.
        group: context-parallel group.
        softmax_scale: factor of the scores.
        is_written: the new keys are among the cached ones of some rank, which is right for s = 1
            alone; else they are attended to here.
        kernel: name of the kernel, for tests.
    """
    assert not is_written or len(q) == 1, "cached keys have no mask"
    chosen = block_attention.resolve(q.dtype, q.shape[-1], q.device, kernel)
    out, lse = _gather(*_over_cached(chosen, q, cached, softmax_scale), group)
    if not is_written:
        part, part_lse = block_attention.forward(chosen, q, k, v, (0, len(q)), softmax_scale)
        merge_(out, lse, part, part_lse)
    return out.to(q.dtype)


def spread(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cached: CachedRows | None,
    *,
    group: dist.ProcessGroup | None,
    softmax_scale: float,
    kernel: str | None = None,
) -> Tensor:
    """Output [s_local, b, heads, d] of a chunk's zigzag shards, over cached and new keys.

    Inside the chunk it is ring attention. Over the cached keys the queries of all ranks are
    gathered, each rank attends over its own keys, and results go back to the rank of the query:
    as much work on every rank, and no key travels.

    Args:
        q: queries of this rank, [s_local, b, heads, d].
        k: new keys of this rank, [s_local, b, kv_heads, d].
        v: new values of this rank.
        cached: keys of this rank; None: the chunk is the first one.
        group: context-parallel group.
        softmax_scale: factor of the scores.
        kernel: name of the kernel, for tests.
    """
    keep = KeptOutput()
    out = ring_attention(
        q, k, v, group=group, softmax_scale=softmax_scale, kernel=kernel, keep=keep
    )
    if cached is None:
        return out
    assert keep.out_lse is not None
    chosen = block_attention.resolve(q.dtype, q.shape[-1], q.device, kernel)
    dtype = accumulation_dtype(q.dtype)
    sum_SBHD, lse_BHS = out.to(dtype), keep.out_lse[1].clone()
    size = 1 if group is None else group.size()
    every_q = q
    if group is not None and size > 1:
        every_q = q.new_empty((size * len(q), *q.shape[1:]))
        dist.all_gather_into_tensor(every_q, q.contiguous(), group=group)
    part, part_lse = _over_cached(chosen, every_q, cached, softmax_scale)
    del every_q
    lse_SBH = part_lse.permute(2, 0, 1).contiguous()
    if group is not None and size > 1:
        part, lse_SBH = _return(part, group), _return(lse_SBH, group)
    for its_part, its_lse in zip(part.chunk(size), lse_SBH.chunk(size), strict=True):
        merge_(sum_SBHD, lse_BHS, its_part, its_lse.permute(1, 2, 0))
    return sum_SBHD.to(q.dtype)


def _over_cached(kernel: Kernel, q: Tensor, cached: CachedRows, scale: float) -> Result:
    """Output [s, b, heads, d] and log-sum-exp [b, heads, s] over this rank's keys alone."""
    results = []
    for columns, keys, values in cached.runs():
        queries = q[:, columns]
        if len(keys):
            results.append(block_attention.forward(kernel, queries, keys, values, None, scale))
        else:
            results.append(nothing_attended(queries))
    if len(results) == 1:
        return results[0]
    outs, lses = zip(*results, strict=True)
    return torch.cat(outs, dim=1), torch.cat(lses, dim=0)


def _gather(out: Tensor, lse: Tensor, group: dist.ProcessGroup | None) -> Result:
    """All ranks' partial results of the same queries, joined; float32 (float64) on the wire too."""
    dtype = accumulation_dtype(out.dtype)
    if group is None or group.size() == 1:
        return out.to(dtype), lse.to(dtype)
    # [s, b, heads, d + 1]: one message instead of two
    mine = torch.cat((out.to(dtype), lse.to(dtype).permute(2, 0, 1).unsqueeze(-1)), dim=-1)
    every = mine.new_empty((group.size(), *mine.shape))
    dist.all_gather_into_tensor(every.flatten(0, 1), mine.contiguous(), group=group)
    return merge_all(every[..., :-1], every[..., -1].permute(0, 2, 3, 1))


def _return(parts: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Results for this rank's queries, from all ranks in their order; shape as ``parts``."""
    mine = torch.empty_like(parts, memory_format=torch.contiguous_format)
    dist.all_to_all_single(mine, parts.contiguous(), group=group)
    return mine
