"""Attention of this project over ranks, as contestants."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from megatron_ultralong.attention import ring_attention
from megatron_ultralong.attention.heads import head_attention
from megatron_ultralong.attention.kernels import block_attention
from megatron_ultralong.attention.ring.function import Backend
from megatron_ultralong.sequence.assignment import Assignment, zigzag
from megatron_ultralong.sequence.head_exchange import check_heads

from .contest import Contestant, Task

NAME = "megatron-ultralong"


class _Own(Contestant):
    """What the ring and the exchange of heads share."""

    def __init__(self, kernel: str, exchange: str, is_balanced: bool = False) -> None:
        super().__init__(kernel)
        self.name = f"{NAME} {exchange}" + (", balanced" if is_balanced else "")
        self._is_balanced = is_balanced

    def _assignment(self, task: Task) -> Assignment:
        return task.balanced if self._is_balanced else zigzag(task.groups.size)

    def positions(self, task: Task) -> Tensor:
        """See :class:`Contestant`."""
        return self._assignment(task).positions(task.groups.rank, task.length)

    def check(self, task: Task) -> None:
        """See :class:`Contestant`."""
        self._options(task)

    def kernel_name(self, task: Task) -> str:
        """See :class:`Contestant`."""
        device = task.groups.device
        name = "cudnn" if self.kernel == "same" and device.type == "cuda" else None
        head_dim = task.arguments.head_dim
        return block_attention.resolve(task.dtype, head_dim, device, name).name

    def _options(self, task: Task) -> dict[str, Any]:
        return {
            "cu_seqlens": task.cu_seqlens,
            "assignment": self._assignment(task),
            "kernel": self.kernel_name(task),
        }


class OwnRing(_Own):
    """The ring, or its all-gather."""

    def __init__(self, kernel: str, backend: Backend, is_balanced: bool = False) -> None:
        """``is_balanced``: chunks go by the documents, not in a zigzag."""
        super().__init__(kernel, backend, is_balanced)
        self._backend = backend

    def attention(self, task: Task, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :class:`Contestant`."""
        options = self._options(task)
        return ring_attention(q, k, v, group=task.groups.world, backend=self._backend, **options)


class OwnHeads(_Own):
    """The exchange of heads, of all ranks (a2a) or of pairs with a ring between (a2a+p2p)."""

    def check(self, task: Task) -> None:
        """See :class:`Contestant`."""
        size = 2 if self._is_two_level else task.groups.size
        if self._is_two_level:
            task.groups.levels()
        check_heads(task.arguments.kv_heads, size, task.groups.size, "this attention")
        super().check(task)

    @property
    def _is_two_level(self) -> bool:
        return self.name.endswith("a2a+p2p")

    def attention(self, task: Task, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :class:`Contestant`."""
        heads, ring = task.groups.world, None
        if self._is_two_level:
            heads, ring = task.groups.levels()
        return head_attention(q, k, v, heads=heads, ring=ring, **self._options(task))


def own_contestants(kernel: str, documents: bool) -> list[Contestant]:
    """The reference first."""
    found: list[Contestant] = [OwnRing(kernel, "p2p", documents)]
    found[0].is_reference = True
    if documents:
        found.append(OwnRing(kernel, "p2p"))
    found.append(OwnRing(kernel, "all_gather", documents))
    return [*found, OwnHeads(kernel, "a2a"), OwnHeads(kernel, "a2a+p2p")]
