"""What is told while ranks start."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ultralong.program import launch, ranks, starting


def test_more_ranks_than_cores_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    starting.warn_of_cores(8, 8)
    assert not capsys.readouterr().err
    starting.warn_of_cores(64, 2)
    told = capsys.readouterr().err
    assert told.startswith("warning: --ranks 64 on 2 cores without a GPU: ")
    assert "--ranks 2 or less is faster" in told


def test_ranks_that_are_slow_to_start_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"{number}.json" for number in range(3)]
    now = [100.0]
    monkeypatch.setattr(starting.time, "monotonic", lambda: now[0])
    ranks_there = starting.Starting(files)
    ranks_there.look()
    assert not capsys.readouterr().err
    monkeypatch.setenv(ranks.LAUNCHED, "1")
    (tmp_path / ranks.LAUNCHER_FILE).write_text("1")
    for number, said in ((0, "1 of 3 ranks have"), (1, "2 of 3 ranks have"), (2, "")):
        monkeypatch.setenv(ranks.ERROR_FILE, str(files[number]))
        starting.say_loaded()
        now[0] += 31
        ranks_there.look()
        assert said in (told := capsys.readouterr().err)
        assert bool(told) == bool(said)
    now[0] += 300
    ranks_there.look()
    assert not capsys.readouterr().err


def test_the_cores_are_told_by_a_start_itself(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where there is no GPU, before the first rank."""
    monkeypatch.setattr(launch, "_num_gpus", lambda: 0)
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda pid: {0})
    monkeypatch.setenv("PYTHON_EXEC", "true")
    assert launch.run_ranks(["--version"], 2, saves=False) == 0
    assert "--ranks 2 on 1 core without a GPU" in capfd.readouterr().err


@pytest.mark.parametrize(("gpus", "rank"), [(0, None), (1, None), (8, "0")])
def test_a_job_that_takes_all_gpus_is_not_warned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], gpus: int, rank: str | None
) -> None:
    if rank:
        monkeypatch.setenv("RANK", rank)
    starting.warn_of_gpus(gpus)
    assert capsys.readouterr().err == ""


def test_a_job_of_one_rank_on_several_gpus_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    starting.warn_of_gpus(8)
    told = capsys.readouterr().err
    assert told.startswith("warning: one of the 8 GPUs of this machine computes: `--ranks 8` takes")
