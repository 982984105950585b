"""A new output folder: written aside and renamed when it is complete."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_ultralong.program.conversion_journal import Manifest
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.owner import Owner, take
from megatron_ultralong.program.owner_record import is_owner_file

SUFFIX = ".partial"
_MARGIN = 16 * 2**20
"""Bytes for small files and headers, over the weights."""


@contextlib.contextmanager
def new_folder(
    final: Path, num_bytes: int, conversion: Mapping[str, Any], *, resume: bool = False
) -> Iterator[tuple[Path, Manifest]]:
    """A folder beside ``final`` to write ``num_bytes`` into, renamed to ``final`` at the end.

    It is removed when the body raises: nothing stands under the final name unless it is complete.
    A killed process leaves it, with a manifest of finished tensors; ``resume`` takes it up.

    Raises:
        InputError: ``final`` is in use, its conversion is running, was killed and is not resumed,
            or was another one; or the disk has too little room.
    """
    partial = final.with_name(final.name + SUFFIX)
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise InputError(f"output {final} exists and is not empty: choose another, or remove it")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        if not partial.exists():
            check_free(final.parent, num_bytes + _MARGIN)
            partial.mkdir(exist_ok=True)
        owner = _take(final, partial, resume=resume)
    except OSError as error:
        raise InputError(
            f"output {final} cannot be written: {error}; make its folder writable, or name another"
        ) from error
    try:
        with Manifest(partial, conversion, owner.check_mine) as manifest:
            check_free(partial, num_bytes - manifest.num_bytes + _MARGIN)
            try:
                yield partial, manifest
                owner.check_mine()
                manifest.remove()
                owner.move_to(final)
            except BaseException as error:
                owner.remove_folder()
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    raise InputError(
                        f"the disk of {final.parent} became full: others write there too; make "
                        f"room for {num_bytes / 2**30:.2f} GiB, or write to another disk"
                    ) from error
                raise
    finally:
        owner.release()


def _take(final: Path, partial: Path, *, resume: bool) -> Owner:
    """Own the folder in which a conversion works.

    Raises:
        InputError: another one does, or has left it and is not to be resumed.
    """
    was_left = any(not is_owner_file(path) for path in partial.iterdir())
    owner = take(partial, "convert", f"output {final}", "name another")
    if was_left and not resume:
        owner.release()
        raise InputError(
            f"{partial} exists: a conversion to {final} was killed; continue it with --resume, or "
            "remove that folder"
        )
    return owner


def check_free(folder: Path, num_bytes: int) -> None:
    """Raise InputError where the disk of ``folder`` has less than ``num_bytes`` free."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise InputError(
            f"{folder} has {free / 2**30:.2f} GiB free, {num_bytes / 2**30:.2f} GiB are needed: "
            "make room, or write to another disk"
        )
