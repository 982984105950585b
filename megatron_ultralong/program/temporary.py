"""Folders that libraries write to: without them they end in a trace, some after hours."""

import os
import tempfile
from pathlib import Path

from megatron_ultralong.program.errors import InputError

WAY_OUT = "set TMPDIR to a folder on a disk that has room, such as /dev/shm"


def check_temporary_folder() -> str:
    """The folder that temporary files go to: ``/tmp``.

    torch, matplotlib and ranks of ``--ranks`` write there.

    Raises:
        InputError: no folder can be written to.
    """
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        asked = os.environ.get("TMPDIR", "")
        raise InputError(
            f"no folder takes temporary files, neither {f'TMPDIR ({asked})' if asked else '/tmp'} "
            f"nor another usual one, nor the current one: each is missing, full or read-only; "
            f"{WAY_OUT}"
        ) from error


def unwritable(folder: Path) -> Path | None:
    """Of a folder that may not be there yet, what keeps it from being made or written to, itself or
    one above it; None: nothing.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return None if there.is_dir() and os.access(there, os.W_OK | os.X_OK) else there
