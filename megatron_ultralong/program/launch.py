"""Ranks of one machine, started by ``--ranks N`` and ended together, with one message.

What torchrun does for one node, without its page of traces: ranks have the variables that it sets,
a signal goes to all of them, and none outlives this process.
"""

import contextlib
import ctypes
import dataclasses
import itertools
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from megatron_ultralong.program import exit_status, ranks, streams
from megatron_ultralong.program.errors import InputError, counted
from megatron_ultralong.program.fields import Range
from megatron_ultralong.program.json_file import read_json
from megatron_ultralong.program.starting import Starting, warn_of_cores

HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
BAD_INPUT = 2
_RANGE = Range(1, 1024)
_LOOK_SECONDS = 0.05
_ENDING_SECONDS = 60.0
"""For the other ranks of a job that ends in order: they end at the same step."""
_LOST_SECONDS = 25.0
"""For ranks that have lost another one: they look who is gone, which takes them 15 s at most."""
_FAILED_SECONDS = 1.5
"""For ranks beside one with an error: they find the same, or wait for it in vain."""
_KILL_SECONDS = 5.0
"""Between a request to end and the end of it."""
_SIGNALLED = 128
"""Statuses beyond it are of programs that something outside has ended, as shells have it."""
_PR_SET_PDEATHSIG = 1
_OF_MEMORY = " (`dmesg` says whether memory ran out)"


def take_ranks(words: Sequence[str]) -> tuple[int | None, list[str]]:
    """The number behind ``--ranks`` on a command line, and the words without it.

    Raises:
        InputError: so many ranks cannot be started here.
    """
    rest, values = [], []
    for word in (iterator := iter(words)):
        if word == "--ranks":
            values.append(next(iterator, ""))
        elif word.startswith("--ranks="):
            values.append(word.partition("=")[2])
        else:
            rest.append(word)
    if not values:
        return None, rest
    value = values[-1]
    if not re.fullmatch(r"\d{1,9}", value) or not _RANGE.holds(int(value)):
        raise InputError(
            f"--ranks must be between 1 and {_RANGE.most}, not {value!r}: it starts so many ranks "
            "on this machine; several machines need torchrun (docs/clusters.md)"
        )
    _check_can_start(int(value))
    return int(value), rest


def _check_can_start(num_ranks: int) -> None:
    """Raise InputError where something has started ranks already, or GPUs are too few."""
    tasks, _, program = ranks.tasks_without_ranks()
    if ranks.under_torchrun() or tasks:
        who = f"one of {counted(tasks, 'task')} of {program}"
        if ranks.under_torchrun():
            who = f"rank {os.environ['RANK']} of {ranks.world_size()}"
        raise InputError(
            f"--ranks {num_ranks} starts ranks, but this process is already part of a job "
            f"({who}): leave --ranks out under torchrun, and let srun or mpirun start one task"
        )
    found = _num_gpus()
    if found and num_ranks > found:
        raise InputError(
            f"--ranks {num_ranks} is more than the {counted(found, 'GPU')} of this machine: "
            "every rank has "
            f"one; use --ranks {found} or less, or CUDA_VISIBLE_DEVICES= to run on the CPU"
        )


def _num_gpus() -> int:
    """NVIDIA's GPUs that programs may use here; 0: none."""
    devices = [path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdecimal()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return len(devices)
    names = (one.strip() for one in visible.split(","))  # CUDA reads them up to the first below 0
    return len([one for one in itertools.takewhile(lambda one: one[:1] != "-", names) if one])


@dataclasses.dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    error_file: Path
    status: int | None = None
    """How it ended; below 0: by a signal."""
    is_killed_here: bool = False
    """Whether this process ended it, because of another rank or of a signal."""

    def message(self) -> str:
        """What it left to be told, empty where it left nothing."""
        with contextlib.suppress(InputError):
            text: str = read_json(self.error_file).object("message").string("message")
            return text
        return ""

    def kill(self, number: int) -> None:
        """A signal to it and to what it has started, where it has not ended by itself."""
        if self.process.poll() is not None:
            return
        self.is_killed_here = True
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, number)


