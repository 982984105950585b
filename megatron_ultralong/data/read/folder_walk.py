"""Files below folders and of patterns: links are followed, no folder is listed twice."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """What stands at a path."""

    path: Path
    """The path by which it was reached."""

    is_named: bool = False
    """Named itself or by its suffix, not found below a folder."""

    is_hidden: bool = False
    """Its name, or that of a folder between, begins with a dot."""

    is_linked: bool = False
    """A link, or reached by one."""

    is_repeated: bool = False
    """A folder that was listed under another path."""


def walk(root: Path) -> list[Entry]:
    """All files below a folder; a folder that is reached twice is listed once, and said to be.

    What is reached without a link comes first, what is hidden last: of several paths to a folder
    the plain one is taken.

    Raises:
        OSError: a folder cannot be listed.
    """
    walked = _Walk(hidden=True)
    walked.run([root])
    return walked.entries


def matches(pattern: str) -> list[Entry]:
    """Files of a glob pattern, and those below the folders that it matches.

    As :func:`glob.glob`, but that links back to a folder above are no endless paths.

    Raises:
        OSError: a folder cannot be listed.
    """
    anchor = Path(pattern).anchor
    found: list[Path] = [Path(anchor)]
    parts = Path(pattern).parts[1 if anchor else 0 :]
    for part in parts:
        found = list(dict.fromkeys(_step(found, part)))
    name = parts[-1] if parts else ""
    is_named = not glob.has_magic(name) or not glob.has_magic(Path(name).suffix or "*")
    walked = _Walk(hidden=True)
    walked.run([path for path in found if path.is_dir()])
    files = [path for path in found if not path.is_dir()]
    named = [Entry(path, is_named=is_named, is_linked=path.is_symlink()) for path in files]
    return list({(e.path, e.is_repeated): e for e in [*walked.entries, *named]}.values())


def _step(found: Iterable[Path], part: str) -> Iterator[Path]:
    """What one part of a pattern matches below these folders."""
    for folder in found:
        if part == "**":
            walked = _Walk(hidden=False)
            walked.run([folder] if folder.is_dir() else [])
            yield from walked.folders
        elif glob.has_magic(part):
            yield from (folder / name for name in sorted(glob.glob(part, root_dir=folder)))
        elif os.path.lexists(folder / part):
            yield folder / part


class _Walk:
    """Folders below one, each listed once."""

    def __init__(self, *, hidden: bool) -> None:
        self.entries: list[Entry] = []
        self.folders: list[Path] = []
        self._hidden = hidden
        self._seen: set[tuple[int, int]] = set()
        self._plain: list[Entry] = []
        self._linked: list[Entry] = []
        self._last: list[Entry] = []

    def run(self, roots: Iterable[Path]) -> None:
        for root in roots:
            is_linked = root.is_symlink()
            (self._linked if is_linked else self._plain).append(Entry(root, is_linked=is_linked))
        while queue := self._plain or self._linked or self._last:
            folder = queue.pop()
            status = os.stat(folder.path)
            place = status.st_dev, status.st_ino
            if place not in self._seen:
                self._seen.add(place)
                self._list(folder)
            elif folder.is_linked:
                self.entries.append(folder._replace(is_repeated=True))

    def _list(self, folder: Entry) -> None:
        self.folders.append(folder.path)
        with os.scandir(folder.path) as listing:
            children = sorted(listing, key=lambda child: child.name)
        for child in children:
            entry = Entry(
                folder.path / child.name,
                is_hidden=folder.is_hidden or child.name.startswith("."),
                is_linked=folder.is_linked or child.is_symlink(),
            )
            if entry.is_hidden and not self._hidden:
                continue
            if not _is_folder(child):
                self.entries.append(entry)
            elif entry.is_hidden:
                if not child.is_symlink():
                    self._last.append(entry)
            else:
                (self._linked if entry.is_linked else self._plain).append(entry)


def _is_folder(child: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link to itself is neither."""
    try:
        return child.is_dir()
    except OSError:
        return False
