"""What version control leaves instead of a large file until that is fetched."""

from pathlib import Path
from typing import NamedTuple

from megatron_ultralong.program.errors import InputError


class Pointer(NamedTuple):
    """A program's own."""

    magic: bytes
    """First bytes."""
    name: str
    """What it is: ``a pointer of Git LFS, not the file itself``."""
    way_out: str
    """What to do: ``fetch it: git lfs pull``."""


POINTERS = tuple(
    Pointer(magic, f"a pointer of {program}, not the file itself", f"fetch it: {command}")
    for magic, program, command in (
        (b"version https://git-lfs.github.com/spec/", "Git LFS", "git lfs pull"),
        (b"version https://hawser.github.com/spec/", "Git LFS", "git lfs pull"),
        (b"# xet version", "Xet", "git xet checkout"),
        (b"/annex/objects/", "git-annex", "git annex get"),
    )
)
_MOST_BYTES = 1024
"""Of a pointer."""


def pointer_of(data: bytes) -> Pointer | None:
    """Whose pointer the bytes of a file are; None: of nobody's."""
    if len(data) > _MOST_BYTES:
        return None
    return next((one for one in POINTERS if data.startswith(one.magic)), None)


def check_no_pointer(path: Path) -> None:
    """Raise InputError where a file is a pointer."""
    if path.stat().st_size <= _MOST_BYTES and (pointer := pointer_of(path.read_bytes())):
        raise InputError(f"{path} is {pointer.name}: {pointer.way_out}")
