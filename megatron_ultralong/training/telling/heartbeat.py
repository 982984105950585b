"""Signs of life between ranks, so that a job whose rank died or hangs ends and says which one.

Every rank writes into the job's key-value store now and then where its main thread is, and looks at
the next rank. Where that one has been silent for the time-out, where its process on this machine is
gone, or where a collective fails, this process says so, and at once which ranks of its machine are
gone. Then it waits for the others' next signs, reports the place of every rank, kills silent ranks
of its own machine, and ends. torchrun then ends the rest. Where a rank died torchrun ends all ranks
after 30 seconds in any case: everything is said before.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, NoReturn

import psutil
import torch.distributed as dist

from megatron_ultralong.program import exit_status, owner_record

_LONGEST_INTERVAL = 5.0
"""Seconds between two signs of life, at most."""
_SURVEY_BEATS = 3
"""Signs of life that a survey waits for: at the longest interval half of torchrun's 30 seconds."""
_SHOWN = 8
_PASSED_THROUGH = ("mcore/cpu.py", "mcore/parallel.py", "/contextlib.py", "/threading.py")


class Heartbeat:
    """Signs of life of this rank, and its eyes on the others."""

    def __init__(self, timeout_seconds: float, position: Callable[[], tuple[int, str]]) -> None:
        """Make it; it beats inside :meth:`beat`.

        Args:
            timeout_seconds: a rank that is silent for longer is lost.
            position: the iteration that the main thread is in, and the phase of it.
        """
        self._timeout = timeout_seconds
        self._interval = min(max(timeout_seconds / 30.0, 0.25), _LONGEST_INTERVAL)
        self._position = position
        self._rank, self._size = dist.get_rank(), dist.get_world_size()
        self._main_thread = threading.get_ident()
        self._stopped = threading.Event()
        self._is_ending = False
        self._end_once = threading.Lock()
        self._me = owner_record.this_process(0, "")
        self._count = 0
        self._rank_0: dict[str, Any] = {}
        """Its first sign of life: it may hold the store, and cannot be asked when it is lost."""
        world = dist.group.WORLD
        assert world is not None, "ranks meet first"
        self._store = world.get_group_store()

    @contextlib.contextmanager
    def beat(self) -> Iterator[None]:
        """Beat while the body runs; a collective that fails in it ends the process with 69."""
        if self._size == 1:
            yield
            return
        self._send()
        thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        except (dist.DistBackendError, RuntimeError) as error:
            if not is_lost_peer(error):
                raise
            reason = str(error).splitlines()[0][:200]
            frames = reversed([*traceback.walk_tb(error.__traceback__)])
            self._end(f"{_place(frames)} failed: {reason}")
        finally:
            self._stopped.set()
            thread.join(timeout=2 * self._interval)
            self._is_ending = True
            with contextlib.suppress(Exception):  # the store may be gone, in order
                self._send()  # a process that is gone from now on is not lost

    def _run(self) -> None:
        watched = (self._rank + 1) % self._size
        last_seen, last_count = time.monotonic(), -1
        while not self._stopped.wait(self._interval):
            try:
                self._send()
                self._rank_0 = self._rank_0 or self._read(0)
                sign = self._read(watched)
            except Exception:  # the store is gone: torchrun is ending the job
                return
            now = time.monotonic()
            if self._is_lost(watched, sign):
                self._end(f"in {self._place()}; the process of rank {watched} is gone")
            if sign["count"] != last_count:
                last_seen, last_count = now, sign["count"]
            elif now - last_seen > self._timeout:
                seconds = now - last_seen
                self._end(f"in {self._place()}; rank {watched} is silent for {seconds:.0f} s")

    def _send(self) -> None:
        iteration, phase = self._position()
        self._count += 1
        values = {
            "count": self._count,
            "iteration": iteration,
            "phase": phase,
            "place": self._place(),
            "is_ending": self._is_ending,
            "host": self._me.host,
            "machine": self._me.place,
            "pid": self._me.pid,
            "process_start": self._me.process_start,
        }
        self._store.set(f"heartbeat/{self._rank}", json.dumps(values))

    def _place(self) -> str:
        """Where the main thread is."""
        frame = sys._current_frames().get(self._main_thread)
        return _place(frame and traceback.walk_stack(frame))

    def _read(self, rank: int) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self._store.get(f"heartbeat/{rank}"))
        return values

    def _end(self, reason: str) -> NoReturn:
        """Report, kill silent ranks of this machine, and end this process."""
        self._end_once.acquire()  # the main thread and the one that beats may both find a loss
        self._is_ending = True
        iteration, phase = self._position()
        _tell(f"rank {self._rank}: iteration {iteration}, {phase}: {reason}")
        try:
            self._survey()
        except Exception as error:  # the store went with its host
            holder = "torchrun"
            if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "False":
                holder = f"rank 0 (process {self._rank_0.get('pid')})"
                self._kill_if_here(self._rank_0)
            _tell(
                f"{holder} holds the job's store and does not answer: it is lost "
                f"({type(error).__name__}), and the other ranks cannot be asked"
            )
        os._exit(exit_status.RANK_LOST)

    def _survey(self) -> None:
        """Tell where every rank is: at once which are gone, then, when signs had time, the rest."""
        self._send()  # the others' surveys see that this rank lives, and ends like them
        first = {rank: self._read(rank) for rank in range(self._size) if rank != self._rank}
        waiting: dict[str, list[int]] = defaultdict(list)
        unknown = set(first)
        deadline = time.monotonic() + _SURVEY_BEATS * self._interval
        while True:
            for rank in sorted(unknown):
                sign = self._read(rank)
                # A killed process closes its sockets a moment before it is gone.
                if self._is_lost(rank, sign):
                    unknown.remove(rank)
                    _tell(f"{_named(rank, sign)} is gone: its process has ended", sign)
                elif sign["count"] != first[rank]["count"] or sign["is_ending"]:
                    unknown.remove(rank)
                    waiting[_whereabouts(sign)].append(rank)
            if not unknown or time.monotonic() > deadline:
                break
            time.sleep(min(self._interval / 4, 1.0))
        for rank in sorted(unknown):
            _tell(f"{_named(rank, first[rank])} is silent", first[rank])
            self._kill_if_here(first[rank])
        for place, ranks in [*waiting.items()][:_SHOWN]:
            _tell(f"ranks {ranks} are at {place}")

    def _is_lost(self, rank: int, sign: dict[str, Any]) -> bool:
        """Whether a rank of this machine is dead and has not ended in order, as its sign says."""
        is_here = sign["machine"] == owner_record.this_place()
        if not is_here or owner_record.is_alive(sign["pid"], sign["process_start"]):
            return False
        return not self._read(rank)["is_ending"]  # as its last one says

    def _kill_if_here(self, lost: dict[str, Any]) -> None:
        """Kill a rank of the same torchrun: one that is stopped cannot take torchrun's SIGTERM."""
        if lost.get("host") == socket.gethostname():
            with contextlib.suppress(psutil.Error, OSError):
                if (
                    psutil.Process(lost["pid"]).ppid() == os.getppid()
                    and lost["pid"] != os.getpid()
                ):
                    os.kill(lost["pid"], signal.SIGKILL)


