"""SHA-256 of what a command has written."""

import hashlib
from pathlib import Path


def digests(folder: Path) -> dict[str, str]:
    """Of every file below a folder, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
