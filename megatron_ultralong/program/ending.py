"""How a program ends as a user should see it: one message, and the exit status."""

import contextlib
import json
import os
import select
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from megatron_ultralong.program import open_files
from megatron_ultralong.program.errors import (
    InputError,
    PassingError,
    RunStopped,
    printable,
    refused_file,
)
from megatron_ultralong.program.exit_status import forget_status, leave_status
from megatron_ultralong.program.libraries import lacking_package
from megatron_ultralong.program.ranks import (
    ERROR_FILE,
    is_launched,
    is_main_rank,
    leave_out_others,
    number_of,
)
from megatron_ultralong.program.streams import make_lasting, take_failure

PROGRAM = "ultralong"
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""
NO_READER = 141
"""Exit status where the reader of the output has gone, as shells have it (128 + SIGPIPE)."""
_SIGNALLED = 128
"""Statuses from here on say that something outside ended the program, as shells have it."""
_OTHERS_WAIT_SECONDS = 1.0
"""torchrun looks at its ranks ten times a second."""


@contextlib.contextmanager
def ends_with_message() -> Iterator[None]:
    """Turn the errors that a user can fix, and clean ends, into a message and a status.

    Where nobody reads the output any more (``ultralong ... | head``) the end is quiet.
    """
    others = leave_out_others()
    make_lasting()
    if others:
        tell(others)
    forget_status()
    try:
        with _quiet_without_reader(), _causes_are_told():
            yield
            _check_output()
        leave_status(0)
    except InputError as error:
        if not isinstance(error, PassingError):  # a job starts again, as after a lost rank
            leave_status(2, is_agreed=False)
        _tell_from_any_rank(f"error: {error}")
        sys.exit(2)
    except RunStopped as end:
        _tell(f"stopped: {end}")
        sys.exit(0 if leave_status(end.status) else end.status)
    except KeyboardInterrupt:
        _tell("interrupted")
        sys.exit(INTERRUPTED)
    except SystemExit as end:  # a mistyped flag, or what `doctor` has found on this rank
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
        # Not 0: a library that stops a run halfway leaves with it too.
        if 0 < status < _SIGNALLED:
            leave_status(status, is_agreed=False)
        raise
    except Exception:
        _leave_for_torchrun(traceback.format_exc())
        if is_launched():  # it prints the trace of the first rank alone
            sys.exit(1)
        raise


def _check_output() -> None:
    """Raise InputError where what was printed could not be written: it is what a user wanted."""
    sys.stdout.flush()
    if reason := take_failure(sys.stdout):
        raise InputError(
            f"standard output cannot be written ({reason}), and what was printed is lost: free "
            "disk space, or send it elsewhere"
        )


@contextlib.contextmanager
def _causes_are_told() -> Iterator[None]:
    """A file that cannot be opened is one that a user named, or lies in a folder that one did.

    A package that is not there is told as one, too.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if os.environ.get("ULTRALONG_LOG") == "DEBUG":
            raise
        message = refused_file(error) if isinstance(error, OSError) else None
        if message is None and (text := open_files.told(error)):
            message = InputError(text)
        if message is None:
            raise
        raise message from error
    except ModuleNotFoundError as error:
        text = "" if os.environ.get("ULTRALONG_LOG") == "DEBUG" else lacking_package(error)
        if not text:
            raise
        raise InputError(text) from error
    except ValueError as error:
        if str(error) != "embedded null byte":
            raise
        raise InputError("a name of a file or folder holds a null byte: write another") from error


@contextlib.contextmanager
def _quiet_without_reader() -> Iterator[None]:
    try:
        try:
            yield
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BrokenPipeError:
        if not drop_unread_output():
            raise
        sys.exit(NO_READER)
    except BaseException:
        drop_unread_output()  # the interpreter flushes it at its end
        raise


def drop_unread_output() -> bool:
    """Send output whose reader has gone to nowhere, so that nothing fails on it any more.

    Returns:
        Whether standard output or standard error had no reader.
    """
    is_unread = False
    for stream in (sys.stdout, sys.stderr):
        try:
            number = stream.fileno()
        except (OSError, ValueError, AttributeError):  # it is not a file
            continue
        poll = select.poll()
        poll.register(number, select.POLLOUT)
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            is_unread = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
    return is_unread


def tell(line: str) -> None:
    """Write a line for the user to standard error, on the main rank alone."""
    if is_main_rank():
        sys.stderr.write(f"{printable(line)}\n")


def _tell(message: str) -> None:
    message = printable(message)
    _leave_for_torchrun(f"{PROGRAM}: {message}")
    if is_main_rank() and not is_launched():
        sys.stderr.write(f"{PROGRAM}: {message}\n")


def _tell_from_any_rank(message: str) -> None:
    """As :func:`_tell`, from a rank that may be the only one with that error too.

    Where the first rank of its machine has the same error, torchrun ends this one meanwhile.
    """
    rank, local_rank = map(number_of, ("RANK", "LOCAL_RANK"))
    if rank == 0:
        _tell(message)
        return
    message = f"rank {rank} on {socket.gethostname()}: {printable(message)}"
    _leave_for_torchrun(f"{PROGRAM}: {message}")
    if is_launched():
        return
    time.sleep(_OTHERS_WAIT_SECONDS * (2 if local_rank else 1))
    sys.stderr.write(f"{PROGRAM}: {message}\n")


def _leave_for_torchrun(message: str) -> None:
    """What torchrun prints last, under "Root Cause", where it would name a page of its own.

    In the form of torch's ``ErrorHandler.record_exception``.
    """
    path = os.environ.get(ERROR_FILE)
    if path:
        details = {"py_callstack": message, "timestamp": str(int(time.time()))}
        content = {"message": {"message": message, "extraInfo": details}}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps(content), encoding="utf-8")
