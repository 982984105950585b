"""A machine like a node of a cluster: no network, and few folders that can be written to.

An audit hook of Python refuses, in a process and all that it starts, what such a node would refuse,
and notes it: also what a library tries and passes over, which may cost a minute each time. It does
not see what C++ does by itself (the sockets of torch between ranks).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
_HOOK = """
import errno, os, sys

allowed = tuple(os.environ["MAY_WRITE"].split(os.pathsep))
notes = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
here = ("127.0.0.1", "::1", "localhost", "", None, os.uname().nodename)
places = {"os.mkdir": 0, "os.rename": 1, "os.symlink": 1, "os.link": 1, "os.truncate": 0}

def refuse(number, what):
    os.write(notes, (what + "\\n").encode())
    raise OSError(number, os.strerror(number), what)

def check(path):
    if not isinstance(path, (str, bytes, os.PathLike)):
        return
    path = os.path.abspath(os.fsdecode(path))
    if not path.startswith(allowed + ("/dev/null", "/dev/full", "/proc/")):
        refuse(errno.EROFS, path)

def hook(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        if isinstance(arguments[1], tuple) and arguments[1][0] not in here:
            refuse(errno.ENETUNREACH, f"{event} {arguments[1]}")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        if arguments[0] not in here:
            refuse(errno.ENETUNREACH, f"{event} {arguments[0]}")
    elif event == "open" and isinstance(arguments[2], int) and arguments[2] & writes:
        check(arguments[0])
    elif event in places:
        check(arguments[places[event]])

sys.addaudithook(hook)
"""


def sealed(folder: Path, may_write: Sequence[Path]) -> dict[str, str]:
    """The environment of processes on such a machine; ``folder`` is for what they are refused.

    It has no home folder, and no variable of this process that names a cache.
    """
    (folder / "hook").mkdir(parents=True)
    (folder / "hook" / "sitecustomize.py").write_text(_HOOK)
    named = ("HF_", "XDG_", "MPL", "TORCH", "TRITON", "PYTEST")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(named)}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join([str(folder / "hook"), str(ROOT)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "HOME": "/nonexistent",
        "NOTES": str(folder / "notes"),
        "MAY_WRITE": os.pathsep.join(map(str, may_write)),
    }


def refused(folder: Path) -> set[str]:
    """What processes were refused, each once."""
    notes = folder / "notes"
    return set(notes.read_text().splitlines()) if notes.exists() else set()
