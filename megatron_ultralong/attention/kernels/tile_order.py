"""Tiles of an accumulator put in order by a Triton kernel: one program, one tile, no copy."""

import triton
import triton.language as tl
from torch import Tensor

_WARPS = 16


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _reorder(accum, order, scale, SIZE: tl.constexpr, SPAN: tl.constexpr):  # type: ignore[no-untyped-def]
    tile = accum + tl.program_id(0).to(tl.int64) * SIZE
    place = tl.arange(0, SPAN)
    inside = place < SIZE
    source = tl.load(order + place, mask=inside, other=0)
    found = tl.load(tile + source, mask=inside, other=0.0) * scale
    tl.debug_barrier()  # all threads have read before one writes
    tl.store(tile + place, found, mask=inside)


def reorder_(accum: Tensor, order: Tensor, scale: float) -> None:
    """Put each tile in order and multiply it, in place.

    Args:
        accum: float32, contiguous, whole tiles.
        order: int32, the size of a tile: where in it the number of each place is.
        scale: the factor.
    """
    assert accum.is_contiguous(), "tiles lie one behind the other"
    size = order.numel()
    span = triton.next_power_of_2(size)
    _reorder[(accum.numel() // size,)](accum, order, scale, size, span, num_warps=_WARPS)
