"""Plans of rows: which tokens of which documents stand in each, exactly ``seq_length`` of them.

A document counts with the separator that closes it. A plan is a list of rows; a row is an int64
array [num_segments, 3] of ``(document, start, stop)``, which together are ``seq_length`` tokens.
"""

import bisect
import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
Packing = Literal["stream", "row-start", "whole"]

PADDING = -1
"""Document number of a segment that only fills its row up."""


MOST_RANKS = 64
"""Context-parallel ranks that a note about the length of rows looks at."""


def not_splittable(seq_length: int) -> str:
    """A note about rows that no context parallelism can split; empty: some can.

    Each of its ranks has two chunks of a row, all of one length: ``2047 -> "... 2,048 would"``.
    """
    if any(seq_length % (2 * ranks) == 0 for ranks in range(2, MOST_RANKS + 1)):
        return ""
    unit = 2 * MOST_RANKS if seq_length >= 2 * MOST_RANKS else 4
    better = max(1, round(seq_length / unit)) * unit
    return (
        f"rows of {seq_length:,} tokens train on one context-parallel rank alone: no CP from 2 to "
        f"{MOST_RANKS} divides them (two chunks of equal length a rank); {better:,} would do"
    )


@dataclass
class RowPlan:
    """Rows, and what did not get into one."""

    rows: list[Int64Array] = field(default_factory=list)
    """Segments of each row, int64 [num_segments, 3]."""
    kept: list[int] = field(default_factory=list)
    """Documents packed, each copy, in the order of packing."""
    num_repeats_dropped: int = 0
    """Copies left out because they would have shared a row with another copy."""
    num_dropped_tokens: int = 0
    """Tokens of the incomplete row at the end."""
    num_padding_tokens: int = 0
    """Tokens that only fill rows up (``whole``)."""
    num_documents_cut: int = 0
    """Copies that stand in more than one row."""


def plan_rows(
    order: Int64Array, lengths: Int64Array, separator_width: int, seq_length: int, packing: Packing
) -> RowPlan:
    """Rows of the documents in this order.

    * ``stream``: one after the other, a document that does not fit continues in the next row.
      ``order=[0, 1], lengths=[3, 5], seq_length=4 -> [[0 0:3, 1 0:1], [1 1:5]]``.
    * ``row-start``: the same, but a document of a row or more begins its row; shorter ones fill up
      what it leaves of its last row.
    * ``whole``: no document is cut unless it is longer than a row; best fit, the rest is padding.

    Args:
        order: documents by index, one entry a copy, shape [num_copies].
        lengths: tokens of every document, separator included, shape [num_documents].
        separator_width: tokens of the separator.
        seq_length: tokens of a row.
        packing: the mode.
    """
    if packing == "whole":
        return _BestFit(lengths, separator_width, seq_length).plan(order)
    return _Stream(lengths, seq_length, packing == "row-start").plan(order)


class _Stream:
    """Rows filled one after the other."""

    def __init__(self, lengths: Int64Array, seq_length: int, long_ones_start_rows: bool) -> None:
        self.lengths = lengths
        self.seq_length = seq_length
        # longer than any document: none waits for the start of a row
        self.long = seq_length if long_ones_start_rows else int(lengths.max(initial=0)) + 1
        self.result = RowPlan()
        self._row: list[tuple[int, int, int]] = []
        self._filled = 0
        self._in_row: set[int] = set()
        self._waiting: deque[int] = deque()

    def plan(self, order: Int64Array) -> RowPlan:
        for document in order.tolist():
            if self.lengths[document] >= self.long:
                self._waiting.append(document)
                self._place_waiting()
            else:
                self._place(document)
        while self._waiting:  # nothing is left to fill the row before them
            self._place(self._waiting.popleft())
        self.result.num_dropped_tokens = self._filled
        return self.result

    def _place_waiting(self) -> None:
        while self._waiting and not self._filled:
            self._place(self._waiting.popleft())

    def _place(self, document: int) -> None:
        if document in self._in_row:
            self.result.num_repeats_dropped += 1
            return
        self.result.kept.append(document)
        length = int(self.lengths[document])
        start = num_rows = 0
        while start < length:
            count = min(length - start, self.seq_length - self._filled)
            self._row.append((document, start, start + count))
            self._in_row.add(document)
            self._filled += count
            start += count
            num_rows += 1
            if self._filled == self.seq_length:
                self.result.rows.append(np.asarray(self._row, dtype=np.int64))
                self._row, self._filled, self._in_row = [], 0, set()
                if length < self.long:
                    # the rest of a short document comes after the long ones that wait for a row:
                    # rows are read one by one, no row sees that its halves are far apart
                    self._place_waiting()
        self.result.num_documents_cut += num_rows > 1


