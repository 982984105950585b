"""A progress bar with rate and ETA: drawn on a terminal, a line now and then in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

import rich.progress

from megatron_ultralong.program.terminal import Console

LOG_INTERVAL = 10.0
"""Seconds between two lines where standard error is not a terminal."""


class ProgressBar:
    """Counts work done towards ``total``; made by :func:`progress`."""

    def __init__(self, description: str, total: float, unit: str) -> None:
        self.description = description
        self.total = total
        self.unit = unit
        self.done = 0.0
        self._start = self._last_line = time.monotonic()
        self._bar: rich.progress.Progress | None = None
        if sys.stderr.isatty():
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                rich.progress.TaskProgressColumn(),
                rich.progress.TextColumn("{task.fields[rate]}"),
                rich.progress.TimeElapsedColumn(),
                rich.progress.TextColumn("ETA"),
                rich.progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                redirect_stdout=sys.stdout.isatty(),  # a file gets what is printed, not the bar
            )
            self._task = self._bar.add_task(description, total=total, rate="")
            self._bar.start()

    def advance(self, amount: float = 1.0) -> None:
        """Count ``amount`` more units as done."""
        self.done += amount
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, advance=amount, rate=self._rate(now))
        elif now - self._last_line >= LOG_INTERVAL:
            self._last_line = now
            self._print(now)

    def print(self, line: str) -> None:
        """Print a line to standard output, above the bar where both are on the terminal."""
        if self._bar is not None and sys.stdout.isatty():
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, flush=True)  # noqa: T201

    def stop(self) -> None:
        """Finish: the last line states what was done, and in what time."""
        if self._bar is not None:
            self._bar.stop()
        elif self.done:
            self._print(time.monotonic())

    def _rate(self, now: float) -> str:
        return f"{self.done / max(now - self._start, 1e-9):,.4g} {self.unit}/s"

    def _print(self, now: float) -> None:
        elapsed = now - self._start
        left = elapsed * (self.total - self.done) / self.done if self.done else float("inf")
        share = 100.0 * self.done / self.total if self.total else 100.0
        print(  # noqa: T201
            f"{self.description}: {share:3.0f}% "
            f"({self.done:,.10g}/{self.total:,.10g} {self.unit}), "
            f"{self._rate(now)}, elapsed {elapsed:.0f} s, ETA {max(left, 0.0):.0f} s",
            file=sys.stderr,
            flush=True,
        )


@contextlib.contextmanager
def progress(description: str, total: float, unit: str = "it") -> Iterator[ProgressBar]:
    """A progress bar on standard error over ``total`` units of work."""
    bar = ProgressBar(description, total, unit)
    try:
        yield bar
    finally:
        bar.stop()
