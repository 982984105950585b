"""Writes checkpoints in the background, and makes each the current one in one step."""

import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

from megatron_ultralong.checkpoint.disk.checksums import write_checksums
from megatron_ultralong.checkpoint.disk.folder import iteration_folder, iterations, write_latest
from megatron_ultralong.config.run import CheckpointConfig
from megatron_ultralong.mcore.host_memory import PinnedMemory
from megatron_ultralong.program import output, rank_values, ranks
from megatron_ultralong.program.aside import remove, sync_folder
from megatron_ultralong.program.quantity import quantity
from megatron_ultralong.training.saving.run_folder import RunFolder
from megatron_ultralong.training.saving.snapshot import Snapshot, Written
from megatron_ultralong.training.saving.store_gather import StoreGather, StoreGoneError


def expired(iterations: Iterable[int], *, retain_last: int, retain_interval: int) -> list[int]:
    """Iterations whose checkpoints can go, in order; never the newest.

    ``[5, 10, 15, 20, 25], retain_last=2, retain_interval=10 -> [5, 15]``.

    Args:
        iterations: good checkpoints, the one just written among them.
        retain_last: the newest to keep; 0 keeps all.
        retain_interval: multiples of it stay for good; 0: none.
    """
    ordered = sorted(iterations)
    if not retain_last:
        return []
    return [
        iteration
        for iteration in ordered[:-retain_last]
        if not retain_interval or iteration % retain_interval
    ]


_LEFT_OVER = (".partial", ".removed")
_TAKEN_OVER = "another job has the folder"
_STORE_GONE = "the job's store, through which ranks say that they have written, is gone"
_ERROR = "error: "
"""Before what a rank hands on in the place of what it has written."""
_SHORT_SECONDS = 1.0
"""Of a wait that nobody needs to be told of."""
_log = logging.getLogger(__name__)


class _Job(NamedTuple):
    """A checkpoint on its way to the disk."""

    iteration: int
    folder: Path
    snapshot: Snapshot
    texts: Mapping[str, str]
    gather: StoreGather
    """Of the parts, by the threads of all ranks."""
    part: list[str]
    """What this rank has written, or its error; empty while it writes."""
    outcome: list[str | None]
    """What went wrong, "" for nothing; None: nobody knows. Empty while the thread works."""


