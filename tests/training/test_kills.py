"""Runs that are killed and resumed repeat the uninterrupted run, bit by bit."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from megatron_ultralong.checkpoint.disk.checksums import check_files, read_checksums
from megatron_ultralong.checkpoint.disk.folder import LATEST_FILE, iteration_folder
from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.data.rows.stored import StoredRow
from megatron_ultralong.sequence.document_mask import DocumentMask
from tests.training.conftest import MakeConfig
from tests.training.job import Job, every_loss, losses, num_lines

ROW_SECONDS = 0.05


def slow_rows(rank: int, seconds: float = ROW_SECONDS) -> None:
    """Run on every rank: a tiny model's iterations are over before they can be killed."""
    from megatron_ultralong.training.row_source import PackedRowSource

    plain = PackedRowSource.row

    def row(self: PackedRowSource, sample: int) -> StoredRow:
        time.sleep(seconds)
        return plain(self, sample)

    PackedRowSource.row = row  # type: ignore[method-assign]


def check_current(root: Path) -> int:
    """The current checkpoint, every byte of it looked at; 0 where there is none yet."""
    if not (root / LATEST_FILE).exists():
        return 0
    current = int((root / LATEST_FILE).read_text())
    folder = iteration_folder(root, current)
    checksums = read_checksums(folder)
    check_files(folder, checksums, checksums)
    return current


def is_written(root: Path) -> bool:
    """Whether a checkpoint is being written, this moment."""
    return any(root.glob("iter_*.partial"))


def kill_once(config: PretrainConfig, choice: random.Random, *, in_saving: bool) -> bool:
    """Start or resume the run, and kill it at a random moment; returns whether it was saving."""
    root = Path(config.save)
    before = num_lines(root)
    with Job(config, 2, slow_rows) as job:
        after = before + choice.randrange(1, 4)
        assert job.until(lambda: num_lines(root) >= after), job.text(0)
        if in_saving:  # while the next checkpoint is written aside and made current
            delay = choice.random() * 0.02
            for tries in range(4):  # a save may be over before that: then earlier in the next one
                assert job.until(lambda: is_written(root), every=0.002), job.text(0)
                time.sleep(delay / 4**tries)
                if is_written(root):
                    break
        else:
            time.sleep(choice.random() * 3 * ROW_SECONDS)
        is_saving = is_written(root)
        if choice.random() < 0.5:
            job.signal(choice.randrange(2), signal.SIGKILL)
            job.wait(60.0)  # the other one notices by itself
        job.kill()
        statuses = {rank.exitcode for rank in job.ranks}
        assert -signal.SIGKILL in statuses, "the run was over before it was killed"
    return is_saving


def compare(config: PretrainConfig, plain: PretrainConfig, num_kills: int) -> None:
    """Kill ``config``'s run, and hold every line that it has logged against ``plain``'s."""
    root = Path(config.save)
    with Job(plain, 2) as job:
        assert set(job.wait()) == {0}, job.text(0)
    choice = random.Random(str((config.parallel, config.data.document_mask)))
    num_in_saving = 0
    for kill in range(num_kills):
        num_in_saving += kill_once(config, choice, in_saving=kill % 2 == 0)
        check_current(root)
    assert num_in_saving
    with Job(config, 2) as job:
        assert set(job.wait()) == {0}, job.text(0)
        assert "is refused" not in job.text(0)
    assert check_current(root) == config.train_iters
    expected = losses(Path(plain.save))
    found = every_loss(root)
    assert sorted(found) == sorted(expected) == list(range(1, config.train_iters + 1))
    for iteration, values in found.items():
        assert values == {expected[iteration]}, iteration


def test_a_run_that_is_killed_repeats_itself(tmp_path: Path, make_config: MakeConfig) -> None:
    killed, plain = (
        make_config(tmp_path / name, (1, 2), "block", train_iters=10, timeout_seconds=20)
        for name in ("killed", "plain")
    )
    compare(killed, plain, 1)


@pytest.mark.faults
@pytest.mark.parametrize("mask", ["none", "block"])
@pytest.mark.parametrize("layout", [(1, 2), (2, 1), (1, 1)], ids=["cp2", "tp2", "dp2"])
def test_every_layout_survives_five_kills(
    tmp_path: Path, make_config: MakeConfig, layout: tuple[int, int], mask: DocumentMask
) -> None:
    killed, plain = (
        make_config(tmp_path / name, layout, mask, train_iters=20) for name in ("killed", "plain")
    )
    compare(killed, plain, 5)
