"""A checkpoint that was begun, where the run does not come to its next step's end."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ultralong.checkpoint.disk.folder import LATEST_FILE
from megatron_ultralong.config.run import CheckpointConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.training.config_file import save_config
from megatron_ultralong.training.saving.run_folder import newest_good
from tests.training.conftest import MakeConfig
from tests.training.job import Job

ENDLESS = 100_000


def slow_writes(seconds: float) -> None:
    """Every piece of a checkpoint takes so long, in work of torch's, as a large tensor's does."""
    from megatron_ultralong.checkpoint.disk.large_files import ChunkedFile

    plain = ChunkedFile.write

    def write(self: ChunkedFile, data: Any) -> int:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            torch.zeros(2**20).clone()
        return plain(self, data)

    ChunkedFile.write = write  # type: ignore[method-assign]


def after_a_checkpoint(what: str) -> None:
    """In the iteration after the first checkpoint this happens, while that is being written."""
    from megatron_ultralong.training import loop

    iterate = loop._Run._iterate

    def other(self: loop._Run) -> Any:
        writer = self.saving._writer
        assert writer is not None
        if writer.iteration is None:
            return iterate(self)
        if what == "long":
            time.sleep(3600)
        elif what == "error":
            assert writer.is_writing
            raise InputError("this row is damaged")
        else:
            self.folder.is_mine = lambda: False  # type: ignore[method-assign]
        return iterate(self)

    loop._Run._iterate = other  # type: ignore[method-assign]


def long_step(rank: int) -> None:
    """Run on every rank before the job."""
    after_a_checkpoint("long")


def test_it_is_the_current_one_before_the_next_step_ends(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    """It became that at the end of the step: a rank lost in it cost that step and the one before.

    At these lengths a step takes up to hours.
    """
    root = tmp_path / "run"
    config = make_config(root, (1, 2), train_iters=ENDLESS, save_interval=2)
    with Job(config, 2, long_step) as job:
        assert job.until((root / LATEST_FILE).exists)
        assert newest_good(root, 0, 1).folder == root / "iter_0000002"


def error_on_one(rank: int) -> None:
    """Run on every rank before the job: both write for long, and one fails."""
    slow_writes(0.001)
    if rank:
        after_a_checkpoint("error")


def test_it_is_kept_where_one_rank_fails(tmp_path: Path, make_config: MakeConfig) -> None:
    root = tmp_path / "run"
    config = make_config(root, (1, 2), train_iters=ENDLESS, save_interval=2)
    with Job(config, 2, error_on_one) as job:
        assert job.wait() == [69, 2], job.text(0)
        assert "this row is damaged" in job.text(1)
    assert newest_good(root, 0, 1).folder == root / "iter_0000002"


def no_store(rank: int) -> None:
    """Run on every rank before the job."""
    from megatron_ultralong.training.saving import store_gather

    def gather(*_: Any) -> str:
        raise store_gather.StoreGoneError("failed to recv, got 0 bytes")

    store_gather.StoreGather.gather = gather  # type: ignore[method-assign]


def test_main_threads_gather_where_others_cannot(tmp_path: Path, make_config: MakeConfig) -> None:
    """The store goes with a torchrun that is killed: its ranks save, and end."""
    root = tmp_path / "run"
    with Job(make_config(root, (1, 2), train_iters=3, save_interval=1), 2, no_store) as job:
        assert job.wait() == [0, 0], job.text(0)
        assert "3 written, 0 failed" in job.text(0)
    assert newest_good(root, 0, 1).folder == root / "iter_0000003"


@pytest.mark.parametrize(
    ("what", "status"),
    [("error", 2), pytest.param("taken over", 73, marks=pytest.mark.slow)],
)
def test_the_interpreter_does_not_end_beside_its_thread(
    tmp_path: Path, make_config: MakeConfig, what: str, status: int
) -> None:
    """That aborted: ``terminate called without an active exception``, status 134.

    An interpreter of its own, as forked ranks end without an interpreter's end.
    """
    root, config_file = tmp_path / "run", tmp_path / "config.yaml"
    save_config(config_file, make_config(root, train_iters=ENDLESS, save_interval=2))
    code = (
        f"from {__name__} import after_a_checkpoint, slow_writes\n"
        f"slow_writes(0.001); after_a_checkpoint({what!r})\n"
        "from megatron_ultralong.cli import main\n"
        f"main(['pretrain', '--config', {str(config_file)!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert "terminate called" not in done.stderr
    if what == "error":
        assert "this row is damaged" in done.stderr
        assert "checkpoints: 1 written, 0 failed" in done.stdout
        assert newest_good(root, 0, 1).folder == root / "iter_0000002"
    else:
        assert "another job has taken over" in done.stderr
        assert not (root / LATEST_FILE).exists()


def disk_that_comes_back(rank: int) -> None:
    """Run on every rank before the job: nothing can be written, up to the second try at the end."""
    from megatron_ultralong.training import state
    from megatron_ultralong.training.saving.snapshot import Snapshot

    plain, tries = Snapshot.write, iter(range(ENDLESS))

    def write(self: Snapshot, texts: Any) -> Any:
        if next(tries) < 8:
            raise OSError(28, "No space left on device")
        return plain(self, texts)

    Snapshot.write = write  # type: ignore[method-assign]
    state._RETRY_SECONDS = 0.1


def test_a_run_that_failures_never_end_tries_again_at_its_end(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    """It tried once where as many had failed before, and seven iterations were lost."""
    root = tmp_path / "run"
    config = make_config(root, train_iters=7, save_interval=1)
    config = dataclasses.replace(config, checkpoint=CheckpointConfig(max_save_failures=0))
    with Job(config, 1, disk_that_comes_back) as job:
        assert job.wait() == [0], job.text(0)
        assert "(failure 8 in a row)" in job.text(0)
    assert newest_good(root, 0, 1).folder == root / "iter_0000007"


def full_disk(rank: int) -> None:
    """Run on every rank before the job: the checkpoint cannot be written, and the run fails."""
    from megatron_ultralong.training.saving.snapshot import Snapshot

    def write(self: Snapshot, texts: Any) -> Any:
        time.sleep(1.0)
        raise OSError(28, "No space left on device")

    Snapshot.write = write  # type: ignore[method-assign]
    after_a_checkpoint("error")


def test_one_that_fails_at_the_end_of_a_run_is_told(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    config = make_config(tmp_path / "run", train_iters=ENDLESS, save_interval=2)
    with Job(config, 1, full_disk) as job:
        assert job.wait() == [2], job.text(0)
        said = job.text(0)
    assert "WARNING: the checkpoint of iteration 2 could not be written" in said
    assert "checkpoints: 0 written, 1 failed" in said
    assert not [*(tmp_path / "run").glob("*.partial")]
