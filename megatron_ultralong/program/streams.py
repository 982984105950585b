"""Standard streams, whatever a shell, a scheduler or a lost terminal gives.

A run of days is not to end for the lines that it prints: its terminal may be gone, the disk of its
log full. Standard input is read once and kept: for this process, and for the ranks that it starts.
"""

import io
import logging
import os
import select
import subprocess
import sys
from typing import Any, TextIO

from megatron_ultralong.program.errors import InputError, printable
from megatron_ultralong.program.ranks import is_launched, world_size

_NAMES = ("stdout", "stderr")


class _Lasting(io.FileIO):
    """A stream's file. What it does not take is lost, and the reason kept; a broken pipe is an
    error, as everywhere.
    """

    failure: OSError | None = None
    """Why something was lost, until :func:`take_failure` has told it."""
    whose: TextIO | None = None
    """The stream whose file it is, and which would close it."""

    def write(self, data: Any, /) -> int:
        """See :class:`io.FileIO`; waits where the file is to be waited for."""
        try:
            while (written := super().write(data)) is None:
                select.select([], [self], [])
        except BrokenPipeError:
            raise
        except OSError as error:
            self.failure = error
            return memoryview(data).nbytes
        return written


def make_lasting() -> None:
    r"""Let both streams take any text, and fail no write except for a reader that has gone.

    A character that the encoding lacks is written out (``\u0416``). A stream that is closed
    becomes one to nowhere, and its number is taken, so that no file is opened as standard error:
    libraries write there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free
    for name in _NAMES:
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif type(stream) is io.TextIOWrapper and not isinstance(_raw(stream), _Lasting):
            setattr(sys, name, _lasting(stream))


def _raw(stream: TextIO) -> Any:
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def _lasting(stream: io.TextIOWrapper) -> TextIO:
    stream.flush()
    raw = _Lasting(stream.fileno(), "w", closefd=False)
    raw.whose = stream
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def take_failure(stream: TextIO) -> str:
    """Why something that was written to ``stream`` is lost, told once; empty: nothing is."""
    raw = _raw(stream)
    if not isinstance(raw, _Lasting) or raw.failure is None:
        return ""
    reason = raw.failure.strerror or str(raw.failure)
    raw.failure = None
    return reason


_kept: list[int] = []
"""A file in memory with its bytes, once they are read."""


def standard_input(what: str, most: int) -> bytes:
    """All bytes of standard input, as often as it is asked for; ``what`` names it in messages.

    Raises:
        InputError: it is closed, has more than ``most`` bytes, or is shared by ranks that
            something else has started.
    """
    if is_launched():
        return os.pread(0, most, 0)
    if not _kept:
        if world_size() > 1 and "RANK" in os.environ:
            raise InputError(
                f"{what}: ranks of torchrun share one standard input: write it to a file, or start "
                "the ranks of one machine with --ranks"
            )
        try:
            data = b"" if sys.stdin is None else sys.stdin.buffer.read(most + 1)
        except OSError as error:
            raise InputError(f"{what} cannot be read ({error})") from error
        if not data:
            raise InputError(f"{what} is empty: pipe a text into it, or name a file")
        if len(data) > most:
            raise InputError(f"{what} has more than {most:,} bytes, the most that is read of it")
        file = os.memfd_create("standard input")
        with open(file, "wb", closefd=False) as kept:
            kept.write(data)
        _kept.append(file)
    return os.pread(_kept[0], most, 0)


def input_of_ranks() -> int:
    """What ranks get as standard input: what was kept of it, else nothing."""
    return _kept[0] if _kept else subprocess.DEVNULL


class PrintableFormatter(logging.Formatter):
    """Messages of logging; control characters are written out, except for those of a traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The message as a terminal may see it."""
        return printable(super().formatMessage(record))
