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

import contextlib
import dataclasses
import os
import random
import shutil
import threading
import time
from pathlib import Path

from megatron_ultralong.program import owner_record
from megatron_ultralong.program.ending import PROGRAM, tell
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.owner_record import OwnerRecord, owner_path, read_owners

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
            records = read_owners(self.folder, may_be_closed=True)
            if not records:  # somebody has removed the file
                _link(self.folder, self.record)
                return True
        except OSError:
            return True
        newest = records[-1]
        # Of one that cannot be read now, for the disk fails, the number is known: it has one owner.
        is_own_number = newest.number == self.record.number
        return newest.token == self.record.token or (is_own_number and not newest.token)

    def check_mine(self) -> None:
        """Raise InputError where another process has taken the folder over: its work continues."""
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

    def release(self) -> None:
        """Give the folder back; nothing if it was taken over.

        The file stays and says when this was: others may look at this moment, and numbers never
        go back.
        """
        self._stopped.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            path = owner_path(self.folder, self.record.number)
            if path.exists() and self.is_mine():
                ended = dataclasses.replace(self.record, ended=owner_record.now_text())
                os.replace(owner_record.write_record_aside(self.folder, ended), path)

    def _beat(self) -> None:
        while not self._stopped.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(owner_path(self.folder, self.record.number))


def take(folder: Path, what: str, name: str) -> Owner:
    """Become the owner of ``folder``, which exists.

    An owner that is gone is taken over, with a line on standard error.

    ``what`` this process does is for the message that another one gets; users know the folder by
    ``name``: ``--save runs/1m``.

    Raises:
        InputError: another process owns it; nothing has been written then.
        OSError: the folder cannot be written to.
    """
    while True:
        before = read_owners(folder)
        reason = _why_gone(folder, before[-1], name) if before else ""
        own_record = owner_record.this_process(before[-1].number + 1 if before else 1, what)
        if not _link(folder, own_record):
            continue  # somebody was faster
        known = {record.token for record in (*before, own_record)}
        if any(record.token not in known for record in read_owners(folder)):
            # It began at another number while this one looked: both step back.
            owner_path(folder, own_record.number).unlink(missing_ok=True)
            time.sleep(random.random())
            continue
        # Before anything is written: an owner that was stopped finds its file gone.
        for record in before:
            owner_path(folder, record.number).unlink(missing_ok=True)
        if reason:
            tell(f"{PROGRAM}: {name} is taken over from {before[-1]}: {reason}")
        return Owner(folder, own_record)


def _link(folder: Path, record: OwnerRecord) -> bool:
    """Give the record its number; False where another one has it."""
    path, aside = owner_path(folder, record.number), owner_record.write_record_aside(folder, record)
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


def check_not_owned(folder: Path, name: str, *, is_patient: bool = True) -> None:
    """Look whether :func:`take` would be refused, without writing.

    An owner on another machine is watched for a sign of life; without ``is_patient`` nothing is
    said of one.

    Raises:
        InputError: another process owns ``folder``.
    """
    records = read_owners(folder) if folder.is_dir() else []
    if not records or _reason_gone(records[-1]) is not None:
        return
    age = _age(folder, records[-1])
    if age is None or not 0 <= age < STALE_SECONDS:
        return
    is_here = records[-1].place == owner_record.this_place()
    if is_here or (is_patient and _gives_sign(folder, records[-1], 2.5 * BEAT_SECONDS)):
        raise _in_use(records[-1], name)


def _why_gone(folder: Path, record: OwnerRecord, name: str) -> str:
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
    if age < STALE_SECONDS and record.place != owner_record.this_place():
        tell(
            f"{PROGRAM}: {name} is owned by {record}: waiting for a sign of life of it; without "
            f"one it is taken over in {STALE_SECONDS:.0f} s at most"
        )
        # Its machine may be lost, and nobody should have to start again for that.
        if not _gives_sign(folder, record, max(STALE_SECONDS - age, STALE_SECONDS / 2)):
            age = STALE_SECONDS
    if age < STALE_SECONDS:
        raise _in_use(record, name)
    return f"it gave no sign of life for {STALE_SECONDS:.0f} s"


def _reason_gone(record: OwnerRecord) -> str | None:
    """Why an owner is known to be gone; None: it is not known."""
    if record.ended:
        return ""
    if record.place and record.place == owner_record.this_place():
        alive = owner_record.is_alive(record.pid, record.process_start)
        return None if alive else "its process is gone"
    job, restart = owner_record.this_job()
    if job and job == record.job and restart > record.restart:
        return "its job was started again"
    return None


def _in_use(record: OwnerRecord, name: str) -> InputError:
    flag = name.split()[0]
    return InputError(
        f"{name} is in use by {record}, which is alive: two would write over each other; wait for "
        f"its end, stop it, or name another {flag}. An owner counts as gone when its process is, "
        f"or after {STALE_SECONDS:.0f} s without a sign of life"
    )


def _age(folder: Path, record: OwnerRecord) -> float | None:
    """Seconds since the last sign of life, by this machine's clock; None: the file is gone."""
    changed = _changed(owner_path(folder, record.number))
    return None if changed is None else time.time() - changed / 1e9


def _age_on_disk(folder: Path, record: OwnerRecord) -> float:
    """The same by the clock that gives files their times, which is the file server's."""
    probe = owner_record.write_record_aside(folder, owner_record.this_process(0, "probe"))
    try:
        return probe.stat().st_mtime - owner_path(folder, record.number).stat().st_mtime
    except FileNotFoundError:
        return STALE_SECONDS
    finally:
        probe.unlink(missing_ok=True)


def _gives_sign(folder: Path, record: OwnerRecord, seconds: float) -> bool:
    """Watch an owner for so long; whether it lives. No clock but this process's own is asked."""
    path, deadline = owner_path(folder, record.number), time.monotonic() + seconds
    first = _changed(path)
    while time.monotonic() < deadline:
        time.sleep(min(1.0, seconds / 10.0))
        if _changed(path) != first:
            newest = read_owners(folder)[-1:]
            return bool(newest) and not newest[0].ended
    return False


def _changed(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None
