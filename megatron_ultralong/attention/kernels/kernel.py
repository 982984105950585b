"""A kernel: attention of one block of queries over one block of keys, in Megatron's layout.

    forward(q, k, v, mask, scale) -> out, lse
    backward(dout, q, k, v, out, lse, mask, scale) -> dq, dk, dv

with q, out [s, b, heads, d]; k, v [t, b, kv_heads, d]; lse float32 (float64 for float64),
[b, heads, s]. In backward, ``out`` and ``lse`` are those over **all** keys of a query, not over
the block's: that is what makes the sums over blocks exact.

A new kernel is a subclass in a file of its own, and a place in
:func:`~megatron_ultralong.attention.kernels.block_attention.candidates`.
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from megatron_ultralong.attention.kernels.online_softmax import accumulation_dtype

Mask = tuple[int, ...] | None
"""What a block's queries attend to. None: every key. Boundaries ``(0, ..., s)``, for s = t alone:
the keys of their own document up to themselves; ``(0, s)`` is plain causal attention."""
Gradients = tuple[Tensor, Tensor, Tensor]


class Kernel(abc.ABC):
    """One implementation of block attention. It is called with at least one query and one key."""

    name: str
    """As users write it in ``ULTRALONG_ATTENTION_KERNEL``."""
    serves_documents = False
    """It takes masks of several documents where b = 1; others get a call for each document."""
    can_widen = False
    """It can compute bfloat16 blocks in float32, so that parts of a sum are not rounded."""

    @abc.abstractmethod
    def refusal(self, dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
        """Why it cannot serve tensors of that dtype and head size on the device; None: it can."""

    @abc.abstractmethod
    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp; shapes are the module's."""

    @abc.abstractmethod
    def backward(
        self,
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        mask: Mask,
        scale: float,
    ) -> Gradients:
        """Gradients of q, k and v, given out and lse over all keys."""


def heads_first(*tensors: Tensor) -> list[Tensor]:
    """Views [b, heads, s, d] of [s, b, heads, d]."""
    return [x.permute(1, 2, 0, 3) for x in tensors]


def sequence_first(*tensors: Tensor) -> list[Tensor]:
    """Views [s, b, heads, d] of [b, heads, s, d]."""
    return [x.permute(2, 0, 1, 3) for x in tensors]


def room_for(q: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for the output and log-sum-exp of queries ``q``, not yet written."""
    s, b, heads, _ = q.shape
    lse = q.new_empty((b, heads, s), dtype=accumulation_dtype(q.dtype))
    return torch.empty_like(q, memory_format=torch.contiguous_format), lse


def room_for_gradients(*tensors: Tensor) -> list[Tensor]:
    """Memory for the gradient of each tensor, not yet written."""
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors]


def nothing_attended(q: Tensor) -> tuple[Tensor, Tensor]:
    """Result without keys: zero, with a log-sum-exp of -inf that merging ignores."""
    s, b, heads, _ = q.shape
    lse = q.new_full((b, heads, s), -torch.inf, dtype=accumulation_dtype(q.dtype))
    return torch.zeros_like(q), lse
