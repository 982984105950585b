"""Signs of life of a folder's owner: whether it lives, or may be taken over."""

from __future__ import annotations

import time
from pathlib import Path

from megatron_ultralong.program.ending import PROGRAM, tell
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.owner_record import (
    OwnerRecord,
    is_alive,
    owner_path,
    read_owners,
    this_job,
    this_place,
    this_process,
    write_record_aside,
)

BEAT_SECONDS = 15.0
"""Between two signs of life."""
STALE_SECONDS = 180.0
"""An owner that is silent for so long is gone. More than a client of NFS may see an old time of a
file (a minute), and a beat."""


def check_not_owned(folder: Path, name: str, way_out: str) -> None:
    """Look whether :func:`take` would be refused, without writing.

    Raises:
        InputError: another process owns ``folder``. One on another machine is watched for a sign
            of life first.
    """
    records = read_owners(folder) if folder.is_dir() else []
    if not records or _reason_gone(records[-1]) is not None:
        return
    age = _age(folder, records[-1])
    if age is None or not 0 <= age < STALE_SECONDS:
        return
    is_here = records[-1].place == this_place()
    if is_here or _gives_sign(folder, records[-1], 2.5 * BEAT_SECONDS):
        raise _in_use(records[-1], name, way_out)


def why_gone(folder: Path, record: OwnerRecord, name: str, way_out: str) -> str:
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
    if age < STALE_SECONDS and record.place != this_place():
        tell(
            f"{PROGRAM}: {name} is owned by {record}: waiting for a sign of life of it; without "
            f"one it is taken over in {STALE_SECONDS:.0f} s at most"
        )
        # Its machine may be lost, and nobody should have to start again for that.
        if not _gives_sign(folder, record, max(STALE_SECONDS - age, STALE_SECONDS / 2)):
            age = STALE_SECONDS
    if age < STALE_SECONDS:
        raise _in_use(record, name, way_out)
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


def _in_use(record: OwnerRecord, name: str, way_out: str) -> InputError:
    return InputError(
        f"{name} is in use by {record}, which is alive: two would write over each other; wait for "
        f"its end, stop it, or {way_out}. An owner counts as gone when its process is, or after "
        f"{STALE_SECONDS:.0f} s without a sign of life"
    )


def _age(folder: Path, record: OwnerRecord) -> float | None:
    """Seconds since the last sign of life, by this machine's clock; None: the file is gone."""
    try:
        return time.time() - owner_path(folder, record.number).stat().st_mtime
    except FileNotFoundError:
        return None


def _age_on_disk(folder: Path, record: OwnerRecord) -> float:
    """The same by the clock that gives files their times, which is the file server's."""
    probe = write_record_aside(folder, this_process(0, "probe"))
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
