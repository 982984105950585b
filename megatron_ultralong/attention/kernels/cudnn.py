"""cuDNN's kernel, dense and causal, by PyTorch's own (aten) signatures.

Short documents of one block go through ``fa2`` together, a long one is a causal block of its own.
"""

import logging
from functools import lru_cache
from itertools import pairwise

import torch

from megatron_ultralong.attention.kernels import base, flash
from megatron_ultralong.sequence.documents import Boundaries

# Queries x keys of a block that cuDNN does so much faster than FA2 that in one step of about 32
# layers it gains what it takes to build the plan.
MIN_AREA = 2**29
MAX_SHAPES = 256
_shapes: set[tuple[torch.Size, torch.Size]] = set()

logger = logging.getLogger(__name__)


class CudnnKernel(base.Kernel):
    """cuDNN's, and FlashAttention 2 where it has no plan."""

    name = "cudnn"

    def refusal(self, dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
        """It serves 16-bit floats and head sizes up to 128."""
        return base.unfit(dtype, head_dim, device, 128, (9, 0))

    def runs(self, cu_seqlens: tuple[int, ...]) -> base.Runs:
        """Long documents alone, and the short ones between them together."""
        return _runs(cu_seqlens, MIN_AREA)

    def forward(self, inputs: base.Inputs) -> base.Result:
        """See :class:`Kernel`."""
        q, k, v, mask, scale = inputs
        if inputs.documents or _falls_to_fa2(q, k):
            return flash.FA2.forward(inputs)
        out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            *(*base.heads_first(q, k, v), None, True, 0.0, mask is not None, False), scale=scale
        )
        return base.sequence_first(out)[0], lse.reshape(q.shape[1], q.shape[2], q.shape[0])

    def backward(self, inputs: base.Inputs, saved: base.Saved) -> base.Gradients:
        """See :class:`Kernel`."""
        q, k, v, mask, scale = inputs
        # cuDNN's sums have no fixed order, and PyTorch does not ask for one.
        is_ordered = torch.are_deterministic_algorithms_enabled()
        if inputs.documents or _falls_to_fa2(q, k) or is_ordered:
            return flash.FA2.backward(inputs, saved)
        gradients = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            *base.heads_first(saved.dout, q, k, v, saved.out),
            saved.lse.contiguous().unsqueeze(-1),
            *(*flash.no_dropout(q.device), None, None, None, len(q), len(k), 0.0, mask is not None),
            scale=scale,
        )
        dq, dk, dv = base.sequence_first(*gradients)
        return dq, dk, dv


def _falls_to_fa2(q: torch.Tensor, k: torch.Tensor) -> bool:
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


@lru_cache(maxsize=16)
def _runs(cu_seqlens: tuple[int, ...], min_area: int) -> base.Runs:
    """Start and boundaries of long documents alone, and of the short ones between them together.

    With 10 as the length of a long document ``(0, 3, 4, 20, 22)`` is ``(0, (0, 3, 4))``,
    ``(4, (0, 16))`` and ``(20, (0, 2))``. Made once for all layers of a row.
    """
    found: list[tuple[int, tuple[int, ...]]] = []
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
