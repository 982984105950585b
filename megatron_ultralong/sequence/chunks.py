"""Which chunks of a row a rank holds, and how long a ring takes over them. Numbers alone, no torch.

A rank computes hop after hop, and while it computes one, the next keys arrive (:mod:`the ring
<megatron_ultralong.attention.ring.ring>`). The exchange of a hop is one group of transfers between
neighbours: it is over when a rank and both its neighbours have come to that hop, and the next
computation waits for it. So a rank with little work at a hop does not wait for the busiest one,
as it would at a barrier; it is at most one hop ahead of its neighbours::

    start(rank, hop + 1) = max(start(rank, hop) + work(rank, hop),
                               start(rank - 1, hop), start(rank + 1, hop))

The time of the wires is left out.
"""

import heapq
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from megatron_ultralong.sequence.documents import IntArray, chunk_areas

Areas = npt.NDArray[np.float64]
Chunks = tuple[tuple[int, ...], ...]
"""Numbers of the chunks of every rank, ascending."""
BACKWARD = 2.5
"""Work of backward over that of forward: five matrix products, where forward has two."""


def hop_areas(chunks: Chunks, cu_seqlens: IntArray | Sequence[int]) -> Areas:
    """Pairs (query, key) inside documents, by rank and hop, [cp_size, cp_size].

    At hop ``h`` the keys are those of rank ``r - h``; at hop 0 its own. Zigzag, 2 ranks,
    ``[0, 8] -> [[10, 8], [10, 8]]``.
    """
    size, num_chunks = len(chunks), sum(map(len, chunks))
    edges = np.asarray(cu_seqlens, dtype=np.float64)
    cuts = np.linspace(0.0, edges[-1], num_chunks + 1)
    first = np.searchsorted(edges, cuts[:-1], side="right") - 1  # document of a chunk's first token
    last = np.searchsorted(edges, cuts[1:], side="left") - 1
    head = np.minimum(edges[first + 1], cuts[1:]) - cuts[:-1]  # its tokens in the chunk
    tail = cuts[1:] - np.maximum(edges[last], cuts[:-1])
    goes_on = edges[first] < cuts[:-1]
    owner = np.empty(num_chunks, np.int64)
    for rank, held in enumerate(chunks):
        owner[list(held)] = rank
    areas = np.zeros((size, size))  # rank of the queries, rank of the keys
    seen = np.zeros(size)  # tokens so far of the document that a chunk begins with, by rank
    for chunk, rank in enumerate(owner.tolist()):
        if goes_on[chunk]:
            areas[rank] += head[chunk] * seen
        if not goes_on[chunk] or first[chunk] != last[chunk]:
            seen[:] = 0.0
        seen[rank] += tail[chunk]
    whole = np.bincount(owner, weights=chunk_areas(cu_seqlens, num_chunks), minlength=size)
    ranks = np.arange(size)
    areas[ranks, ranks] += whole - areas.sum(axis=1)
    by_hop: Areas = areas[ranks[:, None], (ranks[:, None] - ranks) % size]
    return by_hop


def ring_time(areas_RH: Areas) -> float:
    """Time of forward and backward over that of ranks that never wait and share all work evenly.

    Args:
        areas_RH: work of every rank at every hop, as :func:`hop_areas` counts it.
    """
    # Backward computes a rank's own keys last.
    forward, backward = phases_end(areas_RH), phases_end(np.roll(areas_RH, -1, axis=1))
    return (forward + BACKWARD * backward) / (1 + BACKWARD) / float(areas_RH.sum(axis=1).mean())


def phases_end(work_RP: Areas) -> float:
    """When the last rank is done, whose work in each phase is a column of [cp_size, phases]."""
    start = np.zeros(len(work_RP))
    end = start
    for work in work_RP.T:
        start = np.maximum.reduce([end, np.roll(start, 1), np.roll(start, -1)])
        end = start + work
    return float(end.max())


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
        tolerance: :func:`~megatron_ultralong.sequence.chunks.ring_time` that is fast enough.
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
