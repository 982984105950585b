"""Ring attention: keys and values travel from rank to rank while queries stay.

At hop ``h`` a rank holds the keys that started ``h`` ranks before it and adds what its queries see
of them to a running softmax. Backward sends the keys round again, and behind them, one hop later,
the float32 sums of their gradients, which end at the rank that owns the keys. Each pass is a
sequence of phases, and in each the transfers are in flight while the kernel works:

    transfers(phase) -> started;  compute(phase);  transfers done;  finish(phase)

so that one rank of a process group and all ranks of a local ring run the same code: ``compute``
touches nothing in flight, ``finish`` does what needs the received tensors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_ultralong.attention.kernels.base import Gradients, Result, Saved, accumulation_dtype
from megatron_ultralong.attention.ring.block import Block
from megatron_ultralong.attention.ring.gradient_sum import GradientSum, SumSpace
from megatron_ultralong.sequence.transport import Transfer, Transport


class TravellingKeys:
    """Keys and values that a rank holds at each hop: its own, then those in two buffers in turn."""

    def __init__(self, block: Block):
        self.block = block
        self._buffers: dict[int, Tensor] = {}

    def transfers(self, hop: int) -> list[Transfer]:
        """Pass on what is held at ``hop``, receive what is held at ``hop + 1``."""
        if hop + 1 >= self.block.plan.size:
            return []
        found = []
        low, high = self._needed(self.block.source(hop), hop + 1)
        if high > low:
            found += [Transfer("send", self.block.peer(1), x) for x in self.held(hop, low, high)]
        low, high = self._needed(self.block.source(hop + 1), hop + 1)
        if high > low:
            space = self._buffer(hop + 1)[:, : high - low]
            found += [Transfer("receive", self.block.peer(-1), x) for x in space]
        return found

    def held(self, hop: int, low: int, high: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``[low, high)`` of the rank whose keys are here."""
        if hop == 0:
            return self.block.k[low:high], self.block.v[low:high]
        first, _ = self._needed(self.block.source(hop), hop)
        k, v = self._buffer(hop)[:, low - first : high - first]
        return k, v

    def release(self) -> None:
        """Give the buffers back: no further hop is held."""
        self._buffers.clear()

    def _needed(self, source: int, hop: int) -> tuple[int, int]:
        return self.block.plan.needed[source][hop]

    def _buffer(self, hop: int) -> Tensor:
        """Buffer of a hop, [2 (k, v), tokens, b, kv_heads, d], made when first used."""
        parity = hop % 2
        if parity not in self._buffers:
            hops = range(2 - parity, self.block.plan.size, 2)
            ranges = [self._needed(self.block.source(h), h) for h in hops]
            tokens = max(high - low for low, high in ranges)
            self._buffers[parity] = self.block.k.new_empty((2, tokens, *self.block.k.shape[1:]))
        return self._buffers[parity]


class ForwardPass:
    """Output and log-sum-exp of one rank's queries: phase ``h`` computes hop ``h``."""

    def __init__(self, block: Block):
        self.block = block
        self.num_phases = block.plan.size
        self.keys = TravellingKeys(block)
        self.out: Tensor  # [s, b, heads, d], float32 sum
        self.lse: Tensor  # [b, heads, s]

    def transfers(self, phase: int) -> list[Transfer]:
        """Keys of the next hop."""
        return self.keys.transfers(phase)

    def compute(self, phase: int) -> None:
        """Add what the rank's queries see of the keys held."""
        block = self.block
        if phase == 0:
            self.out, self.lse = block.forward_own(block.plan.local_cu_seqlens[block.rank])
        for rectangle in block.plan.rectangles[block.rank][phase]:
            k, v = self.keys.held(phase, rectangle.key_start, rectangle.key_stop)
            block.add_rectangle_(rectangle, k, v, self.out, self.lse)

    def finish(self, phase: int) -> None:
        """Nothing: received keys are read in the next phase."""


