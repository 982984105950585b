"""An output folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.owner import owned
from megatron_ultralong.program.owner_record import is_owner_file

SUFFIX = ".partial"
"""Of the folder in which the work goes on."""
IDENTITY_FILE, SAMPLES_FILE = "evaluation.json", "samples.jsonl"
"""What a journal keeps there."""


def check_output_folder(folder: str | Path) -> None:
    """Check, before the work starts, that ``folder`` can be made.

    Raises:
        InputError: it holds something, or is a file.
    """
    folder = Path(folder)
    if folder.is_dir():
        entries = sorted(entry.name for entry in folder.iterdir())
        if entries:
            raise InputError(
                f"output folder {folder} holds {len(entries)} entries, {entries[0]} among them: "
                "nothing is written over; name a new folder with --output, or remove this one"
            )
    elif folder.exists():
        raise InputError(f"output {folder} is a file: name a folder with --output")


@contextlib.contextmanager
def new_output_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to write in, renamed to ``folder`` when the block ends without an exception.

    Raises:
        InputError: as :func:`check_output_folder` does; or another process makes it.
    """
    folder = Path(os.path.abspath(folder))
    check_output_folder(folder)
    aside = folder.with_name(f".{folder.name}{SUFFIX}")
    aside.mkdir(parents=True, exist_ok=True)
    with owned(aside, "evaluate", f"--output {folder}", "name another --output") as owner:
        for left in aside.iterdir():  # by a run that was killed
            if left.is_dir():
                shutil.rmtree(left)
            elif not is_owner_file(left):
                left.unlink()
        try:
            yield aside
            owner.move_to(folder)
        except BaseException:
            owner.remove_folder()
            raise