def _tell(text: str, last: dict[str, Any] | None = None) -> None:
    """Say it now, with a rank's last sign of life: this process may be killed the next moment."""
    end = f"; its last sign came from {_whereabouts(last)}" if last else ""
    sys.stderr.write(f"LOST RANK: {text}{end}\n")
    sys.stderr.flush()


def _named(rank: int, sign: dict[str, Any]) -> str:
    return f"rank {rank} (process {sign['pid']} on {sign['host']})"


def _whereabouts(sign: dict[str, Any]) -> str:
    return f"iteration {sign['iteration']}, {sign['phase']}, {sign['place']}"


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective failed for the lack of another rank, as its error says."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    words = ("gloo", "Gloo", "NCCL", "Connection", "Timed out")  # a disk's errors have them, too
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _place(frames: Iterable[tuple[FrameType, int]] | None) -> str:
    """The collective, and who called it: ``all_reduce of _everywhere (training/step.py:96)``.

    ``frames`` are those of a thread with their lines, the innermost first.
    """
    collective = ""
    for frame, line in frames or ():
        code = frame.f_code
        file = code.co_filename.replace(os.sep, "/")
        if "/torch/distributed/" in file:
            collective = collective if code.co_name == "wrapper" else code.co_name
        elif not file.endswith(_PASSED_THROUGH) and "/torch/" not in file:
            caller = f"{code.co_name} ({'/'.join(file.split('/')[-2:])}:{line})"
            return f"{collective} of {caller}" if collective else caller
    return collective or "unknown"
