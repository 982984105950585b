"""Runs that are killed and resumed repeat the uninterrupted run, bit by bit."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest

from megatron_ultralong.checkpoint.checksums import check_files, read_checksums
from megatron_ultralong.checkpoint.folder import LATEST_FILE, iteration_folder
from megatron_ultralong.config import PretrainConfig
from megatron_ultralong.documents import DocumentMask
from tests.training.conftest import MakeConfig
from tests.training.job import Job, every_loss, losses

STEPS = 20


def check_current(root: Path) -> int:
    """The current checkpoint, every byte of it looked at; 0 where there is none yet."""
    if not (root / LATEST_FILE).exists():
        return 0
    current = int((root / LATEST_FILE).read_text())
    folder = iteration_folder(root, current)
    checksums = read_checksums(folder)
    check_files(folder, checksums, checksums)
    return current


def run_with_kills(
    config: PretrainConfig, world_size: int, num_kills: int, choice: random.Random
) -> int:
    """Kill all ranks, or one, at random moments, and resume each time; returns kills in saving."""
    root = Path(config.save)
    killed_in_saving = 0
    for kill in range(num_kills):
        with Job(config, world_size) as job:
            first = check_current(root) + 1
            at = min(first + choice.randrange(1, 5), STEPS - 1)
            assert job.until_iteration(at), job.text(0)
            if kill % 2:  # in saving: while the next checkpoint is written aside
                job.until(lambda: any(root.glob("iter_*.partial")))
                time.sleep(choice.random() * 0.02)
                killed_in_saving += any(root.glob("iter_*.partial"))
            else:
                time.sleep(choice.random() * 0.2)
            if choice.random() < 0.5:
                job.signal(choice.randrange(world_size), 9)
                if world_size > 1:
                    job.wait(30.0)  # the others notice by themselves
            job.kill()
        check_current(root)
    with Job(config, world_size) as job:
        assert set(job.wait()) == {0}, job.text(0)
    assert check_current(root) == STEPS
    return killed_in_saving


def compare(config: PretrainConfig, plain: PretrainConfig, world_size: int, kills: int) -> int:
    """Kill ``config``'s run, and hold every line it has logged against ``plain``'s."""
    with Job(plain, world_size) as job:
        assert set(job.wait()) == {0}, job.text(0)
    choice = random.Random(f"{config.save}")
    in_saving = run_with_kills(config, world_size, kills, choice)
    expected = losses(Path(plain.save))
    found = every_loss(Path(config.save))
    assert sorted(found) == list(range(1, STEPS + 1))
    for iteration, values in found.items():
        assert values == {expected[iteration]}, iteration
    return in_saving


def test_a_run_that_is_killed_repeats_itself(tmp_path: Path, make_config: MakeConfig) -> None:
    kills = 2
    killed, plain = (make_config(tmp_path / name, (1, 2), "block") for name in ("a", "b"))
    compare(killed, plain, 2, kills)
    shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["none", "block"])
@pytest.mark.parametrize("layout", [(1, 2), (2, 1), (1, 1)])
def test_every_layout_survives_five_kills(
    tmp_path: Path, make_config: MakeConfig, layout: tuple[int, int], mask: DocumentMask
) -> None:
    killed, plain = (make_config(tmp_path / name, layout, mask) for name in ("a", "b"))
    assert compare(killed, plain, 2, 5) >= 1
