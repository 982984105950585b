"""Where the tensors that a layer keeps for backward stay meanwhile: the device, or host memory.

Offloaded tensors are copied to pinned host memory on a stream of their own while the next layer
computes, and fetched back near the end of the backward pass of the layer after: one layer's tensors
are on the device ahead of their use, and not while attention is there too. On a CPU the same code
makes plain copies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from megatron_ultralong.mcore.pinned_memory import PinnedMemory


class Kept:
    """Tensors of one forward pass of a layer, for its backward pass; these stay where they are."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = tensors

    def take(self) -> Sequence[torch.Tensor]:
        """The tensors, on the device; once."""
        tensors, self._tensors = self._tensors, ()
        return tensors

    def prefetch_previous(self) -> None:
        """Start bringing the tensors of the layer before to the device."""


class Store:
    """Keeps the tensors of layers, on their device; backward takes them in reverse order."""

    def keep(self, tensors: Sequence[torch.Tensor], *, begins_pass: bool = False) -> Kept:
        """Keep the tensors of the layer that has just run, which may be the first of its pass."""
        return Kept(tensors)


class HostMemory(Store):
    """Offloads tensors, into buffers that are used again from step to step."""

    def __init__(self, max_bytes: int) -> None:
        """``max_bytes``: of host memory, which were found to be enough before the start."""
        self.max_bytes = max_bytes
        self.memory = PinnedMemory()
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._last: _OnHost | None = None

    def keep(self, tensors: Sequence[torch.Tensor], *, begins_pass: bool = False) -> Kept:
        """Start copying to the host."""
        self._last = _OnHost(self, tensors, None if begins_pass else self._last)
        return self._last

    def take_buffer(self, tensor: torch.Tensor) -> torch.Tensor:
        """A buffer of the shape of ``tensor``, pinned if that is on a CUDA device."""
        buffer = self.memory.take(tensor.shape, tensor.dtype)
        assert self.memory.num_bytes <= self.max_bytes, (
            f"offloaded tensors need more than the {self.max_bytes} bytes that were planned"
        )
        return buffer

    def give_back(self, kept: _OnHost) -> None:
        """Take the buffers of a layer back; later copies into them come after those out of them."""
        for buffer in kept.buffers:
            self.memory.give_back(buffer)
        if self._last is kept:
            self._last = None

    def stream(self, device: torch.device) -> torch.cuda.Stream | None:
        """Stream of all copies to and from a CUDA device; None on a CPU."""
        if device.type != "cuda":
            return None
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]


class _OnHost(Kept):
    """Tensors of one layer on the host; those of the layer before it are fetched ahead."""

    def __init__(
        self, store: HostMemory, tensors: Sequence[torch.Tensor], previous: _OnHost | None
    ) -> None:
        self.buffers = [store.take_buffer(x) for x in tensors]
        self._store = store
        self._previous = previous
        self._device = tensors[0].device
        self._stream = store.stream(self._device)
        self._fetched: list[torch.Tensor] | None = None
        self._taken = False
        with self._copies():
            for buffer, tensor in zip(self.buffers, tensors, strict=True):
                buffer.copy_(tensor, non_blocking=True)
                if self._stream is not None:
                    tensor.record_stream(self._stream)  # memory that stays until it is copied

    def take(self) -> Sequence[torch.Tensor]:
        """The tensors, fetched if they were not yet."""
        assert not self._taken, "a layer's tensors are taken once"
        self._taken = True
        self._fetch()
        tensors, self._fetched = self._fetched, None
        assert tensors is not None
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        self._store.give_back(self)
        return tensors

    def prefetch_previous(self) -> None:
        """Start fetching those of the layer before."""
        previous, self._previous = self._previous, None
        if previous is not None and not previous._taken:
            previous._fetch()

    def _fetch(self) -> None:
        """Start copying back to the device, into memory of the stream that uses them."""
        if self._fetched is not None:
            return
        self._fetched = [
            torch.empty_like(x, device=self._device, pin_memory=False) for x in self.buffers
        ]
        with self._copies():
            for tensor, buffer in zip(self._fetched, self.buffers, strict=True):
                tensor.copy_(buffer, non_blocking=True)

    @contextlib.contextmanager
    def _copies(self) -> Iterator[None]:
        """Copies on the stream for them, after all that the current stream was given so far."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield
