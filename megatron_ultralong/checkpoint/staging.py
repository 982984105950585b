"""A new output folder: written aside and renamed when it is complete."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_ultralong.checkpoint.manifest import Manifest
from megatron_ultralong.errors import InputError

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
    if partial.exists() and not resume:
        raise InputError(
            f"{partial} exists: a conversion to {final} is running or was killed; wait for it, "
            "continue it with --resume, or remove that folder"
        )
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        if not partial.exists():
            check_free(final.parent, num_bytes + _MARGIN)
            partial.mkdir()
    except OSError as error:
        raise InputError(
            f"output {final} cannot be written: {error}; make its folder writable, or name another"
        ) from error
    with Manifest(partial, conversion) as manifest:
        check_free(partial, num_bytes - manifest.num_bytes + _MARGIN)
        try:
            yield partial, manifest
            manifest.remove()
            os.rename(partial, final)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise InputError(
                    f"the disk of {final.parent} became full: others write there too; make room "
                    f"for {num_bytes / 2**30:.2f} GiB, or write to another disk"
                ) from error
            raise


def check_free(folder: Path, num_bytes: int) -> None:
    """Raise InputError where the disk of ``folder`` has less than ``num_bytes`` free."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise InputError(
            f"{folder} has {free / 2**30:.2f} GiB free, {num_bytes / 2**30:.2f} GiB are needed: "
            "make room, or write to another disk"
        )
