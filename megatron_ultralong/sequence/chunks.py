"""Which chunks of a row a rank holds. Numbers alone: whoever plans a run asks without torch."""

import heapq
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from megatron_ultralong.sequence.documents import chunk_areas
from megatron_ultralong.sequence.ring_time import Chunks, hop_areas, ring_time


def zigzag_chunks(cp_size: int) -> Chunks:
    """One early and one late chunk for each rank: ``2 -> ((0, 3), (1, 2))``, ``1 -> ((0,),)``."""
    if cp_size == 1:  # one chunk, so that any length will do
        return ((0,),)
    return tuple((rank, 2 * cp_size - 1 - rank) for rank in range(cp_size))


def balanced_chunks(
    cu_seqlens: Sequence[int],
    cp_size: int,
    *,
    tolerance: float = 1.05,
    max_chunks_per_rank: int = 64,
) -> Chunks:
    """Chunks whose ring is fast enough, as few as will do, or the fastest that were found.

    Each chunk more is more and smaller kernel calls. Few chunks can give all ranks equal work and
    still have them wait at single hops; many cannot: every rank then has a part of each document.
    A function of its arguments alone: all ranks compute the same.

    Args:
        cu_seqlens: boundaries of the row's documents.
        cp_size: number of ranks.
        tolerance: :func:`~megatron_ultralong.sequence.ring_time.ring_time` that is fast enough.
        max_chunks_per_rank: at most as many are tried, by doubling, if the row divides into them.
    """
    seq_length = int(cu_seqlens[-1])
    best = zigzag_chunks(cp_size)
    if cp_size == 1:
        return best
    best_time = ring_time(hop_areas(best, cu_seqlens))
    chunks_per_rank = 2
    while (
        best_time > tolerance
        and chunks_per_rank <= max_chunks_per_rank
        and seq_length % (chunks_per_rank * cp_size) == 0
    ):
        candidate = _largest_first(chunk_areas(cu_seqlens, chunks_per_rank * cp_size), cp_size)
        time = ring_time(hop_areas(candidate, cu_seqlens))
        if time < best_time:
            best, best_time = candidate, time
        chunks_per_rank *= 2
    return best


def _largest_first(areas: npt.NDArray[np.float64], cp_size: int) -> Chunks:
    """Chunks from the largest down, each to the least busy rank that has room (Graham's LPT).

    Of equally busy ranks the first.
    """
    room = len(areas) // cp_size
    held: list[list[int]] = [[] for _ in range(cp_size)]
    ranks = [(0.0, rank) for rank in range(cp_size)]  # a heap of (load, rank), those with room
    for chunk in np.argsort(-areas, kind="stable").tolist():
        load, rank = ranks[0]
        held[rank].append(chunk)
        if len(held[rank]) < room:
            heapq.heapreplace(ranks, (load + float(areas[chunk]), rank))
        else:
            heapq.heappop(ranks)
    return tuple(tuple(sorted(rank)) for rank in held)