def run_ranks(
    words: Sequence[str], num_ranks: int, *, saves: bool, way_on: Callable[[], str] = str
) -> int:
    """Run ``ultralong WORDS`` on ranks of this machine until all have ended.

    Args:
        words: the verb and its flags.
        num_ranks: to start.
        saves: whether ranks save their work at SIGTERM; others are killed where this process dies.
        way_on: says, where a rank was lost, from what the same command continues.

    Returns:
        The exit status of the job; its message has been written to standard error.
    """
    if not _num_gpus():
        warn_of_cores(num_ranks, len(os.sched_getaffinity(0)))
    sent: list[int] = []
    started: list[_Rank] = []

    def hand_on(number: int, frame: object) -> None:
        sent.append(number)
        for rank in started:
            if rank.status is None:
                with contextlib.suppress(OSError):
                    os.kill(rank.process.pid, number)

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=ranks.FOLDER_PREFIX)))
        (folder / ranks.LAUNCHER_FILE).write_text(str(os.getpid()), encoding="ascii")
        for number in HANDED_ON:
            stack.callback(signal.signal, number, signal.signal(number, hand_on))
        port = stack.enter_context(_held_port())
        dies_by = signal.SIGTERM if saves else signal.SIGKILL
        stack.callback(_kill, started)
        for rank in range(num_ranks):
            started.append(_start(words, rank, num_ranks, port, folder, dies_by))
            if sent:  # it came before this one was there
                hand_on(sent.pop(), None)
        starting = Starting([rank.error_file for rank in started])
        ended = _watch(started, sent, starting, saves=saves)
        status, message = _outcome(ended, sent, saves=saves)
        if status == exit_status.RANK_LOST:
            message += f"; {way_on() or 'start it again'}"
        if message:
            sys.stderr.write(message if message.endswith("\n") else f"{message}\n")
    exit_status.write_status(status)
    return status


def _kill(started: Sequence[_Rank]) -> None:
    for rank in started:
        if rank.status is None:
            rank.kill(signal.SIGKILL)


