"""One process owns a folder: who gets it, who is refused, and who is taken over."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.program import owner, owner_record
from megatron_ultralong.program.errors import InputError, refused_file
from megatron_ultralong.program.owner import Owner, check_not_owned, take
from megatron_ultralong.program.owner_record import (
    OwnerRecord,
    owner_path,
    read_owners,
    this_process,
)

RACERS = 6


def own(folder: Path) -> Owner:
    return take(folder, "pretrain", f"--save {folder}")


def write_owner(folder: Path, number: int = 1, age: float = 1.0, **changes: Any) -> OwnerRecord:
    """An owner as this process would be, except for ``changes``, last seen ``age`` seconds ago."""
    record = dataclasses.replace(this_process(number, "pretrain"), **{"job": "", **changes})
    values = dataclasses.asdict(record)
    del values["number"]
    path = owner_path(folder, number)
    path.write_text(json.dumps(values))
    os.utime(path, (time.time() - age,) * 2)
    return record


def check(folder: Path) -> None:
    check_not_owned(folder, f"--save {folder}")


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Files of a folder, and when they and the folder itself were changed."""
    files = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    return {**files, ".": (folder.stat().st_mtime_ns, b"")}


def dead_pid() -> int:
    process = multiprocessing.get_context("fork").Process(target=os._exit, args=(0,))
    process.start()
    process.join()
    assert process.pid is not None
    return process.pid


def beat_while_others_sleep(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a sign of life of owner 1 gets one."""
    monkeypatch.setattr(time, "sleep", lambda _: os.utime(owner_path(folder, 1)))


def test_an_owner_here_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    write_owner(tmp_path)
    before = everything(tmp_path)
    for refused in (own, check):
        with pytest.raises(InputError) as raised:
            refused(tmp_path)
        text = str(raised.value)
        who = f"pretrain (process {os.getpid()} on {socket.gethostname()}, since 20"
        assert text.startswith(f"--save {tmp_path} is in use by {who}")
        assert "name another --save" in text
        assert "after 180 s" in text
    assert everything(tmp_path) == before


@pytest.mark.parametrize("job", ["", "SLURM job 7", "SLURM job 8"])
def test_an_owner_elsewhere_that_gives_a_sign_is_named_and_nothing_is_written(
    tmp_path: Path, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    write_owner(tmp_path, host="node7", place="another kernel", pid=2**40, job=job)
    before = {name: content for name, (_, content) in everything(tmp_path).items()}
    check_not_owned(tmp_path, "--save", is_patient=False)  # at once: nothing is known yet
    beat_while_others_sleep(tmp_path, monkeypatch)
    for refused in (own, check):
        with pytest.raises(InputError, match=rf"is in use by .* {2**40} on node7(, {job})?, since"):
            refused(tmp_path)
    assert {name: content for name, (_, content) in everything(tmp_path).items()} == before


@pytest.mark.parametrize(
    ("changes", "age", "reason"),
    [
        ({"pid": None}, 1.0, "its process is gone"),
        ({"process_start": 5.0}, 1.0, "its process is gone"),  # its number is another's by now
        ({"place": "another kernel"}, 181.0, "no sign of life for 180 s"),
        ({"place": "another kernel", "job": "SLURM job 7"}, 181.0, "no sign of life for 180 s"),
        ({}, 181.0, "no sign of life for 180 s"),  # stopped, and here
        ({"place": "another kernel", "job": "SLURM job 7", "restart": 1}, 1.0, "was started again"),
        ({"ended": "2026-11-28"}, 1.0, ""),
    ],
    ids=["killed", "another-process", "silent", "silent-job", "stopped", "requeued", "ended"],
)
def test_an_owner_that_is_gone_is_taken_over(
    tmp_path: Path,
    changes: dict[str, Any],
    age: float,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    if "pid" in changes:
        changes = {"pid": dead_pid()}
    write_owner(tmp_path, 4, age, **changes)
    check(tmp_path)
    local = own(tmp_path)
    assert [record.token for record in read_owners(tmp_path)] == [local.record.token]
    assert local.record.number == 5
    said = capsys.readouterr().err
    if reason:
        assert f"--save {tmp_path} is taken over from pretrain (process" in said
        assert reason in said
    else:
        assert not said
    local.release()


def test_a_clock_that_is_wrong_takes_nothing_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour ahead, this machine would call every owner silent; the disk has one clock."""
    now = time.time
    for place in ("another kernel", this_process(1, "").place):
        write_owner(tmp_path, age=0.0, place=place)
        beat_while_others_sleep(tmp_path, monkeypatch)
        for shift in (3600.0, -3600.0):
            monkeypatch.setattr(time, "time", lambda shift=shift: now() + shift)
            with pytest.raises(InputError, match=r"is in use by .* which is alive"):
                own(tmp_path)
        monkeypatch.setattr(time, "time", now)


def test_an_owner_on_a_lost_machine_is_waited_for_and_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A chained job, or a torchrun that moved rank 0, cannot know whether the first is gone."""
    monkeypatch.setattr(owner, "STALE_SECONDS", 1.0)
    write_owner(tmp_path, age=0.0, place="another kernel")
    own(tmp_path).release()
    said = capsys.readouterr().err
    assert "waiting for a sign of life of it; without one it is taken over in 1 s at most" in said
    assert "no sign of life for 1 s" in said


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"pid": "x", "place": 3}', b"\xff" * 9, b'{"unknown": null, "pid": null}'],
)
def test_a_damaged_owner_is_nobody_known(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner_path(tmp_path, 1).write_bytes(content)
    with monkeypatch.context() as patch:
        beat_while_others_sleep(tmp_path, patch)
        with pytest.raises(InputError, match="use by a process"):
            own(tmp_path)
    os.utime(owner_path(tmp_path, 1), (1.0, 1.0))
    own(tmp_path).release()


def test_a_whole_number_is_a_time_too(tmp_path: Path) -> None:
    owner_path(tmp_path, 1).write_text('{"process_start": 1764000000, "restart": 2}')
    (owner,) = read_owners(tmp_path)
    assert (owner.process_start, owner.restart) == (1764000000.0, 2)


def test_a_name_cannot_reach_the_terminal_raw(tmp_path: Path) -> None:
    write_owner(tmp_path, host="node\x1b[2J")
    with pytest.raises(InputError, match=r"on node\\x1b\[2J"):
        own(tmp_path)


def test_whoever_was_taken_over_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = own(tmp_path)
    assert first.is_mine()
    os.utime(owner_path(tmp_path, 1), (1.0, 1.0))
    second = own(tmp_path)
    assert not first.is_mine()
    first.release()
    assert second.is_mine()
    second.release()
    (record,) = read_owners(tmp_path)
    assert record.number == 2
    assert record.ended


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_record_that_cannot_be_read_for_a_while_is_no_taking_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A run of days would end, and say that another job has its folder."""
    first = own(tmp_path)

    def fails(path: Path, **_: Any) -> Any:
        told = refused_file(OSError(number, os.strerror(number), str(path)), "read")
        assert told is not None
        raise told

    with monkeypatch.context() as patch:
        patch.setattr(owner_record, "read_json", fails)
        assert first.is_mine()
        write_owner(tmp_path, 2)  # whose number is seen all the same
        assert not first.is_mine()
    assert not first.is_mine()
    owner_path(tmp_path, 2).unlink()
    assert first.is_mine()
    first.release()


def test_a_file_that_was_removed_is_written_again(tmp_path: Path) -> None:
    first = own(tmp_path)
    owner_path(tmp_path, 1).unlink()
    assert first.is_mine()
    owner_path(tmp_path, 1).unlink()
    second = own(tmp_path)  # at the same number, in a folder that looked like nobody's
    assert not first.is_mine()
    second.release()
    first.release()


def test_signs_of_life_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "BEAT_SECONDS", 0.01)
    local = own(tmp_path)
    path = owner_path(tmp_path, 1)
    os.utime(path, (1.0, 1.0))
    for _ in range(1000):
        if path.stat().st_mtime > 1.0:
            break
        time.sleep(0.01)
    assert path.stat().st_mtime > 1.0
    local.release()


