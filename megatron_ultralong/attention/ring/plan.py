"""Plan of a ring: what one rank computes and what it sends, known before anything is computed.

At hop ``h`` a rank holds the keys and values that started ``h`` ranks before it. Everything here
follows from the assignment and the document boundaries, so all ranks know all plans.

Documents are contiguous, so at most **one** of them reaches from before a query chunk into it: the
keys that a query chunk sees in earlier chunks are one run, and its queries that see them a prefix.
Hence the mask between the tokens of two ranks is a list of dense rectangles, at most one for each
query chunk, and nothing but dense and causal kernels is needed for documents of any length.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch.utils.weak import WeakIdKeyDictionary

from megatron_ultralong.sequence.assignment import Assignment
from megatron_ultralong.sequence.documents import Boundaries, causal_area


class Rectangle(NamedTuple):
    """Queries and keys that all see each other, as ranges in the two ranks' own tokens."""

    query_start: int
    query_stop: int
    key_start: int
    key_stop: int

    @property
    def area(self) -> int:
        """Number of (query, key) pairs."""
        return (self.query_stop - self.query_start) * (self.key_stop - self.key_start)


def rectangles(
    query_chunks: Sequence[int],
    key_chunks: Sequence[int],
    chunk_length: int,
    cu_seqlens: Sequence[int],
) -> tuple[Rectangle, ...]:
    """Mask between the queries of one rank and the keys of **another**.

    Zigzag of two ranks, chunks of 4, one document: queries ``(0, 3)`` and keys ``(1, 2)`` give
    ``[4, 8) x [0, 8)``; with documents ``[0, 10, 16]``, where chunk 3 is all in the second one,
    ``[4, 8) x [6, 8)``.

    Args:
        query_chunks: chunk numbers of the rank with the queries, ascending.
        key_chunks: chunk numbers of the rank with the keys, ascending, none of them shared.
        chunk_length: tokens of one chunk.
        cu_seqlens: document boundaries of the whole sequence, [num_documents + 1].
    """
    found: list[Rectangle] = []
    for place, chunk in enumerate(query_chunks):
        start = chunk * chunk_length
        document = bisect_right(cu_seqlens, start) - 1
        first = cu_seqlens[document]
        # The chunks of the keys that hold this document before `start`: places [low, high).
        low = bisect_left(key_chunks, first // chunk_length)
        high = bisect_left(key_chunks, chunk)
        if first >= start or low >= high:
            continue
        inside = max(0, first - key_chunks[low] * chunk_length)
        rectangle = Rectangle(
            query_start=place * chunk_length,
            query_stop=place * chunk_length + min(chunk_length, cu_seqlens[document + 1] - start),
            key_start=low * chunk_length + inside,
            key_stop=high * chunk_length,
        )
        found.append(_join(found.pop(), rectangle) if _adjoin(found, rectangle) else rectangle)
    return tuple(found)


def _adjoin(found: Sequence[Rectangle], below: Rectangle) -> bool:
    """Whether the last rectangle sees the same keys and ends where ``below`` begins."""
    return bool(found) and (
        found[-1].query_stop == below.query_start and found[-1][2:] == below[2:]
    )


def _join(above: Rectangle, below: Rectangle) -> Rectangle:
    """One rectangle instead of two: one kernel call."""
    return above._replace(query_stop=below.query_stop)


def local_cu_seqlens(
    chunks: Sequence[int], chunk_length: int, cu_seqlens: Sequence[int]
) -> Boundaries:
    """Document boundaries in a rank's own tokens: the mask among them is causal inside each.

    A document that leaves the rank and comes back is one local document, since its later tokens
    see all its earlier ones. Chunks ``(0, 3)`` of 4, documents ``[0, 2, 16]`` -> ``(0, 2, 8)``.
    """
    edges = [0]
    previous = -1
    for place, chunk in enumerate(chunks):
        start, stop = chunk * chunk_length, (chunk + 1) * chunk_length
        shift = place * chunk_length - start
        first = bisect_right(cu_seqlens, start)  # the first boundary after `start`
        if place and first - 1 != previous:
            edges.append(place * chunk_length)
        last = bisect_left(cu_seqlens, stop)
        edges.extend(edge + shift for edge in cu_seqlens[first:last])
        previous = bisect_right(cu_seqlens, stop - 1) - 1
    return Boundaries((*edges, len(chunks) * chunk_length))


Range = tuple[int, int]


@dataclass(frozen=True, eq=False)  # one object for each row: identity is enough, and fast
class Plan:
    """The masks and the journeys of all ranks of one ring."""

    assignment: Assignment
    seq_length: int
    # Document boundaries of the whole sequence; a single document where there is no mask.
    cu_seqlens: Boundaries
    # [rank]: document boundaries in the rank's own tokens.
    local_cu_seqlens: tuple[Boundaries, ...]
    # [rank][hop]: mask between the rank's queries and the keys that it holds at that hop;
    # hop 0 is empty: there the mask is causal inside the local documents.
    rectangles: tuple[tuple[tuple[Rectangle, ...], ...], ...]
    # [source][hop]: the range of the source's keys that a rank `hop` or more hops further needs.
    # Empty: (0, 0). Nothing else travels.
    needed: tuple[tuple[Range, ...], ...]
    # [source]: the last hop at which somebody needs its keys; 0: nobody else does.
    last_hops: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.assignment.cp_size

    def last_hop(self, source: int) -> int:
        """The last hop at which somebody needs the keys of ``source``; 0: nobody else does."""
        return self.last_hops[source]

    def area(self, rank: int) -> int:
        """Number of (query, key) pairs that the rank computes."""
        dense = sum(rectangle.area for step in self.rectangles[rank] for rectangle in step)
        return causal_area(self.local_cu_seqlens[rank]) + dense


@lru_cache(maxsize=16)  # rows of the same documents; what is in flight, row_plan keeps
def make_plan(assignment: Assignment, seq_length: int, cu_seqlens: tuple[int, ...] | None) -> Plan:
    """Plan for one row; ``cu_seqlens`` None stands for a single document."""
    edges = Boundaries(cu_seqlens or (0, seq_length))
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
    needed = tuple(_needed(masks, source) for source in range(size))
    return Plan(
        assignment=assignment,
        seq_length=seq_length,
        cu_seqlens=edges,
        local_cu_seqlens=tuple(local_cu_seqlens(rank, length, edges) for rank in chunks),
        rectangles=masks,
        needed=needed,
        last_hops=tuple(
            max((hop for hop, range_ in enumerate(its) if range_ != (0, 0)), default=0)
            for its in needed
        ),
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


def boundaries(cu_seqlens: torch.Tensor | None, seq_length: int, batch: int) -> Boundaries | None:
    """Document boundaries as a key for :func:`make_plan`, without empty documents.

    A tensor on a GPU costs a synchronisation: keep ``cu_seqlens`` on the CPU.
    """
    if cu_seqlens is None:
        return None
    assert batch == 1, f"documents (cu_seqlens) need one row at a time, not a batch of {batch}"
    assert not torch.is_floating_point(cu_seqlens), f"cu_seqlens of {cu_seqlens.dtype}"
    assert cu_seqlens.ndim == 1 and len(cu_seqlens) > 1, f"cu_seqlens of {tuple(cu_seqlens.shape)}"  # noqa: PT018
    edges = cu_seqlens.detach().to("cpu", torch.int64)
    ends = (int(edges[0]), int(edges[-1]))
    assert ends == (0, seq_length), (
        f"cu_seqlens must run from 0 to the length of the whole row ({seq_length}), not {ends}"
    )
    lengths = edges.diff()
    assert int(lengths.min()) >= 0, (
        f"cu_seqlens must rise; document {int(lengths.argmin())} has {int(lengths.min())} tokens"
    )
    return Boundaries(edges.unique_consecutive().tolist())


_plans: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Plans by the tensor of a row's boundaries: as long as the row is in flight, and no longer."""


def row_plan(
    assignment: Assignment, seq_length: int, cu_seqlens: torch.Tensor | None, batch: int
) -> Plan:
    """Plan of the row that ``cu_seqlens`` tells of, made for its first layer.

    The other layers, and the recomputation, come with the same tensor: they find it again without
    a look at the boundaries.

    Args:
        assignment: which rank holds which chunks.
        seq_length: tokens of the whole row.
        cu_seqlens: as :func:`boundaries` takes it; None: a single document.
        batch: rows at a time.
    """
    if cu_seqlens is None or cu_seqlens.is_inference():  # those do not count their changes
        return make_plan(assignment, seq_length, boundaries(cu_seqlens, seq_length, batch))
    assert batch == 1, f"documents (cu_seqlens) need one row at a time, not a batch of {batch}"
    key = (cu_seqlens._version, assignment, seq_length)
    known: tuple[tuple[int, Assignment, int], Plan] | None = _plans.get(cu_seqlens)
    if known is None or known[0] != key:
        plan = make_plan(assignment, seq_length, boundaries(cu_seqlens, seq_length, batch))
        known = _plans[cu_seqlens] = (key, plan)
    return known[1]
