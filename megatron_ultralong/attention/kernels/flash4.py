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

from megatron_ultralong.attention.kernels.kernel import (
    Gradients,
    Kernel,
    Mask,
    batch_first,
    device_edges,
    missing,
    unfit,
)

_PACKAGE = "flash_attn.cute.interface"


class Flash4Kernel(Kernel):
    """The package's functions."""

    name = "fa4"
    serves_documents = True

    def refusal(self, dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
        """It serves 16-bit floats and head sizes up to 128."""
        return unfit(dtype, head_dim, device, 128, (9, 0)) or missing(_PACKAGE, (9, 10), device)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Kernel`."""
        if mask is None or len(mask) == 2:
            causal = mask is not None
            out, lse = _run_forward(*batch_first(q, k, v), softmax_scale=scale, causal=causal)
            return out.transpose(0, 1), lse
        out, lse = _run_forward(
            *(x[:, 0] for x in (q, k, v)),
            softmax_scale=scale,
            causal=True,
            **_documents(mask, q.device),
        )
        return out[:, None], lse.reshape(1, q.shape[2], len(q))

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
        """See :class:`Kernel`."""
        if mask is None or len(mask) == 2:
            dq, dk, dv = _run_backward(
                *batch_first(q, k, v, out, dout),
                lse,
                softmax_scale=scale,
                causal=mask is not None,
            )
            return dq.transpose(0, 1), dk.transpose(0, 1), dv.transpose(0, 1)
        dq, dk, dv = _run_backward(
            *(x[:, 0] for x in (q, k, v, out, dout)),
            lse[0],
            softmax_scale=scale,
            causal=True,
            **_documents(mask, q.device),
        )
        return dq[:, None], dk[:, None], dv[:, None]


def _documents(edges: tuple[int, ...], device: torch.device) -> dict[str, Any]:
    """Arguments that name the documents."""
    on_device, longest = device_edges(edges, device)
    return {
        "cu_seqlens_q": on_device,
        "cu_seqlens_k": on_device,
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


FA4 = Flash4Kernel()
