"""Kernels: the one seam between the ring and whatever computes attention on a device.

A kernel is a pair of functions over one block of queries and keys, in Megatron's layout:

    forward(q, k, v, causal, scale) -> out, lse
    backward(dout, q, k, v, out, lse, causal, scale) -> dq, dk, dv

with q, out [s, b, heads, d]; k, v [t, b, kv_heads, d]; lse float32 (float64 for float64),
[b, heads, s]. In backward, ``out`` and ``lse`` are those over **all** keys of a query, not over
the block's: that is what makes the sums over blocks exact. ``causal`` is for s = t alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from megatron_ultralong.attention.online_softmax import accumulation_dtype
from megatron_ultralong.errors import InputError

logger = logging.getLogger(__name__)

Forward = Callable[[Tensor, Tensor, Tensor, bool, float], tuple[Tensor, Tensor]]
Gradients = tuple[Tensor, Tensor, Tensor]
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool, float], Gradients]

OVERRIDE = "ULTRALONG_ATTENTION_KERNEL"
MAX_ELEMENTS = 2**31 - 1  # kernels index with int32


@dataclass(frozen=True)
class Kernel:
    """One implementation of block attention."""

    name: str
    forward: Forward
    backward: Backward
    # Why it cannot serve (dtype, head size d, device); None: it can.
    refusal: Callable[[torch.dtype, int, torch.device], str | None]
    # Causal attention inside documents in one call; (q, k, v, cu_seqlens, scale). None: a call
    # for each document.
    documents_forward: (
        Callable[[Tensor, Tensor, Tensor, tuple[int, ...], float], tuple[Tensor, Tensor]] | None
    ) = None
    documents_backward: (
        Callable[
            [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, tuple[int, ...], float], Gradients
        ]
        | None
    ) = None


def _heads_first(*tensors: Tensor) -> list[Tensor]:
    """Views [b, heads, s, d] of [s, b, heads, d]."""
    return [x.permute(1, 2, 0, 3) for x in tensors]


def _sequence_first(*tensors: Tensor) -> list[Tensor]:
    """Views [s, b, heads, d] of [b, heads, s, d]."""
    return [x.permute(2, 0, 1, 3) for x in tensors]


# --- CPU: PyTorch's flash attention --------------------------------------------------------------


def _cpu_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    if q.numel() == 0 or k.numel() == 0:  # the kernel dies of SIGFPE
        return _nothing_attended(q)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *_heads_first(q, k, v), 0.0, causal, scale=scale
    )
    return _sequence_first(out)[0], lse


def _cpu_backward(
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
        *_heads_first(dout, q, k, v, out), lse, 0.0, causal, scale=scale
    )
    dq, dk, dv = _sequence_first(dq, dk, dv)
    return dq, dk, dv


def _nothing_attended(q: Tensor) -> tuple[Tensor, Tensor]:
    """Result without keys: zero, with a log-sum-exp of -inf that merging ignores."""
    s, b, heads, _ = q.shape
    lse = q.new_full((b, heads, s), -torch.inf, dtype=accumulation_dtype(q.dtype))
    return torch.zeros_like(q), lse


def _cpu_refusal(dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
    return None if device.type == "cpu" else f"it runs on the CPU, not on {device.type}"


# --- Plain formulas, on any device and in any dtype: the oracle of the other kernels -------------


def _math_scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    """Masked scores [b, heads, s, t]."""
    group = q.shape[2] // k.shape[2]
    scores = scale * torch.einsum("sbhd,tbhd->bhst", q, k.repeat_interleave(group, dim=2))
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores


def _math_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    if q.numel() == 0 or k.numel() == 0:
        return _nothing_attended(q)
    wide = accumulation_dtype(q.dtype)
    scores = _math_scores(q.to(wide), k.to(wide), causal, scale)
    v_SBHD = v.to(wide).repeat_interleave(q.shape[2] // v.shape[2], dim=2)
    out = torch.einsum("bhst,tbhd->sbhd", scores.softmax(-1), v_SBHD)
    return out.to(q.dtype), scores.logsumexp(-1)


def _math_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
) -> Gradients:
    wide = accumulation_dtype(q.dtype)
    dout_, q_, k_, v_, out_ = (x.to(wide) for x in (dout, q, k, v, out))
    group = q.shape[2] // k.shape[2]
    p_BHST = torch.exp(_math_scores(q_, k_, causal, scale) - lse.to(wide).unsqueeze(-1))
    dp_BHST = torch.einsum("sbhd,tbhd->bhst", dout_, v_.repeat_interleave(group, dim=2))
    delta_BHS1 = torch.einsum("sbhd,sbhd->bhs", dout_, out_).unsqueeze(-1)
    ds_BHST = scale * p_BHST * (dp_BHST - delta_BHS1)
    dq = torch.einsum("bhst,tbhd->sbhd", ds_BHST, k_.repeat_interleave(group, dim=2))
    dk = torch.einsum("bhst,sbhd->tbhd", ds_BHST, q_)
    dv = torch.einsum("bhst,sbhd->tbhd", p_BHST, dout_)
    dk, dv = (x.unflatten(2, (-1, group)).sum(dim=3) for x in (dk, dv))  # heads -> kv_heads
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _math_refusal(dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
    return None


CPU = Kernel("cpu", _cpu_forward, _cpu_backward, _cpu_refusal)
MATH = Kernel("math", _math_forward, _math_backward, _math_refusal)


# --- The choice ----------------------------------------------------------------------------------


def candidates(device: torch.device) -> tuple[Kernel, ...]:
    """Kernels for a device, the fastest first."""
    if device.type != "cuda":
        return (CPU, MATH)
    return (MATH,)


@lru_cache(maxsize=64)
def resolve(
    dtype: torch.dtype, head_dim: int, device: torch.device, name: str | None = None
) -> Kernel:
    """The fastest kernel that is valid here, or the one named by argument or environment.

    Raises:
        InputError: the named kernel does not exist or cannot serve; nothing takes its place.
    """
    name = name or os.environ.get(OVERRIDE)
    refusals = {}
    for kernel in candidates(device):
        refusals[kernel.name] = kernel.refusal(dtype, head_dim, device)
        if refusals[kernel.name] is None and name in (None, kernel.name):
            logger.info(
                "attention: kernel %s for %s, d %d, %s", kernel.name, dtype, head_dim, device
            )
            return kernel
    reason = refusals.get(name or "", f"there are {', '.join(refusals)} on {device.type}")
    raise InputError(
        f"attention kernel {name!r} cannot serve {dtype}, head size {head_dim} on {device}: "
        f"{reason}; leave it out ({OVERRIDE}) to get the fastest one that can"
    )


# --- Causal attention inside documents -----------------------------------------------------------


def documents_forward(
    kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: tuple[int, ...], scale: float
) -> tuple[Tensor, Tensor]:
    """Causal attention inside every document of one block, s = t = ``cu_seqlens[-1]``."""
    if len(cu_seqlens) == 2:
        return kernel.forward(q, k, v, True, scale)
    if kernel.documents_forward is not None:
        return kernel.documents_forward(q, k, v, cu_seqlens, scale)
    s, b, heads, _ = q.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty((b, heads, s), dtype=accumulation_dtype(q.dtype))
    for start, stop in pairwise(cu_seqlens):
        inside = slice(start, stop)
        out[inside], lse[..., inside] = kernel.forward(q[inside], k[inside], v[inside], True, scale)
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
        return kernel.backward(dout, q, k, v, out, lse, True, scale)
    if kernel.documents_backward is not None:
        return kernel.documents_backward(dout, q, k, v, out, lse, cu_seqlens, scale)
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    for start, stop in pairwise(cu_seqlens):
        inside = slice(start, stop)
        dq[inside], dk[inside], dv[inside] = kernel.backward(
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
