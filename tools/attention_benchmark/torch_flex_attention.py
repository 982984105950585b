"""PyTorch's FlexAttention with gathered keys: the one way of it that knows documents.

Its kernel is compiled for every length, which takes longer than all else, so it takes part only if
``--contestants`` names it (``Flex``). On the CPU it has no backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from megatron_ultralong.sequence.assignment import zigzag
from megatron_ultralong.sequence.documents import document_numbers

from .contest import Task, UnableError
from .head_tail import HeadTail

BLOCK = 128  # tokens, of the mask


class _Flex(nn.Module):
    """What context parallelism is put around; its keys are those of all ranks."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._attend: Any = flex_attention
        if device.type == "cuda":
            self._attend = torch.compile(flex_attention, dynamic=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, block_mask: Any) -> Tensor:
        """Output, [b, heads, s_local, d]."""
        is_grouped = query.shape[1] != key.shape[1]
        out: Tensor = self._attend(query, key, value, block_mask=block_mask, enable_gqa=is_grouped)
        return out


class FlexAttention(HeadTail):
    """``flex_attention`` under ``_ContextParallel``, over the zigzag that it calls head-tail."""

    name = "PyTorch FlexAttention allgather"
    is_by_name = True

    def __init__(self, kernel: str) -> None:
        super().__init__(kernel)
        self._masks: dict[int, Any] = {}
        self._module: tuple[DeviceMesh, nn.Module] | None = None

    def check(self, task: Task) -> None:
        """See :class:`Contestant`."""
        _style()
        if task.length % (task.groups.size * BLOCK):
            raise UnableError(f"a rank must have whole blocks of {BLOCK} tokens")

    def attention(self, task: Task, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :class:`Contestant`."""
        out: Tensor = self._parallel(task)(q, k, v, self._masks[task.length])
        return out

    def prepare(self, task: Task) -> None:
        """See :class:`Contestant`: the mask of the row, one for all layers."""
        if task.length in self._masks:
            return
        size, device = task.groups.size, task.groups.device
        edges = torch.tensor(task.edges or [0, task.length])
        numbers = torch.from_numpy(document_numbers(edges.numpy())).to(device)
        keys = torch.cat([zigzag(size).positions(rank, task.length) for rank in range(size)])
        keys, own = keys.to(device), self.positions(task).to(device)

        def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            first, second = own[query], keys[key]
            return (first >= second) & (numbers[first] == numbers[second])

        make: Any = create_block_mask
        if device.type == "cuda":  # else it holds the whole mask
            make = torch.compile(create_block_mask, dynamic=False)
        self._masks = {
            task.length: make(seen, 1, 1, len(own), len(keys), device=str(device), BLOCK_SIZE=BLOCK)
        }

    def _parallel(self, task: Task) -> nn.Module:
        mesh = task.groups.mesh()
        if self._module is None or self._module[0] is not mesh:
            self._module = (mesh, _style()._apply(_Flex(task.groups.device), mesh))
        return self._module[1]

    def kernel_name(self, task: Task) -> str:
        """See :class:`Contestant`."""
        return "flex" if task.groups.device.type == "cuda" else "cpu"


def _style() -> Any:
    """Keys are gathered before each call; imported here, since it is no public name."""
    from torch.distributed.tensor.experimental._attention import _ContextParallel

    return _ContextParallel(2, _ContextParallel.AttentionType.FLEX)