def race(folder: Path, begin: Any, end: Any, wins: Any, has_links: bool) -> None:
    if not has_links:
        os.link = refuse_links
    begin.wait()
    try:
        local = own(folder)
    except InputError:
        end.wait()
        return
    with wins.get_lock():
        wins.value += 1
    end.wait()
    assert local.is_mine()
    os._exit(0)  # without a word: the next round finds a dead owner


def refuse_links(*args: object) -> None:
    raise PermissionError("this file system has no hard links")


@pytest.mark.parametrize("has_links", [True, False], ids=["links", "no-links"])
def test_of_several_at_once_one_gets_the_folder(tmp_path: Path, has_links: bool) -> None:
    """Into an empty folder first, then over one and the same dead owner."""
    context = multiprocessing.get_context("fork")
    for round in range(3):
        begin, end = context.Barrier(RACERS), context.Barrier(RACERS)
        wins = context.Value("i", 0)
        racers = [
            context.Process(target=race, args=(tmp_path, begin, end, wins, has_links))
            for _ in range(RACERS)
        ]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert [racer.exitcode for racer in racers] == [0] * RACERS
        assert wins.value == 1
        (record,) = read_owners(tmp_path)
        assert record.number == round + 1
        assert {path.name for path in tmp_path.iterdir()} == {owner_path(tmp_path, round + 1).name}


def wait_as_owner(folder: Path, owns: Any) -> None:
    own(folder)
    owns.set()
    signal.pause()


def test_a_killed_owner_is_gone_before_it_is_reaped(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    owns = context.Event()
    process = context.Process(target=wait_as_owner, args=(tmp_path, owns))
    process.start()
    assert owns.wait(60)
    with pytest.raises(InputError, match=f"process {process.pid}"):
        own(tmp_path)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    while Path(f"/proc/{process.pid}/stat").read_text().split()[2] != "Z":
        time.sleep(0.01)
    own(tmp_path).release()
    process.join()
