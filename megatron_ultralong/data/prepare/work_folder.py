"""The folder beside ``--output`` in which a run works, and from which a killed run goes on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.owner import Owner, owned
from megatron_ultralong.program.owner_record import is_owner_file

KEY_FILE = "run.json"


class WorkFolder:
    """``.NAME.partial`` beside ``NAME``: shards that are finished, rows in the making."""

    def __init__(self, path: Path, owner: Owner) -> None:
        self.path = path
        self._owner = owner
        self.keep = False
        """Leave it there after an error: the next run goes on from it."""

    def resume(self, key: dict[str, Any]) -> bool:
        """Whether shards of a run with the same key stand here; those of another one are removed.

        Args:
            key: all that the shards depend on, as JSON.
        """
        file = self.path / KEY_FILE
        text = json.dumps(key, sort_keys=True)
        if file.is_file() and file.read_text() == text:
            return True
        stale = [entry for entry in self.path.iterdir() if not is_owner_file(entry)]
        for entry in stale:
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        aside = file.with_suffix(".partial")
        aside.write_text(text)
        os.replace(aside, file)
        return False

    def new_folder(self, name: str) -> Path:
        """An empty folder of this run; what earlier ones left is removed.

        Its name is this owner's: a run that was stopped and taken over writes into none of it.
        """
        for left in self.path.glob(f"{name}-*"):
            shutil.rmtree(left, ignore_errors=True)
        folder = self.path / f"{name}-{self._owner.record.number}"
        folder.mkdir()
        return folder

    def finish(self, folder: Path, output: Path) -> None:
        """Give a folder that is complete its final name; an empty one may stand there.

        Raises:
            InputError: another run has taken the work over.
        """
        self._owner.check_mine()
        os.replace(folder, output)


@contextlib.contextmanager
def work_folder(output: Path) -> Iterator[WorkFolder]:
    """The work folder of an output that does not exist yet, owned by this process.

    It is removed at the end of the block and after an error, with the folders above it that were
    made for it; what a signal or a kill left is kept.

    Raises:
        InputError: where the output is not empty, another run works on it, or the disk is full.
    """
    require_empty(output)
    output = output.absolute()
    path = output.with_name(f".{output.name}.partial")
    made: list[Path] = []
    try:
        made += [parent for parent in path.parents if not parent.exists()]
        path.mkdir(parents=True, exist_ok=True)
        with owned(path, "prepare", f"--output {output}", "give another --output") as owner:
            work = WorkFolder(path, owner)
            try:
                require_empty(output)  # another run may have finished while this one waited
                yield work
            except Exception:
                if not work.keep:
                    owner.remove_folder()
                raise
            owner.remove_folder()
    except Exception as error:
        _remove_empty(made)
        if not isinstance(error, OSError):
            raise
        # of the files that are read, all errors are InputError already
        at = f": {error.filename}" if error.filename else ""
        raise InputError(
            f"cannot write {output} ({error.strerror}{at}); make room on the disk, "
            "or give another --output"
        ) from error


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, the inner ones first, up to one in which anything stands."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def require_empty(output: Path) -> None:
    """Refuse an output that holds anything."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        what = f"has {len(list(output.iterdir()))} entries" if output.is_dir() else "is a file"
        raise InputError(
            f"--output {output} {what}: nothing is overwritten; give a new folder or empty this one"
        )
