"""The checksum of a file while it is written, by threads of their own."""

import contextlib
import hashlib
import os
import queue
import threading
from typing import IO

from megatron_ultralong.checkpoint.disk import checksums
from megatron_ultralong.program.ranks import local_world_size

_MAX_PENDING = 64
"""Parts that wait for a piece's thread, at most."""
_MOST_THREADS = 4
_BLOCK = 4 * 2**20


class HashingThreads(contextlib.ExitStack):
    """Takes the bytes of a file in their order; its pieces are hashed side by side.

    SHA-256 does 0.4 to 2 GB a second on one core, which disks and memory outrun.
    """

    def __init__(self) -> None:
        super().__init__()
        cores = (os.cpu_count() or 1) // local_world_size()
        self._num_threads = max(2, min(_MOST_THREADS, cores))
        self._pieces: list[_Piece] = []
        self._size = 0
        self.callback(self._end_piece)

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes, which must stay as they are until :meth:`wait`."""
        view = memoryview(data).cast("B")
        while len(view):
            room = checksums.PIECE_BYTES - self._size % checksums.PIECE_BYTES
            if room == checksums.PIECE_BYTES:
                self._begin_piece()
            part = view[:room]
            self._pieces[-1].parts.put(part)
            self._size += len(part)
            view = view[len(part) :]

    def read(self, file: IO[bytes], length: int) -> None:
        """Take the first ``length`` bytes of ``file``, which an earlier process wrote."""
        file.seek(0)
        while length and (block := file.read(min(length, _BLOCK))):
            self.update(block)
            length -= len(block)

    def wait(self) -> None:
        """Until all bytes so far are hashed: their memory may change afterwards."""
        for piece in self._pieces[-self._num_threads :]:
            piece.parts.join()

    def checksum(self) -> checksums.Checksum:
        """Of all bytes; no more can come."""
        if not self._pieces:
            self._begin_piece()
        self._end_piece()
        for piece in self._pieces:
            piece.join()
        return checksums.of_pieces(self._size, [piece.digest.digest() for piece in self._pieces])

    def _begin_piece(self) -> None:
        self._end_piece()
        if len(self._pieces) >= self._num_threads:
            self._pieces[-self._num_threads].join()
        self._pieces.append(_Piece())
        self._pieces[-1].start()

    def _end_piece(self) -> None:
        if self._pieces:
            self._pieces[-1].parts.put(None)


class _Piece(threading.Thread):
    """Hashes one piece of a file; ends with the process, as nothing needs half a file's hash."""

    def __init__(self) -> None:
        super().__init__(name="checksum", daemon=True)
        self.parts: queue.Queue[memoryview | None] = queue.Queue(_MAX_PENDING)
        self.digest = hashlib.sha256()

    def run(self) -> None:
        """Until the last part was taken."""
        part: memoryview | None = memoryview(b"")
        while part is not None:
            part = self.parts.get()
            if part is not None:
                self.digest.update(part)
            self.parts.task_done()
