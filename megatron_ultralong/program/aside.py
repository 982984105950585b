"""Small files that stand under their name whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_aside(path: Path, text: str) -> None:
    """Write a text file aside, through to the disk, and rename it: readers see the old or the new.

    Raises:
        OSError: it cannot be written.
    """
    aside = path.with_name(path.name + ".partial")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
