"""cuDNN's kernel, dense and causal, by PyTorch's own (aten) signatures.

Short documents of one block go through ``fa2`` together, a long one is a causal block of its own.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from megatron_ultralong.attention.boundaries import Boundaries
from megatron_ultralong.attention.cuda_domain import unfit
from megatron_ultralong.attention.flash_kernels import FA2, no_dropout
from megatron_ultralong.attention.kernel import (
    Gradients,
    Kernel,
    heads_first,
    nothing_attended,
    sequence_first,
)

# Queries x keys of a block that cuDNN does so much faster than FA2 that in one step of some 32
# layers it gains what it takes to build the plan.
MIN_AREA = 2**29
MAX_SHAPES = 256
_shapes: set[tuple[torch.Size, torch.Size]] = set()

logger = logging.getLogger(__name__)


def _cudnn_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    if q.numel() == 0 or k.numel() == 0:
        return nothing_attended(q)
    if _falls_to_fa2(q, k):
        return FA2.forward(q, k, v, causal, scale)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *heads_first(q, k, v), None, True, 0.0, causal, False, scale=scale
    )
    return sequence_first(out)[0], lse.reshape(q.shape[1], q.shape[2], q.shape[0])


def _cudnn_backward(
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
    # cuDNN's sums have no fixed order, nor does PyTorch ask it for one.
    if _falls_to_fa2(q, k) or torch.are_deterministic_algorithms_enabled():
        return FA2.backward(dout, q, k, v, out, lse, causal, scale)
    dq, dk, dv = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        *heads_first(dout, q, k, v, out),
        lse.contiguous().unsqueeze(-1),
        *no_dropout(q.device),
        None,
        None,
        None,
        len(q),
        len(k),
        0.0,
        causal,
        scale=scale,
    )
    dq, dk, dv = sequence_first(dq, dk, dv)
    return dq, dk, dv


def _falls_to_fa2(q: Tensor, k: Tensor) -> bool:
    """Blocks that are no work for cuDNN.

    It builds a plan for every new shape and never forgets it (45 ms, 1.5 MiB of host memory, for
    forward and for backward). So of the shapes that documents make it gets large ones alone, the
    first :data:`MAX_SHAPES` of them; and none where a run must not depend on what ran before.
    """
    if len(q) % 1024 == 0 and len(k) % 1024 == 0:  # chunks without documents: few shapes
        return False
    if len(q) * len(k) < MIN_AREA or torch.are_deterministic_algorithms_enabled():
        return True
    shape = (q.shape, k.shape)
    if shape not in _shapes and len(_shapes) < MAX_SHAPES:
        _shapes.add(shape)
        if len(_shapes) == MAX_SHAPES:
            logger.warning(
                "cuDNN has plans for %d shapes of documents; attention over other shapes goes to "
                "fa2, about half as fast (flash-attn-4 has no such limit)",
                MAX_SHAPES,
            )
    return shape not in _shapes


def _runs(cu_seqlens: tuple[int, ...]) -> tuple[tuple[int, Boundaries], ...]:
    """Start and boundaries of long documents alone, and of the short ones between them together.

    With 10 as the length of a long document ``(0, 3, 4, 20, 22)`` is ``(0, (0, 3, 4))``,
    ``(4, (0, 16))`` and ``(20, (0, 2))``. Made once for all layers of a row.
    """
    return _runs_of(cu_seqlens, MIN_AREA)


@lru_cache(maxsize=16)
def _runs_of(cu_seqlens: tuple[int, ...], min_area: int) -> tuple[tuple[int, Boundaries], ...]:
    found: list[tuple[int, Boundaries]] = []
    first, together = 0, [0]  # the run of short documents that is open
    for start, stop in pairwise(cu_seqlens):
        if (stop - start) ** 2 < min_area:
            together.append(stop - first)
            continue
        if len(together) > 1:
            found.append((first, Boundaries(together)))
        found.append((start, Boundaries((0, stop - start))))
        first, together = stop, [0]
    if len(together) > 1:
        found.append((first, Boundaries(together)))
    return tuple(found)


def _documents_forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: tuple[int, ...], scale: float
) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty((q.shape[1], q.shape[2], q.shape[0]), dtype=torch.float32)
    together = FA2.documents_forward
    assert together is not None
    for start, edges in _runs(cu_seqlens):
        rows = slice(start, start + edges[-1])
        its = (q[rows], k[rows], v[rows])
        if len(edges) == 2:
            out[rows], lse[..., rows] = _cudnn_forward(*its, True, scale)
        else:
            out[rows], lse[..., rows] = together(*its, edges, scale)
    return out, lse


def _documents_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: tuple[int, ...],
    scale: float,
) -> Gradients:
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    together = FA2.documents_backward
    assert together is not None
    for start, edges in _runs(cu_seqlens):
        rows = slice(start, start + edges[-1])
        its = (dout[rows], q[rows], k[rows], v[rows], out[rows], lse[..., rows])
        if len(edges) == 2:
            dq[rows], dk[rows], dv[rows] = _cudnn_backward(*its, True, scale)
        else:
            dq[rows], dk[rows], dv[rows] = together(*its, edges, scale)
    return dq, dk, dv


def _cudnn_refusal(dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
    return unfit(dtype, head_dim, device, 128, (9, 0))


CUDNN = Kernel(
    "cudnn",
    _cudnn_forward,
    _cudnn_backward,
    _cudnn_refusal,
    _documents_forward,
    _documents_backward,
)
