"""The folder beside ``--output`` in which a run works, and from which a killed run goes on."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from megatron_ultralong.errors import InputError

KEY_FILE = "run.json"
LOCK_FILE = "lock"


class WorkFolder:
    """``.NAME.partial`` beside ``NAME``: shards that are finished, rows in the making."""

    def __init__(self, path: Path) -> None:
        self.path = path
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
        stale = [entry for entry in self.path.iterdir() if entry.name != LOCK_FILE]
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
        """An empty folder; what an earlier run left in it is removed."""
        folder = self.path / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder


@contextlib.contextmanager
def work_folder(output: Path) -> Iterator[WorkFolder]:
    """The locked work folder of an output that does not exist yet.

    It is removed at the end of the block and after an InputError or a full disk; what a signal or
    a crash left is kept.

    Raises:
        InputError: where the output is not empty, another run works on it, or the disk is full.
    """
    require_empty(output)
    output = output.absolute()
    work = WorkFolder(output.with_name(f".{output.name}.partial"))
    try:
        work.path.mkdir(parents=True, exist_ok=True)
        with _locked(work.path, output):
            try:
                require_empty(output)  # another run may have finished while this one waited
                yield work
            except (InputError, OSError):
                if not work.keep:
                    shutil.rmtree(work.path, ignore_errors=True)
                raise
            shutil.rmtree(work.path, ignore_errors=True)
    except OSError as error:
        # of the files that are read, all errors are InputError already
        at = f": {error.filename}" if error.filename else ""
        raise InputError(
            f"cannot write {output} ({error.strerror}{at}); make room on the disk, "
            "or give another --output"
        ) from error


@contextlib.contextmanager
def _locked(folder: Path, output: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system drops when the process ends, however it ends."""
    file = _open_lock(folder)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise InputError(
            f"--output {output}: another run writes it (process {owner}); wait for its end, or "
            "give another --output"
        ) from error
    with file:
        file.truncate(0)
        file.write(f"{os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield


def _open_lock(folder: Path) -> TextIO:
    folder.mkdir(parents=True, exist_ok=True)  # the run that just ended may have removed it
    return open(folder / LOCK_FILE, "a+", encoding="utf-8")


def require_empty(output: Path) -> None:
    """Refuse an output that holds anything."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        what = f"has {len(list(output.iterdir()))} entries" if output.is_dir() else "is a file"
        raise InputError(
            f"--output {output} {what}: nothing is overwritten; give a new folder or empty this one"
        )
