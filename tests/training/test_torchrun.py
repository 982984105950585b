"""Runs under torchrun itself: its signals, its restarts, and its death."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.owner_record import read_owners
from megatron_ultralong.training.saving.finished import STATUS_FILE
from megatron_ultralong.training.saving.run_folder import newest_good
from tests.training.conftest import MakeConfig
from tests.training.job import Job, TorchrunJob, every_loss, losses

LIMIT = 30.0
"""Seconds that a run may take to be down, with a time-out of 10 seconds for collectives."""
TIMEOUT = 10.0
ENDLESS = 100_000
RESTARTS = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""What torchrun needs for restarts: see docs/running.md."""


@contextmanager
def torchrun(
    config: PretrainConfig, folder: Path, *options: str, cold: bool = False, **environment: str
) -> Iterator[TorchrunJob]:
    """Two ranks under torchrun; nothing of it is left after."""
    job = TorchrunJob.start(config, folder, 2, *options, cold=cold, **environment)
    try:
        yield job
    finally:
        job.kill()


def assert_saved(root: Path, status: int) -> None:
    """The run has left that status, and a checkpoint of its last iteration."""
    assert (root / STATUS_FILE).read_text() == f"{status}\n"
    assert newest_good(root, 0, 1).folder == root / f"iter_{max(losses(root)):07d}"
    assert all(len(values) == 1 for values in every_loss(root).values())


def at_default_timeout(config: PretrainConfig) -> PretrainConfig:
    """Ten minutes, far more than torchrun's 30 seconds between a rank's death and the others'."""
    minutes = ParallelConfig().distributed_timeout_minutes
    assert minutes >= 5.0
    parallel = dataclasses.replace(config.parallel, distributed_timeout_minutes=minutes)
    return dataclasses.replace(config, parallel=parallel)


def test_torchrun_ends_and_saves_on_sigterm(tmp_path: Path, make_config: MakeConfig) -> None:
    root = tmp_path / "run"
    config = at_default_timeout(make_config(root, (1, 2), train_iters=ENDLESS))
    with torchrun(config, tmp_path / "job", cold=True) as job:  # as a user starts it
        job.until_more(root, 5)
        os.kill(job.process.pid, signal.SIGTERM)  # torchrun alone: it tells the ranks
        job.until_gone(LIMIT)
    assert_saved(root, 75)


@pytest.mark.faults
def test_torchrun_restarts_after_a_lost_rank(tmp_path: Path, make_config: MakeConfig) -> None:
    root = tmp_path / "run"
    config = at_default_timeout(make_config(root, (1, 2), train_iters=ENDLESS))
    with torchrun(config, tmp_path / "job", "--max-restarts", "1", **RESTARTS) as job:
        job.until_more(root, 5)
        lost = job.ranks()[1]
        os.kill(lost, signal.SIGKILL)
        job.until_more(root, 5)
        assert f"rank 1 (process {lost}" in job.text
        assert "resumed at iteration" in job.text
        os.kill(job.process.pid, signal.SIGTERM)
        job.until_gone(LIMIT)
    assert_saved(root, 75)


@pytest.mark.faults
@pytest.mark.parametrize(("rank", "num_jobs"), [(0, 3), (1, 2)])
def test_a_killed_rank_is_named_at_the_default_timeout(
    tmp_path: Path, make_config: MakeConfig, rank: int, num_jobs: int
) -> None:
    """Jobs side by side: each waits most of a minute for torchrun to end the other rank."""
    configs = [
        at_default_timeout(make_config(tmp_path / f"run-{n}", (1, 2), train_iters=ENDLESS))
        for n in range(num_jobs)
    ]
    lost = []
    with ExitStack() as stack:
        jobs = [
            stack.enter_context(torchrun(config, tmp_path / f"job-{n}"))
            for n, config in enumerate(configs)
        ]
        for config, job in zip(configs, jobs, strict=True):
            job.until_more(Path(config.save), 5)
            lost.append(job.ranks()[rank])
            os.kill(lost[-1], signal.SIGKILL)
        for job, process in zip(jobs, lost, strict=True):
            job.until_gone(LIMIT)
            assert f"LOST RANK: rank {rank} (process {process} on " in job.text
            assert "is gone: its process has ended; its last sign came from iteration" in job.text
    for config in configs:
        # Rank 0 gives the folder back where it lost another, unless torchrun ends it before that.
        given_back = all(record.ended for record in read_owners(Path(config.save)))
        assert not (rank == 0 and given_back)
        more = max(losses(Path(config.save))) + 3
        with Job(dataclasses.replace(config, train_iters=more), 2) as again:
            assert again.wait() == [0, 0]
            # A dead owner is taken over at once.
            assert ("its process is gone" in again.text(0)) != given_back


def test_a_torchrun_whose_restarts_fail_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with (
        pytest.raises(InputError, match=r"max-restarts 3.*export TORCH_DISABLE_SHARE_RDZV_TCP"),
        parallel_groups(ParallelConfig(), 1),
    ):
        pass


@pytest.mark.faults
def test_torchrun_restarts_after_a_hung_rank_and_the_losses_are_those_of_one_run(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    names = ("hung", "plain")
    hung, plain = (
        make_config(
            tmp_path / name, (1, 2), train_iters=30, save_interval=5, timeout_seconds=TIMEOUT
        )
        for name in names
    )
    root = Path(hung.save)
    with torchrun(hung, tmp_path / "job-hung", "--max-restarts", "2", **RESTARTS) as job:
        for number in (signal.SIGSTOP, signal.SIGKILL):
            job.until_more(root, 6)
            os.kill(job.ranks()[1], number)
        # The other run uses the time until the loss is seen.
        with torchrun(plain, tmp_path / "job-plain") as other:
            other.until_gone(300.0)
        job.until_gone(300.0)
        assert job.status == 0, job.text
    assert_saved(root, 0)
    assert losses(root) == losses(Path(plain.save))
    assert len(losses(root)) == 30


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_a_whole_job_saves(
    tmp_path: Path, make_config: MakeConfig, number: int
) -> None:
    root = tmp_path / "run"
    config = make_config(root, (1, 2), train_iters=ENDLESS, save_interval=0)
    signals = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    with torchrun(config, tmp_path / "job", f"--signals-to-handle={signals}") as job:
        job.until_more(root)
        for process in (job.process.pid, *job.ranks()):  # as a scheduler or Ctrl-C does
            os.kill(process, number)
        job.until_gone(LIMIT)
    assert_saved(root, 75)


@pytest.mark.faults
def test_ranks_whose_torchrun_is_killed_save_and_end(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    root = tmp_path / "run"
    config = make_config(root, (1, 2), train_iters=ENDLESS, save_interval=0)
    with torchrun(config, tmp_path / "job") as job:
        job.until_more(root)
        job.process.kill()
        job.until_gone(LIMIT)
        assert "torchrun is gone" in job.text
    assert_saved(root, 75)


@pytest.mark.faults
def test_without_restarts_a_hung_rank_ends_the_job(tmp_path: Path, make_config: MakeConfig) -> None:
    root = tmp_path / "run"
    config = make_config(root, (2, 1), train_iters=ENDLESS, timeout_seconds=TIMEOUT)
    config = dataclasses.replace(config, save_interval=5)
    with torchrun(config, tmp_path / "job") as job:
        job.until_more(root, 8)
        os.kill(job.ranks()[1], signal.SIGSTOP)
        job.until_gone(LIMIT)
        assert job.status == 1
        assert "LOST RANK: rank 0: iteration" in job.text
        assert "is silent; its last sign came from iteration" in job.text
    assert not newest_good(root, 0, 1).damaged
