"""Rectangles: the mask between the tokens of two ranks, as pure index arithmetic.

Documents are contiguous, so at most **one** of them reaches from before a query chunk into it: the
keys that a query chunk sees in earlier chunks are one run, and its queries that see them a prefix.
Hence a mask is a list of dense rectangles, at most one for each query chunk, and nothing but dense
and causal kernels is needed for documents of any length.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from megatron_ultralong.sequence.documents import Boundaries


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
