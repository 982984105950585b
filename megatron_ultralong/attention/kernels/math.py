"""The kernel as plain formulas, on any device and in any dtype: the oracle of the other kernels.

It holds the [b, heads, s, t] scores, and computes in float32 at least.
"""

import torch
from torch import Tensor

from megatron_ultralong.attention.kernels import base


class MathKernel(base.RowsKernel):
    """Plain formulas."""

    name = "math"
    can_widen = True

    def refusal(self, dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
        """It serves everything."""
        return None

    def forward(self, inputs: base.Inputs) -> base.Result:
        """See :class:`Kernel`."""
        q, k, v, mask, scale = inputs
        wide = base.accumulation_dtype(q.dtype)
        scores = _scores(q.to(wide), k.to(wide), mask, scale)
        v_SBHD = v.to(wide).repeat_interleave(q.shape[2] // v.shape[2], dim=2)
        out = torch.einsum("bhst,tbhd->sbhd", scores.softmax(-1), v_SBHD)
        return out.to(q.dtype), scores.logsumexp(-1)

    def backward(self, inputs: base.Inputs, saved: base.Saved) -> base.Gradients:
        """See :class:`Kernel`."""
        q, k, v, mask, scale = inputs
        wide = base.accumulation_dtype(q.dtype)
        dout_, q_, k_, v_, out_ = (x.to(wide) for x in (saved.dout, q, k, v, saved.out))
        group = q.shape[2] // k.shape[2]
        p_BHST = torch.exp(_scores(q_, k_, mask, scale) - saved.lse.to(wide).unsqueeze(-1))
        dp_BHST = torch.einsum("sbhd,tbhd->bhst", dout_, v_.repeat_interleave(group, dim=2))
        delta_BHS1 = torch.einsum("sbhd,sbhd->bhs", dout_, out_).unsqueeze(-1)
        ds_BHST = scale * p_BHST * (dp_BHST - delta_BHS1)
        dq = torch.einsum("bhst,tbhd->sbhd", ds_BHST, k_.repeat_interleave(group, dim=2))
        dk = torch.einsum("bhst,sbhd->tbhd", ds_BHST, q_)
        dv = torch.einsum("bhst,sbhd->tbhd", p_BHST, dout_)
        dk, dv = (x.unflatten(2, (-1, group)).sum(dim=3) for x in (dk, dv))  # heads -> kv_heads
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)

    def forward_rows(
        self, q: Tensor, keys: Tensor, values: Tensor, rows: base.RowLengths, scale: float
    ) -> base.Result:
        """See :class:`RowsKernel`."""
        wide = base.accumulation_dtype(q.dtype)
        k, v = (x.to(wide).transpose(0, 1) for x in (keys, values))
        left_out = torch.arange(len(k), device=q.device) >= rows.lengths[:, None]
        # What lies in slots that do not count may be no number.
        v = v.masked_fill(left_out.t()[..., None, None], 0.0)
        scores = _scores(q.to(wide), k, None, scale)
        scores = scores.masked_fill(left_out[:, None, None], -torch.inf)
        lse = scores.logsumexp(-1)
        p_BHST = torch.exp(scores - lse[..., None]).nan_to_num(nan=0.0)
        v_SBHD = v.repeat_interleave(q.shape[2] // v.shape[2], dim=2)
        return torch.einsum("bhst,tbhd->sbhd", p_BHST, v_SBHD).to(q.dtype), lse


def _scores(q: Tensor, k: Tensor, mask: base.Mask, scale: float) -> Tensor:
    """Masked scores [b, heads, s, t]."""
    group = q.shape[2] // k.shape[2]
    scores = scale * torch.einsum("sbhd,tbhd->bhst", q, k.repeat_interleave(group, dim=2))
    if mask is not None:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores


MATH = MathKernel()
