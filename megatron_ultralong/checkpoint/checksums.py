"""``checksums.json``: size and SHA-256 of every file of a run's checkpoint.

It is the last file written into a checkpoint, and checks itself too: a flipped byte in it, or
anywhere else in the folder, is found before a tensor is read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

FILE_NAME = "checksums.json"
_BLOCK = 4 * 2**20


class Checksum(NamedTuple):
    """What a file must be."""

    size: int
    """Bytes."""
    sha256: str
    """In hexadecimal."""


Checksums = Mapping[str, Checksum]


class DamagedError(Exception):
    """A checkpoint that is not as it was written; the message names the file and what is wrong."""


def checksum(path: Path) -> Checksum:
    """Size and hash of a file.

    Raises:
        OSError: it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return Checksum(size, digest.hexdigest())


def write_checksums(folder: Path, checksums: Checksums) -> None:
    """Write ``checksums.json`` into ``folder``, through to the disk."""
    files = {name: checksums[name]._asdict() for name in sorted(checksums)}
    text = json.dumps({"files": files, "sha256": _digest(files)}, indent=1) + "\n"
    with (folder / FILE_NAME).open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read_checksums(folder: Path) -> dict[str, Checksum]:
    """Read ``checksums.json`` of a checkpoint folder, and look at the sizes of all its files.

    Raises:
        DamagedError: it is missing or damaged, or a file is missing or has another size.
    """
    path = folder / FILE_NAME
    try:
        text = path.read_bytes()
        values = json.loads(text)
        files = values["files"]
        # Byte for byte what is written: no byte of the file is without meaning.
        expected = json.dumps({"files": files, "sha256": _digest(files)}, indent=1) + "\n"
        if text != expected.encode():
            raise DamagedError(f"{path} is damaged: it is not what its own hash says")
        checksums = {name: Checksum(**entry) for name, entry in files.items()}
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing: the checkpoint was not finished") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path} is damaged ({error!r})") from error
    for name, entry in checksums.items():
        found = folder / name
        if not found.is_file():
            raise DamagedError(f"{found} is missing")
        if found.stat().st_size != entry.size:
            raise DamagedError(
                f"{found} has {found.stat().st_size} bytes, {entry.size} were written"
            )
    return checksums


def check_files(folder: Path, checksums: Checksums, names: Iterable[str]) -> None:
    """Read these files of ``folder`` and compare their hashes.

    Raises:
        DamagedError: at the first that cannot be read or is not as it was written.
    """
    for name in names:
        try:
            found = checksum(folder / name)
        except OSError as error:
            raise DamagedError(f"{folder / name} cannot be read ({error})") from error
        if found != checksums[name]:
            raise DamagedError(
                f"{folder / name} has sha256 {found.sha256[:12]}, {checksums[name].sha256[:12]} "
                "was written: its bytes have changed"
            )


def _digest(files: Mapping[str, Mapping[str, object]]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
