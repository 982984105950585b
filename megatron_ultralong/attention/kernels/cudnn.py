"""cuDNN's kernel, dense and causal, by PyTorch's own (aten) signatures.

Short documents of one block go through ``fa2`` together, a long one is a causal block of its own.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from megatron_ultralong.attention.kernels.flash import FA2, no_dropout
from megatron_ultralong.attention.kernels.kernel import (
    Gradients,
    Kernel,
    Mask,
    heads_first,
    room_for,
    room_for_gradients,
    sequence_first,
    unfit,
)
from megatron_ultralong.sequence.documents import Boundaries

# Queries x keys of a block that cuDNN does so much faster than FA2 that in one step of some 32
# layers it gains what it takes to build the plan.
MIN_AREA = 2**29
MAX_SHAPES = 256
_shapes: set[tuple[torch.Size, torch.Size]] = set()

logger = logging.getLogger(__name__)


class CudnnKernel(Kernel):
    """cuDNN's, and FlashAttention 2 where it has no plan."""

    name = "cudnn"
    serves_documents = True

    def refusal(self, dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
        """It serves 16-bit floats and head sizes up to 128."""
        return unfit(dtype, head_dim, device, 128, (9, 0))

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Kernel`."""
        if mask is None or len(mask) == 2:
            return _forward(q, k, v, mask, scale)
        out, lse = room_for(q)
        for start, edges in _runs(mask):
            rows = slice(start, start + edges[-1])
            run = _forward if len(edges) == 2 else FA2.forward
            out[rows], lse[..., rows] = run(q[rows], k[rows], v[rows], edges, scale)
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
            return _backward(dout, q, k, v, out, lse, mask, scale)
        dq, dk, dv = room_for_gradients(q, k, v)
        for start, edges in _runs(mask):
            rows = slice(start, start + edges[-1])
            run = _backward if len(edges) == 2 else FA2.backward
            its = (dout[rows], q[rows], k[rows], v[rows], out[rows], lse[..., rows])
            dq[rows], dk[rows], dv[rows] = run(*its, edges, scale)
        return dq, dk, dv


def _forward(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float) -> tuple[Tensor, Tensor]:
    """Of a block without documents."""
    if _falls_to_fa2(q, k):
        return FA2.forward(q, k, v, mask, scale)
    causal = mask is not None
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *heads_first(q, k, v), None, True, 0.0, causal, False, scale=scale
    )
    return sequence_first(out)[0], lse.reshape(q.shape[1], q.shape[2], q.shape[0])


def _backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Mask,
    scale: float,
) -> Gradients:
    # cuDNN's sums have no fixed order, nor does PyTorch ask it for one.
    if _falls_to_fa2(q, k) or torch.are_deterministic_algorithms_enabled():
        return FA2.backward(dout, q, k, v, out, lse, mask, scale)
    dq, dk, dv = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        *heads_first(dout, q, k, v, out),
        lse.contiguous().unsqueeze(-1),
        *(*no_dropout(q.device), None, None, None, len(q), len(k), 0.0, mask is not None),
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


CUDNN = CudnnKernel()
