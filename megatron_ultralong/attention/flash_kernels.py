"""FlashAttention 2 and 3 by PyTorch's own (aten) signatures.

``fa2`` is in every CUDA build of PyTorch. ``fa3`` is a package that takes the place of ``fa2``
behind the same operators once activated.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import attention as implementations

from megatron_ultralong.attention.cuda_domain import batch_first, device_edges, missing, unfit
from megatron_ultralong.attention.kernel import Gradients, Kernel, nothing_attended


def _flash(name: str, implementation: str | None, package: str | None) -> Kernel:
    """One of the FlashAttention versions, [b, s, heads, d] inside, [s, heads, d] for documents."""

    def forward(
        q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        if q.numel() == 0 or k.numel() == 0:
            return nothing_attended(q)
        _activate(implementation)
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            *batch_first(q, k, v), None, None, len(q), len(k), 0.0, causal, False, scale=scale
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
            *batch_first(dout, q, k, v, out),
            lse.contiguous(),
            None,
            None,
            len(q),
            len(k),
            0.0,
            causal,
            *no_dropout(q.device),
            scale=scale,
        )
        return dq.transpose(0, 1), dk.transpose(0, 1), dv.transpose(0, 1)

    def documents_forward(
        q: Tensor, k: Tensor, v: Tensor, cu_seqlens: tuple[int, ...], scale: float
    ) -> tuple[Tensor, Tensor]:
        _activate(implementation)
        edges, longest = device_edges(cu_seqlens, q.device)
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
        edges, longest = device_edges(cu_seqlens, q.device)
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
            *no_dropout(q.device),
            scale=scale,
        )
        return dq[:, None], dk[:, None], dv[:, None]

    def refusal(dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
        why = unfit(dtype, head_dim, device, 256, (8, 0))
        if why or package is None:
            return why
        if not _has_registry():
            return f"PyTorch {torch.__version__} has no registry of FlashAttention versions"
        return missing(package, (9,), device)

    return Kernel(name, forward, backward, refusal, documents_forward, documents_backward)


@lru_cache(maxsize=8)
def no_dropout(device: torch.device) -> tuple[Tensor, Tensor]:
    """Random state of a dropout of zero: never read."""
    nothing = torch.zeros(2, dtype=torch.int64, device=device)
    return nothing, nothing


def _activate(implementation: str | None) -> None:
    """Put one FlashAttention version behind PyTorch's operators; None is the built-in one."""
    if not _has_registry() or implementations.current_flash_attention_impl() == implementation:
        return
    if implementation is None:
        implementations.restore_flash_attention_impl()
    else:
        implementations.activate_flash_attention_impl(implementation)


def _has_registry() -> bool:
    """Whether this PyTorch can replace its built-in version, and put it back."""
    return hasattr(implementations, "restore_flash_attention_impl")


FA2 = _flash("fa2", None, None)
FA3 = _flash("fa3", "FA3", "flash_attn_interface")
