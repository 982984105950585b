"""What contestants of one run share: the row, the process groups, what each is asked."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from megatron_ultralong.sequence.assignment import Assignment, balanced, zigzag
from megatron_ultralong.sequence.documents import causal_area

from .measurement import inputs

PADDING = -1  # the position of a token that is none

Result = tuple[Tensor, Tensor, Tensor, Tensor]  # out, dq, dk, dv


class UnableError(Exception):
    """A contestant cannot run here; the message says why, in a line."""


class Groups:
    """Process groups that contestants may break; :meth:`renew` makes others of the same ranks.

    The default group (gloo) is not theirs: it is how ranks agree that one has failed.
    """

    def __init__(self, device: torch.device) -> None:
        """``device``: its type decides between NCCL and gloo."""
        self.device = device
        self.size, self.rank = dist.get_world_size(), dist.get_rank()
        self._made: list[dist.ProcessGroup] = []
        self._mesh: DeviceMesh | None = None
        self.renewals = 0
        """How often groups were given up, and made again."""
        self._make()

    @property
    def world(self) -> dist.ProcessGroup:
        """All ranks."""
        return self._made[0]

    def mesh(self) -> DeviceMesh:
        """All ranks, for PyTorch: the same object until groups are renewed.

        Its dimension has another name each time. Meshes of the same ranks and names are equal for
        PyTorch, and what it has cached for one (placements of results, in forward and backward)
        leads to the groups of that one, which are aborted.
        """
        if self._mesh is None:
            names = (f"ranks{self.renewals}",)
            self._mesh = DeviceMesh.from_group(self.world, self.device.type, mesh_dim_names=names)
        return self._mesh

    def levels(self) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
        """Pairs of neighbours that exchange heads, and the ring between them, for a2a+p2p.

        Raises:
            UnableError: there are too few ranks.
        """
        if self.size < 4 or self.size % 2:
            raise UnableError(f"a2a+p2p has pairs of ranks: 4, 6, 8, ... ranks, not {self.size}")
        pairs = self.size // 2
        return self._made[1 + self.rank // 2], self._made[1 + pairs + self.rank % 2]

    def meet(self) -> None:
        """All ranks are here, and their devices have nothing left to do."""
        dist.all_reduce(torch.zeros(1, device=self.device), group=self.world)
        synchronize(self.device)

    def abandon(self) -> None:
        """Set those free that wait for this rank: they get an error instead."""
        self._mesh = None
        for group in self._made:
            with suppress(Exception):  # whatever it says, the group is given up
                if self.device.type == "cuda":
                    group.abort()
                else:
                    dist.destroy_process_group(group)
        if self.device.type != "cuda":  # its connections close with the last reference
            self._made = []

    def renew(self) -> None:
        """New groups, after a failure that all ranks know of."""
        self.renewals += 1
        self.abandon()
        self._make()

    def _make(self) -> None:
        pairs = [[2 * n, 2 * n + 1] for n in range(self.size // 2)]
        rings = [list(range(n, self.size, 2)) for n in range(2)]
        ranks = [list(range(self.size))]
        if self.size >= 4 and self.size % 2 == 0:
            ranks += pairs + rings
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        patience = datetime.timedelta(seconds=120)
        self._made = [dist.new_group(its, timeout=patience, backend=backend) for its in ranks]
        for its, group in zip(ranks, self._made, strict=True):
            if self.rank in its:  # communicators are made with the first message
                dist.all_reduce(torch.zeros(1, device=self.device), group=group)
        synchronize(self.device)


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """One row: its tokens, documents and heads, and who computes it."""

    length: int
    edges: list[int] | None
    """Document boundaries; None: one document."""
    arguments: argparse.Namespace
    dtype: torch.dtype
    groups: Groups

    @cached_property
    def cu_seqlens(self) -> Tensor | None:
        """Boundaries of documents on the host: one tensor for all calls, as for all layers."""
        return None if self.edges is None else torch.tensor(self.edges)

    @cached_property
    def tensors(self) -> list[Tensor]:
        """q, k, v and dout of the whole row, [length, 1, heads, d]; the same on all ranks."""
        return inputs(self.length, self.arguments, self.dtype, self.groups.device)

    @cached_property
    def balanced(self) -> Assignment:
        """Chunks of the ranks that go by the documents; a zigzag without."""
        size = self.groups.size
        return zigzag(size) if self.edges is None else balanced(self.edges, size)

    @property
    def area(self) -> int:
        """Pairs of a query and a key that it sees."""
        return causal_area(self.edges or (0, self.length))

    @property
    def mask(self) -> str:
        """What the table says of its documents."""
        return "none" if self.edges is None else f"{len(self.edges) - 1} documents"


class Contestant(ABC):
    """One way to compute attention over ranks.

    Tensors come as [s_local, b, heads, d] of the tokens at :meth:`positions`, go through
    :meth:`arranged` into the layout that it computes in, and results come back by
    :meth:`returned`; neither counts.
    """

    name: str
    is_reference = False
    """Its time is what that of the others is compared with."""

    is_by_name = False
    """It takes part only if it is named."""

    def __init__(self, kernel: str) -> None:
        """``kernel``: ``same``, that of all, or ``best``, the fastest that it has here."""
        self.kernel = kernel
        self.note = ""
        """What a reader should know of how it runs."""

    @abstractmethod
    def positions(self, task: Task) -> Tensor:
        """Positions in the row of this rank's tokens, int64 [s_local]; ``PADDING`` for none."""

    def prepare(self, task: Task) -> None:
        """Make what all layers of a row share; not part of its time."""
        return

    @abstractmethod
    def attention(self, task: Task, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Output of this rank, in the layout of ``q``, differentiable."""

    @contextmanager
    def running(self, task: Task) -> Iterator[None]:
        """What has to be in force meanwhile; not part of its time."""
        yield

    def arranged(self, x: Tensor) -> Tensor:
        """[s_local, b, heads, d] -> own layout."""
        return x

    def returned(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`arranged`."""
        return x

    def check(self, task: Task) -> None:
        """Before any message to other ranks.

        Raises:
            Exception: it cannot run here; :class:`UnableError` has the reason as it is shown.
        """
        return

    def alternatives(self, task: Task) -> list[Contestant]:
        """Itself, and what is tried next if that cannot run."""
        return [self]

    def kernel_name(self, task: Task) -> str:
        """The kernel that has run."""
        return self.kernel


def local(task: Task, contestant: Contestant) -> list[Tensor]:
    """q, k, v and dout of this rank in the contestant's layout; zeros where a token is none."""
    positions = contestant.positions(task).to(task.groups.device)
    is_token = positions >= 0
    found = []
    for x in task.tensors:
        own = x[positions.clamp(min=0)]
        if not bool(is_token.all()):
            own *= is_token[:, None, None, None]
        found.append(contestant.arranged(own).contiguous())
    return found


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def slowest(values: list[float]) -> list[float]:
    """The largest of all ranks, of each."""
    found = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    result: list[float] = found.tolist()
    return result


def one_line(error: BaseException) -> str:
    """Type and first line of an error, for a cell of a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = (lines or ["no message"])[0].replace("|", "/")
    return said if isinstance(error, UnableError) else f"{type(error).__name__}: {said}"[:300]


def gib(tensors: Any) -> float:
    """GiB of some tensors."""
    return float(sum(x.nbytes for x in tensors)) / 2**30
