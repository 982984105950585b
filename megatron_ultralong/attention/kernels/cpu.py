"""The kernel on CPU: PyTorch's flash attention, in float64, float32, bfloat16 and float16.

Documents of one length are one call, side by side in its batch: a call for each would cost more
than its work where they are short.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from megatron_ultralong.attention.kernels.kernel import (
    Gradients,
    Kernel,
    Mask,
    heads_first,
    room_for,
    room_for_gradients,
    sequence_first,
)


class CpuKernel(Kernel):
    """PyTorch's own."""

    name = "cpu"
    serves_documents = True
    can_widen = True

    def refusal(self, dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
        """It serves every dtype and head size on a CPU."""
        return None if device.type == "cpu" else f"it runs on the CPU, not on {device.type}"

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Kernel`."""
        if mask is None or len(mask) == 2:
            return _forward(q, k, v, causal=mask is not None, scale=scale)
        out, lse = room_for(q)
        for places in _groups(mask):
            taken = [_taken(x, places) for x in (q, k, v)]
            part, lse_NHS = _forward(*taken, causal=True, scale=scale)
            _put_back(out, places, part)
            lse[0][:, places] = lse_NHS.transpose(0, 1)
        return out, lse

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
            return _backward(dout, q, k, v, out, lse, causal=mask is not None, scale=scale)
        dq, dk, dv = room_for_gradients(q, k, v)
        for places in _groups(mask):
            lse_NHS = lse[0][:, places].transpose(0, 1).contiguous()
            its = (_taken(x, places) for x in (dout, q, k, v, out))
            parts = _backward(*its, lse_NHS, causal=True, scale=scale)
            for x, part in zip((dq, dk, dv), parts, strict=True):
                _put_back(x, places, part)
        return dq, dk, dv


def _forward(*q_k_v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *heads_first(*q_k_v), 0.0, causal, scale=scale
    )
    return sequence_first(out)[0], lse


def _backward(*tensors: Tensor, causal: bool, scale: float) -> Gradients:
    """Gradients from dout, q, k, v, out, lse."""
    *others, lse = tensors
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *heads_first(*others), lse, 0.0, causal, scale=scale
    )
    dq, dk, dv = sequence_first(dq, dk, dv)
    return dq, dk, dv


@lru_cache(maxsize=16)
def _groups(edges: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Places of the tokens of all documents of one length, each int64 [number, length]."""
    boundaries = np.asarray(edges, dtype=np.int64)
    lengths, starts = np.diff(boundaries), boundaries[:-1]
    order = np.argsort(lengths, kind="stable")
    sizes, first = np.unique(lengths[order], return_index=True)
    groups = zip(sizes.tolist(), np.split(starts[order], first[1:]), strict=True)
    return tuple(torch.from_numpy(its[:, None] + np.arange(size)) for size, its in groups)


def _taken(x: Tensor, places: Tensor) -> Tensor:
    """Documents side by side: [s, 1, heads, d] -> [length, number, heads, d]."""
    rows = x[:, 0].index_select(0, places.flatten())
    return rows.view(*places.shape, *rows.shape[1:]).transpose(0, 1)


def _put_back(x: Tensor, places: Tensor, part: Tensor) -> None:
    """What :func:`_taken` took, or what was made of it."""
    x[:, 0].index_copy_(0, places.flatten(), part.transpose(0, 1).flatten(0, 1))


CPU = CpuKernel()
