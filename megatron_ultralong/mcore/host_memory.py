"""Where the tensors that a layer keeps for backward stay meanwhile: the device, or host memory.

Offloaded tensors are copied to pinned host memory on a stream of their own while the next layer
computes, and fetched back near the end of the backward pass of the layer after: one layer's tensors
are on the device ahead of their use, and not while attention is there too. On a CPU the same code
makes plain copies.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import mmap
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import torch

from megatron_ultralong.plan.job import PAGE_BYTES, in_pages
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.quantity import quantity
from megatron_ultralong.program.ranks import local_world_size

_log = logging.getLogger(__name__)

SLAB_BYTES = 2**30
"""Of buffers that are made together by one thread; a larger buffer is one alone."""
_MOST_THREADS = 16


class PinnedMemory:
    """Buffers of a rank that a GPU copies from and to: made once, by several threads, used again.

    ``cudaHostAlloc`` finds, clears and locks one page after the other, in one thread. Here threads
    map memory in huge pages, touch it, and register it. torch's allocator can do as much for each
    buffer (``pinned_use_cuda_host_register``), but one buffer at a time, each rounded up to a power
    of two.
    """

    def __init__(self, *, pins: bool = True, is_required: bool = True) -> None:
        """Memory of none yet.

        Args:
            pins: for copies from and to a GPU, where there is one; else ordinary memory.
            is_required: what cannot be pinned is refused; else it stays ordinary memory, whose
                copies are slower and hold up the host, with a warning.
        """
        self._pins = pins and torch.cuda.is_available()
        self._is_required = is_required
        self.num_bytes = 0
        """Of all buffers made so far."""
        self._free: defaultdict[int, list[torch.Tensor]] = defaultdict(list)

    def reserve(
        self, sizes: Iterable[int], advance: Callable[[int], None] = lambda num_bytes: None
    ) -> None:
        """Have buffers of these sizes in bytes; make those that are not there.

        All are to be free at the same time; ``advance`` is told the bytes that were made.

        Raises:
            InputError: the system has no such memory, or cannot pin it where that is required.
        """
        there = Counter({size: len(buffers) for size, buffers in self._free.items()})
        lacking = Counter(map(in_pages, sizes)) - there
        slabs = _slabs(lacking.elements())
        if not slabs:
            return
        device = torch.cuda.current_device() if self._pins else None
        local_ranks = local_world_size()
        with ThreadPoolExecutor(
            max(1, min(_MOST_THREADS, (os.cpu_count() or 1) // local_ranks)),
            # A thread's device is the first of the node, until it is told another.
            initializer=None if device is None else lambda: torch.cuda.set_device(device),
        ) as threads:
            made = {threads.submit(_make, sum(slab), device is not None): slab for slab in slabs}
            for future in as_completed(made):
                (memory, refusal), slab = future.result(), made[future]
                if refusal:
                    self._accept(refusal)
                for size, buffer in zip(slab, memory.split(slab), strict=True):
                    self._free[size].append(buffer)
                self.num_bytes += memory.nbytes
                advance(memory.nbytes)

    def _accept(self, refusal: str) -> None:
        """Do without pinning, if that may be."""
        if self._is_required:
            raise InputError(refusal)
        _log.warning("WARNING: %s. It is used without; copies are slower", refusal)

    def take(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """A buffer for a tensor; made if there is none."""
        num_bytes = shape.numel() * dtype.itemsize
        self.reserve([num_bytes])
        return self._free[in_pages(num_bytes)].pop()[:num_bytes].view(dtype).view(shape)

    def give_back(self, buffer: torch.Tensor) -> None:
        """Take a buffer back: the next that is taken may be the same."""
        whole = torch.empty(0, dtype=torch.uint8)
        size = in_pages(buffer.nbytes)
        start = buffer.storage_offset() * buffer.itemsize
        self._free[size].append(whole.set_(buffer.untyped_storage(), start, (size,), (1,)))


def _slabs(sizes: Iterable[int]) -> list[list[int]]:
    """Sizes of buffers, by the slabs that they are parts of."""
    slabs: list[list[int]] = []
    for size in sizes:
        if not slabs or sum(slabs[-1]) + size > SLAB_BYTES:
            slabs.append([])
        slabs[-1].append(size)
    return slabs


class _Mapping(mmap.mmap):
    """Memory that the GPU is told to forget before it is unmapped.

    ``weakref.finalize`` would come after: the same addresses may have other memory by then.
    """

    forget: Callable[[], object] | None = None

    def __del__(self) -> None:
        if self.forget is not None and not sys.is_finalizing():  # at the end the driver does so
            self.forget()


def _make(num_bytes: int, pins: bool) -> tuple[torch.Tensor, str]:
    """Memory that has pages, [num_bytes] of uint8; and why the GPU does not know of it if ``pins``.

    A status of CUDA that is not zero is also what ``cudaGetLastError`` says next in this thread:
    call it in one that does nothing else on the GPU.
    """
    try:
        memory = _Mapping(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise InputError(_no_memory(num_bytes, f"{error}")) from error
    # A process that is forked never has it: pages that both had would be copied as one writes, and
    # the GPU would stay with the old ones.
    for advice in ("MADV_HUGEPAGE", "MADV_DONTFORK"):  # Linux
        with contextlib.suppress(AttributeError, OSError):  # kernels without huge pages refuse
            memory.madvise(getattr(mmap, advice))
    flat = torch.frombuffer(memory, dtype=torch.uint8)
    flat[::PAGE_BYTES].zero_()  # without Python's lock: each thread finds pages of its own
    if not pins:
        return flat, ""
    runtime, address = torch.cuda.cudart(), flat.data_ptr()
    status = int(runtime.cudaHostRegister(address, num_bytes, 0))
    if status:
        return flat, _no_memory(num_bytes, f"cudaHostRegister: {torch.cuda.CudaError(status)}")
    memory.forget = functools.partial(runtime.cudaHostUnregister, address)
    return flat, ""


def _no_memory(num_bytes: int, reason: str) -> str:
    return (
        f"{quantity(num_bytes, 'B')} of host memory cannot be pinned ({reason}): look at the "
        "memory limit of the container or job and at `ulimit -l`, or offload less "
        "(context_parallel_size, recompute_granularity 'full')"
    )


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
