"""One record of a file, and where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from megatron_ultralong.data.read.compression import DamagedError


class Record(NamedTuple):
    """One record of a file, or what is wrong with it."""

    place: str
    """``FILE`` or ``FILE:LINE``, for messages."""

    position: int
    """Bytes (as they lie on disk) read so far, of what was asked for."""

    fields: Mapping[str, Any]
    """Values by key."""

    error: str = ""
    """What is wrong; the fields are empty then."""

    is_text_file: bool = False
    """The record is a whole text file, which has no key but that of its text."""

    counted_from: int = 0
    """Byte of the file where the counting of lines began, see :func:`absolute_place`."""

    is_too_long: bool = False
    """The error is that the record is longer than the caller lets it be."""

    num_records: int = 1
    """Records that the error stands for: those behind it in a row group may be lost with it."""

    is_rest_lost: bool = False
    """What stands behind it in the file cannot be read either, and nobody knows how much it is."""

    keys: tuple[str, ...] = ()
    """Keys that the record has in its file, where its fields are fewer."""


def unreadable(place: Path | str, error: Exception, num_records: int = 1) -> Record:
    """What stands for the records from here on, that a library cannot read."""
    reason = f"cannot be read ({error})"
    if not isinstance(error, DamagedError):
        reason += "; is the file cut short?"
    return Record(str(place), 0, {}, reason, num_records=num_records, is_rest_lost=True)


def absolute_place(record: Record) -> str:
    """``FILE:LINE`` counted from the file's start; reads what stands before the part, for messages.

    The lines before a part are only counted when there is something to say about one in it.
    """
    if not record.counted_from:
        return record.place
    path, _, number = record.place.rpartition(":")
    lines, left = int(number), record.counted_from
    with open(path, "rb") as file:
        while left and (block := file.read(min(left, 1 << 20))):
            lines += block.count(b"\n")
            left -= len(block)
    return f"{path}:{lines}"
