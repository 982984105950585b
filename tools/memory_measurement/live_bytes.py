"""Bytes of all tensors that are alive, operation by operation, on any device."""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclasses.dataclass(frozen=True)
class LiveTensor:
    """A storage that is alive."""

    num_bytes: int
    operation: str
    """That made it, or first used it if it was made elsewhere."""
    shape: tuple[int, ...]
    """Of the first tensor seen on it."""
    dtype: torch.dtype


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make and use, until they die.

    What a kernel takes and gives back inside one operation is not seen; on a CPU that is the whole
    of the difference to the allocator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0
        """Alive now."""
        self.peak_bytes = 0
        """The most since :meth:`reset_peak`."""
        self.peak_tensors: list[LiveTensor] = []
        """What was alive then."""
        self._alive: dict[int, tuple[LiveTensor, Any]] = {}

    def reset_peak(self) -> None:
        """Start again from what is alive now."""
        self.peak_bytes, self.peak_tensors = self.num_bytes, self._tensors()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._see((args, kwargs), str(func))
        result = func(*args, **kwargs)
        self._see(result, str(func))
        return result

    def _see(self, values: Any, operation: str) -> None:
        for tensor in tree_leaves(values):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self._count(tensor, operation)
        if self.num_bytes > self.peak_bytes:
            self.reset_peak()

    def _count(self, tensor: torch.Tensor, operation: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive or not storage.nbytes():
            return
        found = LiveTensor(storage.nbytes(), operation, tuple(tensor.shape), tensor.dtype)
        # The Python object of a storage lives as long as the storage.
        self._alive[key] = found, weakref.ref(storage, lambda _: self._forget(key))
        self.num_bytes += found.num_bytes

    def _forget(self, key: int) -> None:
        self.num_bytes -= self._alive.pop(key)[0].num_bytes

    def _tensors(self) -> list[LiveTensor]:
        return [tensor for tensor, _ in self._alive.values()]
