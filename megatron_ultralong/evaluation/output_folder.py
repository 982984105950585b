"""An output folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from megatron_ultralong.errors import InputError

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
        InputError: as :func:`check_output_folder` does.
    """
    folder = Path(os.path.abspath(folder))
    check_output_folder(folder)
    aside = folder.with_name(f".{folder.name}{SUFFIX}")
    if aside.exists():  # left by a run that was killed
        shutil.rmtree(aside)
    aside.mkdir(parents=True)
    try:
        yield aside
        os.replace(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
