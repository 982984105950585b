"""How far work is: a bar with rate and ETA, drawn on a terminal, a line now and then in a log."""

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from typing import TextIO

import rich.progress
from rich.table import Column

from megatron_ultralong.program import streams
from megatron_ultralong.program.ending import drop_unread_output, tell
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
