"""Large files that are read in windows: opened once, and only so many of them at a time."""

from __future__ import annotations

import collections
import mmap
import threading
import weakref
from pathlib import Path
from typing import IO

import torch

from megatron_ultralong.checkpoint.disk.page_cache import announce

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
