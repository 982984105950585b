"""The file in which the ranks of a job leave the status with which it ended, for a batch script.

torchrun makes 1 of every status of its ranks but 0, prints a traceback for each, and kills ranks
that end later. So ranks that end in order leave their status there, and exit with 0.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from megatron_ultralong.program.aside import is_replaceable
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.ranks import is_main_rank, under_torchrun

STATUS_VARIABLE = "ULTRALONG_EXIT_STATUS"
"""Names the file; without it, none is written."""
RANK_LOST = 69
"""Of a job one of whose ranks was lost (EX_UNAVAILABLE): start it again."""


def leave_status(status: int, *, is_agreed: bool = True) -> bool:
    """Leave the status of a job for its batch script, where that asks for it; whether it is left.

    Where all ranks end with the same status (``is_agreed``) the main one leaves it, and they may
    end with 0. What another rank has found wrong meanwhile stays.
    """
    path = _status_file()
    if path is None:
        return False
    if is_agreed and not is_main_rank():
        return True
    aside = path.with_name(f"{path.name}.{os.environ['RANK']}")
    try:
        aside.write_text(f"{status}\n", encoding="ascii")
        if is_agreed and (_is_first(aside, path) or _is_failure(path)):
            aside.unlink()
        else:
            os.replace(aside, path)
    except OSError:
        return False
    return True


def _is_first(aside: Path, path: Path) -> bool:
    """Give a file its name where nothing has it: no other rank comes between look and rename."""
    with contextlib.suppress(OSError):  # it has; or the disk knows no hard links
        os.link(aside, path)
        return True
    return False


def _named() -> Path | None:
    """The file that is named; None: none is, or ``/dev/null``, which is not removed for it."""
    path = Path(os.environ.get(STATUS_VARIABLE, ""))
    return path if path.name and not path.is_dir() and is_replaceable(path) else None


def _status_file() -> Path | None:
    """Where a rank of a job leaves its status, if it is to leave one."""
    return _named() if under_torchrun() else None


def _is_failure(path: Path) -> bool:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip() not in ("", "0")
    except OSError:
        return False


def forget_status() -> None:
    """Remove the status of an earlier job, so that after a crash there is none; the main rank does.

    Another rank of this job may have left its own already: what is younger than torchrun stays.
    """
    path = _status_file()
    if path is None or not is_main_rank():
        return
    with contextlib.suppress(OSError):
        is_first_start = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if not is_first_start or path.stat().st_mtime < _process_start(os.getppid()):
            path.unlink()


def write_status(status: int) -> None:
    """Leave the status of a job that this process alone speaks for: it has started its ranks."""
    if path := _named():
        with contextlib.suppress(OSError):
            path.write_text(f"{status}\n", encoding="ascii")


@contextlib.contextmanager
def status_of_start() -> Iterator[None]:
    """Inside, a job's ranks are started by ``--ranks``, or are refused, which leaves 2.

    The status of an earlier job is removed first. A rank of torchrun leaves its own.
    """
    if under_torchrun():
        yield
        return
    if path := _named():
        with contextlib.suppress(OSError):
            path.unlink()
    try:
        yield
    except InputError:
        write_status(2)
        raise
    write_status(0)  # where no rank was needed, too


def _process_start(number: int) -> float:
    """When a process began, in seconds since 1970: field 22 of proc_pid_stat(5).

    psutil's ``create_time`` counts from a whole second of the boot, and files have no such error.
    """
    fields = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
    ticks = int(fields.rpartition(")")[2].split()[19])
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return boot + ticks / os.sysconf("SC_CLK_TCK")
