"""PyTorch's memory-efficient attention in float32 on a GPU, by its own (aten) signatures.

The other kernels of a GPU compute in 16 bits. This one is for evaluations and comparisons in
float32, where plain formulas would hold matrices of scores. It knows no grouped queries: keys and
values are repeated for the heads that share them.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from megatron_ultralong.attention.kernels import base

HEAD_DIM_MULTIPLE = 4
"""Of float32: the kernel reads 16 bytes at once."""
_LSE_MULTIPLE = 32  # it keeps the log-sum-exps of so many queries together


class EfficientKernel(base.Kernel):
    """PyTorch's own."""

    name = "efficient"

    def refusal(self, dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
        """It serves float32 on a GPU."""
        if device.type != "cuda":
            return f"it runs on a GPU, not on {device.type}"
        if dtype != torch.float32:
            return f"it is for float32, not {dtype}, which others compute faster"
        if head_dim % HEAD_DIM_MULTIPLE:
            return f"the head size must be a multiple of {HEAD_DIM_MULTIPLE}"
        return None

    def forward(self, inputs: base.Inputs) -> base.Result:
        """See :class:`Kernel`."""
        q, k, v, mask, scale = inputs
        out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            *base.heads_first(q, *_for_each_head(q, k, v)),
            *(None, True, 0.0, mask is not None),
            scale=scale,
        )
        return base.sequence_first(out)[0], lse[..., : len(q)]

    def backward(self, inputs: base.Inputs, saved: base.Saved) -> base.Gradients:
        """See :class:`Kernel`."""
        q, k, v, mask, scale = inputs
        no_random = torch.zeros((), dtype=torch.int64, device=q.device)
        wanted = [True, True, True, False]  # q, k, v; there is no bias
        dq, dk, dv, _ = torch.ops.aten._scaled_dot_product_efficient_attention_backward(
            *base.heads_first(saved.dout, q, *_for_each_head(q, k, v)),
            *(None, *base.heads_first(saved.out)),
            pad(saved.lse, (0, -len(q) % _LSE_MULTIPLE)).contiguous(),
            *(no_random, no_random, 0.0, wanted, mask is not None),
            scale=scale,
        )
        dq, dk, dv = base.sequence_first(dq, dk, dv)
        group = q.shape[2] // k.shape[2]
        dk, dv = (x.unflatten(2, (-1, group)).sum(dim=3) for x in (dk, dv))  # heads -> kv_heads
        return dq, dk, dv


def _for_each_head(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with as many heads as there are queries."""
    group = q.shape[2] // k.shape[2]
    return k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)


EFFICIENT = EfficientKernel()
