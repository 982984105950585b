"""How far work is: a bar with rate and ETA, drawn on a terminal, a line now and then in a log.

While ranks of this machine start: how many have got how far, and too few cores for them.
"""

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import rich.progress
from rich.table import Column

from megatron_ultralong.program import ranks, streams
from megatron_ultralong.program.ending import PROGRAM, drop_unread_output, tell
from megatron_ultralong.program.errors import counted
from megatron_ultralong.program.quantity import duration, quantity, rate
from megatron_ultralong.program.terminal import Console

_WIDTH_OF_A_BAR = 100
LOG_INTERVAL = 10.0
"""Seconds between two lines where standard error is not a terminal."""


def _columns(width: int) -> list[rich.progress.ProgressColumn]:
    """Of a terminal so wide: without a picture of the bar where that would cut the times off."""
    bar = [rich.progress.BarColumn()] if width >= _WIDTH_OF_A_BAR else []
    return [
        rich.progress.TextColumn("{task.description}"),
        *bar,
        rich.progress.TextColumn("{task.fields[amount]}"),
        rich.progress.TaskProgressColumn(),
        # It takes a second line before anything else gets narrower.
        rich.progress.TextColumn("{task.fields[status]}", table_column=Column()),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("ETA"),
        rich.progress.TimeRemainingColumn(),
    ]


class ProgressBar:
    """Counts work done towards ``total``; made by :func:`progress`."""

    def __init__(self, description: str, total: float, unit: str, before: int = 0) -> None:
        self.description = description
        self.total = total
        self.unit = unit
        self.done = float(before)
        self._before = before
        self._status: str | None = None
        self._has_warned = False
        self._told_at = self.done  # the last line said so many
        self._start = self._last_line = time.monotonic()
        self._bar: rich.progress.Progress | None = None
        if sys.stderr.isatty():
            console = Console(stderr=True)
            self._bar = rich.progress.Progress(
                *_columns(console.width),
                console=console,
                redirect_stdout=sys.stdout.isatty(),  # a file gets what is printed, not the bar
            )
            self._task = self._bar.add_task(
                description, total=total, completed=before, status="", amount=self._amount()
            )
            self._bar.start()

    def advance(self, amount: float = 1.0, status: str | None = None) -> None:
        """Count ``amount`` more units as done.

        ``status`` is shown instead of the rate: ``loss 2.345, 12,345 tokens/s``.
        """
        self.done += amount
        self._status = status
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(
                self._task, advance=amount, status=self._told(now), amount=self._amount()
            )
        elif now - self._last_line >= LOG_INTERVAL:
            self._last_line = now
            self._print(now)

    def print(self, line: str) -> None:
        """Print a line to standard output, above the bar where both are on the terminal.

        Where nobody reads it any more (``... | head``), or it cannot be written, the work
        continues.
        """
        if self._bar is not None and sys.stdout.isatty():
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            _write(line, sys.stdout)
            reason = streams.take_failure(sys.stdout)
            if reason and not self._has_warned:
                self._has_warned = True
                tell(
                    f"WARNING: standard output cannot be written ({reason}): its lines are lost "
                    "until it can; the work continues"
                )

    def stop(self) -> None:
        """Finish: the last line states what was done, and in what time."""
        if self._bar is not None:
            self._bar.stop()
        elif self.done > self._told_at:
            self._print(time.monotonic())

    def _told(self, now: float) -> str:
        """The status, or else the rate."""
        return self._status or rate(self.done - self._before, self.unit, now - self._start)

    def _amount(self) -> str:
        """``25/150 iterations``, ``1.2 GB/16.1 GB``."""
        if self.unit == "B":
            return f"{quantity(self.done, 'B')}/{quantity(self.total, 'B')}"
        return f"{self.done:,.0f}/{self.total:,.0f} {self.unit}"

    def _print(self, now: float) -> None:
        self._told_at = self.done
        elapsed, done = now - self._start, self.done - self._before
        left = elapsed * (self.total - self.done) / done if done else math.inf
        share = 100.0 * self.done / self.total if self.total else 100.0
        _write(
            f"{self.description}: {share:3.0f}% ({self._amount()}), {self._told(now)}, "
            f"elapsed {duration(elapsed)}, ETA {duration(left)}",
            sys.stderr,
        )


def _write(line: str, stream: TextIO) -> None:
    try:
        print(line, file=stream, flush=True)
    except BrokenPipeError:
        if not drop_unread_output():
            raise


@contextlib.contextmanager
def progress(
    description: str, total: float, unit: str = "items", *, before: int = 0
) -> Iterator[ProgressBar]:
    """A progress bar on standard error over ``total`` units of work.

    ``total`` has the units ``before``, done by an earlier process; ``unit`` is in the plural, ``B``
    for bytes.
    """
    bar = ProgressBar(description, total, unit, before)
    try:
        yield bar
    finally:
        bar.stop()


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
