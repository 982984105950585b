"""Large files: opened once, read in windows, written in pieces without filling the page cache.

Their checksums are made by threads of their own while they are written.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import hashlib
import io
import mmap
import os
import queue
import threading
import weakref
from pathlib import Path
from typing import IO

import torch

from megatron_ultralong.checkpoint.disk import checksums
from megatron_ultralong.program.ranks import local_world_size


def announce(file: IO[bytes], offset: int, length: int) -> None:
    """Let the system read ``length`` bytes at ``offset`` into its cache, while others compute.

    Of itself Linux reads 128 KiB ahead, and waits for the disk between two of them.
    """
    if hasattr(os, "posix_fadvise"):  # Linux has it, macOS does not
        os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_WILLNEED)


def let_go(file: IO[bytes], begin: int = 0, end: int = 0) -> None:
    """Let the system write what is new in ``file`` now, and free the cache of what is written.

    Of that the bytes from ``begin`` to ``end`` are meant; 0: all behind.

    Of itself Linux begins when a tenth of the memory waits for the disk, or at ``fsync``, which
    then waits for all of it. Freed pages are at hand for the next tensor, new ones have to be
    found, under virtual machines by the host too.
    """
    file.flush()
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), begin, max(0, end - begin), os.POSIX_FADV_DONTNEED)


def sync(file: IO[bytes]) -> None:
    """Wait until the disk has everything that was written to ``file``."""
    file.flush()
    os.fsync(file.fileno())


MOST_OPEN = 64
"""Files open at a time, over all models; a model has up to a few hundred, a process may open 1,024
or fewer."""
_lock = threading.RLock()
_recent: collections.OrderedDict[int, weakref.ref[OpenFile]] = collections.OrderedDict()
"""Those that are open, the one unused for longest first."""


class OpenFile:
    """A file that is opened when it is first read, and closed when it is forgotten.

    Of more than :data:`MOST_OPEN` the one unused for longest is closed, and opened again when it
    is next read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def tensor(self, offset: int, dtype: torch.dtype, count: int) -> torch.Tensor:
        """``count`` elements from ``offset`` bytes on, shape [count].

        They are mapped for as long as the tensor lives, and no longer: what was read counts as
        memory until then. Writing to it does not change the file.
        """
        if count == 0:
            return torch.empty(0, dtype=dtype)
        begin = offset - offset % mmap.ALLOCATIONGRANULARITY
        length = offset - begin + count * dtype.itemsize
        with _lock:
            file = self._opened()
            announce(file, begin, length)
            window = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=begin)
        if offset % dtype.itemsize:  # a header of an odd length: kernels want whole words
            return torch.frombuffer(bytearray(window[offset - begin :]), dtype=dtype)
        return torch.frombuffer(window, dtype=dtype, count=count, offset=offset - begin)

    def close(self) -> None:
        """Close it, if it is open."""
        with _lock:
            _recent.pop(id(self), None)
            if self._file is not None:
                self._file.close()
                self._file = None

    def __del__(self) -> None:
        self.close()

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            self._file = self.path.open("rb", buffering=0)
            _recent[id(self)] = weakref.ref(self)
        _recent.move_to_end(id(self))
        while len(_recent) > MOST_OPEN:
            oldest = next(iter(_recent.values()))()
            if oldest is None:  # it is being forgotten
                _recent.popitem(last=False)
            else:
                oldest.close()
        return self._file


class Window(io.RawIOBase):
    """``length`` bytes of ``file`` from ``offset`` on, to read.

    torch's own view of a record cannot be sought from its end, as readers of zip archives do.
    """

    def __init__(self, file: IO[bytes], offset: int, length: int) -> None:
        super().__init__()
        self._file = file
        self._offset = offset
        self._length = length
        self._position = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """See :meth:`io.IOBase.seek`; never before the beginning."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        """See :meth:`io.RawIOBase.readinto`."""
        view = memoryview(buffer).cast("B")[: max(0, self._length - self._position)]
        self._file.seek(self._offset + self._position)
        count: int = self._file.readinto(view)  # type: ignore[attr-defined]
        self._position += count
        return count


def save_values(values: object, path: Path) -> None:
    """``torch.save``, which says nothing of the disk where it writes the file itself.

    Raises:
        OSError: the disk takes no more.
    """
    try:
        torch.save(values, path)
    except RuntimeError as error:
        reason = f"{os.strerror(errno.ENOSPC)}, or a limit: {str(error).splitlines()[0]}"
        raise OSError(errno.ENOSPC, reason, str(path)) from error


CHUNK_BYTES = 256 * 2**10
"""Linux (6.x, ext4 and xfs) takes page-cache folios as large as the piece that is written. Where
it has to put 2 MB together for each, writes of 128 MB ran at a fifth of the rate of these."""


class ChunkedFile:
    """A file for ``torch.save``, which hands it whole tensors."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, data: bytes | memoryview) -> int:
        """Write all of ``data``."""
        view = memoryview(data).cast("B")
        for begin in range(0, len(view), CHUNK_BYTES):
            self._file.write(view[begin : begin + CHUNK_BYTES])
        return len(view)

    def flush(self) -> None:
        """Hand everything to the system."""
        self._file.flush()


class TensorWriter:
    """Writes tensors to their places in files that are there, in any order."""

    def __init__(self) -> None:
        self._unsynced: set[Path] = set()

    def put(self, path: Path, offset: int, tensor: torch.Tensor) -> None:
        """Write the elements of ``tensor``, in order, from ``offset`` bytes of a file on."""
        with path.open("r+b") as file:
            file.seek(offset)
            ChunkedFile(file).write(tensor.contiguous().view(torch.uint8).numpy().data)
            let_go(file)
        self._unsynced.add(path)

    def sync(self) -> None:
        """Wait until the disk has everything."""
        for path in self._unsynced:
            with path.open("r+b") as file:
                sync(file)
        self._unsynced.clear()


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
