"""Where the time of an iteration goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch

PHASES = ("data", "forward", "backward", "communication", "optimizer", "checkpoint", "other")
_MEGATRON = {"forward-compute": "forward", "backward-compute": "backward"}


class PhaseTimers:
    """Seconds by phase; a phase inside another one stops the outer one's clock.

    Megatron's schedules take it as their ``timers``: what they call forward and backward
    compute, and everything they send, receive and reduce. Communication inside layers (tensor and
    context parallel) runs beside their kernels and counts as forward or backward; a trace
    (``--profile``) shows it.
    """

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._stack = ["other"]
        self._since = time.perf_counter()

    @property
    def current(self) -> str:
        """The phase that is running."""
        return self._stack[-1]

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the body's time under ``name``."""
        self._push(name)
        try:
            yield
        finally:
            self._pop()

    def take(self) -> dict[str, float]:
        """Milliseconds by phase since the last call."""
        self._count()
        taken = {name: 1000.0 * seconds for name, seconds in self._seconds.items()}
        self._seconds = dict.fromkeys(PHASES, 0.0)
        return taken

    def __call__(self, name: str, log_level: int | None = None) -> _MegatronTimer:
        """A timer by Megatron's name for it."""
        if name == "forward-backward":  # the whole pass: its parts are counted
            return _MegatronTimer(self, "other")
        return _MegatronTimer(self, _MEGATRON.get(name, "communication"))

    def _push(self, name: str) -> None:
        self._count()
        self._stack.append(name)

    def _pop(self) -> None:
        self._count()
        self._stack.pop()

    def _count(self) -> None:
        if torch.cuda.is_available():  # kernels are launched ahead: wait for those of this phase
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._seconds[self._stack[-1]] += now - self._since
        self._since = now


class _MegatronTimer:
    """What Megatron starts and stops."""

    def __init__(self, timers: PhaseTimers, phase: str) -> None:
        self._timers = timers
        self._phase = phase

    def start(self, barrier: Any = False) -> None:
        """Begin."""
        self._timers._push(self._phase)

    def stop(self, barrier: Any = False) -> None:
        """End."""
        self._timers._pop()
