"""Online softmax: add the attention over more keys to a running sum.

``out = sum_j exp(s_j - lse) v_j`` over keys ``j``, with ``lse = log sum_j exp(s_j)``. Two results
over disjoint keys join as

    lse_new = log(exp(lse_a) + exp(lse_b))
    out_new = exp(lse_a - lse_new) out_a + exp(lse_b - lse_new) out_b

which is a step from ``out_a`` towards ``out_b`` of size ``sigmoid(lse_b - lse_a)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 16_384  # merged at a time: the float32 copy of a part is of these alone


def merge_(out_SBHD: Tensor, lse_BHS: Tensor, part_SBHD: Tensor, part_lse_BHS: Tensor) -> None:
    """Add a partial result to the running one, in place.

    Args:
        out_SBHD: running output, float32 or float64.
        lse_BHS: running log-sum-exp of the scores, of the same dtype; -inf: no key yet.
        part_SBHD: output over other keys, of any dtype.
        part_lse_BHS: its log-sum-exp; -inf: no key.
    """
    part_lse_BHS = part_lse_BHS.to(lse_BHS.dtype)
    # nan: -inf - (-inf), neither side has a key; the output stays.
    share_BHS = torch.sigmoid(part_lse_BHS - lse_BHS).nan_to_num_(nan=0.0)
    share_SBH1 = share_BHS.permute(2, 0, 1).unsqueeze(-1)
    for start in range(0, len(out_SBHD), _ROWS):
        rows = slice(start, start + _ROWS)
        out_SBHD[rows].lerp_(part_SBHD[rows].to(out_SBHD.dtype), share_SBH1[rows])
    torch.logaddexp(lse_BHS, part_lse_BHS, out=lse_BHS)


def merge_all(outs_RSBHD: Tensor, lses_RBHS: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of R partial results over disjoint keys, float32 or float64.

    A part without a key has lse -inf; where no part has one, the output is 0 and lse is -inf.
    """
    lse_BHS = lses_RBHS.logsumexp(dim=0)
    shares_RBHS = torch.exp(lses_RBHS - lse_BHS).nan_to_num_(nan=0.0)
    return (shares_RBHS.permute(0, 3, 1, 2).unsqueeze(-1) * outs_RSBHD).sum(dim=0), lse_BHS


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of sums: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32
