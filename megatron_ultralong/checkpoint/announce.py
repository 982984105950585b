"""Reading ahead by the system: a range of a file that is wanted next."""

from __future__ import annotations

import os
from typing import IO


def announce(file: IO[bytes], offset: int, length: int) -> None:
    """Let the system read ``length`` bytes at ``offset`` into its cache, while others compute.

    Of itself Linux reads 128 KiB ahead, and waits for the disk between two of them.
    """
    if hasattr(os, "posix_fadvise"):  # Linux has it, macOS does not
        os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_WILLNEED)
