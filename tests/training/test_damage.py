"""Damaged checkpoints are refused by name, and the last good one is taken."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.checkpoint.disk.checksums import DamagedError, read_checksums
from megatron_ultralong.checkpoint.disk.folder import LATEST_FILE
from megatron_ultralong.checkpoint.formats.megatron import check_tensors, listed_files
from megatron_ultralong.program.errors import FailingDiskError, InputError
from megatron_ultralong.training.saving.run_folder import newest_good
from megatron_ultralong.training.verbs import check_run, dry_run
from tests.training.conftest import MakeConfig
from tests.training.job import Job, every_loss, losses

CASES = 50


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Path:
    """A run of six iterations on two ranks, with checkpoints at 4 and 6."""
    root = tmp_path_factory.mktemp("damage") / "run"
    with Job(make_config(root, (1, 2), train_iters=6, save_interval=2), 2) as job:
        assert set(job.wait()) == {0}, job.text(0)
    assert sorted(path.name for path in root.glob("iter_*")) == ["iter_0000004", "iter_0000006"]
    return root


def damage(folder: Path, kind: str, choice: random.Random) -> Path:
    """Flip a byte of a file of ``folder``, cut it, or remove it; returns the file."""
    path = choice.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    if kind == "missing":
        path.unlink()
        return path
    content = bytearray(path.read_bytes())
    place = choice.randrange(len(content))
    if kind == "cut":
        path.write_bytes(content[:place])
    else:
        content[place] ^= choice.randrange(1, 256)
        path.write_bytes(content)
    return path


@pytest.mark.parametrize("seed", range(CASES))
def test_damage_is_refused_by_name(
    run: Path, tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    choice = random.Random(seed)
    root = tmp_path / "run"
    shutil.copytree(run, root)
    path = damage(root / "iter_0000006", ("flip", "cut", "missing")[seed % 3], choice)
    with caplog.at_level(logging.WARNING):
        resumed = newest_good(root, 0, 1)
    assert resumed.folder == root / "iter_0000004"
    assert resumed.damaged == {6}
    assert f"checkpoint of iteration 6 is refused: {path}" in caplog.text


@pytest.mark.parametrize("name", ["checksums.json", "__0_0.distcp"])
def test_a_disk_that_fails_is_no_damage(
    run: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A resume from the older one would write over the newer one, which may be whole."""
    real = Path.open

    def fails(path: Path, *words: Any, **named: Any) -> Any:
        if path == run / "iter_0000006" / name:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return real(path, *words, **named)

    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(FailingDiskError, match=rf"{name} .*remove .*iter_0000006: the run then"):
        newest_good(run, 0, 1)
    folder = run / "iter_0000006"
    with pytest.raises(FailingDiskError, match=rf"{name} .*fails; try again$"):
        check_tensors(folder, listed_files(folder) or {})


def test_every_byte_of_the_small_files_counts(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "iter_0000006"
    shutil.copytree(run / "iter_0000006", folder)
    path = folder / "checksums.json"
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(DamagedError, match=r"checksums\.json is damaged"):
            read_checksums(folder)


@pytest.mark.parametrize("content", ["", "6x", "99", "1", "000", "\u0666"])
def test_a_damaged_name_of_the_latest_takes_the_newest(
    run: Path, tmp_path: Path, content: str
) -> None:
    root = tmp_path / "run"
    shutil.copytree(run, root)
    (root / LATEST_FILE).write_text(content)
    assert newest_good(root, 0, 1).folder == root / "iter_0000006"


def test_a_run_can_be_set_back(run: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(run, root)
    (root / LATEST_FILE).write_text("4")
    assert newest_good(root, 0, 1).folder == root / "iter_0000004"


def test_without_a_good_one_nothing_is_begun_in_silence(
    run: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    root = tmp_path / "run"
    shutil.copytree(run, root)
    for iteration in (4, 6):
        damage(root / f"iter_{iteration:07d}", "flip", random.Random(iteration))
    config = make_config(root, train_iters=6)
    with pytest.raises(InputError, match=r"holds no checkpoint that is whole: .*begin a new run"):
        dry_run(check_run(config, 1))
    assert check_run(config, 1).config.data.seq_length == 128


def test_a_damaged_run_goes_on_from_the_good_one(
    run: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    root = tmp_path / "run"
    shutil.copytree(run, root)
    bad = damage(root / "iter_0000006", "flip", random.Random(1))
    config = make_config(root, (1, 2), train_iters=6, save_interval=2)
    alone = dataclasses.replace(config, parallel=type(config.parallel)())
    assert "continues from" in dry_run(check_run(alone, 1))
    with Job(config, 2) as job:
        assert set(job.wait()) == {0}, job.text(0)
        assert f"refused: {bad}" in job.text(0)
        assert "resumed at iteration 4 of 6" in job.text(0)
    assert all(len(values) == 1 for values in every_loss(root).values())
    assert losses(root) == losses(run)
    assert newest_good(root, 0, 1).folder == root / "iter_0000006"