class CheckpointWriter:
    """One checkpoint at a time; every rank has one, and calls its methods at the same places.

    A checkpoint becomes the current one as soon as all ranks have written it, by their threads
    alone: the next step may take an hour, and a rank that is lost in it would cost two.

    A checkpoint that cannot be written is counted and warned of; what is on the disk stays.
    """

    def __init__(
        self,
        run: RunFolder,
        config: CheckpointConfig,
        damaged: Iterable[int] = (),
        timeout_seconds: float = 600.0,
    ) -> None:
        """Write into the folder of ``run``, as long as that is this job's.

        The iterations ``damaged`` do not count as checkpoints that can be gone back to. Ranks that
        have nothing else to do wait ``timeout_seconds`` for another one to write.
        """
        self.num_written = 0
        self.num_failures = 0
        """One after another, up to now."""
        self.total_failures = 0
        self.last_iteration: int | None = None
        """Of the newest checkpoint that this writer finished."""
        assert run.root is not None
        self._run = run
        self._root = root = run.root
        self._config = config
        self._timeout = timeout_seconds
        self._job: _Job | None = None
        self._thread: threading.Thread | None = None
        """Of the job."""
        self._num_begun = 0
        # Made at the first save, for all of them.
        self._staging = {
            on_gpu: PinnedMemory(pins=on_gpu, is_required=False) for on_gpu in (True, False)
        }
        self._was_validated = False
        self._damaged = set(damaged)
        if ranks.is_main_rank() and root.is_dir():
            for path in [p for p in root.iterdir() if p.suffix in _LEFT_OVER and p.is_dir()]:
                remove(path)

    @property
    def iteration(self) -> int | None:
        """Of the checkpoint that is being written, or else was written last."""
        return self._job.iteration if self._job else self.last_iteration

    @property
    def is_writing(self) -> bool:
        """Whether this rank's thread is at work, or waits for those of others."""
        return self._thread is not None and self._thread.is_alive()

    def start(
        self,
        iteration: int,
        state: Callable[[], dict[str, Any]],
        texts: Mapping[str, str],
        *,
        waits: bool = False,
    ) -> None:
        """Begin the checkpoint of ``iteration``; the one before is finished first.

        Args:
            iteration: iterations done.
            state: makes the sharded state.
            texts: small files to add, by name.
            waits: until it is written, as training continues only then.

        Raises:
            RunStopped: another job has taken the folder over.
        """
        self.finish()
        waits = waits or not self._config.async_save
        final = iteration_folder(self._root, iteration)
        # By the owner's number: ranks of a job that was taken over never write into this one.
        folder = final.with_name(f"{final.name}.{self._run.owner_number}.partial")
        error = self._first_of(self._make(folder) if ranks.is_main_rank() else None)
        if error:
            self._failed(iteration, error)
            return
        snapshot = Snapshot(
            *(state(), folder, self._staging),
            validate=not self._was_validated,
            copies=not waits,
        )
        self._was_validated = True
        self._num_begun += 1
        name = f"{self._root}/{self._run.owner_number}/{self._num_begun}"
        gather = StoreGather(name, self._timeout)
        self._job = job = _Job(iteration, folder, snapshot, texts, gather, [], [])
        self._thread = threading.Thread(
            target=self._write, args=(job,), name="checkpoint", daemon=True
        )
        self._thread.start()
        if waits:
            self.finish()

    def finish(self) -> bool:
        """Wait for the checkpoint that was begun; returns whether the last one stands.

        Raises:
            RunStopped: another job has taken the folder over.
        """
        job = self._job
        if job is None:
            return self.num_failures == 0
        assert self._thread is not None
        job.gather.hurry()
        self._thread.join()
        job.snapshot.release()
        self._job = self._thread = None
        end = rank_values.every_rank(job.outcome[0])[0]
        if end is None:  # the main threads, who are all here, can
            parts = rank_values.every_rank(job.part[0])
            end = self._end(job, parts) if ranks.is_main_rank() else ""
        error = self._first_of(end)
        if error:
            self._failed(job.iteration, error, job.folder)
            return False
        self._written(job)
        return True

    def close(self, *, drops: bool = False) -> None:
        """Let the checkpoint that was begun be written before the process ends, on this rank alone.

        ``drops``: it is of no use any more. Its thread is waited for all the same: where the
        interpreter ends while a thread is in torch, the process aborts.
        """
        job, thread = self._job, self._thread
        if job is None or thread is None:
            return
        job.gather.hurry()
        if drops:
            job.snapshot.drop()
        thread.join(_SHORT_SECONDS)
        if thread.is_alive() and ranks.is_main_rank():
            _log.warning(
                "the checkpoint of iteration %d is still being written: the run ends after that",
                job.iteration,
            )
        thread.join(self._timeout)
        if job.outcome == [""]:
            self._written(job)
        elif job.outcome and not drops and job.outcome[0] != _TAKEN_OVER:
            self._failed(job.iteration, job.outcome[0] or _STORE_GONE, job.folder)
        self._job = self._thread = None

    def _written(self, job: _Job) -> None:
        self.num_failures = 0
        self.num_written += 1
        self.last_iteration = job.iteration

    def _first_of(self, error: str | None) -> str | None:
        """The first rank's error, on all ranks.

        Raises:
            RunStopped: it is that another job has taken the folder over.
        """
        first = next((error for error in rank_values.every_rank(error) if error), None)
        if first == _TAKEN_OVER:
            self._run.end_taken_over()
        return first

    def _make(self, folder: Path) -> str | None:
        if not self._run.is_mine():
            return _TAKEN_OVER
        try:
            remove(folder)
            # Without its parents: a run's folder that is gone may be a disk that is not mounted.
            folder.mkdir()
            self._run.write_identity()
        except OSError as error:
            return f"{error}"
        return None

    def _write(self, job: _Job) -> None:
        """Write this rank's part, and wait for the others; in the thread of ``job``."""
        rank = dist.get_rank()
        try:
            part = job.snapshot.write(job.texts).as_text()
        except Exception as error:  # whatever it is, it is told on the main thread
            part = f"{_ERROR}rank {rank}: {_reason(error, self._root)}"
        job.part.append(part)
        end: str | None = None
        try:
            end = job.gather.gather(part, lambda parts: self._end(job, parts))
        except StoreGoneError as error:
            _log.debug("%s: %s", _STORE_GONE, error)
        except Exception as error:
            end = f"rank {rank}: {_reason(error, self._root)}"
        job.outcome.append(end)

    def _end(self, job: _Job, parts: list[str]) -> str:
        """Commit what all ranks have written, on the main one; returns what went wrong.

        It raises nothing: the other ranks wait for what it returns.
        """
        errors = (part.removeprefix(_ERROR) for part in parts if part.startswith(_ERROR))
        error = next(errors, "")
        try:
            if not error:
                written = [Written.of_text(part) for part in parts]
                write_checksums(job.folder, job.snapshot.finish(written))
                self._commit(job)
        except Exception as exception:
            error = _reason(exception, self._root)
        try:
            if not self._run.is_mine():  # whose next owner has removed what this one wrote
                return _TAKEN_OVER
            if not error:
                self._damaged.discard(job.iteration)
                self._remove_expired(job.iteration)
        except Exception as exception:
            error = error or _reason(exception, self._root)
        return error

    def _commit(self, job: _Job) -> None:
        """Give the folder its name, and name it the current one."""
        final = iteration_folder(self._root, job.iteration)
        if not self._run.is_mine():
            return
        with _set_aside(final):  # damaged, or from a run that was set back
            os.replace(job.folder, final)
        sync_folder(self._root)
        if self._run.is_mine():
            write_latest(self._root, job.iteration)

    def _remove_expired(self, newest: int) -> None:
        try:
            known = [i for i in iterations(self._root) if 0 < i <= newest]
        except OSError as error:
            _log.warning("older checkpoints stay: %s", error)
            return
        good = [i for i in known if i not in self._damaged]
        gone = expired(
            good,
            retain_last=self._config.save_retain_last,
            retain_interval=self._config.save_retain_interval,
        )
        for iteration in [*gone, *(i for i in known if i in self._damaged)]:
            try:
                with _set_aside(iteration_folder(self._root, iteration)):
                    pass
            except OSError as error:
                _log.warning("checkpoint of iteration %d stays: %s", iteration, error)

    def _failed(self, iteration: int, error: str, folder: Path | None = None) -> None:
        self.num_failures += 1
        self.total_failures += 1
        if not ranks.is_main_rank():
            return
        if folder is not None:
            with contextlib.suppress(OSError):  # a lost disk: the failure is counted all the same
                remove(folder)
        limit = self._config.max_save_failures
        _log.warning(
            "WARNING: the checkpoint of iteration %d could not be written to %s: %s (failure %d"
            "%s in a row); older checkpoints are kept, and the next interval tries again",
            iteration,
            self._root,
            error,
            self.num_failures,
            f" of {limit}" if limit else "",
        )


def _reason(error: Exception, root: Path) -> str:
    """The error, and the room on the disk.

    torch's writer of archives hides the system's error behind a place in its own source.
    """
    try:
        room = f"the disk has {quantity(shutil.disk_usage(root).free, 'B')} free"
    except OSError:
        room = "the folder is gone"
    said = f"{type(error).__name__}: {error}"
    if cause := output.of_the_system(error):
        said = f"{cause}"
    elif "inline_container" in said:
        said = "the disk refuses a part of the file"
    return f"{said} ({room})"


@contextlib.contextmanager
def _set_aside(folder: Path) -> Iterator[None]:
    """Remove a checkpoint, if one is there; where the body fails it stays."""
    aside = folder.with_name(folder.name + ".removed")
    remove(aside)
    was_there = folder.exists()
    if was_there:  # its name first: a kill leaves no half of it under that name
        os.replace(folder, aside)
    try:
        yield
    except BaseException:
        if was_there:
            os.replace(aside, folder)
        raise
    if was_there:
        shutil.rmtree(aside)
