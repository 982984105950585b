"""Kernels: the one seam between the ring and whatever computes attention on a device.

:func:`resolve` chooses, once; :func:`forward` and :func:`backward` call what was chosen: for every
document where it takes one alone, for groups of heads where a tensor is too large to be indexed.
"""

import logging
import os
from functools import lru_cache

import torch
from torch import Tensor

from megatron_ultralong.attention.kernels import base, cpu, cudnn, efficient, flash, flash4, math
from megatron_ultralong.attention.kernels.base import (
    Gradients,
    Inputs,
    Kernel,
    Result,
    RowLengths,
    Saved,
)
from megatron_ultralong.program.errors import InputError

logger = logging.getLogger(__name__)

OVERRIDE = "ULTRALONG_ATTENTION_KERNEL"
MAX_ELEMENTS = 2**31 - 1  # of one tensor in a kernel, which may index with int32


def candidates(device: torch.device) -> tuple[Kernel, ...]:
    """Kernels for a device, the fastest first (on Hopper, benchmarks/attention.md)."""
    if device.type == "cuda":
        return (flash.FA3, flash4.FA4, cudnn.CUDNN, flash.FA2, efficient.EFFICIENT, math.MATH)
    return (cpu.CPU, math.MATH)


def resolve(
    dtype: torch.dtype, head_dim: int, device: torch.device, name: str | None = None
) -> Kernel:
    """The fastest kernel that is valid here, or the one named by argument or environment.

    Raises:
        InputError: the named kernel does not exist or cannot serve; nothing takes its place.
    """
    return _resolve(dtype, head_dim, device, name or asked())[0]


def choice(dtype: torch.dtype, head_dim: int, device: torch.device) -> str:
    """The kernel that :func:`resolve` chooses, and why none of the faster ones, in a line.

    Raises:
        InputError: as there.
    """
    return _resolve(dtype, head_dim, device, asked())[1]


def asked() -> str | None:
    """The kernel that the environment names, if it names one."""
    return os.environ.get(OVERRIDE) or None


@lru_cache(maxsize=64)
def _resolve(
    dtype: torch.dtype, head_dim: int, device: torch.device, name: str | None
) -> tuple[Kernel, str]:
    refusals: dict[str, str] = {}
    for kernel in candidates(device):
        if name not in (None, kernel.name):
            refusals[kernel.name] = f"{name} is asked for"
            continue
        refusal = kernel.refusal(dtype, head_dim, device)
        if refusal is None:
            others = "".join(f"; not {other}: {why}" for other, why in refusals.items())
            said = f"{kernel.name} for {dtype}, head size {head_dim}, on {device}{others}"
            logger.info("attention kernel %s", said)
            return kernel, f"attention kernel {said}"
        refusals[kernel.name] = refusal
    names = ", ".join(kernel.name for kernel in candidates(device))
    why = refusals.get(name or "", f"there is none of that name, only {names}")
    raise InputError(
        f"attention kernel {name} cannot serve {dtype}, head size {head_dim}, on {device}: {why}; "
        f"name none (argument kernel, environment {OVERRIDE}) to get the fastest that can"
    )


def rows_refusal(dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
    """Why no fast kernel takes the rows' lengths from the device; None: ``fa2`` does."""
    name = asked() or flash.FA2.name
    if name != flash.FA2.name:
        return f"{OVERRIDE} is {name}, and only {flash.FA2.name} reads lengths on the device"
    why = flash.FA2.refusal(dtype, head_dim, device)
    return why and f"{flash.FA2.name}, which reads lengths on the device, cannot serve: {why}"


def forward_rows(q: Tensor, keys: Tensor, values: Tensor, rows: RowLengths, scale: float) -> Result:
    """One query of each row over as many of its keys as the device says (:class:`Kernel`)."""
    is_fast = rows_refusal(q.dtype, q.shape[-1], q.device) is None
    return (flash.FA2 if is_fast else math.MATH).forward_rows(q, keys, values, rows, scale)


def forward(kernel: Kernel, inputs: Inputs) -> Result:
    """Output and log-sum-exp of one block (:mod:`~megatron_ultralong.attention.kernels.base`)."""
    runs = _runs(kernel, inputs)
    if len(runs) <= 1:
        return _forward_run(kernel, inputs)
    room: Result | None = None
    for rows, edges in runs:
        part = _forward_run(kernel, inputs.rows(rows, edges))
        room = room or base.room_for(inputs.q, part[0].dtype)
        room[0][rows], room[1][..., rows] = part
    assert room is not None
    return room


def _forward_run(kernel: Kernel, inputs: Inputs) -> Result:
    q, k, *_ = inputs
    if q.numel() == 0 or k.numel() == 0:
        return base.nothing_attended(q)
    groups = _head_groups(q, k)
    if len(groups) == 1:
        return kernel.forward(inputs)
    room: Result | None = None
    for heads, kv in groups:
        part = kernel.forward(inputs.heads(heads, kv))
        room = room or base.room_for(q, part[0].dtype)
        room[0][:, :, heads], room[1][:, heads] = part
    assert room is not None
    return room


def backward(kernel: Kernel, inputs: Inputs, saved: Saved) -> Gradients:
    """Gradients of one block, given out and lse over all keys."""
    runs = _runs(kernel, inputs)
    if len(runs) <= 1:
        return _backward_run(kernel, inputs, saved)
    room: list[Tensor] = []
    for rows, edges in runs:
        part = _backward_run(kernel, inputs.rows(rows, edges), saved.rows(rows))
        room = room or _room(part, inputs)
        for whole, its in zip(room, part, strict=True):
            whole[rows] = its
    dq, dk, dv = room
    return dq, dk, dv


def _room(part: Gradients, inputs: Inputs) -> list[Tensor]:
    """Memory for the gradients of the inputs, of the dtypes of a part of them."""
    pairs = zip(inputs[:3], part, strict=True)
    return [x.new_empty(x.shape, dtype=its.dtype) for x, its in pairs]


def _backward_run(kernel: Kernel, inputs: Inputs, saved: Saved) -> Gradients:
    q, k, v, *_ = inputs
    if q.numel() == 0 or k.numel() == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    groups = _head_groups(q, k)
    if len(groups) == 1:
        return kernel.backward(inputs, saved)
    # Groups that share a key head add to its gradient.
    shared = len(groups) > k.shape[2]
    room: list[Tensor] = []
    for heads, kv in groups:
        part = kernel.backward(inputs.heads(heads, kv), saved.heads(heads))
        if not room:
            dq, dk, dv = _room(part, inputs)
            wide = base.accumulation_dtype(k.dtype)
            room = [dq, *(x.to(wide if shared else x.dtype).zero_() for x in (dk, dv))]
        room[0][:, :, heads] = part[0]
        room[1][:, :, kv] += part[1]
        room[2][:, :, kv] += part[2]
    dq, dk, dv = room
    if shared and not inputs.wide:
        dk, dv = dk.to(k.dtype), dv.to(v.dtype)
    return dq, dk, dv


def _runs(kernel: Kernel, inputs: Inputs) -> list[tuple[slice, tuple[int, ...]]]:
    """Rows and boundaries of documents that are one call; a batch may be one of chunks."""
    if inputs.documents is None:
        return []
    runs = kernel.runs if inputs.q.shape[1] == 1 else base.each_alone
    return [(slice(start, start + its[-1]), its) for start, its in runs(inputs.documents)]


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
