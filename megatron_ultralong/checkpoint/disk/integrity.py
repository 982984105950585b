"""Whether a checkpoint is as it was written: what every reader asks before it uses a tensor."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from megatron_ultralong.checkpoint.disk.checksums import (
    FILE_NAME,
    Checksums,
    DamagedError,
    check_files,
    checksum,
    read_checksums,
    write_checksums,
)
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.progress import progress
from megatron_ultralong.program.ranks import is_main_rank

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


def check_tensors(
    folder: Path,
    checksums: Checksums,
    rank: int = 0,
    world_size: int = 1,
    agree: Callable[[str | None], list[str | None]] = lambda error: [error],
) -> None:
    """Compare the files of tensors with their hashes, this rank its share; every rank calls it.

    Args:
        folder: of the checkpoint.
        checksums: from :func:`listed_files`.
        rank: of this process.
        world_size: of the job.
        agree: what all ranks have found, on every rank.

    Raises:
        InputError: a file is not as it was written; on every rank.
    """
    names = [name for name in checksums if name.endswith(_DATA_SUFFIX)]
    num_bytes = sum(checksums[name].size for name in names) / world_size
    threads = min(_MAX_THREADS, (os.cpu_count() or 1) // _local_world_size() or 1)
    found: str | None = None
    try:
        if num_bytes >= _SHOWN_BYTES and rank == 0:
            with progress("checksums", num_bytes, "B") as bar:
                check_files(
                    *(folder, checksums, names),
                    rank=rank,
                    world_size=world_size,
                    num_threads=threads,
                    advance=bar.advance,
                )
        else:
            check_files(
                *(folder, checksums, names), rank=rank, world_size=world_size, num_threads=threads
            )
    except DamagedError as error:
        found = str(_refused(error))
    first = next((error for error in agree(found) if error), None)
    if first is not None:
        raise InputError(first)


def seal(root: Path, names: list[Path]) -> None:
    """Write ``checksums.json`` of a checkpoint's small files ``names`` into its folder ``root``."""
    write_checksums(root, {path.relative_to(root).as_posix(): checksum(path) for path in names})


def unseal(root: Path) -> None:
    """Before a change of small files: a kill in its midst must not leave hashes of other bytes."""
    (root / FILE_NAME).unlink(missing_ok=True)


def check_seal(root: Path) -> None:
    """Compare the small files of a checkpoint with what :func:`seal` wrote, where it did.

    Raises:
        InputError: a file is missing or not as it was written.
    """
    if not (root / FILE_NAME).is_file():
        return
    try:
        checksums = read_checksums(root)
        # a tokenizer has 10 MB or more, and a job thousands of ranks
        names = [name for name in checksums if "/" not in name or is_main_rank()]
        check_files(root, checksums, names)
    except DamagedError as error:
        raise InputError(
            f"{error}; copy it again, or remove {root / FILE_NAME} if you changed it yourself"
        ) from error


def _refused(error: DamagedError) -> InputError:
    return InputError(
        f"{error}; copy the checkpoint again, or go back to an earlier one (--no-verify-checksums "
        "reads it as it is)"
    )


def _local_world_size() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
