"""Writes checkpoints in the background, and makes each the current one in one step."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

from megatron_ultralong.checkpoint.checksums import write_checksums
from megatron_ultralong.checkpoint.folder import iteration_folder, iterations, write_latest
from megatron_ultralong.mcore.parallel import every_rank, is_main_rank
from megatron_ultralong.run_config import CheckpointConfig
from megatron_ultralong.training.retention import expired
from megatron_ultralong.training.snapshot import Snapshot, Written

_LEFT_OVER = (".partial", ".removed")
_log = logging.getLogger(__name__)


class _Job(NamedTuple):
    """A checkpoint on its way to the disk."""

    iteration: int
    folder: Path
    snapshot: Snapshot
    thread: threading.Thread
    outcome: list[Written | str]
    """What the thread has written, or why it could not; empty while it works."""


class CheckpointWriter:
    """One checkpoint at a time; every rank has one, and calls its methods at the same places.

    A checkpoint that cannot be written is counted and warned of; what is on the disk stays.
    """

    def __init__(self, root: Path, config: CheckpointConfig, prepare: Callable[[], None]) -> None:
        """Write into ``root``, after ``prepare`` has seen to what else belongs there."""
        self.num_written = 0
        self.num_failures = 0
        """One after another, up to now."""
        self.total_failures = 0
        self.last_iteration: int | None = None
        """Of the newest checkpoint that this writer finished."""
        self._root = root
        self._config = config
        self._prepare = prepare
        self._job: _Job | None = None
        self._was_validated = False
        self._damaged: set[int] = set()
        if is_main_rank() and root.is_dir():
            for path in [p for p in root.iterdir() if p.suffix in _LEFT_OVER and p.is_dir()]:
                shutil.rmtree(path, ignore_errors=True)

    @property
    def iteration(self) -> int | None:
        """Of the checkpoint that is being written, or else was written last."""
        return self._job.iteration if self._job else self.last_iteration

    @property
    def is_pending(self) -> bool:
        """Whether a checkpoint was begun and not finished; the same on every rank."""
        return self._job is not None

    @property
    def is_writing(self) -> bool:
        """Whether this rank's thread is at work."""
        return self._job is not None and self._job.thread.is_alive()

    def distrust(self, damaged: set[int]) -> None:
        """Do not count these iterations as checkpoints that can be gone back to."""
        self._damaged |= damaged

    def start(
        self, iteration: int, state: Callable[[], dict[str, Any]], texts: Mapping[str, str]
    ) -> None:
        """Begin the checkpoint of ``iteration``; the one before is finished first.

        Args:
            iteration: iterations done.
            state: makes the sharded state.
            texts: small files to add, by name.
        """
        self.finish()
        final = iteration_folder(self._root, iteration)
        folder = final.with_name(final.name + ".partial")
        error = _first(every_rank(self._make(folder) if is_main_rank() else None))
        if error:
            self._failed(iteration, error)
            return
        snapshot = Snapshot(state(), folder, validate=not self._was_validated)
        self._was_validated = True
        outcome: list[Written | str] = []
        thread = threading.Thread(
            target=_write,
            args=(snapshot, texts, outcome, self._root),
            name="checkpoint",
            daemon=True,
        )
        self._job = _Job(iteration, folder, snapshot, thread, outcome)
        thread.start()
        if not self._config.async_save:
            self.finish()

    def finish(self) -> bool:
        """Wait for the checkpoint that was begun; returns whether the last one stands."""
        job = self._job
        if job is None:
            return self.num_failures == 0
        job.thread.join()
        self._job = None
        parts = every_rank(job.outcome[0])
        error = _first([part if isinstance(part, str) else None for part in parts])
        if not error:
            committed = self._commit(job, parts) if is_main_rank() else None
            error = _first(every_rank(committed))
        if error:
            self._failed(job.iteration, error, job.folder)
            return False
        self.num_failures = 0
        self.num_written += 1
        self.last_iteration = job.iteration
        return True

    def _make(self, folder: Path) -> str | None:
        try:
            shutil.rmtree(folder, ignore_errors=True)
            # Without its parents: a run's folder that is gone may be a disk that is not mounted.
            folder.mkdir()
            self._prepare()
        except OSError as error:
            return f"{error}"
        return None

    def _commit(self, job: _Job, parts: list[Any]) -> str | None:
        """Give the folder its name, and name it the current one."""
        final = iteration_folder(self._root, job.iteration)
        try:
            write_checksums(job.folder, job.snapshot.finish(parts))
            _sync_folder(job.folder)
            if final.exists():  # damaged, or from a run that was set back
                _remove(final)
            os.replace(job.folder, final)
            _sync_folder(self._root)
            write_latest(self._root, job.iteration)
            _sync_folder(self._root)
        except Exception as error:
            return _reason(error, self._root)
        self._damaged.discard(job.iteration)
        self._remove_expired(job.iteration)
        return None

    def _remove_expired(self, newest: int) -> None:
        known = [i for i in iterations(self._root) if 0 < i <= newest]
        good = [i for i in known if i not in self._damaged]
        gone = expired(
            good,
            retain_last=self._config.save_retain_last,
            retain_interval=self._config.save_retain_interval,
        )
        for iteration in [*gone, *(i for i in known if i in self._damaged)]:
            try:
                _remove(iteration_folder(self._root, iteration))
            except OSError as error:
                _log.warning("checkpoint of iteration %d stays: %s", iteration, error)

    def _failed(self, iteration: int, error: str, folder: Path | None = None) -> None:
        self.num_failures += 1
        self.total_failures += 1
        if not is_main_rank():
            return
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        limit = self._config.max_save_failures
        _log.warning(
            "WARNING: the checkpoint of iteration %d could not be written to %s: %s (failure %d"
            "%s in a row); older checkpoints stand, and the next interval tries again",
            iteration,
            self._root,
            error,
            self.num_failures,
            f" of {limit}" if limit else "",
        )


def _write(
    snapshot: Snapshot, texts: Mapping[str, str], outcome: list[Written | str], root: Path
) -> None:
    try:
        outcome.append(snapshot.write(texts))
    except Exception as error:  # whatever it is, it is told on the main thread
        outcome.append(f"rank {dist.get_rank()}: {_reason(error, root)}")


def _reason(error: Exception, root: Path) -> str:
    """The error, and the room on the disk: torch's writer does not say that it is full."""
    try:
        room = f"the disk has {shutil.disk_usage(root).free / 2**30:.2f} GiB free"
    except OSError:
        room = "the folder is gone"
    return f"{type(error).__name__}: {error} ({room})"


def _first(errors: list[str | None]) -> str | None:
    return next((error for error in errors if error), None)


def _remove(folder: Path) -> None:
    """Take a checkpoint's name away first: a kill leaves no half of it under that name."""
    aside = folder.with_name(folder.name + ".removed")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(folder, aside)
    shutil.rmtree(aside)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def wait_before_retry() -> None:
    """Give a full disk or a lost folder some time before the last checkpoint is tried again."""
    time.sleep(2.0)
