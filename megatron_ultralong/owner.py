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
import json
import os
import random
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from megatron_ultralong.errors import InputError
from megatron_ultralong.owner_record import (
    OwnerRecord,
    is_alive,
    now_text,
    owner_path,
    read_owners,
    this_job,
    this_place,
    this_process,
)

BEAT_SECONDS = 15.0
"""Between two signs of life."""
STALE_SECONDS = 180.0
"""An owner that is silent for so long is gone. More than a client of NFS may see an old time of a
file (a minute), and a beat."""


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
                aside = _write_aside(
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
            reason = _why_gone(folder, before[-1], name, way_out)
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
            _tell(f"{name} is taken over from {before[-1]}: {reason}")
        return Owner(folder, mine)


@contextlib.contextmanager
def owned(folder: Path, what: str, name: str, way_out: str) -> Iterator[Owner]:
    """Own ``folder`` inside the block; see :func:`take`."""
    owner = take(folder, what, name, way_out)
    try:
        yield owner
    finally:
        owner.release()


def present_owner(folder: Path) -> OwnerRecord | None:
    """Who owns ``folder``, as far as can be known without writing; None: nobody."""
    records = read_owners(folder) if folder.is_dir() else []
    if not records or _reason_gone(records[-1]) is not None:
        return None
    age = _age(folder, records[-1])
    return records[-1] if age is not None and age < STALE_SECONDS else None


def _why_gone(folder: Path, record: OwnerRecord, name: str, way_out: str) -> str:
    """Why an owner counts as gone, "" where it has said so itself.

    Raises:
        InputError: it does not.
    """
    reason = _reason_gone(record)
    if reason is not None:
        return reason
    age = _age(folder, record)
    if age is None:
        return "its file is gone"
    if not 0 <= age < STALE_SECONDS:  # by this machine's clock, which may be wrong
        age = _age_on_disk(folder, record)
    is_here = record.place == this_place()
    if age < STALE_SECONDS and not is_here and record.job and record.job == this_job()[0]:
        # Perhaps an earlier start of this very run, on a machine that was lost.
        age = _wait_for_sign(folder, record, name)
    if age < STALE_SECONDS:
        raise _in_use(record, age, name, way_out)
    return f"it gave no sign of life for {STALE_SECONDS:.0f} s"


def _reason_gone(record: OwnerRecord) -> str | None:
    """Why an owner is known to be gone; None: it is not known."""
    if record.ended:
        return ""
    if record.place and record.place == this_place():
        alive = is_alive(record.pid, record.process_start)
        return None if alive else "its process is gone"
    job, restart = this_job()
    if job and job == record.job and restart > record.restart:
        return "its job was started again"
    return None


def _in_use(record: OwnerRecord, age: float, name: str, way_out: str) -> InputError:
    return InputError(
        f"{name} is in use by {record}, which gave a sign of life {max(age, 0.0):.0f} s ago: two "
        f"would write over each other; wait for its end, stop it, or {way_out}. An owner counts as "
        f"gone when its process is, or after {STALE_SECONDS:.0f} s without a sign of life"
    )


def _age(folder: Path, record: OwnerRecord) -> float | None:
    """Seconds since the last sign of life, by this machine's clock; None: the file is gone."""
    try:
        return time.time() - owner_path(folder, record.number).stat().st_mtime
    except FileNotFoundError:
        return None


def _age_on_disk(folder: Path, record: OwnerRecord) -> float:
    """The same by the clock that gives files their times, which is the file server's."""
    probe = _write_aside(folder, this_process(0, "probe"))
    try:
        return probe.stat().st_mtime - owner_path(folder, record.number).stat().st_mtime
    except FileNotFoundError:
        return STALE_SECONDS
    finally:
        probe.unlink(missing_ok=True)


def _wait_for_sign(folder: Path, record: OwnerRecord, name: str) -> float:
    """Seconds since the last sign of life, once there was one or none for too long."""
    _tell(
        f"{name} is owned by {record}, of the same job: waiting for a sign of life of it, "
        f"{STALE_SECONDS:.0f} s at most"
    )
    path, first = owner_path(folder, record.number), None
    while (age := _age_on_disk(folder, record)) < STALE_SECONDS:
        last = path.stat().st_mtime_ns if path.exists() else None
        first = first or last
        if last != first:
            break
        time.sleep(min(1.0, STALE_SECONDS / 10.0))
    return age


def _write_aside(folder: Path, record: OwnerRecord) -> Path:
    aside = folder / f".owner-{uuid.uuid4().hex}"
    values = dataclasses.asdict(record)
    del values["number"]
    with aside.open("x", encoding="utf-8") as file:
        json.dump(values, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    return aside


def _link(folder: Path, record: OwnerRecord) -> bool:
    """Give the record its number; False where another one has it."""
    path, aside = owner_path(folder, record.number), _write_aside(folder, record)
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


def _tell(text: str) -> None:
    sys.stderr.write(f"ultralong: {text}\n")
    sys.stderr.flush()
