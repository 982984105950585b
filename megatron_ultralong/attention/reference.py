"""Dense attention over the whole sequence: the oracle of everything else in this package.

It holds the [s, s] scores, so it is for short sequences. Differentiable by autograd alone.
"""

import torch
from torch import Tensor

from megatron_ultralong.sequence.documents import document_numbers


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    softmax_scale: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Causal attention, ``softmax(scale * q k^T + mask) v``, computed and returned in ``dtype``.

    Args:
        q: queries, [s, b, heads, d].
        k: keys, [s, b, kv_heads, d]; head ``h`` reads key head ``h // (heads // kv_heads)``.
        v: values, [s, b, kv_heads, d].
        cu_seqlens: document boundaries, [num_documents + 1]; None: one document.
        softmax_scale: ``1 / sqrt(d)`` if None.
        dtype: of the computation and of the result.

    Returns:
        [s, b, heads, d].
    """
    group = q.shape[2] // k.shape[2]
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    k_SBHD = k.to(dtype).repeat_interleave(group, dim=2)
    v_SBHD = v.to(dtype).repeat_interleave(group, dim=2)
    scores_BHST = scale * torch.einsum("sbhd,tbhd->bhst", q.to(dtype), k_SBHD)
    scores_BHST = scores_BHST.masked_fill(~mask(q.shape[0], cu_seqlens, q.device), -torch.inf)
    return torch.einsum("bhst,tbhd->sbhd", scores_BHST.softmax(dim=-1), v_SBHD)


def mask(seq_length: int, cu_seqlens: Tensor | None, device: torch.device | str = "cpu") -> Tensor:
    """Whether query (row) may see key (column), bool [s, s], causal and inside documents.

    ``3, [0, 2, 3]`` -> ``[[1, 0, 0], [1, 1, 0], [0, 0, 1]]``.
    """
    allowed = torch.ones(seq_length, seq_length, dtype=torch.bool, device=device).tril()
    if cu_seqlens is None:
        return allowed
    numbers = torch.from_numpy(document_numbers(cu_seqlens.cpu().numpy())).to(device)
    return allowed & (numbers[:, None] == numbers[None, :])
