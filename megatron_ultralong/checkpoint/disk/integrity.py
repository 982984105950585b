"""Whether a checkpoint is as it was written: what every reader asks before it uses a tensor.

Apart from the checksums themselves, which are read before torch is imported.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import torch.distributed as dist

from megatron_ultralong.checkpoint.disk.checksums import (
    FILE_NAME,
    Checksums,
    DamagedError,
    check_files,
    read_checksums,
)
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.progress import progress
from megatron_ultralong.program.rank_values import every_rank

_DATA_SUFFIX = ".distcp"
_SHOWN_BYTES = 4 * 2**30
"""From which on the reading of a checkpoint shows its progress."""
_MAX_THREADS = 8


def listed_files(folder: Path) -> Checksums | None:
    """What the files of a ``release`` or ``iter_XXXXXXX`` folder must be; None: nobody wrote it.

    All but the tensors' files are compared here, and the sizes of those.

    Raises:
        InputError: a file is missing or not as it was written.
    """
    if not (folder / FILE_NAME).is_file():
        return None
    try:
        checksums = read_checksums(folder)
        small = [name for name in checksums if not name.endswith(_DATA_SUFFIX)]
        check_files(folder, checksums, small)
    except DamagedError as error:
        raise _refused(error) from error
    return checksums


def check_tensors(folder: Path, checksums: Checksums) -> None:
    """Compare the files of tensors with their hashes, this rank its share; every rank calls it.

    Args:
        folder: of the checkpoint.
        checksums: from :func:`listed_files`.

    Raises:
        InputError: a file is not as it was written; on every rank.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    names = [name for name in checksums if name.endswith(_DATA_SUFFIX)]
    share = sum(checksums[name].size for name in names) / world_size
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    is_shown = rank == 0 and share >= _SHOWN_BYTES
    found: str | None = None
    try:
        with progress("checksums", share, "B") if is_shown else nullcontext() as bar:
            check_files(
                *(folder, checksums, names),
                rank=rank,
                world_size=world_size,
                num_threads=min(_MAX_THREADS, (os.cpu_count() or 1) // local or 1),
                advance=bar.advance if bar else None,
            )
    except DamagedError as error:
        found = str(_refused(error))
    first = next((error for error in every_rank(found) if error), None)
    if first is not None:
        raise InputError(first)


def _refused(error: DamagedError) -> InputError:
    return InputError(
        f"{error}; copy the checkpoint again, or go back to an earlier one (--no-verify-checksums "
        "reads it as it is)"
    )
