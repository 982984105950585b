"""The folder of a run: its configuration, its metadata, and the checkpoint it continues from."""

import contextlib
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch.distributed as dist

from megatron_ultralong.checkpoint.convert.small_files import copy_once
from megatron_ultralong.checkpoint.disk import folder as folders
from megatron_ultralong.checkpoint.disk import metadata
from megatron_ultralong.checkpoint.formats import torch_dist
from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.data.tokenize.trained_template import TrainedTemplate
from megatron_ultralong.model.shape import num_parameters
from megatron_ultralong.program import aside, output, owner_record, rank_values, ranks
from megatron_ultralong.program.errors import FailingDiskError, InputError, RunStopped
from megatron_ultralong.program.owner import Owner, take
from megatron_ultralong.training import config_file, earlier_start
from megatron_ultralong.training.saving import checkpoints, finished
from megatron_ultralong.training.saving.finished import STATUS_FILE

TAKEN_OVER = 73
"""Exit status of a run whose folder another job has taken over (EX_CANTCREAT)."""
_log = logging.getLogger(__name__)
NOTHING_SAVED = "WARNING: no --save: nothing of this run is kept, and it cannot be resumed"


class Resumed(NamedTuple):
    """Where a run continues."""

    folder: Path | None = None
    """None: at its beginning."""
    damaged: frozenset[int] = frozenset()
    """Iterations whose checkpoints were refused."""


