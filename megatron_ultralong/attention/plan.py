"""Plan of a ring: what one rank computes and what it sends, known before anything is computed.

At hop ``h`` a rank holds the keys and values that started ``h`` ranks before it. Everything here
follows from the assignment and the document boundaries, so all ranks know all plans.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from megatron_ultralong.attention.rectangle import (
    Rectangle,
    causal_area,
    local_cu_seqlens,
    rectangles,
)
from megatron_ultralong.context_parallel import Assignment

Range = tuple[int, int]


@dataclass(frozen=True, eq=False)  # one object for each row: identity is enough, and fast
class Plan:
    """The masks and the journeys of all ranks of one ring."""

    assignment: Assignment
    seq_length: int
    # Document boundaries of the whole sequence; a single document where there is no mask.
    cu_seqlens: tuple[int, ...]
    # [rank]: document boundaries in the rank's own tokens.
    local_cu_seqlens: tuple[tuple[int, ...], ...]
    # [rank][hop]: mask between the rank's queries and the keys that it holds at that hop;
    # hop 0 is empty: there the mask is causal inside the local documents.
    rectangles: tuple[tuple[tuple[Rectangle, ...], ...], ...]
    # [source][hop]: the range of the source's keys that a rank `hop` or more hops further needs.
    # Empty: (0, 0). Nothing else travels.
    needed: tuple[tuple[Range, ...], ...]

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.assignment.cp_size

    def last_hop(self, source: int) -> int:
        """The last hop at which somebody needs the keys of ``source``; 0: nobody else does."""
        return max((h for h in range(1, self.size) if self.needed[source][h] != (0, 0)), default=0)

    def area(self, rank: int) -> int:
        """Number of (query, key) pairs that the rank computes."""
        dense = sum(rectangle.area for step in self.rectangles[rank] for rectangle in step)
        return causal_area(self.local_cu_seqlens[rank]) + dense


@lru_cache(maxsize=64)  # one for each row in flight: all layers share it
def make_plan(assignment: Assignment, seq_length: int, cu_seqlens: tuple[int, ...] | None) -> Plan:
    """Plan for one row; ``cu_seqlens`` None stands for a single document."""
    edges = cu_seqlens or (0, seq_length)
    length = assignment.chunk_length(seq_length)
    size = assignment.cp_size
    chunks = assignment.chunks
    masks = tuple(
        tuple(
            rectangles(chunks[rank], chunks[(rank - hop) % size], length, edges) if hop else ()
            for hop in range(size)
        )
        for rank in range(size)
    )
    return Plan(
        assignment=assignment,
        seq_length=seq_length,
        cu_seqlens=edges,
        local_cu_seqlens=tuple(local_cu_seqlens(rank, length, edges) for rank in chunks),
        rectangles=masks,
        needed=tuple(_needed(masks, source) for source in range(size)),
    )


def _needed(masks: tuple[tuple[tuple[Rectangle, ...], ...], ...], source: int) -> tuple[Range, ...]:
    """Range of the source's keys that is still needed at every hop, [size]."""
    size = len(masks)
    ranges: list[Range] = [(0, 0)] * size
    low, high = 0, 0
    for hop in range(size - 1, 0, -1):
        for rectangle in masks[(source + hop) % size][hop]:
            low = min(low, rectangle.key_start) if high else rectangle.key_start
            high = max(high, rectangle.key_stop)
        ranges[hop] = (low, high)
    return tuple(ranges)


def boundaries(cu_seqlens: Tensor | None, seq_length: int, batch: int) -> tuple[int, ...] | None:
    """Document boundaries as a key for :func:`make_plan`, without empty documents.

    A tensor on a GPU costs a synchronisation: keep ``cu_seqlens`` on the CPU.
    """
    if cu_seqlens is None:
        return None
    assert batch == 1, f"documents (cu_seqlens) need one row at a time, not a batch of {batch}"
    assert not torch.is_floating_point(cu_seqlens), f"cu_seqlens of {cu_seqlens.dtype}"
    edges = cu_seqlens.tolist()
    assert (edges[0], edges[-1]) == (0, seq_length), (
        f"cu_seqlens must run from 0 to the length of the whole row ({seq_length}), not {edges}"
    )
    assert edges == sorted(edges), f"cu_seqlens must rise, not {edges}"
    return tuple(sorted(set(edges)))
