"""Kernels: the one seam between the ring and whatever computes attention on a device.

:func:`resolve` chooses, once; :func:`forward`, :func:`backward` and their two forms for documents
call what was chosen, splitting the heads where a tensor is too large to be indexed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from megatron_ultralong.attention.cpu_kernel import CPU
from megatron_ultralong.attention.cudnn_kernel import CUDNN
from megatron_ultralong.attention.flash4_kernel import FA4
from megatron_ultralong.attention.flash_kernels import FA2, FA3
from megatron_ultralong.attention.kernel import Gradients, Kernel
from megatron_ultralong.attention.math_kernel import MATH
from megatron_ultralong.attention.online_softmax import accumulation_dtype
from megatron_ultralong.errors import InputError

logger = logging.getLogger(__name__)

OVERRIDE = "ULTRALONG_ATTENTION_KERNEL"
MAX_ELEMENTS = 2**31 - 1  # of one tensor in a kernel, which may index with int32


def candidates(device: torch.device) -> tuple[Kernel, ...]:
    """Kernels for a device, the fastest first (on Hopper, benchmarks/attention.md)."""
    if device.type == "cuda":
        return (FA3, FA4, CUDNN, FA2, MATH)
    return (CPU, MATH)


def resolve(
    dtype: torch.dtype, head_dim: int, device: torch.device, name: str | None = None
) -> Kernel:
    """The fastest kernel that is valid here, or the one named by argument or environment.

    Raises:
        InputError: the named kernel does not exist or cannot serve; nothing takes its place.
    """
    return _resolve(dtype, head_dim, device, name or os.environ.get(OVERRIDE))


@lru_cache(maxsize=64)
def _resolve(dtype: torch.dtype, head_dim: int, device: torch.device, name: str | None) -> Kernel:
    refusals: dict[str, str] = {}
    for kernel in candidates(device):
        if name not in (None, kernel.name):
            continue
        refusal = kernel.refusal(dtype, head_dim, device)
        if refusal is None:
            logger.info(
                "attention kernel %s for %s, head size %d, on %s%s",
                kernel.name,
                dtype,
                head_dim,
                device,
                "".join(f"; not {other}: {why}" for other, why in refusals.items()),
            )
            return kernel
        refusals[kernel.name] = refusal
    names = ", ".join(kernel.name for kernel in candidates(device))
    why = refusals.get(name or "", f"there is none of that name, only {names}")
    raise InputError(
        f"attention kernel {name} cannot serve {dtype}, head size {head_dim}, on {device}: {why}; "
        f"name none (argument kernel, environment {OVERRIDE}) to get the fastest that can"
    )


def forward(
    kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of one block (:mod:`~megatron_ultralong.attention.kernel`)."""
    return _forward_by_heads(lambda q, k, v: kernel.forward(q, k, v, causal, scale), q, k, v)


def backward(
    kernel: Kernel,
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
) -> Gradients:
    """Gradients of one block, given out and lse over all keys."""
    return _backward_by_heads(
        lambda dout, q, k, v, out, lse: kernel.backward(dout, q, k, v, out, lse, causal, scale),
        dout,
        q,
        k,
        v,
        out,
        lse,
    )


def _forward_by_heads(
    call: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
) -> tuple[Tensor, Tensor]:
    """One call, or one for each group of heads."""
    parts = _head_groups(q, k)
    if len(parts) == 1:
        return call(q, k, v)
    s, b, num_heads, _ = q.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty((b, num_heads, s), dtype=accumulation_dtype(q.dtype))
    for heads, kv in parts:
        out[:, :, heads], lse[:, heads] = call(q[:, :, heads], k[:, :, kv], v[:, :, kv])
    return out, lse


def _backward_by_heads(
    call: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Gradients],
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
) -> Gradients:
    """One call, or one for each group of heads."""
    parts = _head_groups(q, k)
    if len(parts) == 1:
        return call(dout, q, k, v, out, lse)
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    # Groups that share a key head add to its gradient.
    shared = len(parts) > k.shape[2]
    dtype = accumulation_dtype(k.dtype) if shared else k.dtype
    dk, dv = (k.new_zeros(k.shape, dtype=dtype) for _ in range(2))
    for heads, kv in parts:
        dq[:, :, heads], dk_part, dv_part = call(
            dout[:, :, heads],
            q[:, :, heads],
            k[:, :, kv],
            v[:, :, kv],
            out[:, :, heads],
            lse[:, heads],
        )
        dk[:, :, kv] += dk_part
        dv[:, :, kv] += dv_part
    return dq, dk.to(k.dtype), dv.to(v.dtype)


def _head_groups(q: Tensor, k: Tensor) -> list[tuple[slice, slice]]:
    """Fewest equal groups of (heads, kv_heads) whose tensors a kernel can index.

    Where one key head is still too much, its query heads are split: 4 heads over 1 become
    ``[(0:2, 0:1), (2:4, 0:1)]``.
    """
    heads, kv_heads = q.shape[2], k.shape[2]
    for num_groups in range(1, heads + 1):
        if heads % num_groups or (kv_heads % num_groups and num_groups % kv_heads):
            continue
        key_groups = min(num_groups, kv_heads)
        if max(q.numel() // num_groups, k.numel() // key_groups) <= MAX_ELEMENTS:
            size = kv_heads // key_groups
            first = [i * kv_heads // num_groups for i in range(num_groups)]
            return [
                (
                    slice(i * heads // num_groups, (i + 1) * heads // num_groups),
                    slice(first[i], first[i] + size),
                )
                for i in range(num_groups)
            ]
    raise InputError(
        f"attention over {tuple(q.shape)} queries and {tuple(k.shape)} keys: with one head at a "
        f"time a tensor still has more than {MAX_ELEMENTS} elements, the most that a kernel can "
        "index; raise context_parallel_size"
    )


def documents_forward(
    kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: tuple[int, ...], scale: float
) -> tuple[Tensor, Tensor]:
    """Causal attention inside every document of one block, s = t = ``cu_seqlens[-1]``."""
    if len(cu_seqlens) == 2:
        return forward(kernel, q, k, v, True, scale)
    call = kernel.documents_forward
    if call is not None and q.shape[1] == 1:  # a batch of chunks, not of documents, may have more
        return _forward_by_heads(lambda q, k, v: call(q, k, v, cu_seqlens, scale), q, k, v)
    s, b, heads, _ = q.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty((b, heads, s), dtype=accumulation_dtype(q.dtype))
    for start, stop in pairwise(cu_seqlens):
        inside = slice(start, stop)
        out[inside], lse[..., inside] = forward(
            kernel, q[inside], k[inside], v[inside], True, scale
        )
    return out, lse


def documents_backward(
    kernel: Kernel,
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: tuple[int, ...],
    scale: float,
) -> Gradients:
    """Gradients of :func:`documents_forward`."""
    if len(cu_seqlens) == 2:
        return backward(kernel, dout, q, k, v, out, lse, True, scale)
    call = kernel.documents_backward
    if call is not None and q.shape[1] == 1:
        return _backward_by_heads(
            lambda dout, q, k, v, out, lse: call(dout, q, k, v, out, lse, cu_seqlens, scale),
            dout,
            q,
            k,
            v,
            out,
            lse,
        )
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    for start, stop in pairwise(cu_seqlens):
        inside = slice(start, stop)
        dq[inside], dk[inside], dv[inside] = backward(
            kernel,
            dout[inside],
            q[inside],
            k[inside],
            v[inside],
            out[inside],
            lse[..., inside],
            True,
            scale,
        )
    return dq, dk, dv
