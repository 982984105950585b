"""A process-group backend with one rank of many: what others would send are copies of its own.

Megatron-Core then builds the groups, shards and buffers of the whole job and runs every collective;
each is a local copy of the size that would arrive, on the stream that asked for it. Bytes that
would leave this rank are counted by kind. Sums are wrong and stay finite.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

NAME = "lone"
sent = Counter[tuple[str, int]]()
"""Bytes by (operation, ranks of the group) since the last ``clear``."""


class LoneGroup(dist.ProcessGroup):
    """One group, of which this process is the only rank that exists."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)
        self._rank, self._size = rank, size
        self._last: dict[tuple[torch.Size, torch.dtype], Tensor] = {}

    def size(self) -> int:
        """Ranks of the group."""
        return self._size

    def rank(self) -> int:
        """Number of this rank."""
        return self._rank

    def _set_group_name(self, name: str) -> None:
        self._name = name  # torch's own keeps it in a backend below, and there is none

    @property
    def group_name(self) -> str:
        """Name that torch unregisters."""
        return self._name

    def getBackendName(self) -> str:  # noqa: N802
        """Name that torch shows."""
        return NAME

    def allreduce(self, tensors: list[Tensor], *_: Any) -> dist.Work:
        """Leave them: a ring sends all but one part twice."""
        self._count("all-reduce", 2 * sum(x.nbytes for x in tensors) // self._size)
        return _done(tensors)

    allreduce_coalesced = allreduce

    def broadcast(self, tensors: list[Tensor], *_: Any) -> dist.Work:
        """Leave them."""
        return _done(tensors)

    def barrier(self, *_: Any) -> dist.Work:
        """Nobody to wait for."""
        return _done([])

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], *_: Any) -> dist.Work:
        """Every part is this rank's."""
        for parts, own in zip(outputs, inputs, strict=True):
            for part in parts:
                part.copy_(own)
            self._count("all-gather", own.nbytes)
        return _done(outputs)

    def all_gather_single(self, output: Tensor, own: Tensor, *_: Any) -> dist.Work:
        """Every part is this rank's."""
        return self.allgather([list(output.view(-1).chunk(self._size))], [own.reshape(-1)])

    def all_gather_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], *_: Any
    ) -> dist.Work:
        """Several at once."""
        for output, own in zip(outputs, inputs, strict=True):
            self.all_gather_single(output, own)
        return _done(outputs)

    def reduce_scatter(
        self, outputs: list[Tensor], inputs: list[list[Tensor]], *_: Any
    ) -> dist.Work:
        """The part that is this rank's."""
        for output, parts in zip(outputs, inputs, strict=True):
            output.copy_(parts[self._rank])
            self._count("reduce-scatter", output.nbytes)
        return _done(outputs)

    def reduce_scatter_single(self, output: Tensor, whole: Tensor, *_: Any) -> dist.Work:
        """The part that is this rank's."""
        parts = list(whole.view(-1).chunk(self._size))
        return self.reduce_scatter([output.view(-1)], [parts])

    def reduce_scatter_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], *_: Any
    ) -> dist.Work:
        """Several at once."""
        for output, whole in zip(outputs, inputs, strict=True):
            self.reduce_scatter_single(output, whole)
        return _done(outputs)

    def all_to_all_single(self, output: Tensor, own: Tensor, *_: Any) -> dist.Work:
        """Every part is as this rank would send it."""
        output.copy_(own)
        self._count("all-to-all", own.nbytes // self._size)
        return _done([output])

    def send(self, tensors: list[Tensor], *_: Any) -> dist.Work:
        """Remember what was sent last, by shape."""
        for x in tensors:
            self._last[x.shape, x.dtype] = x
            sent["send", self._size] += x.nbytes
        return _done(tensors)

    @torch.no_grad()  # as a transport: what it fills may be a leaf
    def recv(self, tensors: list[Tensor], *_: Any) -> dist.Work:
        """Receive what was last sent in that shape; else zeros."""
        for x in tensors:
            own = self._last.pop((x.shape, x.dtype), None)
            if own is None or own.data_ptr() == x.data_ptr():
                x.zero_()
            else:
                x.copy_(own)
        return _done(tensors)

    # Names before torch 2.13.
    alltoall_base = all_to_all_single
    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def _count(self, operation: str, part: int) -> None:
        sent[operation, self._size] += part * (self._size - 1)


def _done(result: Any) -> dist.Work:
    future: Future[Any] = Future()
    future.set_result(result)
    work: dist.Work = torch._C._distributed_c10d._create_work_from_future(future)
    return work


def _create(store: dist.Store, rank: int, size: int, timeout: Any) -> LoneGroup:
    return LoneGroup(rank, size)


def start(rank: int, world_size: int, local_rank: int = 0) -> None:
    """Make this process rank ``rank`` of a job of ``world_size``, on the device ``local_rank``."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(local_rank))
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    if NAME not in dist.Backend.backend_list:
        dist.Backend.register_backend(NAME, _create, devices=["cpu", "cuda"])
    dist.init_process_group(NAME, store=dist.HashStore(), rank=rank, world_size=world_size)
