"""The kernel on CPU: PyTorch's flash attention, in float64, float32, bfloat16 and float16.

Documents of one length are one call, side by side in its batch: a call for each would cost more
than its work where they are short.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from megatron_ultralong.attention.kernel import (
    Gradients,
    Kernel,
    heads_first,
    nothing_attended,
    sequence_first,
)
from megatron_ultralong.attention.online_softmax import accumulation_dtype


def _forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    if q.numel() == 0 or k.numel() == 0:  # the kernel dies of SIGFPE
        return nothing_attended(q)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *heads_first(q, k, v), 0.0, causal, scale=scale
    )
    return sequence_first(out)[0], lse


def _backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
) -> Gradients:
    if q.numel() == 0 or k.numel() == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *heads_first(dout, q, k, v, out), lse, 0.0, causal, scale=scale
    )
    dq, dk, dv = sequence_first(dq, dk, dv)
    return dq, dk, dv


@lru_cache(maxsize=16)
def _groups(cu_seqlens: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Places of the tokens of all documents of one length, each int64 [number, length]."""
    edges = np.asarray(cu_seqlens, dtype=np.int64)
    lengths, starts = np.diff(edges), edges[:-1]
    order = np.argsort(lengths, kind="stable")
    sizes, first = np.unique(lengths[order], return_index=True)
    groups = zip(sizes.tolist(), np.split(starts[order], first[1:]), strict=True)
    return tuple(torch.from_numpy(its[:, None] + np.arange(size)) for size, its in groups)


def _room(x: Tensor) -> Tensor:
    """Memory for a result as large as ``x``."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _taken(x: Tensor, places: Tensor) -> Tensor:
    """Documents side by side: [s, 1, heads, d] -> [length, number, heads, d]."""
    rows = x[:, 0].index_select(0, places.flatten())
    return rows.view(*places.shape, *rows.shape[1:]).transpose(0, 1)


def _put_back(x: Tensor, places: Tensor, part: Tensor) -> None:
    """What :func:`_taken` took, or what was made of it."""
    x[:, 0].index_copy_(0, places.flatten(), part.transpose(0, 1).flatten(0, 1))


def _documents_forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: tuple[int, ...], scale: float
) -> tuple[Tensor, Tensor]:
    out = _room(q)
    lse = q.new_empty((1, q.shape[2], len(q)), dtype=accumulation_dtype(q.dtype))
    for places in _groups(cu_seqlens):
        its = [_taken(x, places) for x in (q, k, v)]
        part, lse_NHS = _forward(its[0], its[1], its[2], True, scale)
        _put_back(out, places, part)
        lse[0][:, places] = lse_NHS.transpose(0, 1)
    return out, lse


def _documents_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: tuple[int, ...],
    scale: float,
) -> Gradients:
    dq, dk, dv = (_room(x) for x in (q, k, v))
    for places in _groups(cu_seqlens):
        lse_NHS = lse[0][:, places].transpose(0, 1).contiguous()
        its = [_taken(x, places) for x in (dout, q, k, v, out)]
        parts = _backward(its[0], its[1], its[2], its[3], its[4], lse_NHS, True, scale)
        for x, part in zip((dq, dk, dv), parts, strict=True):
            _put_back(x, places, part)
    return dq, dk, dv


def _refusal(dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
    return None if device.type == "cpu" else f"it runs on the CPU, not on {device.type}"


CPU = Kernel(
    "cpu",
    _forward,
    _backward,
    _refusal,
    _documents_forward,
    _documents_backward,
    can_widen=True,
)
