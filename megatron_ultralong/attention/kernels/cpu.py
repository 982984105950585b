"""The kernel on CPU: PyTorch's flash attention, in float64, float32, bfloat16 and float16.

Documents of one length are one call, side by side in its batch: a call for each would cost more
than its work where they are short.
"""

from functools import lru_cache

import numpy as np
import torch

from megatron_ultralong.attention.kernels import base
from megatron_ultralong.attention.kernels.base import room_for, room_for_gradients


class CpuKernel(base.Kernel):
    """PyTorch's own."""

    name = "cpu"
    serves_documents = True
    can_widen = True

    def refusal(self, dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
        """It serves every dtype and head size on a CPU."""
        return None if device.type == "cpu" else f"it runs on the CPU, not on {device.type}"

    def forward(self, inputs: base.Inputs) -> base.Result:
        """See :class:`Kernel`."""
        if inputs.documents is None:
            return _forward(inputs)
        out, lse = room_for(inputs.q)
        for places in _groups(inputs.documents):
            part, lse_NHS = _forward(_side_by_side(inputs, places))
            _put_back(out, places, part)
            lse[0][:, places] = lse_NHS.transpose(0, 1)
        return out, lse

    def backward(self, inputs: base.Inputs, saved: base.Saved) -> base.Gradients:
        """See :class:`Kernel`."""
        if inputs.documents is None:
            return _backward(inputs, saved)
        dq, dk, dv = room_for_gradients(*inputs[:3])
        for places in _groups(inputs.documents):
            dout, out = (_taken(x, places) for x in (saved.dout, saved.out))
            lse_NHS = saved.lse[0][:, places].transpose(0, 1).contiguous()
            parts = _backward(_side_by_side(inputs, places), base.Saved(dout, out, lse_NHS))
            for x, part in zip((dq, dk, dv), parts, strict=True):
                _put_back(x, places, part)
        return dq, dk, dv


def _forward(inputs: base.Inputs) -> base.Result:
    """Of a block without documents."""
    q, k, v, mask, scale = inputs
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *base.heads_first(q, k, v), 0.0, mask is not None, scale=scale
    )
    return base.sequence_first(out)[0], lse


def _backward(inputs: base.Inputs, saved: base.Saved) -> base.Gradients:
    q, k, v, mask, scale = inputs
    gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *(*base.heads_first(saved.dout, q, k, v, saved.out), saved.lse, 0.0, mask is not None),
        scale=scale,
    )
    dq, dk, dv = base.sequence_first(*gradients)
    return dq, dk, dv


@lru_cache(maxsize=16)
def _groups(edges: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """Places of the tokens of all documents of one length, each int64 [number, length]."""
    boundaries = np.asarray(edges, dtype=np.int64)
    lengths, starts = np.diff(boundaries), boundaries[:-1]
    order = np.argsort(lengths, kind="stable")
    sizes, first = np.unique(lengths[order], return_index=True)
    groups = zip(sizes.tolist(), np.split(starts[order], first[1:]), strict=True)
    return tuple(torch.from_numpy(its[:, None] + np.arange(size)) for size, its in groups)


def _side_by_side(inputs: base.Inputs, places: torch.Tensor) -> base.Inputs:
    """Documents of one length as a batch."""
    q, k, v = (_taken(x, places) for x in inputs[:3])
    return base.Inputs(q, k, v, (0, places.shape[1]), inputs.scale)


def _taken(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Documents side by side: [s, 1, heads, d] -> [length, number, heads, d]."""
    rows = x[:, 0].index_select(0, places.flatten())
    return rows.view(*places.shape, *rows.shape[1:]).transpose(0, 1)


def _put_back(x: torch.Tensor, places: torch.Tensor, part: torch.Tensor) -> None:
    """What :func:`_taken` took, or what was made of it."""
    x[:, 0].index_copy_(0, places.flatten(), part.transpose(0, 1).flatten(0, 1))


CPU = CpuKernel()
