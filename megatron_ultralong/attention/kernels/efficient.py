"""PyTorch's memory-efficient attention in float32 on a GPU, by its own (aten) signatures.

The other kernels of a GPU compute in 16 bits. This one is for evaluations and comparisons in
float32, where plain formulas would hold matrices of scores. It knows no grouped queries: of the
heads that share keys, the first of every group are one call, the second another, and so on, so that
no key is repeated.
"""

import torch
from torch.nn.functional import pad

from megatron_ultralong.attention.kernels import base
from megatron_ultralong.plan.layer_memory import FP32_HEAD_DIM_MULTIPLE

aten = torch.ops.aten
_LSE_MULTIPLE = 32  # it keeps the log-sum-exps of so many queries together


class EfficientKernel(base.Kernel):
    """The kernel in PyTorch."""

    name = "efficient"

    def refusal(self, dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
        """It serves float32 on a GPU."""
        if device.type != "cuda":
            return f"it runs on a GPU, not on {device.type}"
        if dtype != torch.float32:
            return f"it is for float32, not {dtype}, which others compute faster"
        if head_dim % FP32_HEAD_DIM_MULTIPLE:
            return f"the head size must be a multiple of {FP32_HEAD_DIM_MULTIPLE}"
        return None

    def forward(self, inputs: base.Inputs) -> base.Result:
        """See :class:`Kernel`."""
        q, k, v, mask, scale = inputs
        out, lse = base.room_for(q)
        for heads in _each_of_a_group(inputs):
            part, lse_BHS, *_ = aten._scaled_dot_product_efficient_attention(
                *base.heads_first(q[:, :, heads], k, v),
                *(None, True, 0.0, mask is not None),
                scale=scale,
            )
            out[:, :, heads] = base.sequence_first(part)[0]
            lse[:, heads] = lse_BHS[..., : len(q)]
        return out, lse

    def backward(self, inputs: base.Inputs, saved: base.Saved) -> base.Gradients:
        """See :class:`Kernel`."""
        q, k, v, mask, scale = inputs
        no_random = torch.zeros((), dtype=torch.int64, device=q.device)
        wanted = [True, True, True, False]  # q, k, v; there is no bias
        dq, dk, dv = base.room_for_gradients(q, k, v)
        for number, heads in enumerate(_each_of_a_group(inputs)):
            dout, out, lse = saved.dout[:, :, heads], saved.out[:, :, heads], saved.lse[:, heads]
            parts = aten._scaled_dot_product_efficient_attention_backward(
                *base.heads_first(dout, q[:, :, heads], k, v),
                *(None, *base.heads_first(out)),
                pad(lse, (0, -len(q) % _LSE_MULTIPLE)).contiguous(),
                *(no_random, no_random, 0.0, wanted, mask is not None),
                scale=scale,
            )
            dq[:, :, heads], dk_part, dv_part = base.sequence_first(*parts[:3])
            dk = dk_part if number == 0 else dk + dk_part
            dv = dv_part if number == 0 else dv + dv_part
        return dq, dk, dv


def _each_of_a_group(inputs: base.Inputs) -> list[slice]:
    """The first query head of every key head, the second, ...: 4 over 2 are ``[0::2, 1::2]``."""
    group = inputs.q.shape[2] // inputs.k.shape[2]
    return [slice(first, None, group) for first in range(group)]


EFFICIENT = EfficientKernel()
