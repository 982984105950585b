"""The kernel on CPU: PyTorch's flash attention, in float64, float32, bfloat16 and float16."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_ultralong.attention.kernel import (
    Gradients,
    Kernel,
    heads_first,
    nothing_attended,
    sequence_first,
)


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


def _refusal(dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
    return None if device.type == "cpu" else f"it runs on the CPU, not on {device.type}"


CPU = Kernel("cpu", _forward, _backward, _refusal, can_widen=True)
