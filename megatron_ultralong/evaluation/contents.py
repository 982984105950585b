"""What files and folders hold, in texts that are equal for equal contents."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from megatron_ultralong.evaluation.results.file import file_sha256
from megatron_ultralong.evaluation.results.result import now
from megatron_ultralong.program.errors import counted


def content(path: Path) -> str:
    """Of a file its SHA-256, of a folder names, sizes and times; of a stream nothing is equal."""
    if path.is_file():
        return file_sha256(path)
    if str(path) == "-" or (path.exists() and not path.is_dir()):
        return unlike_all("a stream")
    stats = [(name, (path / name).stat()) for name in names_below(path)]
    listing = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    size = sum(size for _, size, _ in listing)
    return f"{counted(len(listing), 'file')}, {size:,} bytes, names and times {digest(listing)}"


def unlike_all(what: str) -> str:
    """A text for something of which nobody can tell that it holds the same another time."""
    return f"{what}, read at {now()}"


def names_below(folder: Path) -> list[str]:
    """Files in a folder and below, from there on; none that are hidden, or that Python made."""
    found: list[str] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        is_new = (real := os.path.realpath(place)) not in seen  # a link may lead up
        seen.add(real)
        folders[:] = sorted(
            name for name in folders if is_new and name[0] != "." and name != "__pycache__"
        )
        paths = [os.path.join(place, name) for name in names if is_new and name[0] != "."]
        found += [os.path.relpath(path, folder) for path in paths if os.path.isfile(path)]
    return sorted(found)


def digest(parts: object) -> str:
    """Sixteen hexadecimal digits of a JSON value."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def digest_of_files(files: Iterable[Path]) -> str:
    """Of the names of files, and of what they hold; empty: there are none."""
    found = [(file.name, file_sha256(file)) for file in sorted(files)]
    return digest(found) if found else ""
