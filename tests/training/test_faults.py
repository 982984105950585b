"""Signals, ranks that die or hang, disks that fill up, numbers gone bad: what a run does then."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

from megatron_ultralong.checkpoint.disk.folder import LATEST_FILE, write_latest
from megatron_ultralong.config.run import LogConfig
from megatron_ultralong.data.rows.stored import StoredRow
from megatron_ultralong.training.saving.finished import STATUS_FILE
from megatron_ultralong.training.saving.run_folder import newest_good
from tests.patience import patience
from tests.training.conftest import MakeConfig
from tests.training.job import Job, losses

LIMIT = 30.0
"""Seconds that a run may take to be down, with a time-out of 6 seconds for collectives."""
TIMEOUT = 6.0
ENDLESS = 100_000


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_to_one_rank_ends_all_with_a_checkpoint(
    tmp_path: Path, make_config: MakeConfig, number: int
) -> None:
    root = tmp_path / "run"
    config = make_config(root, (1, 2), train_iters=ENDLESS, save_interval=0)
    with Job(config, 2) as job:
        assert job.until_iteration(3)
        job.signal(1, number)
        assert job.wait(LIMIT) == [75, 75]
        assert f"{signal.Signals(number).name} came" in job.text(0)
        last = max(losses(root))
        assert f"the checkpoint of iteration {last} is written" in job.text(0)
    assert (root / STATUS_FILE).read_text() == "75\n"
    assert newest_good(root, 0, 1).folder == root / f"iter_{last:07d}"
    with Job(config, 2, restart=1) as job:  # the same torchrun does not take it up again
        assert job.wait() == [75, 75]
        assert "torchrun does not restart it" in job.text(0)
    finished = dataclasses.replace(config, train_iters=last + 1)
    with Job(finished, 2) as job:  # a new one does
        assert job.wait() == [0, 0]
        assert f"resumed at iteration {last}" in job.text(0)
    assert (root / STATUS_FILE).read_text() == "0\n"


def test_a_second_signal_ends_at_once(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(tmp_path / "run", (1, 2), train_iters=ENDLESS)
    with Job(config, 2) as job:
        assert job.until_iteration(1)
        job.signal(1, signal.SIGSTOP)  # rank 0 waits in a collective, where no handler runs
        job.signal(0, signal.SIGTERM)
        time.sleep(3.5)
        assert job.ranks[0].is_alive()
        job.signal(0, signal.SIGTERM)
        job.ranks[0].join(patience(5.0))
        assert job.ranks[0].exitcode == 128 + signal.SIGTERM
        assert "ending at once" in job.text(0)


def test_the_time_of_a_run_can_be_over(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(tmp_path / "run", (1, 2), train_iters=ENDLESS, save_interval=0)
    faults = dataclasses.replace(config.faults, exit_duration_in_mins=2.0 / 60.0)
    with Job(dataclasses.replace(config, faults=faults), 2) as job:
        assert job.wait(LIMIT + 30.0) == [75, 75]
        assert "exit_duration_in_mins (0.0333333) is over" in job.text(0)
    assert (tmp_path / "run" / LATEST_FILE).is_file()


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGSTOP, marks=pytest.mark.slow), signal.SIGKILL]
)
def test_a_rank_that_hangs_or_dies_takes_the_job_down_by_name(
    tmp_path: Path, make_config: MakeConfig, number: int
) -> None:
    root = tmp_path / "run"
    config = make_config(root, (1, 2), train_iters=ENDLESS, timeout_seconds=TIMEOUT)
    with Job(config, 2) as job:
        assert job.until_iteration(3)
        job.signal(1, number)
        statuses = job.wait(LIMIT)
        assert statuses == [69, -signal.SIGKILL]
        said = job.text(0)
    assert f"rank 1 (process {job.ranks[1].pid}" in said
    end = "is gone: its process has ended" if number == signal.SIGKILL else "is silent"
    assert f"{end}; its last sign came from iteration" in said
    lines = [line for line in said.splitlines() if line.startswith("LOST RANK: rank 0: iteration")]
    # Step, phase, collective and caller: "rank 0: iteration 5, forward: batch_isend_irecv of ..."
    assert lines, said
    assert int(lines[0].split("iteration ")[1].split(",")[0]) >= 3
    assert any(word in lines[0] for word in ("failed: ", "silent", "is gone"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_costs_checkpoints_and_not_the_run(
    small_disk: Path, make_config: MakeConfig
) -> None:
    root = small_disk / "run"
    config = make_config(root, (1, 2), train_iters=ENDLESS, save_interval=2)
    config = dataclasses.replace(
        config,
        checkpoint=dataclasses.replace(config.checkpoint, max_save_failures=3),
        log=LogConfig(tensorboard=True),
    )
    with Job(config, 2) as job:
        assert job.until(lambda: (root / LATEST_FILE).exists())
        ballast = filled(small_disk)
        assert job.until(lambda: "could not be written" in job.text(0)), job.text(0) + job.text(1)
        assert job.until(
            lambda: re.search(r"\(the disk has [\d.]+ k?B free", job.text(0)) is not None
        )
        assert "No space left on device" in job.text(0) or "the disk refuses a part" in job.text(0)
        good = newest_good(root, 0, 1)
        assert good.folder is not None
        assert not good.damaged
        ballast.unlink()  # there is room again
        before = (root / LATEST_FILE).read_text()
        assert job.until(lambda: (root / LATEST_FILE).read_text() != before)
        shutil.rmtree(root)
        assert job.wait(LIMIT) == [74, 74]
        assert "3 checkpoints in a row could not be written" in job.text(0)
        assert "No such file or directory" in job.text(0)
        assert job.text(0).count("WARNING: TensorBoard's file in") == 1
        for rank in (0, 1):
            assert "enforce fail" not in job.text(rank)
            assert "Traceback" not in job.text(rank)


def filled(disk: Path) -> Path:
    """The file that takes all the room there is."""
    ballast = disk / "ballast"
    # No buffer: what does not fit would be written again when the file is closed, and fail.
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**16))
    return ballast


def test_a_run_that_gives_up_begins_no_checkpoint(
    small_disk: Path, make_config: MakeConfig
) -> None:
    """Its thread was killed with the interpreter, which aborted: status 134 instead of 74."""
    root = small_disk / "run"
    config = make_config(root, (1, 1), train_iters=ENDLESS, save_interval=1)
    with Job(config, 1) as job:
        assert job.until(lambda: (root / LATEST_FILE).exists())
        ballast = filled(small_disk)
        os.truncate(ballast, ballast.stat().st_size - 2**17)  # for the beginning of a checkpoint
        assert job.wait(LIMIT) == [74]
        assert "2 checkpoints in a row could not be written" in job.text(0)
        assert not [*root.glob("*.partial")]


def other_weights(rank: int) -> None:
    """Run on every rank before the job: rank 1 reads one weight wrongly."""
    from megatron_ultralong.training import state

    load = state.load_weights

    def load_wrongly(chunks: Any, folder: Path) -> None:
        load(chunks, folder)
        if rank == 1:
            chunks[0].decoder.final_layernorm.weight.data[3] += 2.0**-20

    state.load_weights = load_wrongly


def other_manifest(rank: int) -> None:
    """Run on every rank before the job: rank 1 has rows of another preparation."""
    from megatron_ultralong.training.early_checks import manifests

    load = manifests.load_manifest

    def load_other(folder: Path) -> Any:
        manifest = load(folder)
        return dataclasses.replace(manifest, seed=manifest.seed + 1) if rank else manifest

    manifests.load_manifest = load_other


def other_code(rank: int) -> None:
    """Run on every rank before the job: rank 1 runs another version."""
    from megatron_ultralong.training import loop

    version = loop.code_version()
    loop.code_version = lambda: {**version, "torch": "2.0.0"} if rank else version  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("prepare", "part"),
    [
        pytest.param(
            other_weights,
            "ranks 0 and 1 hold different weights (pipeline stage 0, all tensor-par",
            id="weights",
        ),
        pytest.param(
            other_manifest,
            "ranks disagree on data manifest.seed: rank 0 has",
            id="manifest",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            other_code,
            "ranks disagree on torch: rank 0 has 2.",
            id="code",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_ranks_that_differ_are_found_before_the_first_step(
    tmp_path: Path, make_config: MakeConfig, prepare: Any, part: str
) -> None:
    with Job(make_config(tmp_path / "run", (1, 2)), 2, prepare) as job:
        assert job.wait() == [2, 2]
        assert part in job.text(0)
    assert not losses(tmp_path / "run")


class _Poisoned(StoredRow):
    """A row one of whose predictions has no number for a weight."""

    def loss_mask(self, document_mask: Any) -> npt.NDArray[np.float32]:
        mask = super().loss_mask(document_mask)
        mask[5] = np.nan
        return mask


def poison(samples: frozenset[int], rank: int) -> None:
    """Run on every rank before the job: the rows of some samples are bad."""
    from megatron_ultralong.training.row_source import PackedRowSource

    plain = PackedRowSource.row

    def row(self: PackedRowSource, number: int) -> StoredRow:
        found = plain(self, number)
        if number not in samples:
            return found
        return _Poisoned(found.rows, found.number, found.separator_ids)

    PackedRowSource.row = row  # type: ignore[method-assign]


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_nan_in_a_batch_is_named(
    tmp_path: Path, make_config: MakeConfig, policy: Literal["stop", "skip"]
) -> None:
    root = tmp_path / "run"
    config = make_config(root, train_iters=6, save_interval=0)
    config = dataclasses.replace(config, faults=dataclasses.replace(config.faults, on_nan=policy))
    bad = 2 * 3 + 1  # iteration 4, of two samples each; the second one is rank 1's
    with Job(config, 2, functools.partial(poison, frozenset((bad,)))) as job:
        statuses = job.wait()
        said = job.text(0)
    from megatron_ultralong.training.verbs import check_run

    name = check_run(config, 2).train_rows.name(bad)
    assert f"iteration 4: the loss is nan; loss not finite on rank 1 (rows {name})" in said
    if policy == "stop":
        assert statuses == [65, 65]
        assert newest_good(root, 0, 1).folder == root / "iter_0000003"  # before that step
        with Job(dataclasses.replace(config, faults=type(config.faults)(on_nan="skip")), 2) as job:
            assert job.wait() == [0, 0]
        assert sorted(losses(root)) == [1, 2, 3, 4, 5, 6]
    else:
        assert statuses == [0, 0]
        assert "skipped: 1" in said
        found = losses(root)
        assert np.isnan(found[4][0])
        assert np.isfinite([found[n] for n in (5, 6)]).all()


@pytest.mark.parametrize("optimizer", ["adam", pytest.param("offloaded", marks=pytest.mark.slow)])
def test_a_checkpoint_before_any_step_has_succeeded(
    tmp_path: Path, make_config: MakeConfig, optimizer: str
) -> None:
    """The first steps are skipped and saved; a run that continues from there repeats the rest."""
    config = make_config(tmp_path / "run", train_iters=4, save_interval=1)
    if optimizer == "offloaded":
        offloaded = dataclasses.replace(config.optimizer, optimizer_cpu_offload=True)
        config = dataclasses.replace(config, precision="bf16", optimizer=offloaded)
    faults = dataclasses.replace(config.faults, on_nan="skip")
    whole = dataclasses.replace(config, faults=faults)
    checkpoint = dataclasses.replace(config.checkpoint, save_retain_last=0)
    whole = dataclasses.replace(whole, checkpoint=checkpoint)
    bad = functools.partial(poison, frozenset(range(4)))  # both iterations' both rows
    with Job(whole, 2, bad) as job:
        assert job.wait() == [0, 0], job.text(0)
    found = losses(tmp_path / "run")
    assert [bool(np.isfinite(found[n][0])) for n in (1, 2, 3, 4)] == [False, False, True, True]
    resumed = dataclasses.replace(whole, save=str(tmp_path / "resumed"))
    shutil.copytree(tmp_path / "run", tmp_path / "resumed")
    for later in (3, 4):
        shutil.rmtree(tmp_path / "resumed" / f"iter_{later:07d}")
    write_latest(tmp_path / "resumed", 2)
    (tmp_path / "resumed" / "log.jsonl").unlink()
    with Job(resumed, 2, bad) as job:
        assert job.wait() == [0, 0], job.text(0)
        assert "resumed at iteration 2" in job.text(0)
    assert losses(tmp_path / "resumed") == {n: found[n] for n in (3, 4)}


def test_too_many_skipped_steps_end_the_run(tmp_path: Path, make_config: MakeConfig) -> None:
    root = tmp_path / "run"
    config = make_config(root, train_iters=ENDLESS, save_interval=0)
    faults = dataclasses.replace(config.faults, on_nan="skip", max_skipped_iters=3)
    config = dataclasses.replace(config, faults=faults)
    # Iterations 2 and 3, then 5 to 7, of two samples each.
    bad = functools.partial(poison, frozenset((2, 4, 9, 10, 12)))
    with Job(config, 2, bad) as job:
        assert job.wait() == [65, 65], job.text(0)
        said = job.text(0)
    assert "iteration 7: the loss is nan; loss not finite on rank 0 (rows " in said
    assert "step 3 in a row that had to be skipped (max_skipped_iters)" in said
    assert "the checkpoint of iteration 6 is written" in said
    assert said.count("ultralong: stopped:") == 1
    assert "Traceback" not in said
    assert (root / STATUS_FILE).read_text() == "65\n"
    assert newest_good(root, 0, 1).folder == root / "iter_0000006"
