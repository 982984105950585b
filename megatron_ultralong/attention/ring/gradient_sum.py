"""Sums of dk and dv that travel from rank to rank, in pieces.

A rank passes one sum on while the next arrives. Piece ``i`` of the next arrives where piece
``i - 1`` of the last was, once that one is sent: one piece is all the space beyond one sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from megatron_ultralong.attention.kernels.base import accumulation_dtype
from megatron_ultralong.attention.ring.plan import Plan
from megatron_ultralong.sequence.transport import Transfer

# Of a sum. Each is a turn, a kernel that must find room beside those of both ranks, and below this
# size links do not reach their speed (benchmarks/attention.md); the spare piece is the price.
MAX_PIECES = 64
PIECE_BYTES = 16 << 20


def num_pieces(sum_bytes: int) -> int:
    """Pieces of a sum of so many bytes: 1 KiB -> 1, 256 MiB -> 16, 4 GiB -> 64."""
    return max(1, min(MAX_PIECES, sum_bytes // PIECE_BYTES))


@dataclass
class GradientSum:
    """Sums over a range of keys, [first, last), float32 (float64 for float64)."""

    first: int
    last: int
    # One for each piece, [tokens of a piece, 2 (k, v), b, kv_heads, d]; the last is not all used.
    slots: list[Tensor] = field(default_factory=list)

    def piece(self, number: int) -> Tensor:
        """The part of a slot that is used."""
        slot = self.slots[number]
        return slot[: min(len(slot), self.last - self.first - number * len(slot))]

    def add_(self, low: int, high: int, dk: Tensor, dv: Tensor) -> None:
        """Add gradients of keys [low, high), each [high - low, b, kv_heads, d]."""
        for start, stop, inside in self._pieces(low, high):
            inside[:, 0] += dk[start - low : stop - low]
            inside[:, 1] += dv[start - low : stop - low]

    def copy_to(self, dk: Tensor, dv: Tensor) -> None:
        """Overwrite the range in the gradients of all keys, each [s, b, kv_heads, d]."""
        for start, stop, inside in self._pieces(self.first, self.last):
            dk[start:stop], dv[start:stop] = inside[:, 0], inside[:, 1]

    def _pieces(self, low: int, high: int) -> list[tuple[int, int, Tensor]]:
        """Keys [low, high) by piece: first and last, and their place in the sum."""
        found = []
        for number in range(len(self.slots)):
            piece = self.piece(number)
            begin = self.first + number * len(self.slots[0])
            start, stop = max(low, begin), min(high, begin + len(piece))
            if start < stop:
                found.append((start, stop, piece[start - begin : stop - begin]))
        return found


class SumSpace:
    """Space of one rank for the sums that pass: slots of equal size, used again and again."""

    def __init__(self, plan: Plan, k: Tensor):
        self.num_slots = 0
        self._plan = plan
        self._k = k
        longest = max(hops[1][1] - hops[1][0] for hops in plan.needed) if plan.size > 1 else 0
        self._dtype = accumulation_dtype(k.dtype)
        sum_bytes = longest * 2 * k[0].numel() * self._dtype.itemsize
        self._most = num_pieces(sum_bytes)
        self._tokens = max(1, -(-longest // self._most))  # of a piece
        self._free: list[Tensor] = []

    def sum_of(self, source: int, zero: bool = False) -> GradientSum:
        """Sum over those keys of a rank that travel: zero, or without space before it arrives."""
        found = GradientSum(*self._plan.needed[source][1])
        if zero:
            found.slots = [self._take().zero_() for _ in range(self._num_pieces(found))]
        return found

    def transfers(
        self, sent: GradientSum | None, to: int, received: Sequence[tuple[int, GradientSum]]
    ) -> list[Transfer]:
        """Pass a sum on, piece by piece, and give those that arrive, each from a peer, space."""
        found = []
        for turn in range(self._most):
            if sent is not None and turn < len(sent.slots):
                found.append(Transfer("send", to, sent.piece(turn), turn))
            for peer, each in received:
                if turn < self._num_pieces(each):
                    each.slots.append(self._take())
                    found.append(Transfer("receive", peer, each.piece(turn), turn))
            if sent is not None and turn < len(sent.slots):
                self._free.append(sent.slots[turn])  # for the turns to come
        return found

    def _num_pieces(self, each: GradientSum) -> int:
        return -(-(each.last - each.first) // self._tokens)

    def _take(self) -> Tensor:
        if self._free:
            return self._free.pop()
        self.num_slots += 1
        _, b, kv_heads, d = self._k.shape
        return self._k.new_empty((self._tokens, 2, b, kv_heads, d), dtype=self._dtype)
