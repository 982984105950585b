"""Kernels: the one seam between the ring and whatever computes attention on a device.

:func:`resolve` chooses, once; :func:`forward` and :func:`backward` call what was chosen: for every
document where it takes one alone, for groups of heads where a tensor is too large to be indexed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from megatron_ultralong.attention.kernels.cpu import CPU
from megatron_ultralong.attention.kernels.cudnn import CUDNN
from megatron_ultralong.attention.kernels.flash import FA2, FA3
from megatron_ultralong.attention.kernels.flash4 import FA4
from megatron_ultralong.attention.kernels.kernel import (
    Gradients,
    Kernel,
    Mask,
    accumulation_dtype,
    nothing_attended,
    room_for,
    room_for_gradients,
)
from megatron_ultralong.attention.kernels.math import MATH
from megatron_ultralong.program.errors import InputError

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
    kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of one block (:mod:`~megatron_ultralong.attention.kernels.kernel`)."""
    if q.numel() == 0 or k.numel() == 0:
        return nothing_attended(q)
    if mask is not None and _is_split(kernel, q, mask):
        out, lse = room_for(q)
        for its in _documents(mask):
            part = (q[its], k[its], v[its], (0, its.stop - its.start), scale)
            out[its], lse[..., its] = forward(kernel, *part)
        return out, lse
    groups = _head_groups(q, k)
    if len(groups) == 1:
        return kernel.forward(q, k, v, mask, scale)
    out, lse = room_for(q)
    for heads, kv in groups:
        group = (q[:, :, heads], k[:, :, kv], v[:, :, kv])
        out[:, :, heads], lse[:, heads] = kernel.forward(*group, mask, scale)
    return out, lse


def backward(
    kernel: Kernel,
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Mask,
    scale: float,
) -> Gradients:
    """Gradients of one block, given out and lse over all keys."""
    if q.numel() == 0 or k.numel() == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    if mask is not None and _is_split(kernel, q, mask):
        dq, dk, dv = room_for_gradients(q, k, v)
        for its in _documents(mask):
            part = (dout[its], q[its], k[its], v[its], out[its], lse[..., its])
            length = its.stop - its.start
            dq[its], dk[its], dv[its] = backward(kernel, *part, (0, length), scale)
        return dq, dk, dv
    groups = _head_groups(q, k)
    if len(groups) == 1:
        return kernel.backward(dout, q, k, v, out, lse, mask, scale)
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    # Groups that share a key head add to its gradient.
    shared = len(groups) > k.shape[2]
    dtype = accumulation_dtype(k.dtype) if shared else k.dtype
    dk, dv = (k.new_zeros(k.shape, dtype=dtype) for _ in range(2))
    for heads, kv in groups:
        group = (dout[:, :, heads], q[:, :, heads], k[:, :, kv], v[:, :, kv], out[:, :, heads])
        dq[:, :, heads], dk_part, dv_part = kernel.backward(*group, lse[:, heads], mask, scale)
        dk[:, :, kv] += dk_part
        dv[:, :, kv] += dv_part
    return dq, dk.to(k.dtype), dv.to(v.dtype)


def _is_split(kernel: Kernel, q: Tensor, edges: tuple[int, ...]) -> bool:
    """Whether every document is a call of its own; a batch may be one of chunks."""
    return len(edges) > 2 and not (kernel.serves_documents and q.shape[1] == 1)


def _documents(edges: tuple[int, ...]) -> Iterator[slice]:
    return (slice(start, stop) for start, stop in pairwise(edges))


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
