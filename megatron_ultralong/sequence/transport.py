"""Transport: how the ranks of a context-parallel group hand tensors to each other.

Two of them drive the same ring code (:mod:`megatron_ultralong.attention.ring.ring`). A *process
group* has one rank here and the others elsewhere; a *local ring* has all ranks in this process, for
debugging and to run a whole group's work on one device. Every method takes one entry for each rank
that lives here: one for a process group, all for a local ring.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Transfer(NamedTuple):
    """One tensor, contiguous, sent to or received from a peer (a rank in the group).

    Transfers between two ranks are matched in the order in which both list them, turn by turn.
    Those of a turn start when this rank's earlier turns are over, and may use their space again.
    """

    kind: Literal["send", "receive"]
    peer: int
    tensor: Tensor
    turn: int = 0


class Pending:
    """Transfers in flight: what they send must not change, nor what they receive be read."""

    def __init__(self, turns: list[list[dist.P2POp]], in_order: bool):
        self.works: list[dist.Work] = []
        self.later = deque(turns)
        while self.later and (in_order or not self.works):
            self.works += dist.batch_isend_irecv(self.later.popleft())

    def wait(self) -> None:
        """Return when the received tensors may be read, in the current stream on CUDA."""
        while self.works:
            for work in self.works:
                work.wait()  # blocks the thread for gloo, the current stream for NCCL
            self.works = dist.batch_isend_irecv(self.later.popleft()) if self.later else []


class Transport(Protocol):
    """What the ring needs from a group of ranks."""

    size: int
    ranks: Sequence[int]  # those that live in this process
    bytes_sent: int  # from the ranks of this process to others, since the start

    def exchange(self, transfers: Sequence[Sequence[Transfer]]) -> Pending:
        """Start the transfers of every rank here."""

    def all_gather(self, shards: Sequence[Tensor]) -> list[list[Tensor]]:
        """For every rank here, the shards of all ranks."""

    def reduce_scatter(self, shards: Sequence[list[Tensor]]) -> list[Tensor]:
        """For every rank here, the sum over ranks of the tensors meant for it."""

    def all_to_all(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """For every rank here, what all ranks meant for it: ``[size, ...]``, by rank, both ways."""


class ProcessGroupRing:
    """One rank of a torch process group, over gloo or NCCL."""

    def __init__(self, group: dist.ProcessGroup):
        self.group = group
        self.size = dist.get_world_size(group)
        self.ranks: Sequence[int] = [dist.get_rank(group)]
        self.bytes_sent = 0

    def exchange(self, transfers: Sequence[Sequence[Transfer]]) -> Pending:
        """Start the transfers. NCCL runs them on its own stream, beside the kernels to come.

        That stream first waits for the kernels launched so far: they fill what is sent and read
        what is overwritten. It also keeps turns in order, so that all start at once; over gloo
        the later ones start in ``wait``.
        """
        turns: dict[int, list[dist.P2POp]] = defaultdict(list)
        order: dict[tuple[str, int], int] = defaultdict(int)
        for kind, peer, tensor, turn in transfers[0]:
            turns[turn].append(
                dist.P2POp(
                    dist.isend if kind == "send" else dist.irecv,
                    tensor,
                    group=self.group,
                    tag=order[kind, peer],  # gloo matches by tag, NCCL by order
                    group_peer=peer,
                )
            )
            order[kind, peer] += 1
            self.bytes_sent += tensor.nbytes if kind == "send" else 0
        # Only NCCL's one stream keeps operations in order.
        in_order = "nccl" in str(dist.get_backend(self.group))
        return Pending([turns[turn] for turn in sorted(turns)], in_order)

    def all_gather(self, shards: Sequence[Tensor]) -> list[list[Tensor]]:
        """Gather by one collective."""
        (shard,) = shards
        gathered = [torch.empty_like(shard) for _ in range(self.size)]
        dist.all_gather(gathered, shard, group=self.group)
        self.bytes_sent += shard.nbytes * (self.size - 1)
        return [gathered]

    def reduce_scatter(self, shards: Sequence[list[Tensor]]) -> list[Tensor]:
        """Sum by one collective."""
        (parts,) = shards
        total = torch.empty_like(parts[0])
        dist.reduce_scatter(total, parts, group=self.group)
        self.bytes_sent += total.nbytes * (self.size - 1)
        return [total]

    def all_to_all(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Exchange by one collective."""
        (sent,) = parts
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self.group)
        self.bytes_sent += sent[0].nbytes * (self.size - 1)
        return [received]


class LocalRing:
    """All ranks of a group in one process: ``ring_attention(q, k, v, group=LocalRing(4))``.

    The tensors of the ranks stand end to end in their first dimension.
    """

    def __init__(self, size: int):
        self.size = size
        self.ranks: Sequence[int] = range(size)
        self.bytes_sent = 0

    def exchange(self, transfers: Sequence[Sequence[Transfer]]) -> Pending:
        """Copy at once: in the ring's order, nothing received is still in use."""
        for turn in sorted({each.turn for its in transfers for each in its}):
            self._exchange([[each for each in its if each.turn == turn] for its in transfers])
        return Pending([], in_order=True)

    def _exchange(self, transfers: Sequence[Sequence[Transfer]]) -> None:
        """Transfers of one turn."""
        in_flight: dict[tuple[int, int], deque[Tensor]] = defaultdict(deque)
        for rank, its_transfers in zip(self.ranks, transfers, strict=True):
            for kind, peer, tensor, _ in its_transfers:
                if kind == "send":
                    in_flight[rank, peer].append(tensor)
                    self.bytes_sent += tensor.nbytes
        for rank, its_transfers in zip(self.ranks, transfers, strict=True):
            for kind, peer, tensor, _ in its_transfers:
                if kind == "receive":
                    sent = in_flight[peer, rank].popleft()
                    assert sent.shape == tensor.shape, f"{sent.shape} to {tensor.shape}"
                    assert sent.dtype == tensor.dtype, f"{sent.dtype} to {tensor.dtype}"
                    tensor.copy_(sent)
        assert not any(in_flight.values()), "a tensor was sent that nobody receives"

    def all_gather(self, shards: Sequence[Tensor]) -> list[list[Tensor]]:
        """All ranks see the same shards: nothing is copied."""
        self.bytes_sent += sum(shard.nbytes for shard in shards) * (self.size - 1)
        return [list(shards) for _ in self.ranks]

    def reduce_scatter(self, shards: Sequence[list[Tensor]]) -> list[Tensor]:
        """Sum in the order of the ranks."""
        totals = []
        for rank in self.ranks:
            total = shards[0][rank].clone()
            for parts in shards[1:]:
                total += parts[rank]
            totals.append(total)
            self.bytes_sent += total.nbytes * (self.size - 1)
        return totals

    def all_to_all(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Every rank takes its part of all ranks."""
        self.bytes_sent += sum(part[0].nbytes for part in parts) * (self.size - 1)
        return [torch.stack([part[rank] for part in parts]) for rank in self.ranks]