@contextlib.contextmanager
def _held_port() -> Iterator[int]:
    """A free port, which nobody else is given until rank 0 listens on it.

    Bound and not listening, it can be bound again by who allows it, as torch's store does.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))
        yield holder.getsockname()[1]


def _start(
    words: Sequence[str], number: int, num_ranks: int, port: int, folder: Path, dies_by: int
) -> _Rank:
    error_file = folder / f"{number}.json"
    threads = max(1, len(os.sched_getaffinity(0)) // num_ranks)
    environment = {
        "OMP_NUM_THREADS": str(threads),
        # torch's store asks for the name of 127.0.0.1, and waits 10 s if no name server answers.
        "RES_OPTIONS": "timeout:1 attempts:1",
        **{key: value for key, value in os.environ.items() if key != exit_status.STATUS_VARIABLE},
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        ranks.LAUNCHED: str(os.getpid()),
        ranks.ERROR_FILE: str(error_file),
        **ranks.path_of_modules(),
    }
    python = os.environ.get("PYTHON_EXEC", sys.executable)  # as torchrun chooses it
    process = subprocess.Popen(
        [python, "-u", "-m", "megatron_ultralong", *words],
        env=environment,
        stdin=streams.input_of_ranks(),
        start_new_session=True,  # a terminal's Ctrl-C comes once, from here
        preexec_fn=_dying_with(os.getpid(), dies_by),
    )
    return _Rank(number, process, error_file)


def _dying_with(parent: int, number: int) -> Callable[[], None]:
    """Makes a new process get a signal when ``parent`` dies, also by SIGKILL: prctl(2)."""
    prctl = ctypes.CDLL(None).prctl

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died meanwhile
            os._exit(128 + number)

    return prepare


def _watch(
    started: Sequence[_Rank], sent: Sequence[int], starting: Starting, *, saves: bool
) -> list[_Rank]:
    """Wait for all ranks, in the order of their ends; end those that a failed one leaves behind.

    Where nothing is saved, a signal ends all: those that hang in a call that no signal interrupts
    are killed soon, and at once at a second one.
    """
    ended: list[_Rank] = []
    deadline, number, is_ending = math.inf, signal.SIGTERM, False
    while len(ended) < len(started):
        starting.look()
        for rank in started:
            if rank.status is None and (status := rank.process.poll()) is not None:
                rank.status = status
                ended.append(rank)
                if status in (1, BAD_INPUT):
                    number = signal.SIGKILL  # beside it nothing is worth saving
                if status:
                    deadline = min(deadline, time.monotonic() + _patience(status))
        if sent and not saves:
            number = signal.SIGKILL
            if not is_ending:
                deadline = min(deadline, time.monotonic() + _KILL_SECONDS)
            if len(sent) > 1:
                deadline = 0.0
            is_ending = True
        left = [rank for rank in started if rank.status is None]
        if left and time.monotonic() >= deadline:
            for rank in left:
                rank.kill(number)
            deadline, number = time.monotonic() + _KILL_SECONDS, signal.SIGKILL
        time.sleep(_LOOK_SECONDS)
    return ended


def _patience(status: int) -> float:
    """Seconds that the others have after a rank has ended so."""
    if status in (1, BAD_INPUT) or status > _SIGNALLED:
        return _FAILED_SECONDS
    return _LOST_SECONDS if status < 0 or status == exit_status.RANK_LOST else _ENDING_SECONDS


def _outcome(ended: Sequence[_Rank], sent: Sequence[int], *, saves: bool) -> tuple[int, str]:
    """Exit status and message of a job whose ranks ended in this order."""
    failed = [rank for rank in ended if rank.status]
    if not failed:
        return 0, ended[0].message() if ended else ""
    own = [rank for rank in failed if not (rank.is_killed_here and (rank.status or 0) < 0)]
    statuses = [rank.status or 0 for rank in own]
    told = [rank for rank in own if rank.message()]
    if BAD_INPUT in statuses:
        told = [rank for rank in told if rank.status == BAD_INPUT]
        first = min(told, key=lambda rank: rank.number != 0, default=None)  # 0 before the others
        return BAD_INPUT, first.message() if first else ""
    if lost := _lost(own, sent):
        name = signal.Signals(-(lost.status or 0)).name
        return exit_status.RANK_LOST, (
            f"ultralong: rank {lost.number} (process {lost.process.pid}) was ended by {name}: all "
            f"ranks have ended{_OF_MEMORY if lost.status == -signal.SIGKILL else ''}"
        )
    if sent and not saves:  # an error now is of ranks that miss those that have ended
        return _SIGNALLED + sent[0], "ultralong: interrupted"
    by_signal = [status for status in statuses if status < 0]
    if by_signal and -by_signal[0] in sent:
        return _SIGNALLED - by_signal[0], told[0].message() if told else "ultralong: interrupted"
    if told and told[0].status == 1:
        others = statuses.count(1) - 1
        also = f", and {others} more with one of their own" if others else ""
        return 1, (
            f"{told[0].message()}ultralong: rank {told[0].number} failed with the error above{also}"
        )
    if statuses[0] == 1:
        return 1, (
            f"ultralong: rank {own[0].number} (process {own[0].process.pid}) ended with status 1 "
            "and without a message: see the lines above"
        )
    if exit_status.RANK_LOST in statuses:
        return exit_status.RANK_LOST, "ultralong: a rank was lost: all ranks have ended"
    return abs(statuses[0]), told[0].message() if told else ""


def _lost(own: Sequence[_Rank], sent: Sequence[int]) -> _Rank | None:
    """The rank that something else has killed, if one was; its peers fail for the lack of it.

    A library may abort a rank for the lack of one with an error: it ends after that one.
    """
    for number, rank in enumerate(own):
        status = rank.status or 0
        is_error_first = any(other.status == 1 for other in own[:number])
        if status < 0 and -status not in sent and (-status == signal.SIGKILL or not is_error_first):
            return rank
    return None
