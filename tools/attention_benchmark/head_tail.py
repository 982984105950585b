"""The layout that PyTorch's context parallelism asks for, of all its contestants."""

from __future__ import annotations

from torch import Tensor

from megatron_ultralong.sequence.assignment import zigzag

from .contest import Contestant, Task


class HeadTail(Contestant):
    """Tokens by the zigzag, which PyTorch calls head-tail; heads before them."""

    def positions(self, task: Task) -> Tensor:
        """See :class:`Contestant`."""
        return zigzag(task.groups.size).positions(task.groups.rank, task.length)

    def arranged(self, x: Tensor) -> Tensor:
        """[s, b, heads, d] -> [b, heads, s, d]."""
        return x.permute(1, 2, 0, 3)

    def returned(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`arranged`."""
        return x.permute(2, 0, 1, 3)
