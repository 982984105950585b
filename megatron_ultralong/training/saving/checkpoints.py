"""Checkpoints in the folder of a run: where to begin to look, and whether one is whole.

It needs no torch.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from megatron_ultralong.checkpoint.disk import checksums
from megatron_ultralong.checkpoint.disk import folder as folders
from megatron_ultralong.program import ranks

_log = logging.getLogger(__name__)


def candidates(root: Path, *, is_quiet: bool = False) -> list[int]:
    """Iterations to look at: the latest by its name, those before it, then those after it.

    A ``latest_checkpointed_iteration.txt`` that is damaged is warned of, unless ``is_quiet``.
    """
    numbers = {number for number in folders.iteration_folders(root) if number}
    latest = root / folders.LATEST_FILE
    named = 0
    if latest.is_file():
        text = latest.read_bytes().decode("ascii", "replace").strip()
        named = int(text) if text.isdecimal() else 0
        if not named and ranks.is_main_rank() and not is_quiet:
            _log.warning(
                "WARNING: %s is damaged: it holds %r, no iteration; the newest checkpoint is taken",
                *(latest, text[:20]),
            )
    numbers |= {named} - {0}
    return sorted(numbers, key=lambda number: (0 < named < number, -number))


def damage(
    folder: Path,
    rank: int = 0,
    world_size: int = 1,
    num_threads: int = 1,
    advance: Callable[[int], None] | None = None,
) -> tuple[str, bool] | None:
    """What is wrong with this rank's share of a checkpoint's files, and whether that is known.

    ``advance`` is told the bytes that were read.
    """
    try:
        listed = checksums.read_checksums(folder)
        checksums.check_files(
            folder,
            listed,
            rank=rank,
            world_size=world_size,
            num_threads=num_threads,
            advance=advance,
        )
    except checksums.DamagedError as error:
        return str(error), not isinstance(error, checksums.UnreadableError)
    return None
