"""Two jobs in one folder: one continues, the other ends before it writes; one is paused."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Literal

import pytest

from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.owner_record import read_owners
from megatron_ultralong.training.verbs import check_run, dry_run
from tests.training.conftest import MakeConfig
from tests.training.job import Job, every_loss, losses
from tests.training.test_kills import ROW_SECONDS, check_current, is_written, slow_rows

ENDLESS = 100_000
TAKEN_OVER = 73
Tree = dict[Path, tuple[int, bytes]]


def tree(root: Path) -> Tree:
    """All files of a folder with their content, and when they were changed."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def impatient(rank: int) -> None:
    """Run on every rank: an owner that is silent for a moment is gone."""
    from megatron_ultralong.program import owner

    owner.STALE_SECONDS = 0.2


def signal_all(job: Job, number: int) -> None:
    for rank in range(len(job.ranks)):
        job.signal(rank, number)


@functools.cache
def undisturbed(config: PretrainConfig) -> dict[int, set[tuple[float, float]]]:
    """What a run logs that nothing disturbs: the same for all tests, whatever they disturb."""
    with tempfile.TemporaryDirectory() as folder:
        with Job(dataclasses.replace(config, save=folder), 2) as job:
            assert job.wait() == [0, 0], job.text(0)
        return every_loss(Path(folder))


def finish_and_compare(config: PretrainConfig) -> None:
    """Continue for three iterations; everything that was logged is what one run logs."""
    root = Path(config.save)
    config = dataclasses.replace(config, train_iters=max(losses(root)) + 3)
    with Job(config, 2) as job:
        assert job.wait() == [0, 0], job.text(0)
    assert check_current(root) == config.train_iters
    found = every_loss(root)
    assert sorted(found) == list(range(1, config.train_iters + 1))
    # As many iterations or more, mostly of one length; no save changes a loss.
    length = 64 * 2 ** math.ceil(math.log2(max(config.train_iters / 64, 1)))
    expected = undisturbed(
        dataclasses.replace(config, save="", save_interval=0, train_iters=length)
    )
    assert found == {iteration: expected[iteration] for iteration in found}


def test_a_second_job_ends_before_it_writes(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    config = make_config(root, (1, 2), train_iters=ENDLESS)
    with Job(config, 2, slow_rows) as first:
        assert first.until(lambda: check_current(root) > 0)
        signal_all(first, signal.SIGSTOP)  # nothing is written but by the second one
        before = tree(root)
        with Job(config, 2) as second:
            assert second.wait() == [2, 2], second.text(0)
            said = second.text(0)
        assert tree(root) == before
        signal_all(first, signal.SIGCONT)
        assert f"--save {root} is in use by pretrain (process {first.ranks[0].pid} on " in said
        assert said.count("ultralong: error:") == 1
        assert "Traceback" not in said
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(InputError, match="is in use by pretrain"):
            dry_run(check_run(config, 2))
        iteration = max(losses(root))
        assert first.until_iteration(iteration + 2)
        first.signal(0, signal.SIGTERM)
        assert first.wait() == [75, 75], first.text(0)
    assert [bool(record.ended) for record in read_owners(root)] == [True]
    finish_and_compare(config)


def pause_and_take_over(config: PretrainConfig, choice: random.Random, *, in_saving: bool) -> None:
    """Stop a job at some moment, let another one finish its run, and let the first one continue."""
    root = Path(config.save)
    with Job(config, 2, slow_rows) as paused:
        assert paused.until(lambda: check_current(root) > 0)
        if in_saving:
            assert paused.until(lambda: is_written(root), every=0.002)
            time.sleep(choice.random() * 0.02)
        else:
            time.sleep(choice.random() * 3 * ROW_SECONDS)
        signal_all(paused, signal.SIGSTOP)
        finished = dataclasses.replace(config, train_iters=max(losses(root)) + 6)
        time.sleep(0.3)
        with Job(finished, 2, impatient) as next_one:
            assert next_one.wait() == [0, 0], next_one.text(0)
            said = next_one.text(0)
        assert f"is taken over from pretrain (process {paused.ranks[0].pid} on " in said
        assert "gave no sign of life for" in said
        before = tree(root)
        signal_all(paused, signal.SIGCONT)
        assert paused.wait() == [TAKEN_OVER, TAKEN_OVER], paused.text(0)
        assert f"another job has taken over --save {root}" in paused.text(0)
        assert tree(root) == before
        assert not [path for path in root.iterdir() if path.suffix in (".partial", ".removed")]
    finish_and_compare(dataclasses.replace(config, train_iters=finished.train_iters))


@pytest.mark.slow  # tests/test_one_output.py and test_owner.py have the same in little
def test_a_paused_job_that_was_taken_over_writes_nothing_more(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    config = make_config(tmp_path / "run", (1, 2), train_iters=ENDLESS)
    pause_and_take_over(config, random.Random(1), in_saving=True)


@pytest.mark.faults
@pytest.mark.parametrize("when", ["saving", "computing"])
@pytest.mark.parametrize("seed", range(4))
def test_a_paused_job_at_any_moment(
    tmp_path: Path, make_config: MakeConfig, when: Literal["saving", "computing"], seed: int
) -> None:
    config = make_config(tmp_path / "run", (1, 2), train_iters=ENDLESS, save_interval=2)
    pause_and_take_over(config, random.Random(seed), in_saving=when == "saving")


def start_twice(config: PretrainConfig, delay: float) -> None:
    """Two jobs, one ``delay`` seconds after the other: exactly one continues."""
    # A first job that has long been alone has not come far: all of it is compared.
    slow = functools.partial(slow_rows, seconds=max(ROW_SECONDS, delay / 60))
    with Job(config, 2, slow) as first:
        time.sleep(delay)
        with Job(config, 2, slow) as second:
            jobs = (first, second)
            ended = lambda job: not any(rank.is_alive() for rank in job.ranks)  # noqa: E731
            assert first.until(lambda: any(ended(job) for job in jobs))
            loser, winner = jobs if ended(first) else jobs[::-1]
            assert loser.wait() == [2, 2], loser.text(0)
            assert "is in use by pretrain (process" in loser.text(0)
            iteration = max(losses(Path(config.save)), default=0)
            assert winner.until_iteration(iteration + 4), winner.text(0)
            winner.signal(0, signal.SIGTERM)
            assert winner.wait() == [75, 75], winner.text(0)
    finish_and_compare(config)


@pytest.mark.faults
@pytest.mark.parametrize("delay", [0.0, 0.001, 0.01, 0.1, 0.3, 1.0, 3.0, 8.0, 18.0, 30.0])
def test_two_jobs_started_up_to_half_a_minute_apart(
    tmp_path: Path, make_config: MakeConfig, delay: float
) -> None:
    config = make_config(tmp_path / "run", (1, 2), "block", train_iters=ENDLESS)
    start_twice(config, delay)
