"""Requests to end a run in order: signals, Ctrl-C, a torchrun that died, a time that is over."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

from megatron_ultralong.program.exit_status import leave_status

STOPPED = 75
"""Exit status of a run that saved and ended as it was told to (EX_TEMPFAIL): start it again."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
SAME_SIGNAL_SECONDS = 3.0
"""The same signal this soon is not a second one: a scheduler signals torchrun and the ranks,
and torchrun hands its own on to the ranks."""
_LOOK_SECONDS = 1.0


class StopRequests:
    """What this rank was asked to do; every rank has one, and they agree at a step's end."""

    def __init__(self, exit_duration_in_mins: float) -> None:
        self.signal_number = 0
        """The first signal that came; 0: none. SIGHUP stands for a torchrun that is gone."""
        self.is_training = False
        """Before its first iteration a run has nothing to save, and a signal ends it at once."""
        self._deadline = (
            time.monotonic() + 60.0 * exit_duration_in_mins if exit_duration_in_mins else None
        )
        self._times: dict[int, float] = {}
        """When each signal came first, by its number."""
        self._is_left = threading.Event()

    @property
    def is_late(self) -> bool:
        """Whether the run has had its time."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        """Catch the signals inside this context; only a process's main thread can.

        A thread reads them, so that a second one ends the process though its main thread waits in
        a collective, where Python runs no handler.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._is_left.clear()
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        handlers = {number: signal.signal(number, _noted) for number in SIGNALS}
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(target=self._read, args=(reader,), name="signals", daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self._is_left.set()  # a process that was forked meanwhile may hold the socket open
            writer.close()
            thread.join()
            reader.close()

    def _read(self, reader: socket.socket) -> None:
        parent = os.getppid()
        reader.settimeout(_LOOK_SECONDS)
        while True:
            try:
                received = reader.recv(64)
            except TimeoutError:
                if self._is_left.is_set():
                    return
                if "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != parent:
                    self._take_hangup()
                continue
            if not received:
                return
            for number in received:
                if number in SIGNALS:
                    self._take(number)

    def _take_hangup(self) -> None:
        """What started the ranks was killed, and nothing is there to end this one later."""
        if not self.signal_number:
            self.signal_number = signal.SIGHUP
            _tell("torchrun is gone: saving a checkpoint at the end of this step")

    def _take(self, number: int) -> None:
        """A signal came.

        One for the time limit may be followed by another one for preemption: that is no order to
        drop the step. The same signal again is one, and so is Ctrl-C after any other.
        """
        now = time.monotonic()
        name = signal.Signals(number).name
        if not self.is_training:
            _tell(f"{name}: ending at once, nothing is to be saved yet")
            os._exit(0 if leave_status(STOPPED) else STOPPED)
        first = self._times.setdefault(number, now)
        if not self.signal_number:
            self.signal_number = number
            again = "SIGINT" if number == signal.SIGINT else f"{name} or SIGINT"
            _tell(
                f"{name}: saving a checkpoint at the end of this step; {again} again ends at once"
            )
        elif now - first > SAME_SIGNAL_SECONDS or self._is_order(number, now):
            _tell(f"second signal ({name}): ending at once")
            os._exit(128 + number)
        elif first == now:
            _tell(f"{name}: noted; the checkpoint at the end of this step is still to be saved")

    def _is_order(self, number: int, now: float) -> bool:
        """Whether it is a person's Ctrl-C after another signal, not one of a whole terminal."""
        earlier = (time for each, time in self._times.items() if each != number)
        return number == signal.SIGINT and now - min(earlier, default=now) > SAME_SIGNAL_SECONDS


def _noted(number: int, frame: object) -> None:
    """The signal's number is on its way through the socket."""


def _tell(text: str) -> None:
    sys.stderr.write(f"rank {os.environ.get('RANK', '0')}: {text}\n")
    sys.stderr.flush()
