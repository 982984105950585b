"""Files and folders: those that stand under their names whole, or not at all; and lists of them."""

import contextlib
import errno
import fnmatch
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from megatron_ultralong.program.errors import InputError

SUFFIX = ".partial"


def partial_path(path: Path) -> Path:
    """Where ``path`` is made: ``runs/.rows.partial`` for ``runs/rows``.

    Raises:
        InputError: it is no name that a file or a folder could be given.
    """
    if path.name in ("", ".."):
        raise InputError(f"{path} is a folder that is there: name a new file or folder in it")
    return path.with_name(f".{path.name}{SUFFIX}")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file or a folder, which becomes ``path`` when the block ends.

    It goes through to the disk, except for the files of a folder. After an error nothing is left,
    and ``path`` is what it was.

    Raises:
        InputError: a device or a pipe has that name, which would be replaced.
    """
    aside = partial_path(path)
    if not is_replaceable(path):
        raise InputError(
            f"{path} is a device or a pipe, and what is written here replaces what has its name: "
            "name a file"
        )
    remove(aside)  # of one that was killed
    try:
        yield aside
        if aside.is_file():
            with aside.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # the error that is told is the one that came first
            remove(aside)
        raise


def is_replaceable(path: Path) -> bool:
    """Whether nothing, a file, a folder or a link has that name.

    Root can rename a file over ``/dev/null``, and over a link such as ``/dev/stdout``.
    """
    if not os.path.lexists(path):
        return True
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return not os.readlink(path).startswith("/proc/")
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def write_aside(path: Path, text: str) -> None:
    """Write a text file by :func:`whole`."""
    with whole(path) as aside:
        aside.write_text(text, encoding="utf-8")


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder, where its file system can say so."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, or what can be removed of it; nothing if it is absent."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def files_in(folder: Path, pattern: str = "*") -> list[Path]:
    """Files of ``folder`` whose names fit, ``*.jinja``; none where it is not there.

    ``glob`` passes over a folder that this user may not list as if nothing were in it.

    Raises:
        OSError: it cannot be listed.
    """
    names = os.listdir(folder) if folder.is_dir() else []
    found = (folder / name for name in sorted(fnmatch.filter(names, pattern)))
    return [path for path in found if path.is_file()]


def files_below(folder: Path) -> list[Path]:
    """All files of ``folder`` and of the folders in it, in order; none where it is not there.

    Raises:
        OSError: one of them cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise error

    walk = os.walk(folder, onerror=refuse) if folder.is_dir() else ()
    found = (Path(place) / name for place, _, names in walk for name in names)
    return sorted(path for path in found if path.is_file())
