"""The kernel as plain formulas, on any device and in any dtype: the oracle of the other kernels.

It holds the [b, heads, s, t] scores, and computes in float32 at least.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_ultralong.attention.kernel import Gradients, Kernel, nothing_attended
from megatron_ultralong.attention.online_softmax import accumulation_dtype


def _scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    """Masked scores [b, heads, s, t]."""
    group = q.shape[2] // k.shape[2]
    scores = scale * torch.einsum("sbhd,tbhd->bhst", q, k.repeat_interleave(group, dim=2))
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores


def _forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    if q.numel() == 0 or k.numel() == 0:
        return nothing_attended(q)
    wide = accumulation_dtype(q.dtype)
    scores = _scores(q.to(wide), k.to(wide), causal, scale)
    v_SBHD = v.to(wide).repeat_interleave(q.shape[2] // v.shape[2], dim=2)
    out = torch.einsum("bhst,tbhd->sbhd", scores.softmax(-1), v_SBHD)
    return out.to(q.dtype), scores.logsumexp(-1)


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
    wide = accumulation_dtype(q.dtype)
    dout_, q_, k_, v_, out_ = (x.to(wide) for x in (dout, q, k, v, out))
    group = q.shape[2] // k.shape[2]
    p_BHST = torch.exp(_scores(q_, k_, causal, scale) - lse.to(wide).unsqueeze(-1))
    dp_BHST = torch.einsum("sbhd,tbhd->bhst", dout_, v_.repeat_interleave(group, dim=2))
    delta_BHS1 = torch.einsum("sbhd,sbhd->bhs", dout_, out_).unsqueeze(-1)
    ds_BHST = scale * p_BHST * (dp_BHST - delta_BHS1)
    dq = torch.einsum("bhst,tbhd->sbhd", ds_BHST, k_.repeat_interleave(group, dim=2))
    dk = torch.einsum("bhst,sbhd->tbhd", ds_BHST, q_)
    dv = torch.einsum("bhst,sbhd->tbhd", p_BHST, dout_)
    dk, dv = (x.unflatten(2, (-1, group)).sum(dim=3) for x in (dk, dv))  # heads -> kv_heads
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _refusal(dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
    return None


MATH = Kernel("math", _forward, _backward, _refusal, can_widen=True)
