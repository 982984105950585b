"""The kernel of the package flash-attn-4, on Hopper and Blackwell GPUs.

It is compiled at its first use, some seconds for each of forward, backward and their forms for
documents. Called by the package's own functions: PyTorch's activation of "FA4" fits the releases
of its own time alone (the number of results has grown since).
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from megatron_ultralong.attention.cuda_domain import batch_first, device_edges, missing, unfit
from megatron_ultralong.attention.kernel import Gradients, Kernel, nothing_attended

_PACKAGE = "flash_attn.cute.interface"


def _forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    if q.numel() == 0 or k.numel() == 0:
        return nothing_attended(q)
    out, lse = _run_forward(*batch_first(q, k, v), softmax_scale=scale, causal=causal)
    return out.transpose(0, 1), lse


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
    dq, dk, dv = _run_backward(
        *batch_first(q, k, v, out, dout), lse, softmax_scale=scale, causal=causal
    )
    return dq.transpose(0, 1), dk.transpose(0, 1), dv.transpose(0, 1)


def _documents_forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: tuple[int, ...], scale: float
) -> tuple[Tensor, Tensor]:
    out, lse = _run_forward(
        q[:, 0], k[:, 0], v[:, 0], softmax_scale=scale, causal=True, **_documents(cu_seqlens, q)
    )
    return out[:, None], lse.reshape(1, q.shape[2], len(q))


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
    dq, dk, dv = _run_backward(
        *(x[:, 0] for x in (q, k, v, out, dout)),
        lse[0],
        softmax_scale=scale,
        causal=True,
        **_documents(cu_seqlens, q),
    )
    return dq[:, None], dk[:, None], dv[:, None]


def _documents(cu_seqlens: tuple[int, ...], q: Tensor) -> dict[str, Any]:
    """Arguments that name the documents."""
    edges, longest = device_edges(cu_seqlens, q.device)
    return {
        "cu_seqlens_q": edges,
        "cu_seqlens_k": edges,
        "max_seqlen_q": longest,
        "max_seqlen_k": longest,
    }


def _run_forward(*tensors: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    package = importlib.import_module(_PACKAGE)
    out, lse = package._flash_attn_fwd(*tensors, return_lse=True, **options)[:2]
    return out, lse


def _run_backward(*tensors: Tensor, **options: Any) -> Gradients:
    """Gradients from q, k, v, out, dout, lse."""
    package = importlib.import_module(_PACKAGE)
    *others, lse = tensors
    deterministic = torch.are_deterministic_algorithms_enabled()
    dq, dk, dv = package._flash_attn_bwd(
        *others, lse.contiguous(), deterministic=deterministic, **options
    )[:3]
    return dq, dk, dv


def _refusal(dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
    return unfit(dtype, head_dim, device, 128, (9, 0)) or missing(_PACKAGE, (9, 10), device)


FA4 = Kernel("fa4", _forward, _backward, _refusal, _documents_forward, _documents_backward)
