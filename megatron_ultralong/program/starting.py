"""What is told while ranks of this machine start: how many have got how far, too few cores."""

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_ultralong.program import ranks
from megatron_ultralong.program.ending import PROGRAM, tell
from megatron_ultralong.program.errors import counted
from megatron_ultralong.program.quantity import duration

_TOLD_EVERY = 30.0
"""Seconds: libraries are loaded in a few on an idle machine."""


def say_loaded() -> None:
    """Leave word for what has started this rank by ``--ranks`` that its libraries are loaded."""
    if ranks.is_launched():
        with contextlib.suppress(OSError):
            _mark(Path(os.environ[ranks.ERROR_FILE])).touch()


def warn_of_gpus(num_gpus: int) -> None:
    """Warn of GPUs of this machine that a job without ranks leaves idle."""
    if num_gpus > 1 and not ranks.under_torchrun():
        tell(
            f"warning: one of the {num_gpus} GPUs of this machine computes: `--ranks {num_gpus}` "
            "takes all, CUDA_VISIBLE_DEVICES=0 says that one is meant"
        )


def warn_of_cores(num_ranks: int, cores: int) -> None:
    """Warn of more ranks than cores, which each compute with at least one thread."""
    if num_ranks > cores:
        tell(
            f"warning: --ranks {num_ranks} on {counted(cores, 'core')} without a GPU: ranks wait "
            f"for each other, and start one after another; --ranks {cores} or less is faster"
        )


class Starting:
    """Tells from time to time how many ranks have loaded their libraries, until all have."""

    def __init__(self, error_files: Sequence[Path]) -> None:
        """Begin to count, by the file where each rank leaves its message."""
        self._marks = [_mark(path) for path in error_files]
        self._begin = time.monotonic()
        self._next = self._begin + _TOLD_EVERY

    def look(self) -> None:
        """Tell, where it is time."""
        now = time.monotonic()
        if not self._marks or now < self._next:
            return
        self._next = now + _TOLD_EVERY
        loaded = sum(mark.exists() for mark in self._marks)
        if loaded == len(self._marks):
            self._marks = []
            return
        tell(
            f"{PROGRAM}: {loaded} of {counted(len(self._marks), 'rank')} have loaded their "
            f"libraries after {duration(now - self._begin)}"
        )


def _mark(error_file: Path) -> Path:
    return error_file.with_suffix(".loaded")