class BackwardPass:
    """Gradients of one rank's queries, keys and values.

    Phase 0 starts the keys on their way; phase ``h`` computes hop ``h``; the last phase, ``size``,
    computes the rank's own keys while the sums of their gradients come home. So these sums start
    at hop 1, travel while the next hop is computed, and need no space before they arrive.
    """

    def __init__(self, block: Block, saved: Saved):
        self.block = block
        self.num_phases = block.plan.size + 1
        self.keys = TravellingKeys(block)
        self.saved = saved
        self.dq: Tensor  # [s, b, heads, d], a float32 sum unless the rank's own keys are all
        if block.plan.size > 1:
            self.dq = torch.zeros_like(block.q, dtype=accumulation_dtype(block.q.dtype))
        self.dk: Tensor  # [s, b, kv_heads, d], set by the last phase
        self.dv: Tensor
        self._space = SumSpace(block.plan, block.k)
        # Sums of dk and dv over the range of keys that travelled.
        self._sum: GradientSum | None = None  # of the keys held; passed on in the next phase
        self._arriving: GradientSum | None = None
        self._home: GradientSum | None = None  # of the rank's own keys
        self._parts: list[tuple[int, int, Tensor, Tensor]] = []  # this hop's dk, dv by key range

    def transfers(self, phase: int) -> list[Transfer]:
        """Keys of the next hop, then the sums of gradients, one hop behind."""
        block, plan = self.block, self.block.plan
        sent, self._arriving = self._sum, None
        received: list[tuple[int, GradientSum]] = []
        if 2 <= phase <= plan.last_hop(block.source(phase)):
            self._arriving = self._space.sum_of(block.source(phase))
            received.append((block.peer(-1), self._arriving))
        last = plan.last_hop(block.rank)
        if last and phase == last + 1:
            self._home = self._space.sum_of(block.rank)
            received.append((block.peer(last), self._home))
        source = block.source(phase - 1)
        ended = plan.last_hop(source) == phase - 1
        to = source if ended else block.peer(1)
        return self.keys.transfers(phase) + self._space.transfers(sent, to, received)

    def compute(self, phase: int) -> None:
        """Gradients through the mask of one hop."""
        block = self.block
        if phase == block.plan.size:
            self._compute_own()
            return
        for rectangle in block.plan.rectangles[block.rank][phase]:
            low, high = rectangle.key_start, rectangle.key_stop
            k, v = self.keys.held(phase, low, high)
            dq, dk, dv = block.backward_rectangle(self.saved, rectangle, k, v)
            self.dq[rectangle.query_start : rectangle.query_stop] += dq
            self._parts.append((low, high, dk, dv))

    def finish(self, phase: int) -> None:
        """Add this hop's dk and dv to the sums that arrived meanwhile."""
        plan, source = self.block.plan, self.block.source(phase)
        if phase == plan.size:
            self._finish_own()
            return
        self._sum = self._arriving
        if phase == 1 and plan.last_hop(source):
            self._sum = self._space.sum_of(source, zero=True)
        for low, high, dk, dv in self._parts:
            assert self._sum is not None
            self._sum.add_(low, high, dk, dv)
        self._parts.clear()

    def _compute_own(self) -> None:
        block = self.block
        self.keys.release()
        edges = block.plan.local_cu_seqlens[block.rank]
        dq, self.dk, self.dv = block.backward_own(self.saved, edges)
        if block.plan.size == 1:
            self.dq = dq
        else:
            self.dq += dq

    def _finish_own(self) -> None:
        """Own keys: the sums that came home, and what the rank's own queries add."""
        if self._home is None:
            return
        low, high = self._home.first, self._home.last
        self._home.add_(low, high, self.dk[low:high], self.dv[low:high])
        self._home.copy_to(self.dk, self.dv)  # rounded once, to the dtype of the inputs


def run(passes: Sequence[ForwardPass | BackwardPass], transport: Transport) -> None:
    """Run the passes of the ranks in this process to the end, side by side."""
    for phase in range(passes[0].num_phases):
        pending = transport.exchange([each.transfers(phase) for each in passes])
        for each in passes:
            each.compute(phase)
        pending.wait()
        for each in passes:
            each.finish(phase)


def forward(blocks: Sequence[Block], transport: Transport) -> list[Result]:
    """Output [s, b, heads, d] and log-sum-exp [b, heads, s] of every rank here."""
    passes = [ForwardPass(block) for block in blocks]
    run(passes, transport)
    return [(each.out, each.lse) for each in passes]


def backward(
    blocks: Sequence[Block], transport: Transport, saved: Sequence[Saved]
) -> list[Gradients]:
    """Gradients of q, k and v of every rank here."""
    passes = [BackwardPass(block, its) for block, its in zip(blocks, saved, strict=True)]
    run(passes, transport)
    return [(each.dq, each.dk, each.dv) for each in passes]
