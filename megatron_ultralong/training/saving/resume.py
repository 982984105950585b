"""The checkpoint that a run goes on from: the newest that is as it was written."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from megatron_ultralong.checkpoint.disk.checksums import DamagedError, check_files, read_checksums
from megatron_ultralong.checkpoint.disk.folder import (
    LATEST_FILE,
    iteration_folder,
    iteration_folders,
)
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.rank_values import every_rank
from megatron_ultralong.program.ranks import is_main_rank

_log = logging.getLogger(__name__)


class Resumed(NamedTuple):
    """Where a run goes on."""

    folder: Path | None
    """None: at its beginning."""
    damaged: frozenset[int]
    """Iterations whose checkpoints were refused."""


def newest_good(root: Path, rank: int, world_size: int) -> Resumed:
    """Find the newest checkpoint in ``root`` that is whole.

    ``latest_checkpointed_iteration.txt`` says where to begin: a run may have been set back. Every
    rank calls it and reads its share of the files.

    Raises:
        InputError: there are checkpoints, and all of them are damaged.
    """
    candidates = _candidates(root)
    damaged: dict[int, str] = {}
    for iteration in candidates:
        found = every_rank(_damage(iteration_folder(root, iteration), rank, world_size))
        error = next((text for text in found if text), None)
        if error is None:
            return Resumed(iteration_folder(root, iteration), frozenset(damaged))
        damaged[iteration] = error
        if is_main_rank():
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
    return Resumed(None, frozenset())


def _candidates(root: Path) -> list[int]:
    """Iterations to look at: the latest by its name, those before it, then those after it."""
    numbers = {number for number in iteration_folders(root) if number}
    latest = root / LATEST_FILE
    named = 0
    if latest.is_file():
        text = latest.read_bytes().decode("ascii", "replace").strip()
        named = int(text) if text.isdecimal() else 0
        if not named and is_main_rank():
            _log.warning(
                "WARNING: %s is damaged: it holds %r, no iteration; the newest checkpoint is taken",
                *(latest, text[:20]),
            )
    if not named:
        return sorted(numbers, reverse=True)
    upto = {number for number in numbers if number <= named} | {named}
    return sorted(upto, reverse=True) + sorted(numbers - upto, reverse=True)


def _damage(folder: Path, rank: int, world_size: int) -> str | None:
    """What is wrong with this rank's share of a checkpoint's files."""
    try:
        checksums = read_checksums(folder)
        check_files(folder, checksums, rank=rank, world_size=world_size)
    except DamagedError as error:
        return str(error)
    return None
