"""Large files: opened once, read in windows, written in pieces, without filling the page cache."""

from __future__ import annotations

import collections
import errno
import io
import mmap
import os
import threading
import weakref
from pathlib import Path
from typing import IO

import torch


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
