"""Who owns a folder, as its file says: a process, its machine and its job."""

import contextlib
import dataclasses
import datetime
import json
import os
import re
import socket
import uuid
from pathlib import Path
from typing import Any

import psutil

from megatron_ultralong.program.errors import ClosedFileError, InputError, escaped
from megatron_ultralong.program.json_file import read_json

_NAME = re.compile(r"owner-(\d{6,18})\.json")
_MAX_BYTES = 65536


@dataclasses.dataclass(frozen=True)
class OwnerRecord:
    """What an owner says of itself: the content of its file."""

    number: int
    token: str = ""
    """No two owners have the same."""
    what: str = "a process"
    """What it does: ``pretrain``."""
    host: str = "an unknown machine"
    place: str = ""
    """Boot of a kernel and name space of processes: where ``pid`` means one process."""
    pid: int = 0
    process_start: float = 0.0
    """When that process began, in seconds since 1970."""
    job: str = ""
    """The scheduler's name for its job."""
    restart: int = 0
    """How often the scheduler has started that job again."""
    start: str = "an unknown time"
    ended: str = ""
    """When it gave the folder back."""

    def __str__(self) -> str:
        job = f", {self.job}" if self.job else ""
        text = f"{self.what} (process {self.pid} on {self.host}{job}, since {self.start})"
        return escaped(text[:400])


def read_owners(folder: Path, *, may_be_closed: bool = False) -> list[OwnerRecord]:
    """Records in ``folder``, the owner last.

    ``may_be_closed``: a record that is closed to this user is that of an owner whom nobody knows.

    Raises:
        OSError: the folder cannot be read. InputError: a record is closed to this user.
    """
    found = [match for name in os.listdir(folder) if (match := _NAME.fullmatch(name))]
    records = [_read(folder / its.string, int(its.group(1)), may_be_closed) for its in found]
    return sorted((record for record in records if record), key=lambda record: record.number)


def _read(path: Path, number: int, may_be_closed: bool) -> OwnerRecord | None:
    """None: it is gone. What is damaged or of another version is an owner whom nobody knows."""
    try:
        values = read_json(path, max_bytes=_MAX_BYTES)
    except InputError as error:
        if isinstance(error, ClosedFileError) and not may_be_closed:
            raise  # of a job of somebody else, which may be alive
        return OwnerRecord(number) if os.path.lexists(path) else None
    known: dict[str, Any] = {}
    for name, default in dataclasses.asdict(OwnerRecord(number)).items():
        value = values.get(name)
        if isinstance(default, float) and type(value) is int:  # as a program of others may write it
            value = float(value)
        if type(value) is type(default):
            known[name] = value
    return OwnerRecord(**{**known, "number": number})


def is_owner_file(path: Path) -> bool:
    """Whether a file is one of an owner, or is becoming one."""
    return _NAME.fullmatch(path.name) is not None or path.name.startswith(".owner-")


def owner_path(folder: Path, number: int) -> Path:
    """Where owner ``number`` of a folder stands: ``owner-000007.json``."""
    return folder / f"owner-{number:06d}.json"


def is_alive(pid: int, process_start: float) -> bool:
    """Whether a process of this place runs; another one may have its number by now."""
    try:
        process = psutil.Process(pid)
        began = process.create_time()
        return process.status() != psutil.STATUS_ZOMBIE and abs(began - process_start) < 2.0
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False
    except psutil.Error:
        return True


def this_process(number: int, what: str) -> OwnerRecord:
    """A record of this process, that does ``what``."""
    job, restart = this_job()
    return OwnerRecord(
        number=number,
        token=uuid.uuid4().hex,
        what=what,
        host=socket.gethostname(),
        place=this_place(),
        pid=os.getpid(),
        process_start=psutil.Process().create_time(),
        job=job,
        restart=restart,
        start=now_text(),
    )


def this_place() -> str:
    """Where process ids can be looked up: containers of one machine may have its name and boot."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def this_job() -> tuple[str, int]:
    """The job that this process belongs to, and how often it was started again; "": none."""
    if name := os.environ.get("SLURM_JOB_ID"):
        restart = os.environ.get("SLURM_RESTART_COUNT", "0")
        return f"SLURM job {name}", int(restart) if restart.isdecimal() else 0
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return ("" if name == "none" else f"torchrun {name}"), 0


def now_text() -> str:
    """The time as records have it."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def write_record_aside(folder: Path, record: OwnerRecord) -> Path:
    """Write a record under a name that nobody looks for; returns the path."""
    aside = folder / f".owner-{uuid.uuid4().hex}"
    try:
        with aside.open("x", encoding="utf-8") as file:
            json.dump(dataclasses.asdict(record), file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # a full disk
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    return aside
