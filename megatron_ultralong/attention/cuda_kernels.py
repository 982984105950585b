"""The kernels on NVIDIA GPUs, all by PyTorch's own (aten) signatures.

``fa2`` is in every CUDA build of PyTorch. ``fa3`` and ``fa4`` are packages that take the place of
``fa2`` behind the same operators once activated. ``cudnn`` is dense and causal; documents of one
block go through ``fa2``, and so does what cuDNN does wrongly.
"""

from __future__ import annotations

import importlib
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention import (
    activate_flash_attention_impl,
    current_flash_attention_impl,
    restore_flash_attention_impl,
)

from megatron_ultralong.attention.kernel import (
    Gradients,
    Kernel,
    heads_first,
    nothing_attended,
    sequence_first,
)


def _flash(name: str, implementation: str | None, package: str | None) -> Kernel:
    """One of the FlashAttention versions, [b, s, heads, d] inside, [s, heads, d] for documents."""

    def forward(
        q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        if q.numel() == 0 or k.numel() == 0:
            return nothing_attended(q)
        _activate(implementation)
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            *_batch_first(q, k, v), None, None, len(q), len(k), 0.0, causal, False, scale=scale
        )
        return out.transpose(0, 1), lse

    def backward(
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
        _activate(implementation)
        dq, dk, dv = torch.ops.aten._flash_attention_backward(
            *_batch_first(dout, q, k, v, out),
            lse.contiguous(),
            None,
            None,
            len(q),
            len(k),
            0.0,
            causal,
            *_no_dropout(q.device),
            scale=scale,
        )
        return dq.transpose(0, 1), dk.transpose(0, 1), dv.transpose(0, 1)

    def documents_forward(
        q: Tensor, k: Tensor, v: Tensor, cu_seqlens: tuple[int, ...], scale: float
    ) -> tuple[Tensor, Tensor]:
        _activate(implementation)
        edges, longest = _edges(cu_seqlens, q.device)
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            q[:, 0], k[:, 0], v[:, 0], edges, edges, longest, longest, 0.0, True, False, scale=scale
        )
        return out[:, None], lse.reshape(1, q.shape[2], len(q))

    def documents_backward(
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        cu_seqlens: tuple[int, ...],
        scale: float,
    ) -> Gradients:
        _activate(implementation)
        edges, longest = _edges(cu_seqlens, q.device)
        dq, dk, dv = torch.ops.aten._flash_attention_backward(
            dout[:, 0],
            q[:, 0],
            k[:, 0],
            v[:, 0],
            out[:, 0],
            lse[0].contiguous(),
            edges,
            edges,
            longest,
            longest,
            0.0,
            True,
            *_no_dropout(q.device),
            scale=scale,
        )
        return dq[:, None], dk[:, None], dv[:, None]

    def refusal(dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
        return _unfit(dtype, head_dim, device, 256, (8, 0)) or _missing(
            implementation, package, device
        )

    return Kernel(name, forward, backward, refusal, documents_forward, documents_backward)


def _batch_first(*tensors: Tensor) -> list[Tensor]:
    """Views [b, s, heads, d] of [s, b, heads, d]."""
    return [x.transpose(0, 1) for x in tensors]


@lru_cache(maxsize=8)
def _no_dropout(device: torch.device) -> tuple[Tensor, Tensor]:
    """Random state of a dropout of zero: never read."""
    nothing = torch.zeros(2, dtype=torch.int64, device=device)
    return nothing, nothing


@lru_cache(maxsize=64)
def _edges(cu_seqlens: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    """Boundaries on the device, int32, and the longest document: one copy for all layers."""
    edges = torch.tensor(cu_seqlens, dtype=torch.int32)
    return edges.to(device), int(edges.diff().max())


def _activate(implementation: str | None) -> None:
    """Put one FlashAttention version behind PyTorch's operators; None is the built-in one."""
    if current_flash_attention_impl() == implementation:
        return
    if implementation is None:
        restore_flash_attention_impl()
    else:
        activate_flash_attention_impl(implementation)


def _unfit(
    dtype: torch.dtype,
    head_dim: int,
    device: torch.device,
    max_head_dim: int,
    capability: tuple[int, int],
) -> str | None:
    """Why the arguments are outside a kernel's domain."""
    if device.type != "cuda":
        return f"it runs on a GPU, not on {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it computes in bfloat16 or float16, not {dtype}"
    if head_dim % 8 or head_dim > max_head_dim:
        return f"the head size must be a multiple of 8, at most {max_head_dim}"
    found = torch.cuda.get_device_capability(device)
    if found < capability:
        return f"it needs compute capability {capability}, the device has {found}"
    return None


def _missing(implementation: str | None, package: str | None, device: torch.device) -> str | None:
    """Why a FlashAttention package cannot take over here."""
    if implementation is None or package is None:
        return None
    supported = {"FA3": (9,), "FA4": (9, 10)}[implementation]
    major, _ = torch.cuda.get_device_capability(device)
    if major not in supported:
        return f"it is for compute capability {supported}, the device has {major}"
    try:
        importlib.import_module(package)
    except Exception as error:  # a broken package raises anything when it loads its library
        return f"{package} cannot be imported ({type(error).__name__}: {error})"
    return None


FA2 = _flash("fa2", None, None)
FA3 = _flash("fa3", "FA3", "flash_attn_interface")
FA4 = _flash("fa4", "FA4", "flash_attn.cute.interface")


def _cudnn_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    if q.numel() == 0 or k.numel() == 0:
        return nothing_attended(q)
    if _falls_to_fa2(q, k, causal):
        return FA2.forward(q, k, v, causal, scale)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *heads_first(q, k, v), None, True, 0.0, causal, False, scale=scale
    )
    return sequence_first(out)[0], lse.reshape(q.shape[1], q.shape[2], q.shape[0])


def _cudnn_backward(
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
    if _falls_to_fa2(q, k, causal):
        return FA2.backward(dout, q, k, v, out, lse, causal, scale)
    dq, dk, dv = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        *heads_first(dout, q, k, v, out),
        lse.contiguous().unsqueeze(-1),
        *_no_dropout(q.device),
        None,
        None,
        None,
        len(q),
        len(k),
        0.0,
        causal,
        scale=scale,
    )
    dq, dk, dv = sequence_first(dq, dk, dv)
    return dq, dk, dv


def _falls_to_fa2(q: Tensor, k: Tensor, causal: bool) -> bool:
    """Blocks that are no work for cuDNN.

    It builds a plan for every new shape (tens of milliseconds), which documents of any length
    would make it do for ever: it gets multiples of 1,024 alone. (That also leaves out the causal
    lengths of 128 n + 64, for which its dq is NaN.)
    """
    return bool(len(q) % 1024 or len(k) % 1024)


def _cudnn_refusal(dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
    return _unfit(dtype, head_dim, device, 128, (9, 0))


CUDNN = Kernel(
    "cudnn",
    _cudnn_forward,
    _cudnn_backward,
    _cudnn_refusal,
    FA2.documents_forward,
    FA2.documents_backward,
)
