"""The one process that writes into a folder, and how another one finds that out.

An owner stands in the folder as ``owner-000007.json``: who it is, where it runs, since when. The
file's time of change is its sign of life. Owners are numbered, and the highest number has the
folder: a new one is made by an exclusive link, which is atomic on NFS too, so that of several that
want the folder at the same moment one gets it. Whoever was taken over (stopped, or cut off from the
disk) finds a higher number before it next writes. Locks of the kernel are not needed: they are not
kept by every network file system, and do not outlast a process that is stopped.

An owner is gone when it has said so, when its process is gone (seen from the same machine), when
SLURM has started its job again, or when it gave no sign of life for ``STALE_SECONDS``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from megatron_ultralong.program.ending import PROGRAM, tell
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.owner_record import (
    OwnerRecord,
    now_text,
    owner_path,
    read_owners,
    this_process,
    write_record_aside,
)
from megatron_ultralong.program.owner_signs import BEAT_SECONDS, STALE_SECONDS, why_gone


class Owner:
    """A hold of this process on a folder; made by :func:`take`."""

    def __init__(self, folder: Path, record: OwnerRecord) -> None:
        self.folder = folder
        self.record = record
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="owner", daemon=True)
        self._thread.start()

    def is_mine(self) -> bool:
        """Whether nobody has taken the folder over, by what the disk says now.

        A folder that is gone is nobody else's; what is written into it fails by itself.
        """
        try:
            records = read_owners(self.folder)
            if not records:  # somebody has removed the file
                _link(self.folder, self.record)
                return True
        except OSError:
            return True
        return records[-1].token == self.record.token

    def check_mine(self) -> None:
        """Raise InputError where another process has taken the folder over: its work goes on."""
        if not self.is_mine():
            raise InputError(
                f"{self.folder} was taken over by another process while this one was silent for "
                f"{STALE_SECONDS:.0f} s or more (stopped, it may be): nothing more is written"
            )

    def move_to(self, final: Path) -> None:
        """Give the folder its final name, in which nobody owns it.

        Raises:
            InputError: it was taken over.
            OSError: it cannot be renamed.
        """
        self.check_mine()
        self._stopped.set()
        self._thread.join()
        # With the file in it: whoever looks at this moment finds an owner, or no folder.
        os.rename(self.folder, final)
        owner_path(final, self.record.number).unlink(missing_ok=True)

    def remove_folder(self) -> None:
        """Remove the folder with all that is in it, if it was not taken over."""
        if self.is_mine():
            shutil.rmtree(self.folder, ignore_errors=True)

    def release(self, *, keep: bool = True) -> None:
        """Give the folder back; nothing if it was taken over.

        Args:
            keep: leave the file, which then says when this was. A folder that others may look at
                at this moment needs it: numbers never go back.
        """
        self._stopped.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            path = owner_path(self.folder, self.record.number)
            if not path.exists() or not self.is_mine():
                return
            if keep:
                aside = write_record_aside(
                    self.folder, dataclasses.replace(self.record, ended=now_text())
                )
                os.replace(aside, path)
            else:
                path.unlink()

    def _beat(self) -> None:
        while not self._stopped.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(owner_path(self.folder, self.record.number))


def take(folder: Path, what: str, name: str, way_out: str) -> Owner:
    """Become the owner of ``folder``, which exists.

    An owner that is gone is taken over, with a line on standard error.

    Args:
        folder: to be owned.
        what: this process does, for the message that another one gets.
        name: of the folder in messages: ``--save runs/1m``.
        way_out: what else than to wait a user can do: ``name another --save``.

    Raises:
        InputError: another process owns it; nothing has been written then.
        OSError: the folder cannot be written to.
    """
    while True:
        before = read_owners(folder)
        reason = ""
        if before:
            reason = why_gone(folder, before[-1], name, way_out)
        mine = this_process(before[-1].number + 1 if before else 1, what)
        if not _link(folder, mine):
            continue  # somebody was faster
        known = {record.token for record in (*before, mine)}
        if any(record.token not in known for record in read_owners(folder)):
            # It began at another number while this one looked: both step back.
            owner_path(folder, mine.number).unlink(missing_ok=True)
            time.sleep(random.random())
            continue
        # Before anything is written: an owner that was stopped finds its file gone.
        for record in before:
            owner_path(folder, record.number).unlink(missing_ok=True)
        if reason:
            tell(f"{PROGRAM}: {name} is taken over from {before[-1]}: {reason}")
        return Owner(folder, mine)


@contextlib.contextmanager
def owned(folder: Path, what: str, name: str, way_out: str) -> Iterator[Owner]:
    """Own ``folder`` inside the block; see :func:`take`."""
    owner = take(folder, what, name, way_out)
    try:
        yield owner
    finally:
        owner.release()


def _link(folder: Path, record: OwnerRecord) -> bool:
    """Give the record its number; False where another one has it."""
    path, aside = owner_path(folder, record.number), write_record_aside(folder, record)
    try:
        os.link(aside, path)
        return True
    except FileExistsError:
        return aside.stat().st_nlink == 2  # NFS: it was made, and the answer was lost
    except OSError:
        return _create(path, aside.read_bytes())
    finally:
        aside.unlink(missing_ok=True)


def _create(path: Path, content: bytes) -> bool:
    """The same on a file system without hard links."""
    try:
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True