class _BestFit:
    """Best fit, longest first: a document goes where the least room stays free."""

    def __init__(self, lengths: Int64Array, separator_width: int, seq_length: int) -> None:
        self.lengths = lengths
        self.separator_width = separator_width
        self.seq_length = seq_length
        self._rows: list[list[tuple[int, int, int]]] = []
        self._first: list[int] = []
        self._documents: list[set[int]] = []  # of each row
        self._room: list[int] = []  # tokens free in each row
        self._sizes: list[int] = []  # of free room that there are, sorted
        self._open: dict[int, list[int]] = {}  # rows of each of these sizes, a heap

    def plan(self, order: Int64Array) -> RowPlan:
        result = RowPlan(kept=order.tolist())
        pieces = []
        for place, document in enumerate(order.tolist()):
            cuts = self._cuts(int(self.lengths[document]))
            result.num_documents_cut += len(cuts) > 2
            pieces += [(b - a, place, document, a) for a, b in itertools.pairwise(cuts)]
        for size, place, document, start in sorted(pieces, key=lambda p: (-p[0], p[1], p[3])):
            self._put((document, start, start + size), size, place)
        for number in sorted(range(len(self._rows)), key=self._first.__getitem__):
            row = self._rows[number]
            padding = self.seq_length - sum(stop - start for _, start, stop in row)
            if padding:
                row.append((PADDING, 0, padding))
            result.num_padding_tokens += padding
            result.rows.append(np.asarray(row, dtype=np.int64))
        return result

    def _cuts(self, length: int) -> list[int]:
        """Where a document is cut; a separator that alone passes the row's end is left out."""
        size = self.seq_length
        whole, rest = divmod(length, size)
        if whole and rest <= self.separator_width:
            rest = 0
        return [*range(0, whole * size + 1, size), *([whole * size + rest] if rest else [])]

    def _put(self, segment: tuple[int, int, int], size: int, place: int) -> None:
        row = self._take_row(segment[0], size, place)
        self._rows[row].append(segment)
        self._documents[row].add(segment[0])
        self._first[row] = min(self._first[row], place)
        self._room[row] -= size
        if self._room[row]:
            if self._room[row] not in self._open:
                self._open[self._room[row]] = []
                bisect.insort(self._sizes, self._room[row])
            heapq.heappush(self._open[self._room[row]], row)

    def _take_row(self, document: int, size: int, place: int) -> int:
        """The first of the rows with the least room for ``size`` tokens, or a new one."""
        at = bisect.bisect_left(self._sizes, size)
        while at < len(self._sizes):
            rows = self._open[self._sizes[at]]
            passed: list[int] = []
            while rows and document in self._documents[rows[0]]:  # another copy is in that row
                passed.append(heapq.heappop(rows))
            found = heapq.heappop(rows) if rows else None
            for row in passed:
                heapq.heappush(rows, row)
            if found is not None:
                if not rows:
                    del self._open[self._sizes.pop(at)]
                return found
            at += 1
        self._rows.append([])
        self._documents.append(set())
        self._room.append(self.seq_length)
        self._first.append(place)
        return len(self._rows) - 1


def row_boundaries(
    row: Int64Array, lengths: Int64Array, separator_width: int
) -> npt.NDArray[np.int32]:
    """``cu_seqlens`` of a planned row, int32 [num_documents + 1], without a search.

    Equal to what :func:`~megatron_ultralong.sequence.documents.document_boundaries` finds in the
    tokens, except where these mislead it: where a document holds the separator's ids itself, where
    there is no separator to find, and in padding. As there, a separator that the row's start cuts
    closes nothing.
    """
    sizes = row[:, 2] - row[:, 1]
    ends = np.cumsum(sizes)
    document, start = row[:-1, 0], row[:-1, 1]
    whole_separator = start <= lengths[document] - separator_width
    inner = ends[:-1][whole_separator]
    return np.concatenate([[0], inner, ends[-1:]]).astype(np.int32)


def num_real_tokens(row: Int64Array) -> int:
    """Tokens of a planned row before its padding."""
    real = row[row[:, 0] != PADDING]
    return int((real[:, 2] - real[:, 1]).sum())
