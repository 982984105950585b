"""Folders in one that was named and holds none of the files that were looked for.

The cache of Hugging Face's Hub keeps a model in ``models--ORG--NAME/snapshots/COMMIT``, a trainer
its checkpoints in ``OUTPUT/checkpoint-500``, Meta's download a model in ``original``.
"""

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

_DEPTH = 3
_MOST_ENTRIES = 10_000
"""Files and folders that are looked at: one may name a whole disk."""
_SHOWN = 3


def one_inside(folder: Path, names: Sequence[str]) -> str:
    """``; FOLDER/original has params.json: give that``; empty where nothing in ``folder`` does.

    Of several the newest come first: by the number in their names, or as the Hub's cache says.
    """
    found = _with(folder, names)
    if not found:
        return ""
    current = _current_snapshot(folder)
    if current in found:
        return f"; it is a model in the cache of Hugging Face's Hub: give its snapshot {current}"
    held = next(name for name in names if (found[0] / name).is_file())
    if len(found) == 1:
        return f"; {found[0]} has {held}: give that folder"
    told = ", ".join(map(str, found[:_SHOWN]))
    rest = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"; {len(found)} folders in it hold what is needed: give one of them ({told}{rest})"


def _with(folder: Path, names: Sequence[str]) -> list[Path]:
    """Folders that have one of the files, at most some levels deep, the newest first."""
    found: list[Path] = []
    level, left = [folder], _MOST_ENTRIES
    for _ in range(_DEPTH):
        below: list[Path] = []
        for parent in level:
            with contextlib.suppress(OSError), os.scandir(parent) as entries:
                for entry in entries:
                    left -= 1
                    if left < 0:
                        return _in_order(found)
                    if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                        below.append(Path(entry.path))
        has = {path for path in below if any((path / name).is_file() for name in names)}
        found += has
        level = [path for path in below if path not in has]
    return _in_order(found)


def _in_order(paths: Sequence[Path]) -> list[Path]:
    def key(path: Path) -> list[tuple[int, str]]:
        parts = re.split(r"(\d+)", path.name)
        return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]

    return sorted(sorted(paths), key=key, reverse=True)


def _current_snapshot(folder: Path) -> Path | None:
    """What ``refs/main`` of a model in the Hub's cache names, or the only snapshot there is."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        commit = (folder / "refs" / "main").read_bytes()[:100].decode("ascii").strip()
        if re.fullmatch("[0-9a-f]{40}", commit):
            return folder / "snapshots" / commit
    with contextlib.suppress(OSError, ValueError):
        (only,) = (folder / "snapshots").iterdir()
        return only if (folder / "blobs").is_dir() else None
    return None
