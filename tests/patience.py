"""How long a test waits before it calls something hung: longer where the machine is slow.

A wait is written as a quiet machine of two cores needs it, with room to spare. What this machine
takes for a fixed piece of work stretches it. Nothing is judged by it but hanging.
"""

from __future__ import annotations

import os
import time

import torch

_QUIET_SECONDS = 0.1
"""Of :func:`_work` on two quiet cores, 28 November 2026."""
_NAME = "ULTRALONG_TEST_SLOWNESS"
"""Processes that tests start take the figure of the one that measured."""


def patience(seconds: float) -> float:
    """``seconds`` of a quiet machine, in seconds of this one: 30.0 -> 60.0 at half the speed."""
    return seconds * slowness()


def slowness() -> float:
    """How many times as long as the quiet machine this one takes; at least 1."""
    if _NAME not in os.environ:
        os.environ[_NAME] = str(max(1.0, _measured() / _QUIET_SECONDS))
    return float(os.environ[_NAME])


def _measured() -> float:
    """Wall time of the work: the mean of three, since a throttled process halts now and then."""
    start = time.monotonic()
    for _ in range(3):
        _work()
    return (time.monotonic() - start) / 3


def _work() -> None:
    """Steps of the interpreter, and products of small matrices."""
    sum(number * number for number in range(1_500_000))
    square = torch.ones(256, 256)
    for _ in range(180):
        square @ square
