"""Writing of large tensors to files in small pieces."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO

import torch

from megatron_ultralong.checkpoint.disk.page_cache import let_go

CHUNK_BYTES = 256 * 2**10
"""Linux (6.x, ext4 and xfs) takes page-cache folios as large as the piece that is written. Where
it has to put 2 MB together for each, writes of 128 MB ran at a fifth of the rate of these."""


class ChunkedFile:
    """A file for ``torch.save``, which hands it whole tensors, and tells ``observe`` of them."""

    def __init__(
        self, file: IO[bytes], observe: Callable[[memoryview], None] = lambda data: None
    ) -> None:
        self._file = file
        self._observe = observe

    def write(self, data: bytes | memoryview) -> int:
        """Write all of ``data``."""
        view = memoryview(data).cast("B")
        for begin in range(0, len(view), CHUNK_BYTES):
            part = view[begin : begin + CHUNK_BYTES]
            self._file.write(part)
            self._observe(part)
        return len(view)

    def flush(self) -> None:
        """Hand everything to the system."""
        self._file.flush()


def write_tensor(file: IO[bytes], offset: int, tensor: torch.Tensor) -> None:
    """Write the elements of ``tensor``, in order, from ``offset`` on."""
    file.seek(offset)
    ChunkedFile(file).write(tensor.contiguous().view(torch.uint8).numpy().data)
    let_go(file)
