"""The folder of a run: its configuration, its metadata, and whether it is resumed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

from megatron_ultralong.checkpoint.convert.small_files import copy_once
from megatron_ultralong.checkpoint.disk.folder import (
    LATEST_FILE,
    iteration_folders,
    resolve,
    write_latest,
)
from megatron_ultralong.checkpoint.disk.metadata import (
    FILE_NAME,
    SOURCE_FOLDER,
    CheckpointMetadata,
    save_metadata,
    seal_small_files,
    unseal,
)
from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.data.tokenize.folder_template import folder_template
from megatron_ultralong.model.parameters import num_parameters
from megatron_ultralong.program.errors import InputError, RunStopped
from megatron_ultralong.program.new_folder import check_free
from megatron_ultralong.program.owner import Owner, take
from megatron_ultralong.program.owner_record import is_owner_file, read_owners
from megatron_ultralong.program.rank_values import every_rank
from megatron_ultralong.training.config_file import (
    CONFIG_FILE,
    save_config,
    write_aside,
)
from megatron_ultralong.training.same_run import DATA_FILE, changes, check_same_run
from megatron_ultralong.training.saving.resume import Resumed, newest_good

STATUS_FILE = "exit_status"
TAKEN_OVER = 73
"""Exit status of a run whose folder another job has taken over (EX_CANTCREAT)."""
NOTHING_SAVED = "WARNING: no --save: nothing of this run is kept, and it cannot be resumed"


class RunFolder:
    """``--save``: the configuration of a run, what its weights mean, and its checkpoints."""

    def __init__(
        self,
        config: TrainingConfig,
        metadata: CheckpointMetadata,
        data: Mapping[str, object] | None = None,
        template: str | None = None,
    ) -> None:
        """Describe it.

        Args:
            config: of the run.
            metadata: of its checkpoints.
            data: what its rows are, by name; a resumed run keeps them.
            template: of its conversations, for exports, where its source had none.
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
        self._data = {name: str(value) for name, value in (data or {}).items()}

    def check(self, rank: int = 0, world_size: int = 1) -> Resumed:
        """Look at the folder, and find the checkpoint to go on from; nothing is written.

        Every rank calls it and reads its share of the newest checkpoint.

        Raises:
            InputError: the folder is in use by something else, or by a run that differs, or none
                of its checkpoints is whole.
        """
        root = self.root
        if root is None or not root.is_dir():
            return Resumed(None, frozenset())
        if any(iteration_folders(root)) or (root / LATEST_FILE).is_file():
            before = check_same_run(root, self._config, self._metadata, self._data)
            resumed = newest_good(root, rank, world_size)
            if resumed.folder is not None:
                self.resumed_iteration = resolve(resumed.folder)[1]
                self.changes = changes(before, self._config)
            return resumed
        _check_nobodys(root)
        return Resumed(None, frozenset())

    def open(self, rank: int, world_size: int) -> Resumed:
        """Own the folder, :meth:`check` it and make it ready; every rank calls it, rank 0 writes.

        Raises:
            InputError: another job has it; see :meth:`check`; or the disk has no room for one
                checkpoint.
            RunStopped: torchrun restarts a run that was told to end.
        """
        if self.root is None:
            return Resumed(None, frozenset())
        self._check_not_ended(self.root)
        check_free(_existing(self.root), self._checkpoint_bytes())
        self._take(self.root, rank)
        resumed = self.check(rank, world_size)
        dist.barrier()  # every rank has looked before anything is written
        problem = ""
        if rank == 0:
            try:
                self._make_ready(self.root)
            except OSError as error:
                problem = _not_writable(self.root, error)
        problem = every_rank(problem)[0]
        if problem:
            raise InputError(problem)
        return resumed

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

    def _take(self, root: Path, rank: int) -> None:
        """Become the owner, before anything else is written."""
        problem = ""
        if rank == 0:
            try:
                if root.is_dir() and not read_owners(root):
                    _check_nobodys(root)
                root.mkdir(parents=True, exist_ok=True)
                self._owner = take(root, self._config.verb, f"--save {root}", "name another --save")
                self.owner_number = self._owner.record.number
            except InputError as error:
                problem = str(error)
            except OSError as error:
                problem = _not_writable(root, error)
        problem, self.owner_number = every_rank((problem, self.owner_number))[0]
        if problem:
            raise InputError(problem)

    def _make_ready(self, root: Path) -> None:
        (root / STATUS_FILE).unlink(missing_ok=True)
        if not self.resumed_iteration:  # what a start left that came to no checkpoint
            self._remove_identity(root)
        save_config(root / CONFIG_FILE, self._config)
        self.write_identity()
        if self.resumed_iteration:
            write_latest(root, self.resumed_iteration)  # not one that was refused

    def write_identity(self) -> None:
        """Write what belongs to the run and is not there; on rank 0.

        Raises:
            OSError: it cannot be written.
        """
        root = self.root
        assert root is not None
        if not (root / CONFIG_FILE).is_file():
            save_config(root / CONFIG_FILE, self._config)
        if not (root / DATA_FILE).is_file():
            write_aside(root / DATA_FILE, json.dumps(self._data, indent=1) + "\n")
        if not (root / FILE_NAME).is_file():
            save_metadata(root, self._metadata)
            copy_once(Path(self._config.load) / SOURCE_FOLDER, root / SOURCE_FOLDER)
        source = root / SOURCE_FOLDER
        if self._template is not None and source.is_dir() and folder_template(source) is None:
            unseal(root)
            write_aside(source / "chat_template.jinja", self._template)
            seal_small_files(root)

    def _remove_identity(self, root: Path) -> None:
        unseal(root)
        for name in (DATA_FILE, FILE_NAME):
            (root / name).unlink(missing_ok=True)
        shutil.rmtree(root / SOURCE_FOLDER, ignore_errors=True)

    def write_status(self, status: int) -> None:
        """Leave the exit status for batch scripts: torchrun makes 1 of every failure."""
        if self.root is not None and dist.get_rank() == 0 and self.is_mine():
            with contextlib.suppress(OSError):
                write_aside(self.root / STATUS_FILE, f"{status}\n")

    def _check_not_ended(self, root: Path) -> None:
        """A run that was told to end is not taken up by the same torchrun."""
        if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) == 0:
            return
        with contextlib.suppress(OSError):
            status = int((root / STATUS_FILE).read_text(encoding="utf-8"))
            if status:
                raise RunStopped(status, "the run has ended in order: torchrun does not restart it")

    def _checkpoint_bytes(self) -> int:
        """Bytes of one checkpoint: weights, and three float32 numbers of the optimizer."""
        each = 16 if self._config.precision == "fp32" else 14
        return each * num_parameters(self._metadata.model)


def _check_nobodys(root: Path) -> None:
    """Raise InputError where a folder without checkpoints holds what is no run's."""
    others = [path for path in root.iterdir() if not is_owner_file(path)]
    if others and not (root / CONFIG_FILE).is_file():
        raise InputError(
            f"--save {root} is not empty and holds no checkpoints of a run: name an empty or "
            "new folder, so that nothing in it is lost"
        )


def _not_writable(root: Path, error: OSError) -> str:
    return f"--save {root} cannot be written to: {error}; make it writable, or name another folder"


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
