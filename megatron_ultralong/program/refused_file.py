"""What a user is told of a file or folder that the system does not open, whoever asked for it."""

import errno
import io
import os
import traceback
from collections.abc import Iterator
from pathlib import Path

from megatron_ultralong.program.errors import InputError, PassingError

_OF_DISKS = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODATA)
_OF_READS = (*_OF_DISKS, errno.EISDIR)
"""What a read says of the file, without its name."""
_WAYS_OUT = {
    errno.EISDIR: "it is a folder: name a file",
    errno.ENOTDIR: "a part of that path is a file: name a folder",
    errno.ELOOP: "links there lead back to themselves: name the file itself",
    errno.ENAMETOOLONG: "no file system has such a name: shorten it",
    errno.ENOENT: "it is not there, or not any more (ULTRALONG_LOG=DEBUG shows who asks for it)",
    errno.EROFS: "that disk can only be read: name a place on another one",
    **dict.fromkeys(
        _OF_DISKS,
        "the disk or its server fails: try again, or copy the file to another disk",
    ),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room on the disk"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "too many files are open: raise `ulimit -n`"),
}
_MOST_SHOWN = 200


class ClosedFileError(InputError):
    """A file or folder that this user may not open: nobody knows whether it is damaged."""


class FailingDiskError(PassingError):
    """A disk or its server failed."""


def is_failing_disk(error: OSError) -> bool:
    """Whether it says that the disk failed, and nothing of the file."""
    return error.errno in _OF_DISKS


def refused_file(error: OSError, what: str = "opened") -> InputError | None:
    """The message for ``error``: the file cannot be ``what``; None: it is of no file.

    The error of a read has no name: it is that of a file that the functions on its way have open.
    """
    name = error.filename
    if not isinstance(name, str | bytes | os.PathLike):
        name = next(_open_files(error), None) if error.errno in _OF_READS else None
    if name is None:
        return None
    path = Path(os.fsdecode(name))
    shown = str(path) if len(str(path)) <= _MOST_SHOWN else f"{str(path)[:_MOST_SHOWN]}..."
    reason = os.strerror(error.errno) if error.errno else error.strerror or str(error)
    if error.errno in (errno.EACCES, errno.EPERM):
        return ClosedFileError(
            f"{shown} cannot be {what} ({reason}): this user needs the right to {_closed(path)}; "
            "`ls -ld` shows who has it"
        )
    way_out = _WAYS_OUT.get(error.errno or 0, "name another file or folder")
    kind = FailingDiskError if is_failing_disk(error) else InputError
    return kind(f"{shown} cannot be {what} ({reason}): {way_out}")


def _open_files(error: OSError) -> Iterator[str]:
    """Names of files in the variables of the functions that it passed, the innermost first."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for value in list(frame.f_locals.values()):
            if isinstance(value, io.IOBase) and isinstance(name := getattr(value, "name", 0), str):
                yield name


def _closed(path: Path) -> Path:
    """The outermost folder on the way that this user may not enter; else the path itself."""
    above = reversed(path.absolute().parents)
    return next((f for f in above if f.is_dir() and not os.access(f, os.X_OK)), path)
