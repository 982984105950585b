"""One process owns a folder: who gets it, who is refused, and who is taken over."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong import owner
from megatron_ultralong.errors import InputError
from megatron_ultralong.owner import Owner, present_owner, take
from megatron_ultralong.owner_record import (
    OwnerRecord,
    owner_path,
    read_owners,
    this_process,
)

RACERS = 8


def own(folder: Path) -> Owner:
    return take(folder, "pretrain", f"--save {folder}", "name another --save")


def write_owner(folder: Path, number: int = 1, age: float = 1.0, **changes: Any) -> OwnerRecord:
    """An owner as this process would be, but for ``changes``, last seen ``age`` seconds ago."""
    record = dataclasses.replace(this_process(number, "pretrain"), **{"job": "", **changes})
    values = dataclasses.asdict(record)
    del values["number"]
    path = owner_path(folder, number)
    path.write_text(json.dumps(values))
    os.utime(path, (time.time() - age,) * 2)
    return record


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


@pytest.mark.parametrize(
    "changes",
    [
        {},  # this very process, alive
        {"host": "node7", "place": "another kernel"},
        {"host": "node7", "place": "another kernel", "job": "SLURM job 8"},
        {"pid": 2**40, "process_start": 1, "place": "another kernel"},
    ],
    ids=["here", "elsewhere", "another-job", "a-pid-of-another-kernel"],
)
def test_an_owner_is_named_and_nothing_is_written(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    found = write_owner(tmp_path, **changes)
    before = everything(tmp_path)
    with pytest.raises(InputError) as raised:
        own(tmp_path)
    assert everything(tmp_path) == before
    text = str(raised.value)
    assert text.startswith(
        f"--save {tmp_path} is in use by pretrain (process {found.pid} on {found.host}"
    )
    assert "gave a sign of life 1 s ago" in text
    assert "name another --save" in text
    assert "after 180 s" in text
    assert present_owner(tmp_path) == found


@pytest.mark.parametrize(
    ("changes", "age", "reason"),
    [
        ({"pid": None}, 1.0, "its process is gone"),
        ({"process_start": 5.0}, 1.0, "its process is gone"),  # its number is another's by now
        ({"place": "another kernel"}, 181.0, "no sign of life for 180 s"),
        ({}, 181.0, "no sign of life for 180 s"),  # stopped, and here
        ({"place": "another kernel", "job": "SLURM job 7", "restart": 1}, 1.0, "was started again"),
        ({"ended": "2026-11-28"}, 1.0, ""),
    ],
    ids=["killed", "another-process", "silent", "stopped", "requeued", "ended"],
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
    assert present_owner(tmp_path) is None
    mine = own(tmp_path)
    assert [record.token for record in read_owners(tmp_path)] == [mine.record.token]
    assert mine.record.number == 5
    said = capsys.readouterr().err
    if reason:
        assert f"--save {tmp_path} is taken over from pretrain (process" in said
        assert reason in said
    else:
        assert not said
    mine.release()


def test_a_clock_that_is_wrong_takes_nothing_over(tmp_path: Path) -> None:
    """An hour ahead, this machine would call every owner silent; the disk has one clock."""
    write_owner(tmp_path, age=0.0, place="another kernel")
    now = time.time
    with pytest.MonkeyPatch.context() as patch:
        for shift in (3600.0, -3600.0):
            patch.setattr(time, "time", lambda shift=shift: now() + shift)
            with pytest.raises(InputError, match=r"is in use by .* sign of life 0 s ago"):
                own(tmp_path)


@pytest.mark.parametrize("lives", [True, False])
def test_a_start_of_the_same_job_elsewhere_waits_for_a_sign(
    tmp_path: Path, lives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torchrun that moved rank 0 to another node cannot know whether the first one is gone."""
    monkeypatch.setattr(owner, "STALE_SECONDS", 1.0)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run-1")
    write_owner(tmp_path, age=0.0, place="another kernel", job="torchrun run-1")
    if not lives:
        own(tmp_path).release()
        return
    monkeypatch.setattr(time, "sleep", lambda _: os.utime(owner_path(tmp_path, 1)))
    with pytest.raises(InputError, match="is in use by"):
        own(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x", "place": 3}', b"\xff" * 9])
def test_a_damaged_owner_is_nobody_known(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner_path(tmp_path, 1).write_bytes(content)
    with pytest.raises(InputError, match="is in use by a process"):
        own(tmp_path)
    os.utime(owner_path(tmp_path, 1), (1.0, 1.0))
    own(tmp_path).release()


def test_a_name_cannot_reach_the_terminal_raw(tmp_path: Path) -> None:
    write_owner(tmp_path, host="node\x1b[2J", place="another kernel")
    with pytest.raises(InputError, match=r"on node\?\[2J"):
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
    mine = own(tmp_path)
    path = owner_path(tmp_path, 1)
    os.utime(path, (1.0, 1.0))
    for _ in range(1000):
        if path.stat().st_mtime > 1.0:
            break
        time.sleep(0.01)
    assert path.stat().st_mtime > 1.0
    mine.release()


def race(folder: Path, begin: Any, end: Any, wins: Any, has_links: bool) -> None:
    if not has_links:
        os.link = refuse_links
    begin.wait()
    try:
        mine = own(folder)
    except InputError:
        end.wait()
        return
    with wins.get_lock():
        wins.value += 1
    end.wait()
    assert mine.is_mine()
    os._exit(0)  # without a word: the next round finds a dead owner


def refuse_links(*args: object) -> None:
    raise PermissionError("this file system has no hard links")


@pytest.mark.parametrize("has_links", [True, False], ids=["links", "no-links"])
def test_of_several_at_once_one_gets_the_folder(tmp_path: Path, has_links: bool) -> None:
    """Into an empty folder first, then over one and the same dead owner."""
    context = multiprocessing.get_context("fork")
    for round in range(5):
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