class RunFolder:
    """``--save``: the configuration of a run, what its weights mean, and its checkpoints."""

    def __init__(
        self,
        config: TrainingConfig,
        metadata: metadata.CheckpointMetadata,
        data: Mapping[str, object] | None = None,
        template: TrainedTemplate | None = None,
        each_iteration: tuple[str, float] = ("--train-iters", 1),
    ) -> None:
        """Describe it.

        A resumed run keeps ``data``, what its rows are. Its checkpoints have ``template`` instead
        of the source's. ``each_iteration`` has the flag that said how long the run is, and what an
        iteration is of it.
        """
        self.root = Path(config.save) if config.save else None
        self.resumed_iteration = 0
        """Of the checkpoint that this start went on from."""
        self.changes: list[str] = []
        """What the start before was configured otherwise, one sentence each."""
        self.owner_number = 0
        """Of this start among the owners of the folder; the same on every rank."""
        self._owner: Owner | None = None
        self._config = config
        self._metadata = metadata
        self._template = template
        self._each_iteration = each_iteration
        self._said = config.as_said(each_iteration[0])
        self._data = {name: str(value) for name, value in (data or {}).items()}

    def check(self, rank: int = 0, world_size: int = 1) -> Resumed:
        """Look at the folder, and find the checkpoint to continue from; nothing is written.

        Every rank calls it and reads its share of the newest checkpoint.

        Raises:
            InputError: the folder is in use by something else, or by a run that differs, or none
                of its checkpoints is whole.
        """
        root = self.root
        if root is None:
            return Resumed()
        before = earlier_start.check_save(root, self._config, self._metadata, self._data)
        if before is None:
            return Resumed()
        resumed = newest_good(root, rank, world_size)
        if resumed.folder is not None:
            self.resumed_iteration = folders.resolve(resumed.folder)[1]
            # files of earlier releases have the iterations that follow from passes, too
            now = self._config if before.train_iters else self._said
            self.changes = earlier_start.changes(before, now)
        return resumed

    @property
    def nothing_left(self) -> str:
        """What to say of a start that has no iteration to do; empty: it has some."""
        done, total = self.resumed_iteration, self._config.train_iters
        return finished.nothing_left(done, total, self._each_iteration)

    @property
    def what_is_saved(self) -> str:
        """What to say of a start that saves nothing, or nothing before its end; else empty."""
        if self.root is None:
            return NOTHING_SAVED
        done, total = self.resumed_iteration, self._config.train_iters
        interval = self._config.save_interval
        if done >= total or (interval and done // interval < (total - 1) // interval):
            return ""
        which, where = ("next", f" at iteration {done}") if done else ("only", "")
        return (
            f"the {which} checkpoint is that of the end, iteration {total}: a run that is killed "
            f"before it begins again{where}; --save-interval N saves every N iterations"
        )

    def open(self, rank: int, world_size: int) -> Resumed:
        """Own the folder, :meth:`check` it and make it ready; every rank calls it, rank 0 writes.

        Raises:
            InputError: another job has it; see :meth:`check`; or the disk has no room for one
                checkpoint.
            RunStopped: torchrun restarts a run that was told to end.
        """
        if self.root is None:
            return Resumed()
        self._check_not_ended(self.root)
        output.check_free(self.root, self._checkpoint_bytes(), f"--save {self.root}")
        self.owner_number = rank_values.from_main_rank(self._take, is_main=rank == 0)
        resumed = self.check(rank, world_size)
        dist.barrier()  # every rank has looked before anything is written
        rank_values.from_main_rank(self._make_ready, is_main=rank == 0)
        return resumed

    @property
    def _root(self) -> Path:
        assert self.root is not None
        return self.root

    def close(self) -> None:
        """Give the folder back to whoever wants it next."""
        if self._owner is not None:
            self._owner.release()

    def is_mine(self) -> bool:
        """Whether no other job has taken the folder over; asked of rank 0."""
        return self._owner is None or self._owner.is_mine()

    def end_taken_over(self) -> NoReturn:
        """End this run, whose folder another one has.

        Raises:
            RunStopped: always.
        """
        raise RunStopped(
            TAKEN_OVER,
            f"another job has taken over --save {self.root}, and this one, which was silent for "
            "long, writes nothing more to it",
        )

    def _take(self) -> int:
        """Become the owner, before anything else is written; returns the number."""
        root = self._root
        with output.writable(root, f"--save {root}"):
            if root.is_dir() and not owner_record.read_owners(root):
                earlier_start.check_nobodys(root)
            root.mkdir(parents=True, exist_ok=True)
            self._owner = take(root, self._config.verb, f"--save {root}")
        return self._owner.record.number

    def _make_ready(self) -> None:
        root = self._root
        with output.writable(root, f"--save {root}"):
            (root / STATUS_FILE).unlink(missing_ok=True)
            if not self.resumed_iteration:  # what a start left that came to no checkpoint
                metadata.unseal(root)
                for name in (earlier_start.DATA_FILE, metadata.FILE_NAME, metadata.SOURCE_FOLDER):
                    aside.remove(root / name)
            if not self.nothing_left:  # else the file would not be that of any iteration
                config_file.save_config(root / config_file.CONFIG_FILE, self._said)
            self.write_identity()
            if self.resumed_iteration:
                folders.write_latest(root, self.resumed_iteration)  # not one that was refused

    def write_identity(self) -> None:
        """Write what belongs to the run and is not there; on rank 0.

        Raises:
            OSError: it cannot be written.
        """
        root = self._root
        if not (root / config_file.CONFIG_FILE).is_file():
            config_file.save_config(root / config_file.CONFIG_FILE, self._said)
        if not (root / earlier_start.DATA_FILE).is_file():
            earlier_start.save_rows(root, self._data)
        source = root / metadata.SOURCE_FOLDER
        if not (root / metadata.FILE_NAME).is_file():
            metadata.save_metadata(root, self._metadata)
            copy_once(Path(self._config.load) / source.name, source)
        template = self._template
        if template is None or not source.is_dir():
            return
        is_other = template.lacks(source)
        if is_other or template.missed_ends(source):
            metadata.unseal(root)
            if is_other:
                template.put(source)
            template.stop_at_ends(source)
            metadata.seal_small_files(root)

    def write_status(self, status: int) -> None:
        """Leave the exit status for batch scripts: torchrun makes 1 of every failure."""
        if self.root is not None and dist.get_rank() == 0 and self.is_mine():
            with contextlib.suppress(OSError):
                aside.write_aside(self.root / STATUS_FILE, f"{status}\n")

    def _check_not_ended(self, root: Path) -> None:
        """A run that was told to end is not taken up by the same torchrun."""
        if ranks.number_of("TORCHELASTIC_RESTART_COUNT") == 0:
            return
        with contextlib.suppress(OSError):
            status = int((root / STATUS_FILE).read_text(encoding="utf-8"))
            if status:
                raise RunStopped(status, "the run has ended in order: torchrun does not restart it")

    def _checkpoint_bytes(self) -> int:
        """Bytes of one checkpoint: weights, and three float32 numbers of the optimizer."""
        each = 16 if self._config.precision == "fp32" else 14
        return each * num_parameters(self._metadata.model)


def newest_good(root: Path, rank: int, world_size: int) -> Resumed:
    """Find the newest checkpoint in ``root`` that is whole.

    ``latest_checkpointed_iteration.txt`` says where to begin: a run may have been set back. Every
    rank calls it and reads its share of the files.

    Raises:
        InputError: there are checkpoints, and all of them are damaged, or the newest has the name
            of another iteration.
        FailingDiskError: the disk does not give the bytes of one. It is not passed over: later
            checkpoints would replace what may be whole.
    """
    candidates = checkpoints.candidates(root)
    damaged: dict[int, str] = {}
    for iteration in candidates:
        folder = folders.iteration_folder(root, iteration)
        found = [
            each
            for each in rank_values.every_rank(checkpoints.damage(folder, rank, world_size))
            if each
        ]
        unreadable = next((text for text, is_known in found if not is_known), None)
        if unreadable:
            raise FailingDiskError(
                f"{unreadable}: the disk or its server fails; start again. If the file is lost for "
                f"good, remove {folder}: the run then resumes from the checkpoint before it"
            )
        if not found:
            check = functools.partial(torch_dist.check_iteration, folder)
            rank_values.from_main_rank(check, is_main=rank == 0)
            return Resumed(folder, frozenset(damaged))
        error, _ = found[0]
        damaged[iteration] = error
        if ranks.is_main_rank():
            _log.warning(
                "WARNING: the checkpoint of iteration %d is refused: %s; another one is taken",
                iteration,
                error,
            )
    if damaged:
        raise InputError(
            f"--save {root} holds no checkpoint that is whole: "
            + "; ".join(damaged.values())
            + "; copy a good one there, or begin a new run in another folder"
        )
    return Resumed()
