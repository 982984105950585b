"""The system's page cache: what a stream of tensors tells it about files."""

from __future__ import annotations

import os
from typing import IO


def announce(file: IO[bytes], offset: int, length: int) -> None:
    """Let the system read ``length`` bytes at ``offset`` into its cache, while others compute.

    Of itself Linux reads 128 KiB ahead, and waits for the disk between two of them.
    """
    if hasattr(os, "posix_fadvise"):  # Linux has it, macOS does not
        os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_WILLNEED)


def let_go(file: IO[bytes]) -> None:
    """Let the system write what is new in ``file`` now, and free the cache of what is written.

    Of itself Linux begins when a tenth of the memory waits for the disk, or at ``fsync``, which
    then waits for all of it. Freed pages are at hand for the next tensor, new ones have to be
    found, under virtual machines by the host too.
    """
    file.flush()
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
