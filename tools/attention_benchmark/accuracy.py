"""Error of bfloat16 attention against float64, by CP size, with documents and without."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from megatron_ultralong.attention import reference, ring_attention
from megatron_ultralong.sequence.assignment import zigzag
from megatron_ultralong.sequence.transport import LocalRing

from .measurement import header, inputs, row


def accuracy(arguments: argparse.Namespace) -> None:
    """Largest and root-mean-square error of out, dq, dk and dv, and its growth from CP 2."""
    device = torch.device(arguments.device)
    length = min(4096, arguments.local_tokens)
    tensors = inputs(length, arguments, torch.bfloat16, device)
    print(f"\nError of bfloat16 against float64, {length} tokens: largest, relative mean square")
    print("(over that at CP 2).")
    header("documents", "CP", "out", "dq", "dk", "dv")
    eighth = length // 8
    for edges in (None, [0, 1, 2 * eighth + 44, 4 * eighth, length]):
        cu_seqlens = None if edges is None else torch.tensor(edges)
        exact = _results(
            tensors,
            torch.float64,
            lambda *x, its=cu_seqlens: reference.attention(*x, cu_seqlens=its),
        )
        errors = {}
        for cp_size in (1, 2, 4, 8, 16):
            found = _ring(tensors, cp_size, cu_seqlens)
            pairs = [(a - b, b) for a, b in zip(found, exact, strict=True)]
            errors[cp_size] = [
                (x.abs().max().item(), (x.norm() / y.norm()).item()) for x, y in pairs
            ]
        for cp_size, its in errors.items():
            cells = [
                f"{most:.1e}, {mean:.2e} ({mean / two:.2f})"
                for (most, mean), (_, two) in zip(its, errors[2], strict=True)
            ]
            row("none" if edges is None else len(edges) - 1, cp_size, *cells)


def _ring(tensors: list[Tensor], cp_size: int, cu_seqlens: Tensor | None) -> list[Tensor]:
    """Results of all ranks in this process, whole sequence, float64."""
    how = zigzag(cp_size)
    shards = [torch.cat([how.shard(x, r, 0) for r in range(cp_size)]) for x in tensors]
    group = LocalRing(cp_size)
    ring = partial(ring_attention, group=group, cu_seqlens=cu_seqlens)
    found = _results(shards, torch.bfloat16, ring)
    return [how.unshard(x.chunk(cp_size), 0).double() for x in found]


def _results(
    tensors: list[Tensor], dtype: torch.dtype, call: Callable[..., Tensor]
) -> list[Tensor]:
    """out, dq, dk, dv."""
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in tensors[:3])
    out = call(q, k, v)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), tensors[3].to(dtype))]
