"""Hashing of a file while it is written, beside the writing."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import IO

from megatron_ultralong.checkpoint.disk.checksums import Checksum, Hasher

_BLOCK = 4 * 2**20
_MAX_PENDING = 64
"""Copies of pieces (256 KiB) that wait for the thread, at most."""


class HashingThread:
    """The checksum of bytes that are given in their order; SHA-256 does 1 to 2 GB a second."""

    def __init__(self) -> None:
        self._hasher = Hasher()
        self._thread = ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> HashingThread:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown()

    def read(self, file: IO[bytes], length: int) -> None:
        """Take the first ``length`` bytes of ``file``, which an earlier process wrote."""
        file.seek(0)
        while length and (block := file.read(min(length, _BLOCK))):
            self.update(block)
            length -= len(block)

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes; they may change afterwards."""
        self._pending.append(self._thread.submit(self._hasher.update, bytes(data)))
        while len(self._pending) > _MAX_PENDING:
            self._pending.popleft().result()

    def checksum(self) -> Checksum:
        """Of all bytes so far."""
        while self._pending:
            self._pending.popleft().result()
        return self._hasher.checksum()
