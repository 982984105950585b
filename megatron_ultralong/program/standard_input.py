"""Standard input, read once and kept: for this process, and for the ranks that it starts."""

import os
import subprocess
import sys

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.ranks import is_launched, world_size

_kept: list[int] = []
"""A file in memory with its bytes, once they are read."""


def standard_input(what: str, most: int) -> bytes:
    """All bytes of standard input, as often as it is asked for; ``what`` names it in messages.

    Raises:
        InputError: it is closed, has more than ``most`` bytes, or is shared by ranks that
            something else has started.
    """
    if is_launched():
        return os.pread(0, most, 0)
    if not _kept:
        if world_size() > 1 and "RANK" in os.environ:
            raise InputError(
                f"{what}: ranks of torchrun share one standard input: write it to a file, or start "
                "the ranks of one machine with --ranks"
            )
        try:
            data = b"" if sys.stdin is None else sys.stdin.buffer.read(most + 1)
        except OSError as error:
            raise InputError(f"{what} cannot be read ({error})") from error
        if not data:
            raise InputError(f"{what} is empty: pipe a text into it, or name a file")
        if len(data) > most:
            raise InputError(f"{what} has more than {most:,} bytes, the most that is read of it")
        file = os.memfd_create("standard input")
        with open(file, "wb", closefd=False) as kept:
            kept.write(data)
        _kept.append(file)
    return os.pread(_kept[0], most, 0)


def input_of_ranks() -> int:
    """What ranks get as standard input: what was kept of it, else nothing."""
    return _kept[0] if _kept else subprocess.DEVNULL
