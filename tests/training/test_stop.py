"""Listening for signals ends, whoever else holds the socket."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from pathlib import Path

import pytest

from megatron_ultralong.program.ending import ends_with_message
from megatron_ultralong.program.errors import InputError, RunStopped
from megatron_ultralong.training.telling import stop as stop_module
from megatron_ultralong.training.telling.stop import StopRequests


def test_a_forked_process_does_not_keep_the_listener() -> None:
    """It has the socket's other end too, and lives on: a run must be able to end all the same."""
    stop = StopRequests(0.0)
    with stop.listen():
        child = os.fork()
        if not child:
            signal.pause()
            os._exit(0)
    try:
        assert not [thread for thread in threading.enumerate() if thread.name == "signals"]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("numbers", "status"),
    [
        ((signal.SIGUSR1, signal.SIGTERM), None),
        ((signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1), 128 + signal.SIGUSR1),
        ((signal.SIGTERM, signal.SIGUSR1, signal.SIGINT), 128 + signal.SIGINT),
        ((signal.SIGINT, signal.SIGTERM), None),
        ((signal.SIGTERM, signal.SIGTERM), 128 + signal.SIGTERM),
    ],
)
def test_only_the_same_signal_again_or_ctrl_c_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, numbers: tuple[int, ...], status: int | None
) -> None:
    """The time limit's USR1, then a preemption's TERM: the step is still saved."""
    ended: list[int] = []
    clock = itertools.count(0.0, 10.0)  # none of them is an echo
    monkeypatch.setattr(stop_module.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(os, "_exit", ended.append)
    stop = StopRequests(0.0)
    stop.is_training = True
    for number in numbers:
        stop._take(number)
    assert stop.signal_number == numbers[0]
    assert ended == ([] if status is None else [status])


def test_the_status_of_a_job_is_left_where_a_batch_script_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that has left it ends with 0: torchrun prints no traceback for it."""
    path = tmp_path / "exit_status"
    for asked, rank, status, expected, left in (
        (False, "0", 75, 75, None),
        (True, None, 75, 75, None),
        (True, "1", 75, 0, None),  # the main one leaves it
        (True, "0", 75, 0, "75"),
    ):
        monkeypatch.delenv("RANK", raising=False)
        monkeypatch.delenv("ULTRALONG_EXIT_STATUS", raising=False)
        if asked:
            monkeypatch.setenv("ULTRALONG_EXIT_STATUS", str(path))
        if rank:
            monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as end, ends_with_message():
            raise RunStopped(status, "told to")
        assert end.value.code == expected
        assert (path.read_text().strip() if path.exists() else None) == left
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit) as end, ends_with_message():
        raise InputError("of this rank alone")
    assert (end.value.code, path.read_text().strip()) == (2, "2")
    monkeypatch.setenv("RANK", "0")
    with ends_with_message():
        pass
    assert path.read_text().strip() == "0"
    assert list(tmp_path.iterdir()) == [path]
