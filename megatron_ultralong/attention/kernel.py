"""A kernel: block attention as a pair of functions, in Megatron's layout.

    forward(q, k, v, causal, scale) -> out, lse
    backward(dout, q, k, v, out, lse, causal, scale) -> dq, dk, dv

with q, out [s, b, heads, d]; k, v [t, b, kv_heads, d]; lse float32 (float64 for float64),
[b, heads, s]. In backward, ``out`` and ``lse`` are those over **all** keys of a query, not over
the block's: that is what makes the sums over blocks exact. ``causal`` is for s = t alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_ultralong.attention.online_softmax import accumulation_dtype

Forward = Callable[[Tensor, Tensor, Tensor, bool, float], tuple[Tensor, Tensor]]
Gradients = tuple[Tensor, Tensor, Tensor]
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool, float], Gradients]


@dataclass(frozen=True)
class Kernel:
    """One implementation of block attention."""

    name: str
    forward: Forward
    backward: Backward
    # Why it cannot serve (dtype, head size d, device); None: it can.
    refusal: Callable[[torch.dtype, int, torch.device], str | None]
    # Causal attention inside documents of one row (b = 1) in one call; (q, k, v, cu_seqlens,
    # scale). None: a call for each document.
    documents_forward: (
        Callable[[Tensor, Tensor, Tensor, tuple[int, ...], float], tuple[Tensor, Tensor]] | None
    ) = None
    documents_backward: (
        Callable[
            [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, tuple[int, ...], float], Gradients
        ]
        | None
    ) = None
    # It can compute bfloat16 blocks in float32, so that parts of a sum are not rounded.
    can_widen: bool = False


def heads_first(*tensors: Tensor) -> list[Tensor]:
    """Views [b, heads, s, d] of [s, b, heads, d]."""
    return [x.permute(1, 2, 0, 3) for x in tensors]


def sequence_first(*tensors: Tensor) -> list[Tensor]:
    """Views [s, b, heads, d] of [b, heads, s, d]."""
    return [x.permute(2, 0, 1, 3) for x in tensors]


def nothing_attended(q: Tensor) -> tuple[Tensor, Tensor]:
    """Result without keys: zero, with a log-sum-exp of -inf that merging ignores."""
    s, b, heads, _ = q.shape
    lse = q.new_full((b, heads, s), -torch.inf, dtype=accumulation_dtype(q.dtype))
    return torch.zeros_like(q), lse
